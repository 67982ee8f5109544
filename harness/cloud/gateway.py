"""Hosts between this one and a server: how ssh gets there, and which network namespaces are on them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Sequence

from harness.cloud import Gateway
from harness.cloud.router import Place
from harness.deadline import Deadline
from harness.errors import CloudError
from harness.process import run as run_command

_LISTED = re.compile(r"^([\w-]+)")
_ADDRESS = re.compile(r"\binet ([\d.]+)/")


def options(gateway: Gateway) -> dict[str, str]:
    """ssh's options to reach a gateway (ssh_config(5)); its host key must be known."""
    found = {"HostName": gateway.host, "Port": str(gateway.port), "StrictHostKeyChecking": "yes", "BatchMode": "yes",
             "ConnectTimeout": "10", "ServerAliveInterval": "5", "ServerAliveCountMax": "6", "LogLevel": "ERROR"}
    if gateway.user:
        found["User"] = gateway.user
    if gateway.identity_file:
        found |= {"IdentityFile": quoted(gateway.identity_file), "IdentitiesOnly": "yes", "IdentityAgent": "none"}
    if gateway.known_hosts:
        found |= {"UserKnownHostsFile": quoted(gateway.known_hosts), "GlobalKnownHostsFile": "/dev/null",
                  "UpdateHostKeys": "no"}
    return found


def quoted(file: str) -> str:
    """A file's name as a value in ssh_config(5), where a percent sign begins a token."""
    return f'"{file}"'.replace("%", "%%")


def as_root(gateway: Gateway | None, argv: Sequence[str]) -> list[str]:
    """`argv` as root there: by sudo, unless one is root anyway."""
    root = os.geteuid() == 0 if gateway is None else gateway.user == "root"
    return list(argv) if root else ["sudo", "-n", *argv]


def run(gateway: Gateway | None, argv: Sequence[str], deadline: Deadline) -> str:
    """What `argv` prints, run as root on the gateway, or on this host. Raises CloudError where it can't be run."""
    command = as_root(gateway, argv)
    if gateway:
        given = [word for key, value in options(gateway).items() for word in ("-o", f"{key}={value}")]
        command = ["ssh", "-F", "/dev/null", *given, "--", gateway.host, " ".join(command)]
    done = run_command(command, check=False, deadline=deadline)
    if done.returncode != 0:
        where = f"the network node {gateway.host}" if gateway else "this host"
        raise CloudError(f"on {where} `{' '.join(argv)}` ended with exit code {done.returncode}",
                         excerpt=done.stdout.strip() or None,
                         hint="network_nodes in clouds.yaml; docs/openstack.md says what is needed there")
    return done.stdout


def look(gateway: Gateway | None, wanted: Sequence[str], deadline: Deadline) -> Place:
    """The network namespaces of a host, and the IPv4 addresses in those that are `wanted`. Raises CloudError."""
    listed = run(gateway, ["ip", "netns", "list"], deadline)
    names = frozenset(m[1] for m in map(_LISTED.match, listed.splitlines()) if m)
    addresses = {name: _ADDRESS.findall(run(gateway, ["ip", "netns", "exec", name, "ip", "-4", "address"], deadline))
                 for name in wanted if name in names}
    return Place(gateway.host if gateway else socket.gethostname(), names, addresses)
