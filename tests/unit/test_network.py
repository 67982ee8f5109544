"""The plan of a run's network; that packets follow it is for the integration tests."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cloud import dhcp
from harness.cloud.network import (
    CAPACITY,
    GATEWAY,
    GATEWAY6,
    SUBNET,
    SUBNET6,
    Network,
    Port,
    candidates,
    conflicts,
    external_network,
    ruleset,
)
from harness.cloud.ownership import Mark, find
from harness.errors import DescriptionError

EXTERNAL = IPv4Network("198.18.0.0/16")
NETWORK = Network(Mark("0123456789ab", "20261125-010203-rtpengine-00ff"), EXTERNAL)


def test_names_are_neutron_s_and_fit_the_kernel() -> None:
    assert NETWORK.namespace == f"qrouter-{NETWORK.router}"
    for name in (NETWORK.bridge, NETWORK.external_link, NETWORK.host_link, NETWORK.tap(Port(CAPACITY - 1, GATEWAY))):
        assert len(name) <= 15


def test_another_run_and_another_checkout_have_another_router() -> None:
    marks = [NETWORK.mark, Mark(NETWORK.mark.owner, "20261125-010203-rtpengine-00fe"),
             Mark("ba9876543210", NETWORK.mark.run_id)]
    assert len({Network(mark, EXTERNAL).router for mark in marks}) == 3


def test_every_server_has_its_own_addresses() -> None:
    assert len({NETWORK.mac(n) for n in range(CAPACITY)}) == CAPACITY
    internal = {Port(n, GATEWAY).internal_ip for n in range(CAPACITY)}
    assert len(internal) == CAPACITY
    assert all(a in SUBNET and a not in {GATEWAY, SUBNET.broadcast_address} for a in internal)
    version6 = {Port(n, GATEWAY).internal_ipv6 for n in range(CAPACITY)}
    assert len(version6) == CAPACITY and all(a in SUBNET6 and a != GATEWAY6 for a in version6)


def test_mark_is_found_again_and_no_other_text() -> None:
    assert find(f"qemu -name {NETWORK.mark}server1:") == NETWORK.mark
    assert find("dialtone:xyz:run:") is None


def test_no_mark_begins_another() -> None:
    assert not str(Mark("0123456789ab", "run-10")).startswith(str(Mark("0123456789ab", "run-1")))


def test_dhcp_gives_every_mac_its_address() -> None:
    text = dhcp.configuration(NETWORK, Path("/r"))
    assert f"dhcp-host={NETWORK.mac(3)},{Port(3, GATEWAY).internal_ip},infinite" in text
    assert "dns-server" not in text
    assert "option:dns-server,10.0.2.3" in dhcp.configuration(NETWORK, Path("/r"), "10.0.2.3")


@pytest.mark.parametrize("cidr", ["", "nonsense", "198.18.0.1/16", "198.18.0.0/30", "fd00::/64"])
def test_floating_network_that_can_not_be_is_refused(cidr: str) -> None:
    with pytest.raises(DescriptionError, match="floating_cidr"):
        external_network(cidr)


@given(st.integers(0, 1 << 128), st.sets(st.integers(0, 63)))
def test_candidates_are_free_addresses_each_once(start: int, taken: set[int]) -> None:
    external = IPv4Network("198.18.0.64/26")
    used = {external[n] for n in taken}
    offered = list(candidates(external, used, start))
    assert len(offered) == len(set(offered))
    assert not used & set(offered)
    assert not {external[0], external[1], external[-1]} & set(offered)
    assert set(offered) == {external[n] for n in range(2, 63)} - used


def test_no_candidate_looks_like_a_network_or_a_broadcast_address() -> None:
    offered = {str(a) for a in candidates(IPv4Network("198.18.0.0/23"), set(), 0)}
    assert "198.18.0.254" in offered
    assert not {"198.18.0.255", "198.18.1.0"} & offered


OWN = [{"dst": "198.18.4.4", "dev": NETWORK.host_link},
       {"type": "local", "dst": "198.18.0.1", "dev": NETWORK.host_link}]
OTHER = [{"dst": "default", "gateway": "192.0.2.1", "dev": "eth0"}, {"dst": "192.0.2.0/24", "dev": "eth0"}]


def test_own_links_and_other_networks_are_no_conflict() -> None:
    assert not list(conflicts(EXTERNAL, OWN + OTHER))


@pytest.mark.parametrize("destination", ["198.18.7.0/24", "198.18.9.9", "198.0.0.0/8"])
def test_overlap_with_the_host_s_own_network_is_a_conflict(destination: str) -> None:
    assert list(conflicts(EXTERNAL, [*OWN, {"dst": destination, "dev": "eth1"}])) == [f"route {destination} dev eth1"]


def test_rules_let_in_what_the_server_asks_for_and_ssh() -> None:
    port = Port(0, IPv4Address("198.18.4.4"), ("2223/udp", "30000-40000/udp"))
    text = ruleset(NETWORK, [port], egress=False)
    for rule in ("tcp dport 22", "udp dport 2223", "udp dport 30000-40000"):
        assert f"ip daddr {port.internal_ip} {rule} accept" in text
        assert f"ip6 daddr {port.internal_ipv6} {rule} accept" in text
    assert f"ip daddr 198.18.4.4 dnat ip to {port.internal_ip}" in text


def test_servers_may_speak_first_to_endpoints_in_the_namespace_only() -> None:
    text = ruleset(NETWORK, [], egress=False)
    [chain] = re.findall(r"chain input \{(.*?)\}\n", text, re.DOTALL)
    assert f'iifname "{NETWORK.bridge}" udp dport 1024-65535 accept' in chain and text.count("1024-65535") == 1


def test_nothing_goes_out_unless_asked() -> None:
    assert "masquerade" not in ruleset(NETWORK, [], egress=False)
    assert "masquerade" in ruleset(NETWORK, [], egress=True)
