"""What a receiver sees of one RTP stream: RFC 3550, A.1 (sequence numbers), A.3 (loss), A.8 (jitter).

Reordered is a packet that comes after one with a higher sequence number and is no duplicate (RFC 4737, 3.3).
"""

from __future__ import annotations

from array import array
from itertools import pairwise
from typing import Final

from harness.voip.rtp import CLOCK

_MAX_DROPOUT: Final = 3000
_MAX_MISORDER: Final = 100
_UNITS: Final = CLOCK / 1e9


class Received:
    """Counts the packets of one stream. Times are nanoseconds since 1970.

    Every packet counts from the first one on: RFC 3550's probation keeps strangers out, here the mark does that.
    """

    __slots__ = ("_bad", "_base", "_earlier", "_earlier_lost", "_highest", "_jitter_sum", "_missing", "_next",
                 "_reported_expected", "_reported_packets", "_source", "_timestamp", "_tos", "duplicates", "first",
                 "gap_begin", "jitter", "jitter_max", "last", "latencies", "longest_gap", "packets", "reordered",
                 "restarts", "sources", "strays", "tos")

    def __init__(self) -> None:
        self.packets = self.duplicates = self.reordered = self.strays = self.restarts = 0
        self.jitter = self.jitter_max = self._jitter_sum = 0.0
        self.first = self.last = self.longest_gap = self.gap_begin = 0
        self.latencies = array("q")
        """Nanoseconds from sending to arrival of every marked packet; true where both ends share a clock."""
        self.sources: dict[bytes, int] = {}
        """Socket addresses as the kernel gives them, and how often the source changed to them."""
        self.tos: set[int] = set()
        self._next = self._bad = self._tos = -1
        self._base = self._highest = self._timestamp = 0
        self._earlier = self._earlier_lost = self._reported_expected = self._reported_packets = 0
        self._missing: set[int] = set()
        self._source = b""

    def packet(self, sequence: int, timestamp: int, arrival: int, sent: int, source: bytes | bytearray,
               tos: int) -> None:
        """Count a packet. `sent` is 0 where nobody knows; `source` is a socket address."""
        if sequence == self._next:
            self._highest += 1
            self._next = sequence + 1 & 0xFFFF
        elif not self.packets:
            self._base = self._highest = sequence
            self._next = sequence + 1 & 0xFFFF
            self.first = self.last = arrival
            self._timestamp = timestamp
        else:
            self._out_of_order(sequence)
        self.packets += 1
        gap = arrival - self.last
        self.last = arrival
        if gap > self.longest_gap:
            self.longest_gap, self.gap_begin = gap, arrival - gap
        deviation = gap * _UNITS - ((timestamp - self._timestamp + 0x80000000 & 0xFFFFFFFF) - 0x80000000)
        self._timestamp = timestamp
        self.jitter = jitter = self.jitter + ((deviation if deviation >= 0 else -deviation) - self.jitter) * 0.0625
        self._jitter_sum += jitter
        if jitter > self.jitter_max:
            self.jitter_max = jitter
        if sent:
            self.latencies.append(arrival - sent)
        if source != self._source:
            self._source = kept = bytes(source)
            self.sources[kept] = self.sources.get(kept, 0) + 1
        if tos != self._tos:
            self._tos = tos
            self.tos.add(tos)

    def _out_of_order(self, sequence: int) -> None:
        ahead = sequence - self._highest & 0xFFFF
        if ahead == 0:
            self.duplicates += 1
        elif ahead < _MAX_DROPOUT:
            self._missing.update(range(self._highest + 1, self._highest + ahead))
            self._highest += ahead
            self._next = sequence + 1 & 0xFFFF
        elif ahead > 0x10000 - _MAX_MISORDER:
            self._late(self._highest + ahead - 0x10000)
        elif sequence == self._bad:
            self._restart(sequence)
        else:
            self._bad = sequence + 1 & 0xFFFF
            self.strays += 1

    def _late(self, number: int) -> None:
        if number in self._missing:
            self._missing.remove(number)
            self.reordered += 1
        elif number < self._base:
            self._missing.update(range(number + 1, self._base))
            self._base = number
            self.reordered += 1
        else:
            self.duplicates += 1

    def _restart(self, sequence: int) -> None:
        """Two packets in a row from far away: the source counts anew from the first of them (RFC 3550, A.1)."""
        self._earlier, self._earlier_lost = self.expected, self.lost
        self._missing.clear()
        self._base, self._highest = sequence - 1, sequence
        self._next, self._bad = sequence + 1 & 0xFFFF, -1
        self.strays -= 1
        self.restarts += 1

    @property
    def expected(self) -> int:
        """Packets from the first sequence number that was seen to the highest."""
        return self._earlier + (self._highest - self._base + 1 if self.packets else 0)

    @property
    def lost(self) -> int:
        """Packets of the expected that never came."""
        return self._earlier_lost + len(self._missing)

    @property
    def cumulative_lost(self) -> int:
        """As RTCP reports it (RFC 3550, A.3): duplicates make up for losses, so it may be negative."""
        return self.expected - self.packets

    @property
    def unique(self) -> int:
        """Packets that came, each counted once."""
        return self.packets - self.duplicates

    @property
    def highest(self) -> int:
        """Highest sequence number received, cycles in the upper 16 bits of 32 (RFC 3550, 6.4.1)."""
        return self._highest & 0xFFFFFFFF

    @property
    def jitter_mean(self) -> float:
        """Mean of the jitter after every packet but the first, in timestamp units."""
        return self._jitter_sum / (self.packets - 1) if self.packets > 1 else 0.0

    @property
    def loss_bursts(self) -> int:
        """How many runs of packets in a row were lost since the source began to count."""
        missing = sorted(self._missing)
        return sum(after - before > 1 for before, after in pairwise(missing)) + bool(missing)

    def fraction_lost(self) -> int:
        """256ths of the packets expected since the last call that did not come (RFC 3550, A.3)."""
        expected, packets = self.expected, self.packets
        expected_now, lost_now = expected - self._reported_expected, 0
        if expected_now:
            lost_now = expected_now - (packets - self._reported_packets)
        self._reported_expected, self._reported_packets = expected, packets
        return min(255, lost_now * 256 // expected_now) if lost_now > 0 else 0
