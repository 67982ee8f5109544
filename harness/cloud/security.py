"""Security group rules: which an appliance needs, and which of them a group lacks. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

SSH = "22/tcp"


@dataclass(frozen=True)
class Rule:
    """Lets IPv4 or IPv6 in. `protocol` is tcp, udp or icmp; ports are inclusive, None for icmp; `prefix` is CIDR."""

    protocol: str
    first: int | None
    last: int | None
    prefix: str

    def __str__(self) -> str:
        ports = "" if self.first is None else f"{self.first}" + (f"-{self.last}" if self.last != self.first else "")
        return f"{self.protocol}{' ' + ports if ports else ''} from {self.prefix}"

    @property
    def family(self) -> str:
        return f"IPv{ipaddress.ip_network(self.prefix).version}"

    def covers(self, other: Rule) -> bool:
        """Whether whatever `other` lets in is let in by this rule."""
        mine, theirs = ipaddress.ip_network(self.prefix), ipaddress.ip_network(other.prefix)
        if self.protocol not in ("any", other.protocol) or mine.version != theirs.version:
            return False
        if not theirs.subnet_of(mine):  # type: ignore[arg-type]
            return False
        if self.first is None or self.last is None:
            return True
        return other.first is not None and other.last is not None and \
            self.first <= other.first and other.last <= self.last


def wanted(ports: Iterable[str], prefix: str) -> list[Rule]:
    """SSH, ping, and the `ports` of an appliance (as `30000-40000/udp`), all from `prefix` and no wider."""
    rules = [Rule("icmp", None, None, prefix)]
    for port in dict.fromkeys((SSH, *ports)):
        span, protocol = port.split("/")
        first, _, last = span.partition("-")
        rules.append(Rule(protocol, int(first), int(last or first), prefix))
    return rules


def missing(rules: Sequence[Rule], existing: Iterable[Rule]) -> list[Rule]:
    """Those of `rules` that none of `existing` covers."""
    there = list(existing)
    return [rule for rule in rules if not any(e.covers(rule) for e in there)]


def from_api(entry: Mapping[str, Any]) -> Rule | None:
    """A rule as Neutron's API gives it (security-group-rules); None for one that lets nobody in by an address.

    A rule for members of another group covers no prefix.
    """
    if entry["direction"] != "ingress" or entry.get("remote_group_id"):
        return None
    prefix = entry.get("remote_ip_prefix") or ("0.0.0.0/0" if entry["ethertype"] == "IPv4" else "::/0")
    return Rule(entry.get("protocol") or "any", entry.get("port_range_min"), entry.get("port_range_max"), prefix)


def to_api(rule: Rule, group: str, description: str) -> dict[str, Any]:
    """The rule as Neutron's API takes it."""
    return {"security_group_id": group, "direction": "ingress", "ethertype": rule.family,
            "protocol": "ipv6-icmp" if rule.protocol == "icmp" and rule.family == "IPv6" else rule.protocol,
            "port_range_min": rule.first, "port_range_max": rule.last, "remote_ip_prefix": rule.prefix,
            "description": description}
