from __future__ import annotations

import pytest

from harness.cloud.security import Rule, from_api, missing, to_api, wanted

ALL = "0.0.0.0/0"


def test_what_an_appliance_needs() -> None:
    assert [str(r) for r in wanted(["22/tcp", "2223/udp", "30000-40000/udp"], "10.0.0.0/8")] == [
        "icmp from 10.0.0.0/8", "tcp 22 from 10.0.0.0/8", "udp 2223 from 10.0.0.0/8",
        "udp 30000-40000 from 10.0.0.0/8"]


def test_ssh_is_always_among_it() -> None:
    assert Rule("tcp", 22, 22, ALL) in wanted([], ALL)


@pytest.mark.parametrize(("rule", "covers"), [
    (Rule("tcp", 22, 22, ALL), True),
    (Rule("tcp", 1, 65535, "10.0.0.0/8"), True),
    (Rule("tcp", None, None, "10.0.0.0/8"), True),
    (Rule("any", None, None, ALL), True),
    (Rule("tcp", 22, 22, "10.1.0.0/16"), False),
    (Rule("udp", 22, 22, ALL), False),
    (Rule("tcp", 23, 80, ALL), False),
    (Rule("tcp", 22, 22, "::/0"), False),
])
def test_a_rule_covers_what_is_within_it(rule: Rule, covers: bool) -> None:
    assert rule.covers(Rule("tcp", 22, 22, "10.0.0.0/8")) is covers


def test_only_what_is_missing_is_added() -> None:
    rules = wanted(["5060/udp"], "10.0.0.0/8")
    assert missing(rules, [Rule("tcp", 22, 22, ALL)]) == [r for r in rules if r.protocol != "tcp"]
    assert missing(rules, [Rule("any", None, None, ALL)]) == []


def test_the_api_and_back() -> None:
    rule = Rule("udp", 30000, 40000, "10.0.0.0/8")
    assert from_api(to_api(rule, "group", "why")) == rule
    assert to_api(Rule("icmp", None, None, "2001:db8::/32"), "g", "")["protocol"] == "ipv6-icmp"


@pytest.mark.parametrize(("entry", "rule"), [
    ({"direction": "egress", "ethertype": "IPv4"}, None),
    ({"direction": "ingress", "ethertype": "IPv4", "remote_group_id": "other"}, None),
    ({"direction": "ingress", "ethertype": "IPv4", "protocol": None}, Rule("any", None, None, ALL)),
    ({"direction": "ingress", "ethertype": "IPv6", "protocol": "tcp", "port_range_min": 22, "port_range_max": 22},
     Rule("tcp", 22, 22, "::/0")),
])
def test_rules_as_the_api_has_them(entry: dict[str, str], rule: Rule | None) -> None:
    assert from_api(entry) == rule
