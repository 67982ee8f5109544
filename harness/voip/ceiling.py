"""`python -m harness.voip.ceiling`: how many packets a second one process sends and receives, beside a plain loop.

Both ends are this process and packets go over loopback, so it is the generator alone that is measured: G.711 of 20 ms,
both ways, statistics on. A rate is kept up when every packet was received and next to none was sent late (Health).
Three ways: `shared`, all calls between two endpoints; `own`, two endpoints for each call; `plain`, the same sockets as
`own` and the same statistics, but a system call for every packet. JSON on stdout; processor time also tells where the
machine is too busy for the rates to mean much.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final

from harness.voip import batch, rtp
from harness.voip.endpoint import Endpoint, Stream
from harness.voip.rtp import MARK, MARKED, PLAIN
from harness.voip.search import following
from harness.voip.stats import Received
from harness.voip.traffic import Health, Traffic

_FIRST: Final = 20
_MOST: Final = 6400
_RATE: Final = 100
"""Packets a second of a call: 50 each way."""


@dataclass(frozen=True)
class Step:
    """One rate. `cost` is microseconds of processor time to send and receive a packet, the kernel's work included."""

    calls: int
    packets_per_second: float
    lost: int
    limit: str
    cost: float

    @property
    def kept_up(self) -> bool:
        return not self.limit and not self.lost


Runner = Callable[[int, float], tuple[Health, int]]
"""Runs so many calls for so many seconds; returns health and packets lost."""


def shared(calls: int, seconds: float) -> tuple[Health, int]:
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        return _traffic([stream for _ in range(calls) for stream in paired(caller, callee)], seconds)


def own(calls: int, seconds: float) -> tuple[Health, int]:
    with ExitStack() as stack:
        ends = [stack.enter_context(Endpoint("127.0.0.1")) for _ in range(2 * calls)]
        pairs = zip(ends[::2], ends[1::2], strict=True)
        return _traffic([stream for a, b in pairs for stream in paired(a, b)], seconds)


def paired(caller: Endpoint, callee: Endpoint) -> list[Stream]:
    """Streams both ways, straight from one endpoint to the other."""
    there, back = caller.stream(), callee.stream()
    there.peer, back.peer = back, there
    there.towards(back.media)
    back.towards(there.media)
    return [there, back]


def _traffic(streams: list[Stream], seconds: float) -> tuple[Health, int]:
    health = Traffic(streams).run(seconds)
    received = {id(stream.endpoint): stream.endpoint.received for stream in streams}
    came = sum(seen.unique for by_key in received.values() for seen in by_key.values())
    return health, sum(stream.sent for stream in streams) - came


