"""What turns the checks of a running server red, and back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.levels import Level
from harness.resources import processes_with
from tests.real_server import Booted

CONFIGURATION = "/etc/rtpengine/rtpengine.conf"
MEDIA = "udp --dport 30000:40000"
"""For iptables: what comes to the relay's ports."""


@dataclass(frozen=True)
class Control:
    """`broken` turns the checks `red` red on a running server, others that are selected with them stay `green`;
    `mended` takes it back."""

    name: str
    broken: str
    mended: str
    red: str
    green: str = ""


def rule(red: str, name: str, words: str) -> Control:
    """A rule of the server's own firewall, before all others."""
    return Control(name, f"iptables -w -I INPUT {words}", f"iptables -w -D INPUT {words}", red)


def configured(red: str, name: str, script: str, then: str = "", before_mending: str = "",
               green: str = "") -> Control:
    """The daemon started anew after `script` changed its configuration."""
    return Control(name, f"cp {CONFIGURATION} /run/conf; {script}; systemctl restart rtpengine; {then}",
                   f"{before_mending}; cat /run/conf >{CONFIGURATION}; rm -f /etc/rtpengine/advertised-address; "
                   "systemctl restart rtpengine".lstrip("; "), red, green)


def proxied(red: str, name: str, statements: str, green: str = "") -> Control:
    """A program of ours on the relay's control port, before the relay. For every `request` it carries out `statements`
    of Python, which may change it, or set `answer` so that the relay does not hear of it."""
    program = f"""\
import socket
outside, relay = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in "12")
outside.bind(("0.0.0.0", 2223))
relay.connect(("127.0.0.1", 2222))
while True:
    request, sender = outside.recvfrom(65535)
    answer = b""
    {statements}
    if not answer:
        relay.send(request)
        answer = relay.recv(65535)
    outside.sendto(answer, sender)
"""
    started = f"cat >/run/proxy <<'END'\n{program}END\nsystemd-run --quiet --unit=proxy python3 /run/proxy"
    return configured(red, name, f"sed -i 's/^listen-ng.*/listen-ng = 127.0.0.1:2222/' {CONFIGURATION}", started,
                      "systemctl stop proxy", green)


DELETES_NOTHING = """if b"7:command6:delete" in request: answer = request.split(b" ")[0] + b" d6:result2:oke" """


@contextmanager
def ruled(server: Booted, rules: str, table: str) -> Iterator[None]:
    """With a table of nftables in the router's namespace, which is gone with the run in any case."""
    inside = ["ip", "netns", "exec", server.server.routes[0].namespace, "nft"]
    subprocess.run([*inside, "-f", "-"], input=rules, text=True, check=True)
    try:
        yield
    finally:
        subprocess.run([*inside, "delete", "table", *table.split()], check=True)


def outcomes(server: Booted, *selection: str, level: Level = Level.ACCEPTANCE) -> dict[str, str]:
    return {result.id.rsplit("::", 1)[-1]: result.outcome for result in server.results(*selection, level=level)}


def process_of_checks(server: Booted) -> int:
    """The pytest that checks this server now."""
    # The first: what it has just started has its command line for a moment.
    return min(processes_with(os.fspath(server.work.run.directory / "checks-first-boot.context.json")))


@contextmanager
def broken(server: Booted, control: Control) -> Iterator[None]:
    try:
        server.root(control.broken)
        yield
    finally:
        server.root(control.mended)


def assert_turned(server: Booted, control: Control, level: Level = Level.ACCEPTANCE) -> None:
    """`control` turns red what it says, and nothing else of what it names."""
    red, green = control.red.split(), control.green.split()
    with broken(server, control):
        seen = outcomes(server, "-k", " or ".join([*red, *green]), level=level)
    assert seen == {**dict.fromkeys(red, "failed"), **dict.fromkeys(green, "passed")}
