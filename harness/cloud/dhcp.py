"""DHCP in the router's namespace: every server's address is known before it asks."""

from __future__ import annotations

from pathlib import Path

from harness.cloud.network import CAPACITY, GATEWAY, SUBNET, Network, Port, inside
from harness.deadline import Deadline
from harness.resources import Resource
from harness.run import Journal

PROGRAM = "dnsmasq"


def token(network: Network) -> str:
    """What tells this network's DHCP server from every other process."""
    return f"{network.mark}dhcp:"


def configuration(network: Network, directory: Path, resolver: str = "") -> str:
    """dnsmasq's configuration: one host entry per MAC address, all leases for ever, no DNS.

    `resolver` is the DNS server that servers are told of, none where it is empty.
    """
    hosts = [f"dhcp-host={network.mac(n)},{Port(n, GATEWAY).internal_ip},infinite" for n in range(CAPACITY)]
    return "\n".join([
        "port=0",
        f"interface={network.bridge}",
        "bind-interfaces",
        "dhcp-authoritative",
        "no-ping",
        "dhcp-rapid-commit",
        f"dhcp-range={SUBNET[0]},static,{SUBNET.netmask},infinite",
        f"dhcp-option=option:router,{GATEWAY}",
        *([f"dhcp-option=option:dns-server,{resolver}"] if resolver else []),
        f"dhcp-leasefile={directory / 'dhcp.leases'}",
        f"log-facility={directory / 'dhcp.log'}",
        "log-dhcp",
        *hosts,
        "",
    ])


def start(network: Network, directory: Path, journal: Journal, deadline: Deadline, resolver: str = "") -> None:
    """Start dnsmasq; it goes into the background by itself. Raises CommandMissing, CommandFailed."""
    config = directory / "dhcp.conf"
    config.write_text(configuration(network, directory, resolver), encoding="utf-8")
    journal.creating(Resource("process", token(network)))
    inside(network, [PROGRAM, f"--conf-file={config}", "--pid-file=", f"--tag-if=set:{token(network)}"], deadline)
