"""What the acceptance checks conclude from measured calls: what was lost and where, and who forwarded the rest."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import CloudError, HostError
from harness.units import many
from harness.voip.call import CallResult
from harness.voip.endpoint import Stream
from harness.voip.mediastats import MediaStats
from harness.voip.traffic import Health, Traffic

LINGER = 2.0
"""Seconds without a packet after which no more is waited for."""

STALL = 0.5
"""Seconds for which an emulated server stops now and then."""

LEARNING = 15.0
"""Seconds at most until every stream is forwarded in the kernel. The daemon takes 3 s to be sure of an endpoint."""

_TARGET = re.compile(r"^local inet[46] \S*:(\d+)$")
_COUNTED = re.compile(r"^ +stats: +\d+ bytes, +(\d+) packets")


def targets(text: str) -> dict[int, int]:
    """Packets that the kernel forwarded, by the relay's local port, from what /proc/rtpengine/<table>/list holds.

    A target has a line of its own (`local inet4 192.0.2.1:30000`), then indented ones, of which the first with `stats:`
    is for all that came to it (proc_list_show of the kernel module).
    """
    found: dict[int, int] = {}
    port = None
    for line in text.splitlines():
        if begun := _TARGET.match(line):
            port = int(begun[1])
        elif port is not None and (counted := _COUNTED.match(line)):
            found[port], port = int(counted[1]), None
    return found


def grown(before: Mapping[int, int], after: Mapping[int, int], ports: Iterable[int]) -> dict[int, int]:
    """By how much the counters of `ports` grew; one that is not counted at all is 0."""
    return {port: after.get(port, 0) - before.get(port, 0) for port in ports}


def learned(traffic: Traffic, streams: Iterable[Stream], listed: Callable[[], str]) -> float | None:
    """Let `traffic` run until the module has the ports that `streams` send to; the seconds that took.

    `listed` tells what /proc/rtpengine/<table>/list holds. None where that does not come about within LEARNING.
    """
    begin, ports = time.monotonic(), {stream.target[1] for stream in streams}
    while time.monotonic() < begin + LEARNING:
        traffic.wait(0.5)
        if ports <= set(targets(listed())):
            return time.monotonic() - begin
    return None


@dataclass(frozen=True)
class Cut:
    """A time without network: at least and at most so many seconds by the server's clock."""

    least: float
    most: float

    @classmethod
    def between(cls, times: str) -> Cut:
        """Of four moments in seconds: before the network was cut, after, before it was put back, after."""
        before, cut, mending, mended = map(float, times.split())
        return cls(mending - cut, mended - before)

    def packets(self, ptime: int) -> range:
        """How many packets of a stream it may have cost, where one is sent every `ptime` milliseconds.

        A server that stood still as the cut began or ended takes what came meanwhile for a part of it, or not.
        """
        return range(int(max(self.least - STALL, 0) * 1000 / ptime), int((self.most + STALL) * 1000 / ptime) + 2)


def directions(results: Iterable[CallResult]) -> list[MediaStats]:
    return [one for result in results for one in (result.to_callee, result.to_caller)]


def missing(one: MediaStats) -> int:
    """Packets of a direction that were lost, but for the very first.

    A stateful firewall before an endpoint (a router's, a security group's) refuses what comes before the endpoint has
    sent anything itself. Both ends of a call send within one packet interval, so that is one packet at most.
    """
    # Packets that come seconds late look like a source that counts anew: then more are expected than were sent.
    between = min(one.expected - (one.received - one.duplicates), one.lost)
    return between + max(0, one.lost - between - 1)


