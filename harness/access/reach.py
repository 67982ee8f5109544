"""TCP and UDP to a server by its route: from this host, inside a namespace of it, or through a gateway.

Through a gateway everything goes over the shared SSH connection of the run's ssh_config; nothing is installed there.
Media don't: their endpoints are on the gateway itself.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import shlex
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from harness.access import namespace
from harness.access.ssh_config import gateway_alias
from harness.cloud import Route, RouteKind
from harness.cloud.gateway import as_root
from harness.deadline import Deadline
from harness.errors import HostError
from harness.process import CommandTimedOut, end_group
from harness.process import run as run_command
from harness.resources import Resource
from harness.run import Journal
from harness.voip.endpoint import address_towards
from harness.voip.remote import PROGRAM, Agent

# Runs on the gateway: datagrams to and from one address, each with its length (16 bits) before it.
_PROGRAM = """\
import os, select, socket, struct, sys
peer = (sys.argv[1], int(sys.argv[2]))
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.connect(peer)
rest = b""
while True:
    ready, _, _ = select.select([0, s], [], [])
    if s in ready:
        try:
            data = s.recv(65535)
            os.write(1, struct.pack(">H", len(data)) + data)
        except OSError:
            pass
    if 0 in ready:
        chunk = os.read(0, 65536)
        if not chunk:
            break
        rest += chunk
        while len(rest) >= 2 and len(rest) >= 2 + struct.unpack(">H", rest[:2])[0]:
            n = struct.unpack(">H", rest[:2])[0]
            try:
                s.send(rest[2:2 + n])
            except OSError:
                pass
            rest = rest[2 + n:]
"""


def port_open(config: Path, route: Route, port: int, seconds: float) -> bool:
    """Whether something accepts a TCP connection to `port` within `seconds`; `config` is the run's ssh_config."""
    if route.gateway:
        argv = ["nc", "-z", "-w", str(max(1, round(seconds))), route.address, str(port)]
        try:
            done = run_command(["ssh", "-F", config, gateway_alias(route.gateway), shlex.join(_inside(route, argv))],
                               check=False, deadline=Deadline(30))
        except CommandTimedOut:
            return False
        return done.returncode == 0
    with namespace.open_socket(route.namespace, socket.SOCK_STREAM) as attempt:
        attempt.settimeout(seconds)
        try:
            attempt.connect((route.address, port))
        except OSError:
            return False
        return True


def open_datagrams(config: Path, route: Route, port: int) -> socket.socket | RelayedDatagrams:
    """Datagrams to `port` of the server. Raises HostError where a namespace can't be entered."""
    if route.gateway is None:
        return namespace.open_socket(route.namespace, socket.SOCK_DGRAM)
    argv = _inside(route, ["python3", "-c", _PROGRAM, route.address, str(port)])
    return RelayedDatagrams(["ssh", "-F", os.fspath(config), gateway_alias(route.gateway), shlex.join(argv)])


@contextmanager
def agent(config: Path, route: Route, journal: Journal) -> Iterator[Agent]:
    """An agent for endpoints where `route` leaves its gateway for the server, until the block ends.

    Its process is in `journal` meanwhile. Asking it for anything raises HostError where it can't run.
    """
    assert route.gateway is not None
    token = os.fspath(journal.path.with_name(f"agent-{secrets.token_hex(8)}"))
    argv = _inside(route, ["python3", "-I", "-c", PROGRAM, token])
    process = journal.creating(Resource("process", token))
    try:
        with Agent(["ssh", "-F", os.fspath(config), gateway_alias(route.gateway), shlex.join(argv)],
                   in_words(route)) as started:
            yield started
    finally:
        journal.gone(process)


def in_words(route: Route) -> str:
    """Where a route begins: `this host`, `the network node net1`, `the jump host bastion`."""
    if route.gateway is None:
        return "this host"
    return f"the {'network node' if route.kind is RouteKind.NAMESPACE else 'jump host'} {route.gateway.host}"


def _inside(route: Route, argv: list[str]) -> list[str]:
    if route.kind is not RouteKind.NAMESPACE:
        return argv
    return as_root(route.gateway, ["ip", "netns", "exec", route.namespace, *argv])


class RelayedDatagrams:
    """What is used of a connected UDP socket (socket(7)), by way of a program on the gateway."""

    def __init__(self, argv: list[str]) -> None:
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                         stderr=subprocess.DEVNULL, start_new_session=True)
        self._timeout: float | None = None
        self._rest = b""

    def sendto(self, data: bytes, address: tuple[str, int], /) -> int:
        assert self._process.stdin is not None
        self._process.stdin.write(struct.pack(">H", len(data)) + data)
        self._process.stdin.flush()
        return len(data)

    def recv(self, size: int, /) -> bytes:
        """One datagram. Raises TimeoutError, OSError where the way is lost."""
        assert self._process.stdout is not None
        limit = Deadline(self._timeout) if self._timeout is not None else None
        while len(self._rest) < 2 or len(self._rest) < 2 + self._length():
            ready, _, _ = select.select([self._process.stdout], [], [], limit.remaining if limit else None)
            if not ready:
                raise TimeoutError("no datagram came")
            chunk = os.read(self._process.stdout.fileno(), 65536)
            if not chunk:
                raise ConnectionResetError(104, "the connection to the gateway ended")
            self._rest += chunk
        end = 2 + self._length()
        data, self._rest = self._rest[2:end], self._rest[end:]
        return data[:size]

    def settimeout(self, seconds: float | None, /) -> None:
        self._timeout = seconds

    def close(self) -> None:
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        end_group(self._process)

    def _length(self) -> int:
        return int(struct.unpack(">H", self._rest[:2])[0])


def own_address(route: Route) -> str:
    """The address of this host, or of the router's namespace on it, that `route` begins at. Raises HostError where that
    is elsewhere, or no route leads there."""
    if route.gateway:
        raise HostError(f"the route to {route.address} begins at the gateway {route.gateway.host}, not on this host")
    return address_towards(route.address, partial(namespace.open_socket, route.namespace))
