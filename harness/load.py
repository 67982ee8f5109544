"""What the checks of the load level conclude from what they measured: pure arithmetic.

A step is one number of calls, held for some seconds. What the server's kernel says of itself at the begin and at the
end of it (Moment) gives the processor time that its packets cost.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from harness.acceptance import directions
from harness.voip.call import CallResult
from harness.voip.traffic import Health

_USER_HZ: Final = 100
"""Units of /proc/stat in a second, on every architecture (proc(5))."""


@dataclass(frozen=True)
class Bounds:
    """Beyond these a number of calls is not held: percent of the packets lost, and jitter in milliseconds."""

    loss: float
    jitter: float

    def __str__(self) -> str:
        return f"{self.loss:g} % of loss and {self.jitter:g} ms of jitter"


BOUNDS: Final = Bounds(loss=0.1, jitter=20.0)
"""Loss: what ITU-T Y.1541 allows a whole network path for speech (classes 0 and 1, IPLR 1e-3); a relay is a part of it.
Jitter: one packet interval, half of the receiver's buffer that the MOS assumes."""


@dataclass(frozen=True)
class Moment:
    """What the server's kernel said at `at` (seconds since boot).

    In seconds since boot: `idle` and `interrupts` (soft ones, too) of all `processors` together, `daemon` the processor
    time of the relay's threads.
    `entries` are those of connection tracking, None where the kernel has none.
    """

    at: float
    idle: float
    interrupts: float
    processors: int
    daemon: float
    entries: int | None


CROWDED: Final = 2.0
"""Processes for each processor of a host that an emulated server runs on, beyond which others hold it up: on a host of
two the server's own two processors and the generator's two threads are no more than that."""

RATE: Final = 100
"""Packets a second of a call: 50 each way."""
_WHOLE: Final = 0.98

ENTRIES: Final = "/proc/sys/net/netfilter/nf_conntrack_count"


def moment_files(pid: int) -> tuple[str, ...]:
    """Files that make a Moment: the same processor time as utime and stime of proc(5), in nanoseconds, thread by thread
    (sched-stats.rst of the kernel)."""
    return "/proc/uptime", "/proc/stat", f"/proc/{pid}/task/*/schedstat", ENTRIES


def moment(files: Mapping[str, str]) -> Moment:
    """From what moment_files() hold. Raises ValueError where the relay's process is gone."""
    threads = [int(text.split()[0]) for path, text in files.items() if path.endswith("/schedstat") and text]
    if not threads:
        raise ValueError("the relay's process is gone")
    stat = files["/proc/stat"]
    _, _, _, idle, waiting, hard, soft = (int(ticks) / _USER_HZ for ticks in stat.splitlines()[0].split()[1:8])
    entries = files.get(ENTRIES)
    return Moment(float(files["/proc/uptime"].split()[0]), idle + waiting, hard + soft,
                  len(re.findall(r"^cpu\d", stat, re.MULTILINE)), sum(threads) / 1e9,
                  int(entries) if entries is not None else None)


_TARGETS: Final = re.compile(r"^Targets:\s*(\d+)", re.MULTILINE)


def targets(status: str) -> int:
    """How many streams the module forwards, by /proc/rtpengine/<table>/status."""
    found = _TARGETS.search(status)
    return int(found[1]) if found else 0


@dataclass(frozen=True)
class Cost:
    """Processors that were busy on average: by the daemon, in interrupts (where the kernel forwards), in all."""

    daemon: float
    interrupts: float
    server: float


def cost(before: Moment, after: Moment) -> Cost:
    """Between two moments. Busy is what is not idle, interrupts included."""
    seconds = after.at - before.at
    return Cost((after.daemon - before.daemon) / seconds, (after.interrupts - before.interrupts) / seconds,
                before.processors - (after.idle - before.idle) / seconds)


@dataclass(frozen=True)
class Step:
    """One number of calls. Loss in percent, times in milliseconds.

    `sent` is the packets that left a second, `packets` those of them that were relayed. `jitter` is what 95 % of the
    streams were below on average; `latency` is the median of the streams' medians, `latency_p99` the highest of their
    99th percentiles. `kernel` is the part of the packets that was forwarded in the kernel. The server has so many
    `processors`. `limit` says what the generator could not do in time, empty where it could all; `hampered` is the
    percent of the packets that this touched.
    """

    calls: int
    sent: float
    packets: float
    loss: float
    jitter: float
    latency: float
    latency_p99: float
    kernel: float
    cost: Cost
    processors: int
    limit: str
    hampered: float

    def held(self, bounds: Bounds = BOUNDS) -> bool:
        """Within the bounds, and no less was sent than the calls send: late packets make it only harder."""
        return self.loss <= bounds.loss and self.jitter <= bounds.jitter and self.sent >= _WHOLE * RATE * self.calls

    @property
    def excused(self) -> bool:
        """The generator may be why it was not held: no more was lost than it sent late, dropped or did not send."""
        return bool(self.limit) and self.loss <= self.hampered + BOUNDS.loss

    @property
    def daemon_per_packet(self) -> float:
        """Microseconds of processor time."""
        return self.cost.daemon / self.packets * 1e6 if self.packets else 0.0

    @property
    def server_per_packet(self) -> float:
        """Microseconds of processor time, whatever spent it."""
        return self.cost.server / self.packets * 1e6 if self.packets else 0.0


def step(results: Sequence[CallResult], *, rate: float, kernel: float, spent: Cost, processors: int,
         health: Health) -> Step:
    """From the figures of all calls; `rate` is the packets that were sent a second, both ways."""
    every = directions(results)
    sent, lost = sum(one.sent for one in every), sum(one.lost for one in every)
    loss = lost / sent if sent else 1.0
    latencies = [one.latency for one in every if one.latency]
    whole = RATE * len(results)
    limit = health.limit
    if not limit and rate < _WHOLE * whole:
        limit = f"{rate:,.0f} of {whole:,} packets a second were sent"
    touched = health.late + health.dropped + sum(health.failed.values())
    hampered = 100 * (touched / max(health.packets, 1) + max(0.0, 1 - rate / max(whole, 1)))
    return Step(len(results), rate, rate * (1 - loss), 100 * loss, _quantile([one.jitter_mean for one in every], 0.95),
                statistics.median(one.median for one in latencies) if latencies else 0.0,
                max((one.p99 for one in latencies), default=0.0), kernel, spent,
                processors, limit, hampered)


def most_held(steps: Iterable[Step], bounds: Bounds = BOUNDS) -> Step | None:
    """The step with the highest number of calls that was held."""
    return max((one for one in steps if one.held(bounds)), key=lambda one: one.calls, default=None)


def in_common(kernel: Iterable[Step], user: Iterable[Step]) -> tuple[Step, Step] | None:
    """Steps of the highest number of calls that was held both ways."""
    first, second = ({one.calls: one for one in steps if one.held()} for steps in (kernel, user))
    both = first.keys() & second.keys()
    return (first[max(both)], second[max(both)]) if both else None


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By how much y grows with x: the least squares line through the upper half of the points.

    Below it a process still takes from memory that it was given before.
    """
    upper = sorted(points)[len(points) // 2:]
    return statistics.linear_regression([x for x, _ in upper], [y for _, y in upper]).slope


def _quantile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
