"""Session descriptions (SDP, RFC 8866) as far as media addresses go; RTCP's by RFC 3605 and RFC 5761."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from harness.errors import CheckFailed

Direction = Literal["sendrecv", "sendonly", "recvonly", "inactive"]
_DIRECTIONS: tuple[Direction, ...] = ("sendrecv", "sendonly", "recvonly", "inactive")
_STATIC = {"0": "PCMU/8000", "8": "PCMA/8000"}


class SdpError(CheckFailed):
    """A session description lacks something or can't be understood."""


@dataclass(frozen=True)
class Media:
    """One m= section. `rtcp` is where RTCP goes, `ptime` is in milliseconds (None where nothing is said)."""

    address: str
    port: int
    rtcp: tuple[str, int]
    formats: tuple[str, ...] = ("0",)
    kind: str = "audio"
    protocol: str = "RTP/AVP"
    direction: Direction = "sendrecv"
    ptime: int | None = 20

    @property
    def family(self) -> str:
        """`IP4` or `IP6`, as SDP and the ng protocol write it."""
        return family(self.address)


def family(address: str) -> str:
    """`IP4` or `IP6`. Raises ValueError where `address` is no IP address."""
    return f"IP{ip_address(address).version}"


def build(medias: Sequence[Media], session: int = 1, version: int = 1) -> str:
    """A session description of `medias`, all lines of RFC 8866 that must be there included."""
    first = medias[0]
    lines = ["v=0", f"o=- {session} {version} IN {first.family} {first.address}", "s=-",
             f"c=IN {first.family} {first.address}", "t=0 0"]
    for media in medias:
        lines.append(f"m={media.kind} {media.port} {media.protocol} {' '.join(media.formats)}")
        if media.address != first.address:
            lines.append(f"c=IN {media.family} {media.address}")
        lines += [f"a=rtpmap:{number} {_STATIC[number]}" for number in media.formats if number in _STATIC]
        address, port = media.rtcp
        if address != media.address:
            lines.append(f"a=rtcp:{port} IN {family(address)} {address}")
        elif port == media.port:
            lines.append("a=rtcp-mux")
        else:
            lines.append(f"a=rtcp:{port}")
        if media.ptime is not None:
            lines.append(f"a=ptime:{media.ptime}")
        lines.append(f"a={media.direction}")
    return "\r\n".join(lines) + "\r\n"


def parse(text: str) -> tuple[Media, ...]:
    """The media of a session description, in its order. Raises SdpError, which names the line or what lacks."""
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if lines[0] != "v=0":
        raise SdpError(f"the SDP begins with {lines[0][:80]!r} instead of v=0")
    sections: list[list[tuple[str, str]]] = [[]]
    for number, line in enumerate(lines, 1):
        if not re.match(r"[a-z]=.", line):
            raise SdpError(f"line {number} of the SDP is not like x=...: {line[:80]!r}")
        if line.startswith("m="):
            sections.append([])
        sections[-1].append((line[0], line[2:]))
    session, *medias = sections
    for letter in "ost":
        if letter not in dict(session):
            raise SdpError(f"the SDP has no {letter}= line")
    if not medias:
        raise SdpError("the SDP has no media (m= line)")
    return tuple(_media(session, lines) for lines in medias)


def _media(session: list[tuple[str, str]], lines: list[tuple[str, str]]) -> Media:
    kind, port, protocol, formats = _media_line(lines[0][1])
    connection = dict(reversed(session)) | dict(reversed(lines))
    if "c" not in connection:
        raise SdpError(f"the SDP has no address for {kind} (c= line)")
    address = _address(connection["c"], "c=")
    attributes = [value.partition(":")[::2] for letter, value in session + lines if letter == "a"]
    values = dict(attributes)
    ptime = values.get("ptime")
    if ptime is not None and not re.fullmatch(r"[0-9]{1,4}", ptime):
        raise SdpError(f"a=ptime:{ptime[:80]} of the SDP is no number of milliseconds")
    directions = [word for name, _ in attributes for word in _DIRECTIONS if word == name]
    return Media(address, port, _rtcp(values, address, port), formats, kind, protocol,
                 directions[-1] if directions else "sendrecv", int(ptime) if ptime is not None else None)


def _media_line(text: str) -> tuple[str, int, str, tuple[str, ...]]:
    kind, *rest = text.split(" ")
    if len(rest) < 3 or not all(rest):
        raise SdpError(f"m={text[:80]} of the SDP lacks one of kind, port, protocol, formats")
    return kind, _port(rest[0], f"m={text[:80]}"), rest[1], tuple(rest[2:])


def _rtcp(values: dict[str, str], address: str, port: int) -> tuple[str, int]:
    if "rtcp-mux" in values:
        return address, port
    if "rtcp" not in values:
        # RFC 3550, 11: the next higher port; port 0 is a medium that was refused (RFC 3264, 6).
        return address, port + 1 if 0 < port < 65535 else port
    number, _, where = values["rtcp"].partition(" ")
    return _address(where, "a=rtcp:") if where else address, _port(number, "a=rtcp:")


def _port(text: str, line: str) -> int:
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise SdpError(f"{text[:80]!r} in {line} of the SDP is no port")
    return int(text)


def _address(text: str, line: str) -> str:
    network, _, rest = text.partition(" ")
    announced, _, address = rest.partition(" ")
    try:
        found = family(address)
    except ValueError:
        found = ""
    if network != "IN" or not found:
        raise SdpError(f"{line}{text[:80]} of the SDP has no IP address")
    if found != announced:
        raise SdpError(f"{line}{text[:80]} of the SDP has an address that is not of its family {announced}")
    return address
