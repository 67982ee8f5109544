"""Which router leads to a server's subnet, and in which namespace of which host that is. Pure but for what is given.

Neutron's L3 agent makes `qrouter-<router>` (with DVR on every compute node, with high availability on several hosts,
of which one is active and has the gateway's address), and `snat-<router>` for DVR's central part; the DHCP agent
`qdhcp-<network>`; OVN's metadata agent `ovnmeta-<network>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

INTERFACES = ("network:router_interface", "network:ha_router_replicated_interface",
              "network:router_interface_distributed")
"""Owners of a router's ports in a subnet (Neutron's device_owner)."""


@dataclass(frozen=True)
class Interface:
    """A router's port in the subnet."""

    router: str
    address: str
    external: bool
    """Whether the router has a gateway to an external network."""


@dataclass(frozen=True)
class Place:
    """A host with network namespaces: all their names, and addresses by namespace for those that were looked into."""

    host: str
    namespaces: frozenset[str]
    addresses: Mapping[str, Sequence[str]]


def choose(interfaces: Sequence[Interface], gateway: str) -> Interface | None:
    """The router that is the subnet's default gateway, else one with a way out, else any; None where there is none."""
    ranked = sorted(interfaces, key=lambda i: (i.address != gateway, not i.external, i.router))
    return ranked[0] if ranked else None


def candidates(router: Interface | None, network: str) -> list[str]:
    """Namespaces from which the subnet is reached, the best first."""
    of_router = [f"qrouter-{router.router}", f"snat-{router.router}"] if router else []
    return [*of_router, f"qdhcp-{network}", f"ovnmeta-{network}"]


def locate(places: Sequence[Place], router: Interface | None, network: str, *,
           patient: bool = False) -> tuple[int, str] | str:
    """Which of `places` (by number) and which namespace there; or, in a sentence, why none will do.

    Of several hosts with the router's namespace the active one is taken: the one whose namespace has the address.
    While `patient`, DHCP's namespace does not stand in for the router's: the DHCP agent is often the faster one.
    """
    standby: list[str] = []
    for name in candidates(router, network):
        if patient and router and name.startswith("qdhcp-"):
            continue
        for number, place in enumerate(places):
            if name not in place.namespaces:
                continue
            if router and name.startswith("qrouter-") and router.address not in place.addresses.get(name, ()):
                standby.append(place.host)
                continue
            return number, name
    hosts = ", ".join(p.host for p in places) or "no host"
    if standby and router:
        return f"the router {router.router} is on standby on {', '.join(standby)}: its active host is none of {hosts}"
    return f"none of {', '.join(candidates(router, network))} is on {hosts}"
