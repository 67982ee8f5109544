"""The network of a run on this machine, in the shape that Neutron gives it.

    namespace qrouter-<uuid>     the router
      qr-<uuid[:11]>             bridge with the gateway's address; the servers' taps are its ports
      qg-<uuid[:11]>             external side, holds the floating addresses
    dt-<uuid[:11]>               the other end of qg, in the host's own namespace, with a route to each floating address

Nothing else of the host changes: what lies in the namespace goes with it, and address and routes go with dt-….
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from pathlib import Path
from typing import Any

from harness.cloud.ownership import Mark
from harness.cloud.routes import overlapping, routes
from harness.deadline import Deadline
from harness.errors import DescriptionError, HostError
from harness.process import CommandFailed, run
from harness.resources import Resource
from harness.run import Journal

SUBNET = IPv4Network("10.64.0.0/24")
GATEWAY = SUBNET[1]
SUBNET6 = IPv6Network("fdd1:a170:e::/64")
"""Unique local addresses (RFC 4193) beside those; no floating address leads to them."""
GATEWAY6 = SUBNET6[1]
LINK_LOCAL = "fe80::1"
"""The router's: what neighbours ask whether it is still there comes from such an address, and so goes the answer."""
HOST_LINK = "dt-"
CAPACITY = 200
"""Servers that one private network holds."""

_FIRST = 10
_IDENTITY = uuid.UUID("5b1f8c1e-3a0d-4a70-9d0c-2f6f3c5f5d11")


@dataclass(frozen=True)
class Port:
    """A server's place in the network: `number` from 0; `ports` like 22/tcp or 30000-40000/udp are let in."""

    number: int
    floating_ip: IPv4Address
    ports: Sequence[str] = ()

    @property
    def internal_ip(self) -> IPv4Address:
        return SUBNET[_FIRST + self.number]

    @property
    def internal_ipv6(self) -> IPv6Address:
        return SUBNET6[_FIRST + self.number]


@dataclass(frozen=True)
class Network:
    """A run's router and private network; `mark` says whose it is, `external` is where floating addresses come from."""

    mark: Mark
    external: IPv4Network

    @property
    def router(self) -> str:
        """The router's uuid. Version 5, made from the mark, where Neutron's own are version 4."""
        return str(uuid.uuid5(_IDENTITY, str(self.mark)))

    @property
    def namespace(self) -> str:
        return f"qrouter-{self.router}"

    @property
    def bridge(self) -> str:
        return f"qr-{self.router[:11]}"

    @property
    def external_link(self) -> str:
        return f"qg-{self.router[:11]}"

    @property
    def host_link(self) -> str:
        return f"{HOST_LINK}{self.router[:11]}"

    @property
    def host_address(self) -> IPv4Address:
        """The host's address on every dt-… link, and the servers' only neighbour outside."""
        return self.external[1]

    def tap(self, port: Port) -> str:
        return f"tap{port.number}"

    def mac(self, number: int) -> str:
        """fa:16:3e is OpenStack's prefix; the last byte is the server's."""
        return f"fa:16:3e:{self.router[0:2]}:{self.router[2:4]}:{_FIRST + number:02x}"


def external_network(cidr: str) -> IPv4Network:
    """The network of floating addresses. Raises DescriptionError where `cidr` is none or too small."""
    try:
        network = ip_network(cidr)
    except ValueError as error:
        raise DescriptionError(f"floating_cidr is {cidr!r}: {error}", hint="it can be like 198.18.0.0/16") from error
    if not isinstance(network, IPv4Network) or network.prefixlen > 29:
        raise DescriptionError(f"floating_cidr is {cidr!r}", hint="it can be an IPv4 network of 8 addresses or more")
    return network


def has_ipv6() -> bool:
    """Whether this host's kernel speaks it; where it does not, servers have no IPv6 address."""
    return Path("/proc/net/if_inet6").exists()


def create(network: Network, journal: Journal, deadline: Deadline, *, egress: bool = False) -> None:
    """Make the router, its private network and the link to the host. Raises HostError."""
    conflict = next(conflicts(network.external, routes()), None)
    if conflict:
        raise HostError(f"the floating addresses {network.external} overlap with what this host has: {conflict}",
                        hint="set floating_cidr to a network that is free here, like 198.19.0.0/16")
    journal.creating(Resource("namespace", network.namespace))
    run(["ip", "netns", "add", network.namespace], deadline=deadline)
    journal.creating(Resource("link", network.host_link))
    _batch(deadline,
           f"link add {network.host_link} type veth peer name {network.external_link} netns {network.namespace}",
           f"link set {network.host_link} alias {network.mark} addrgenmode none",
           f"address add {network.host_address}/32 dev {network.host_link}",
           f"link set {network.host_link} up")
    _batch(deadline,
           "link set lo up",
           f"link add {network.bridge} type bridge forward_delay 0",
           f"link set {network.bridge} alias {network.mark} addrgenmode none",
           f"address add {GATEWAY}/{SUBNET.prefixlen} dev {network.bridge}",
           *([f"address add {address}/64 dev {network.bridge} nodad" for address in (LINK_LOCAL, GATEWAY6)]
             if has_ipv6() else []),
           f"link set {network.bridge} up",
           f"link set {network.external_link} addrgenmode none",
           f"link set {network.external_link} up",
           f"route add {network.host_address}/32 dev {network.external_link}",
           namespace=network.namespace)
    inside(network, ["sysctl", "-q", "-w", "net.ipv4.ip_forward=1"], deadline)
    apply_rules(network, [], deadline, egress=egress)


