"""SIP proxies, exchangeable: each is a package, a configuration and a command line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Final, Protocol

REFUSED: Final = 503
"""What a call is answered where the media relay is of no help (RFC 3261, 21.5.4)."""
FLAGS: Final = "replace-origin replace-session-connection strict-source ICE=remove"
"""Of every offer and answer, as harness.voip.call has them: nobody but the signalled endpoints gets into a stream."""


@dataclass(frozen=True)
class Wiring:
    """`own` is where the proxy listens (UDP), `callee` where it sends calls to, `relay` the media relay's ng protocol;
    each an IPv4 address and a port.

    `number` (31 bits) is no other proxy's: a relay answers a cookie that it knows from its cache, whoever sends it, so
    that cookies have to be unlike those of the proxy before.
    """

    own: tuple[str, int]
    callee: tuple[str, int]
    relay: tuple[str, int]
    number: int


class Proxy(Protocol):
    """A SIP proxy that lets a relay carry the media of calls between `own` and `callee`, and hangs up on it with BYE.

    Only its own address may call. A call for which the relay is of no help is answered with REFUSED, within seconds.
    It records its route, answers OPTIONS once it is there, stays in the foreground, logs to standard error, and ends
    at SIGTERM. It needs no privileges, and writes nowhere but below /tmp.
    """

    name: str
    package: str
    """Debian's; empty where it has none."""
    program: str
    """Where it is in a system that has it."""

    def files(self, wiring: Wiring) -> Mapping[str, str]:
        """Configuration files: text by name."""

    def command(self, directory: str) -> Sequence[str]:
        """What is run, where the files lie in `directory`."""

    def complaints(self, log: str) -> list[str]:
        """What its log says went wrong, each once, in order."""


class Kamailio:
    """Kamailio 5 with its module rtpengine."""

    name = "Kamailio"
    package = "kamailio"
    program = "usr/sbin/kamailio"

    # Some messages of the module rtpengine have no newline: what comes next begins on their line.
    _COMPLAINT = re.compile(r"(?:WARNING|ERROR|CRITICAL): (\S+) \[[^]]*\]: (?:\w+\(\): )?(.*?)"
                            r"(?= *\d+\(\d+\) [A-Z]+: |$)", re.M)

    def files(self, wiring: Wiring) -> Mapping[str, str]:
        template = Template(Path(__file__).with_name("kamailio.cfg").read_text(encoding="utf-8"))
        return {"kamailio.cfg": template.substitute(
            address=wiring.own[0], port=wiring.own[1], number=wiring.number, callee=_uri(wiring.callee),
            relay=_authority(wiring.relay), flags=FLAGS, refused=REFUSED)}

    def command(self, directory: str) -> Sequence[str]:
        return ["kamailio", "-DD", "-E", "-Y", "/tmp", "-f", f"{directory}/kamailio.cfg"]

    def complaints(self, log: str) -> list[str]:
        return list(dict.fromkeys(f"{module}: {text}" for module, text in self._COMPLAINT.findall(log)))


class OpenSips:
    """OpenSIPS 3.6 or 4 with its module rtpengine, laid out as its project's packages for Debian are."""

    name = "OpenSIPS"
    package = ""
    program = "usr/sbin/opensips"

    _COMPLAINT = re.compile(r"(?:WARNING|ERROR|CRITICAL):([^:\s]+):[^:\s]+: (.*)")

    def files(self, wiring: Wiring) -> Mapping[str, str]:
        template = Template(Path(__file__).with_name("opensips.cfg").read_text(encoding="utf-8"))
        return {"opensips.cfg": template.substitute(
            address=wiring.own[0], port=wiring.own[1], callee=_uri(wiring.callee), relay=_authority(wiring.relay),
            flags=FLAGS, refused=REFUSED)}

    def command(self, directory: str) -> Sequence[str]:
        return ["opensips", "-F", "-w", "/tmp", "-f", f"{directory}/opensips.cfg"]

    def complaints(self, log: str) -> list[str]:
        return list(dict.fromkeys(f"{module}: {text}" for module, text in self._COMPLAINT.findall(log)))


PROXIES: Final[tuple[Proxy, ...]] = (Kamailio(), OpenSips())


def _authority(end: tuple[str, int]) -> str:
    return f"{end[0]}:{end[1]}"


def _uri(end: tuple[str, int]) -> str:
    return f"sip:{_authority(end)}"
