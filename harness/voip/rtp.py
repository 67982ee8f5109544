"""RTP packets (RFC 3550, 5.1) of G.711 (RFC 3551, 4.5.14), with a mark of ours at the payload's begin.

The mark is 16 octets: the sender's number, four octets that tell a mark from speech, and the time of sending. By it a
receiver knows whose packet it got, whatever source and SSRC it bears, and how long it took.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

CLOCK: Final = 8000
"""Timestamp units and octets of G.711 in a second."""
HEADER: Final = 12
PLAIN: Final = 0x80
"""First octet of a packet without padding, extension and contributing sources."""
MARKER: Final = 0x80
"""In the second octet: the first packet after silence (RFC 3551, 4.1)."""
MARK: Final = 0x6D61726B
MARKED: Final = struct.Struct("!BBHIIIIQ")
"""First octet, marker and payload type, sequence number, timestamp, SSRC, sender, MARK, nanoseconds since 1970."""
_MARK: Final = struct.Struct("!IIQ")
MARKED_KEY: Final = struct.Struct("!BBHIQIQ")
"""The same with SSRC and sender as one number, the key of a stream."""


@dataclass(frozen=True)
class Codec:
    """A variant of G.711; `silence` is the octet of no sound."""

    name: str
    payload_type: int
    silence: int


PCMU = Codec("PCMU", 0, 0xFF)
PCMA = Codec("PCMA", 8, 0xD5)


@dataclass(frozen=True)
class Packet:
    sequence: int
    timestamp: int
    ssrc: int
    payload_type: int
    marker: bool
    payload: bytes


def key(ssrc: int, sender: int = 0) -> int:
    """By this number the packets of a stream are found; `sender` is 0 where they bear no mark."""
    return ssrc << 32 | sender


def parse(data: bytes) -> Packet | None:
    """An RTP packet, None for anything else (RFC 3550, A.1: version, lengths, padding; RTCP's types by RFC 5761, 4)."""
    if len(data) < HEADER or data[0] >> 6 != 2 or is_rtcp(data):
        return None
    first, second, sequence, timestamp, ssrc = struct.unpack_from("!BBHII", data)
    begin, end = HEADER + 4 * (first & 0x0F), len(data)
    if first & 0x10:
        if end < begin + 4:
            return None
        begin += 4 + 4 * int.from_bytes(data[begin + 2:begin + 4], "big")
    if first & 0x20:
        if not data[-1]:
            return None
        end -= data[-1]
    if begin > end:
        return None
    return Packet(sequence, timestamp, ssrc, second & 0x7F, bool(second & MARKER), data[begin:end])


def marked(payload: bytes) -> tuple[int, int]:
    """Sender, and nanoseconds since 1970 when it sent, of a marked payload; zeros where there is no mark."""
    if len(payload) < _MARK.size:
        return 0, 0
    sender, mark, sent = _MARK.unpack_from(payload)
    return (sender, sent) if mark == MARK else (0, 0)


def is_rtcp(data: bytes) -> bool:
    """Whether a datagram on a port of both is RTCP (RFC 5761, 4)."""
    return len(data) > 1 and 192 <= data[1] <= 223
