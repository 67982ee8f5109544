"""RTCP sender and receiver reports (RFC 3550, 6.4), always with the canonical name that must go with them (6.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

SENDER_REPORT: Final = 200
RECEIVER_REPORT: Final = 201
DESCRIPTION: Final = 202
MOST_BLOCKS: Final = 31
_1900: Final = 2_208_988_800
_BLOCK = struct.Struct("!IIIIII")
_SENDER = struct.Struct("!QIII")


class RtcpError(ValueError):
    """The octets are no compound RTCP packet."""


@dataclass(frozen=True)
class Block:
    """How one source is received. `fraction` in 256ths, `jitter` in timestamp units, `highest` with its cycles.

    `last_report` is the middle of the NTP timestamp of the source's last sender report, `delay` how long ago that
    came in 65536ths of a second; both 0 where there was none.
    """

    ssrc: int
    fraction: int
    cumulative_lost: int
    highest: int
    jitter: int
    last_report: int = 0
    delay: int = 0


@dataclass(frozen=True)
class Sent:
    """What a sender says of itself: NTP time (64 bits), RTP timestamp of the same moment, packets, octets."""

    ntp: int
    timestamp: int
    packets: int
    octets: int


@dataclass(frozen=True)
class Report:
    """A sender report, or a receiver report where `sent` is None."""

    ssrc: int
    sent: Sent | None
    blocks: tuple[Block, ...]


def ntp(nanoseconds: int) -> int:
    """Nanoseconds since 1970 as an NTP timestamp of 64 bits (RFC 3550, 4)."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return (seconds + _1900 << 32 | (rest << 32) // 10**9) & 0xFFFFFFFFFFFFFFFF


def middle(timestamp: int) -> int:
    """The middle 32 bits of an NTP timestamp: 65536ths of a second."""
    return timestamp >> 16 & 0xFFFFFFFF


def round_trip(block: Block, arrival: int) -> float | None:
    """Seconds to the reporter and back (RFC 3550, 6.4.1); `arrival` is nanoseconds since 1970. None: it can't tell."""
    if not block.last_report:
        return None
    units = middle(ntp(arrival)) - block.last_report - block.delay & 0xFFFFFFFF
    return units / 65536 if units < 1 << 31 else 0.0


def build(report: Report, name: str) -> bytes:
    """A compound packet of the report and the source's canonical name. Raises ValueError for more than 31 blocks."""
    if len(report.blocks) > MOST_BLOCKS:
        raise ValueError(f"{len(report.blocks)} blocks are more than a report holds")
    body = struct.pack("!I", report.ssrc)
    if report.sent is not None:
        body += _SENDER.pack(report.sent.ntp, report.sent.timestamp & 0xFFFFFFFF, report.sent.packets & 0xFFFFFFFF,
                             report.sent.octets & 0xFFFFFFFF)
    body += b"".join(_block(block) for block in report.blocks)
    kind = RECEIVER_REPORT if report.sent is None else SENDER_REPORT
    item = bytes([1, len(name.encode())]) + name.encode()
    chunk = struct.pack("!I", report.ssrc) + item + bytes(4 - len(item) % 4)
    return _packet(kind, len(report.blocks), body) + _packet(DESCRIPTION, 1, chunk)


def parse(data: bytes) -> tuple[Report, ...]:
    """The reports of a compound packet; other kinds of packet are passed over.

    Raises RtcpError for what breaks RFC 3550, A.2: no report at the begin, a wrong version, lengths that do not add up.
    """
    reports = []
    at = 0
    while at < len(data):
        if len(data) - at < 4 or data[at] >> 6 != 2:
            raise RtcpError(f"no RTCP at octet {at}: {data[at:at + 8].hex()}")
        count, kind = data[at] & 0x1F, data[at + 1]
        end = at + 4 + 4 * int.from_bytes(data[at + 2:at + 4], "big")
        if end > len(data) or (at == 0 and kind not in (SENDER_REPORT, RECEIVER_REPORT)):
            raise RtcpError(f"no compound RTCP: type {kind} of {end - at} octets at {at} of {len(data)}")
        if kind in (SENDER_REPORT, RECEIVER_REPORT):
            reports.append(_report(kind, count, data[at + 4:end]))
        at = end
    if not reports:
        raise RtcpError("no octets")
    return tuple(reports)


def _report(kind: int, count: int, body: bytes) -> Report:
    begin = 4 + (_SENDER.size if kind == SENDER_REPORT else 0)
    if len(body) < begin + count * 24:
        raise RtcpError(f"a report of {count} blocks in {len(body)} octets")
    sent = Sent(*_SENDER.unpack_from(body, 4)) if kind == SENDER_REPORT else None
    blocks = []
    for at in range(begin, begin + count * 24, 24):
        ssrc, losses, highest, jitter, last_report, delay = _BLOCK.unpack_from(body, at)
        lost = losses & 0xFFFFFF
        blocks.append(Block(ssrc, losses >> 24, lost - (1 << 24) if lost >> 23 else lost, highest, jitter, last_report,
                            delay))
    return Report(int.from_bytes(body[:4], "big"), sent, tuple(blocks))


def _block(block: Block) -> bytes:
    lost = min(max(block.cumulative_lost, -(1 << 23)), (1 << 23) - 1)
    return _BLOCK.pack(block.ssrc, block.fraction << 24 | lost & 0xFFFFFF, block.highest & 0xFFFFFFFF,
                       min(block.jitter, 0xFFFFFFFF), block.last_report, block.delay & 0xFFFFFFFF)


def _packet(kind: int, count: int, body: bytes) -> bytes:
    return struct.pack("!BBH", 0x80 | count, kind, len(body) // 4) + body