def plug(network: Network, ports: Sequence[Port], deadline: Deadline, *, egress: bool = False) -> None:
    """Give the last of `ports` its tap and its floating address, and let in what it asks for."""
    port = ports[-1]
    _batch(deadline,
           f"tuntap add dev {network.tap(port)} mode tap",
           f"link set {network.tap(port)} master {network.bridge} addrgenmode none",
           f"link set {network.tap(port)} up",
           f"address add {port.floating_ip}/32 dev {network.external_link}",
           namespace=network.namespace)
    apply_rules(network, ports, deadline, egress=egress)


def inside(network: Network, argv: Sequence[str], deadline: Deadline, stdin: str | None = None) -> None:
    """Run a command in the router's namespace."""
    run(["ip", "netns", "exec", network.namespace, *argv], deadline=deadline, stdin=stdin)


def _batch(deadline: Deadline, *lines: str, namespace: str = "") -> None:
    where = ["-netns", namespace] if namespace else []
    run(["ip", *where, "-batch", "-"], stdin="\n".join(lines) + "\n", deadline=deadline)


def conflicts(external: IPv4Network, known: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What of the host's routes (`ip -json route`), local addresses included, overlaps and is not Dialtone's own."""
    return overlapping([r for r in known if not str(r.get("dev", "")).startswith(HOST_LINK)], external)


def candidates(external: IPv4Network, taken: set[IPv4Address], start: int) -> Iterator[IPv4Address]:
    """Free floating addresses, from the one at `start` on and round; neither the host's own nor one
    that looks like a network's or a broadcast address."""
    count = external.num_addresses - 3
    for step in range(count):
        address = external[2 + (start + step) % count]
        if address not in taken and address.packed[3] not in {0, 255}:
            yield address


def allocate_floating_ip(network: Network, start: int) -> IPv4Address:
    """Take a floating address by making the host's route to it.

    The kernel refuses a second route to the same address, so of any number of runs, also in other containers on this
    kernel, one gets it; the others go on to the next. Raises HostError where none is free.
    """
    taken = {IPv4Address(r["dst"]) for r in routes() if re.fullmatch(r"[\d.]+", r.get("dst", ""))}
    for address in candidates(network.external, taken, start):
        try:
            run(["ip", "route", "add", f"{address}/32", "dev", network.host_link, "src", str(network.host_address)])
        except CommandFailed as error:
            if "File exists" not in error.output:
                raise
        else:
            return address
    raise HostError(f"no floating address is free in {network.external}",
                    hint="./inv reap removes what dead runs left; or set floating_cidr to a larger network")


def apply_rules(network: Network, ports: Sequence[Port], deadline: Deadline, *, egress: bool) -> None:
    """Replace the router's packet filter and address translation as a whole (nft -f is one transaction)."""
    inside(network, ["nft", "-f", "-"], deadline, stdin=ruleset(network, ports, egress=egress))


EGRESS_LINK = "egress0"


def ruleset(network: Network, ports: Sequence[Port], *, egress: bool) -> str:
    """The router's nftables rules.

    As with a security group, a server is reached at the ports that it asked for, at 22/tcp and by ping, from outside
    and from the namespace alike. Servers reach each other; without `egress` nothing else but the router's DHCP and
    the endpoints of media in its namespace, which hear from a relay before they have sent to it.
    """
    let_in = []
    for port in ports:
        let_in += [f"ip daddr {port.internal_ip} icmp type echo-request accept",
                   f"ip6 daddr {port.internal_ipv6} icmpv6 type echo-request accept"]
        for spec in dict.fromkeys(("22/tcp", *port.ports)):
            numbers, _, protocol = spec.partition("/")
            let_in += [f"{to} {protocol} dport {numbers} accept"
                       for to in (f"ip daddr {port.internal_ip}", f"ip6 daddr {port.internal_ipv6}")]
    dnat = [f"iifname {network.external_link} ip daddr {p.floating_ip} dnat ip to {p.internal_ip}" for p in ports]
    out = f'iifname "{network.bridge}" oifname "{EGRESS_LINK}" accept' if egress else ""
    masquerade = f'oifname "{EGRESS_LINK}" masquerade' if egress else ""
    return f"""
table inet dialtone
delete table inet dialtone
table inet dialtone {{
  chain servers {{
    {_lines(let_in)}
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    ct state established,related accept
    iifname "{network.bridge}" udp dport 67 accept
    iifname "{network.bridge}" udp dport 1024-65535 accept
    iifname "{network.bridge}" icmp type echo-request accept
    iifname "{network.bridge}" icmpv6 type {{ echo-request, nd-neighbor-solicit, nd-neighbor-advert }} accept
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state established,related accept
    iifname "{network.bridge}" oifname "{network.bridge}" accept
    iifname "{network.external_link}" ct status dnat jump servers
    {out}
  }}
  chain output {{
    type filter hook output priority filter; policy accept;
    ct state established,related accept
    oifname "{network.bridge}" udp sport 67 accept
    oifname "{network.bridge}" icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    oifname "{network.bridge}" jump servers
    oifname "{network.bridge}" reject with icmpx admin-prohibited
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    {_lines(dnat)}
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    {masquerade}
  }}
}}
"""


def _lines(rules: Sequence[str]) -> str:
    return "\n    ".join(rules)
