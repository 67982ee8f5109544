"""What became of one RTP stream, from its sender to its receiver, in figures for a check or a report."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.voip import batch, emodel
from harness.voip.endpoint import Stream
from harness.voip.rtp import CLOCK
from harness.voip.stats import Received

JITTER_BUFFER: Final = 40.0
"""Milliseconds that a receiver waits for a late packet, in the estimate of the opinion score."""


@dataclass(frozen=True)
class Latency:
    """One-way, in milliseconds."""

    minimum: float
    median: float
    p95: float
    p99: float
    maximum: float


@dataclass(frozen=True)
class MediaStats:
    """One direction. Times in milliseconds; `expected`, `jitter` and so on as RFC 3550 has them.

    `sent` left the sender, `failed` its system refused. `received` counts duplicates, too. `lost` never came; after the
    traffic that includes the first and the last packets, which `expected` does not know of. `too_late` came more than
    JITTER_BUFFER after the quickest packet. `latency` is None where the ends share no clock, or nothing came.
    `longest_gap` is between two packets in the order of arrival and began at `gap_began` (seconds since 1970).
    `sources` are the addresses that it came from, in order. `ssrcs` are those it came with: one, unless the relay
    changed it. `round_trip` and `reported_lost` are what the receiver's RTCP told the sender. `mos` is emodel's, with
    its limits; without latency an upper bound.
    """

    sent: int
    failed: int
    received: int
    expected: int
    lost: int
    reordered: int
    duplicates: int
    restarts: int
    jitter: float
    jitter_mean: float
    jitter_max: float
    latency: Latency | None
    too_late: int
    longest_gap: float
    gap_began: float
    sources: tuple[str, ...]
    tos: tuple[int, ...]
    ssrcs: tuple[int, ...]
    round_trip: float | None
    reported_lost: int | None
    mos: float

    @property
    def loss(self) -> float:
        """Percent of the packets that were sent."""
        return 100 * self.lost / self.sent if self.sent else 0.0


def media_stats(stream: Stream, sent: int, failed: int, by_key: Mapping[int, Received], *, lost: int,
                shared_clock: bool) -> MediaStats:
    """The figures of `stream`, of which `sent` packets left.

    What came is `by_key`, with one entry for each SSRC; several are added up, their jitter is that of the last.
    """
    seen = list(by_key.values())
    latencies = sorted(value for one in seen for value in one.latencies)
    too_late = sum(value > latencies[0] + JITTER_BUFFER * 1e6 for value in latencies) if latencies else 0
    longest = max(seen, key=lambda one: one.longest_gap, default=None)
    last = max(seen, key=lambda one: one.last, default=None)
    received = sum(one.packets for one in seen)
    jittered = [(one.jitter_mean, one.packets) for one in seen if one.packets]
    latency = _latency(latencies) if latencies and shared_clock else None
    return MediaStats(
        sent, failed, received, sum(one.expected for one in seen), lost, sum(one.reordered for one in seen),
        sum(one.duplicates for one in seen), sum(one.restarts for one in seen),
        _milliseconds(last.jitter if last else 0.0),
        _milliseconds(statistics.fmean([mean for mean, _ in jittered], [weight for _, weight in jittered])
                      if jittered else 0.0),
        _milliseconds(max((one.jitter_max for one in seen), default=0.0)),
        latency, too_late, longest.longest_gap / 1e6 if longest else 0.0, longest.gap_begin / 1e9 if longest else 0.0,
        tuple(dict.fromkeys(in_words(name) for one in seen for name in one.sources)),
        tuple(sorted({tos for one in seen for tos in one.tos})),
        tuple(key >> 32 for key in by_key),
        stream.round_trip * 1000 if stream.round_trip is not None else None,
        stream.remote.cumulative_lost if stream.remote else None,
        _mos(latency, lost + too_late, sent, _burst_length(seen), stream.ptime))


def in_words(name: bytes) -> str:
    """A socket address as `192.0.2.1:4000` or `[2001:db8::1]:4000`."""
    address, port = batch.in_words(name)
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _mos(latency: Latency | None, missing: int, sent: int, burst_length: float, ptime: int) -> float:
    if not sent or missing >= sent:
        return 1.0
    share = missing / sent
    delay = ptime + JITTER_BUFFER + (latency.median if latency else 0.0)
    # Bursts of random loss have 1/(1-p) packets on average (G.107, 7.5).
    return round(emodel.mos(emodel.rating(delay, 100 * share, burst_length * (1 - share))), 2)


def _burst_length(seen: Sequence[Received]) -> float:
    """Mean number of packets that were lost in a row."""
    bursts = sum(one.loss_bursts for one in seen)
    return sum(one.lost for one in seen) / bursts if bursts else 1.0


def _latency(values: Sequence[int]) -> Latency:
    def at(share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))] / 1e6

    return Latency(values[0] / 1e6, at(0.5), at(0.95), at(0.99), values[-1] / 1e6)


def _milliseconds(units: float) -> float:
    return units * 1000 / CLOCK
