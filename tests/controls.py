"""What turns the checks of a running server red, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness.levels import Level
from tests.real_server import Booted

CONFIGURATION = "/etc/rtpengine/rtpengine.conf"


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


def configured(red: str, name: str, script: str, then: str = "", before_mending: str = "") -> Control:
    """The daemon started anew after `script` changed its configuration."""
    return Control(name, f"cp {CONFIGURATION} /run/conf; {script}; systemctl restart rtpengine; {then}",
                   f"{before_mending}; cat /run/conf >{CONFIGURATION}; rm -f /etc/rtpengine/advertised-address; "
                   "systemctl restart rtpengine".lstrip("; "), red)


def outcomes(server: Booted, *selection: str) -> dict[str, str]:
    return {result.id.rsplit("::", 1)[-1]: result.outcome
            for result in server.results(*selection, level=Level.ACCEPTANCE)}


@contextmanager
def broken(server: Booted, control: Control) -> Iterator[None]:
    server.root(control.broken)
    try:
        yield
    finally:
        server.root(control.mended)