def in_words(results: Sequence[CallResult]) -> str:
    """Both directions of all calls in a line: packets sent and lost; of MOS, jitter and latency the worst."""
    every = directions(results)
    lost = sum(missing(one) for one in every)
    besides = sum(one.lost for one in every) - lost
    latencies = [one.latency for one in every if one.latency]
    said = [many(len(results), "call"), f"{sum(one.sent for one in every):,} packets sent",
            f"{lost:,} lost" + (f" besides {many(besides, 'first or last one')}" if besides > 0 else ""),
            f"MOS {min(one.mos for one in every):.2f}",
            f"jitter {max(one.jitter_mean for one in every):.2f} ms"]
    if latencies:
        said.append(f"latency {statistics.median(one.median for one in latencies):.2f} ms, "
                    f"99th percentile {max(one.p99 for one in latencies):.2f} ms")
    return ", ".join(said)


def fit(results: Sequence[CallResult], health: Sequence[Health], arrived: int) -> None:
    """Raise where the figures say nothing about the server: HostError for this host, CloudError for the way to it.

    `arrived` is what the server's network interfaces received meanwhile, of whatever kind.
    """
    for one in health:
        if one.dropped or one.failed:
            raise HostError(f"the media can't be judged: {one.limit}")
    every = directions(results)
    sent = sum(one.sent for one in every)
    if not any(one.received for one in every) and arrived < sent:
        raise CloudError(f"no media reached the server: {sent:,} packets were sent to the relay's ports, and the "
                         f"server's network interface received {arrived:,} of any kind",
                         hint="do the ports of the appliance (appliances.yaml) have the relay's range?")


def reached(results: Sequence[CallResult], arrived: int) -> None:
    """Raise CloudError where packets are missing that cannot have come to the server; `arrived` as in fit().

    Where other packets make up for them, nobody can tell.
    """
    every = directions(results)
    sent = sum(one.sent for one in every)
    if arrived < sent and any(map(missing, every)):
        raise CloudError(f"packets were lost on the way to the server: {sent:,} were sent, and its network interface "
                         f"received {arrived:,} of any kind")


def cause(results: Sequence[CallResult], arrived: int, relayed: int) -> str:
    """Where packets were lost; `arrived` as in fit(), `relayed` is how many RTP packets the relay counted."""
    sent, lost = (sum(getattr(one, name) for one in directions(results)) for name in ("sent", "lost"))
    before = max(sent - relayed, 0)
    places = [f"{count:,} {where}" for count, where in (
        (before, "were lost before it"), (lost - before, "were lost behind it")) if count > 0]
    return (f"the relay counted {relayed:,} of {sent:,} packets: {'; '.join(places)}; the server's network interface "
            f"received {arrived:,} of any kind")


def past_module(ports: Iterable[int]) -> list[str]:
    """Rules (iptables(8)) that keep what comes to these ports of the relay from its kernel module."""
    return [f"-p udp --dport {port} -j ACCEPT" for port in ports]


def counted(rules: str, address: str, port: int) -> int:
    """Packets from UDP `port` of `address` by the counter of the rule for them, in what `iptables -v -S` prints."""
    found = re.search(rf"-s {re.escape(address)}/32 -p udp .*--sport {port} -c (\d+)", rules)
    return int(found[1]) if found else 0


def past(rules: str, port: int) -> int:
    """Packets to `port` by the counter of its rule of past_module(), in the same."""
    found = re.search(rf"-A INPUT -p udp .*--dport {port} -c (\d+) .*-j ACCEPT", rules)
    return int(found[1]) if found else 0


_WORKER = re.compile(r"poller\b(?! timer)")


def work(names: Mapping[str, str], times: Mapping[str, str]) -> dict[str, float]:
    """Milliseconds that each of the daemon's worker threads has run, by thread; both by path below /proc/<pid>/task:
    `names` of the files comm, `times` of the files schedstat (nanoseconds on a processor, then two more figures)."""
    workers = {path.split("/")[-2] for path, name in names.items() if _WORKER.match(name)}
    return {thread: int(text.split()[0]) / 1e6 for path, text in times.items()
            if (thread := path.split("/")[-2]) in workers and text.strip()}