def plain(calls: int, seconds: float) -> tuple[Health, int]:
    """As one writes it first: sendto() and recvmsg() for every packet."""
    interval = 20_000_000
    with ExitStack() as stack, select.epoll() as epoll:
        ends = [stack.enter_context(Endpoint("127.0.0.1")) for _ in range(2 * calls)]
        streams = [stream for pair in zip(ends[::2], ends[1::2], strict=True) for stream in paired(*pair)]
        by_number: dict[int, tuple[socket.socket, dict[int, Received]]] = {}
        for end in ends:
            by_number[end.rtp.fileno()] = end.rtp, end.received
            epoll.register(end.rtp, select.EPOLLIN)
        silence = bytes([0xFF]) * (160 - 16)
        late = latest = 0

        def receive(wait: float) -> bool:
            ready = epoll.poll(wait)
            for number, _ in ready:
                source, received = by_number[number]
                try:
                    while True:
                        data, control, _, address = source.recvmsg(2048, 128)
                        _, _, sequence, timestamp, ssrc, sender, mark, sent = MARKED.unpack_from(data)
                        arrival, tos = time.time_ns(), 0
                        for level, kind, value in control:
                            if level == socket.SOL_SOCKET:
                                whole, rest = struct.unpack("=qq", value)
                                arrival = whole * 10**9 + rest
                            elif kind == socket.IP_TOS:
                                tos = value[0]
                        key = rtp.key(ssrc, sender)
                        if key not in received:
                            received[key] = Received()
                        name = batch.socket_address(*address)
                        received[key].packet(sequence, timestamp, arrival, sent if mark == MARK else 0, name, tos)
                except BlockingIOError:
                    continue
            return bool(ready)

        cpu = time.process_time()
        begin = due = time.monotonic_ns()
        end_at = begin + int(seconds * 1e9)
        while due < end_at:
            for number, stream in enumerate(streams):
                sent_at = time.monotonic_ns()
                if sent_at - due > interval:
                    late += 1
                    latest = max(latest, sent_at - due)
                packet = MARKED.pack(PLAIN, 0, stream.sequence, stream.timestamp, stream.ssrc, stream.sender, MARK,
                                     time.time_ns()) + silence
                stream.endpoint.rtp.sendto(packet, stream.target)
                stream.sequence, stream.timestamp = stream.sequence + 1 & 0xFFFF, stream.timestamp + 160 & 0xFFFFFFFF
                stream.packets += 1
                if number % 100 == 99:
                    receive(0)
            due += interval
            receive(0)
            while (left := due - time.monotonic_ns()) > 0:
                receive(left / 1e9)
        took = (time.monotonic_ns() - begin) / 1e9
        busy = (time.process_time() - cpu) / took
        while receive(0.3):
            continue
        sent = sum(stream.packets for stream in streams)
        came = sum(seen.unique for end in ends for seen in end.received.values())
        return Health(took, sent, busy, late, latest / 1e9, sum(batch.dropped(end.rtp) for end in ends)), sent - came


def ceiling(run: Runner, seconds: float) -> list[Step]:
    """Rates in the order of their trial, to the highest that is kept up; none where the first is not."""
    steps: list[Step] = []
    while (calls := following({step.calls: step.kept_up for step in steps}, _FIRST, _MOST)) is not None:
        steps.append(_step(run, calls, seconds))
        if not any(step.kept_up for step in steps):
            break
    return steps


def _step(run: Runner, calls: int, seconds: float) -> Step:
    """A rate that is not kept up is tried once more: something else may have had the processor."""
    for _ in range(2):
        health, lost = run(calls, seconds)
        step = Step(calls, round(health.packets / health.seconds, 1), lost, health.limit,
                    round(health.busy * health.seconds * 1e6 / health.packets, 2))
        if step.kept_up:
            break
    return step


def summary(steps: list[Step]) -> dict[str, Any]:
    """The highest rate that was kept up, its processor time, and the steps."""
    best = max((step for step in steps if step.kept_up), key=lambda step: step.calls, default=None)
    if best is None:
        return {"packets_per_second": 0.0, "steps": [asdict(step) for step in steps]}
    return {"packets_per_second": best.packets_per_second, "calls": best.calls, "microseconds_per_packet": best.cost,
            "packets_per_processor_second": round(1e6 / best.cost), "steps": [asdict(step) for step in steps]}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.voip.ceiling", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each rate is held")
    parser.add_argument("--ways", nargs="+", choices=["shared", "own", "plain"], default=["shared", "own", "plain"])
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = _parser().parse_args(arguments)
    runners: dict[str, Runner] = {"shared": shared, "own": own, "plain": plain}
    load = os.getloadavg()[0]
    found = {way: summary(ceiling(runners[way], options.seconds)) for way in options.ways}
    result: dict[str, Any] = {"processors": len(os.sched_getaffinity(0)), "load_before": round(load, 2), **found}
    if "plain" in found and found["plain"]["packets_per_second"]:
        result["times_plain"] = {
            way: {key: round(found[way].get(key, 0) / found["plain"][key], 1)
                  for key in ("packets_per_second", "packets_per_processor_second")}
            for way in found if way != "plain"}
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
