"""Events and the Management Interface of an OpenSIPS: the figures of docs/performance-events.md.

OpenSIPS is the one that the setting opensips_mi names by its Management Interface, on this machine. Bursts come from a
process of ours over loopback, as fast as it can send: no proxy is as fast, and none loses any on its side.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from harness.appliance import Appliance
from harness.bench import figures
from harness.bench.figures import Row, Table
from harness.deadline import Deadline
from harness.errors import HostError
from harness.opensips.interface import EventInterface
from harness.opensips.keeper import Keeper
from harness.opensips.mi import MiClient
from harness.opensips.subscriber import Here, Subscriber
from harness.progress import Progress
from harness.settings import Settings
from harness.stages import Work

_BURST: Final = 10_000
_MANY: Final = 200_000
_TRIPS: Final = 5_000
_SUBSCRIPTIONS: Final = 1_000
_EXPIRE: Final = 6
_EXPIRIES: Final = 10
_FIRST_PORT: Final = 20_000

_SENDER: Final = """
import socket, sys
transport, host, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
event = '{"jsonrpc":"2.0","method":"E_CALL_REFUSED","params":{"code":404,"reason":"Not Found","n":%d}}'
with socket.socket(socket.AF_INET, kind) as own:
    own.connect((host, port))
    events = [(event % number).encode() for number in range(count)]
    if transport == "tcp":
        for begin in range(0, count, 100):
            own.sendall(b"".join(events[begin:begin + 100]))
    else:
        for one in events:
            own.send(one)
"""


def bench(settings: Settings, appliance: Appliance, progress: Progress, *, boots: int, out: Path) -> int:
    """Take all figures but renewals `boots` times; write `out`.json and `out`.md. Returns the exit code.

    Raises HostError where no OpenSIPS is named, MiNoAnswer where it does not answer.
    """
    place = settings.opensips_mi.split()
    if not place:
        raise HostError("there is no OpenSIPS to measure with",
                        hint="DIALTONE_OPENSIPS_MI=udp:127.0.0.1:8080 names one that runs here")
    with MiClient(place[0]) as client:
        version = EventInterface(client).version
    return figures.measure(settings, appliance, progress, lambda work: _rows(work, place[0], boots),
                           Table("Performance of events", "./inv bench --cloud events",
                                 f"none: loopback of this machine, OpenSIPS {version}"), out)


def _rows(work: Work, place: str, times: int) -> Iterator[Row]:
    with MiClient(place) as client:
        interface = EventInterface(client)
        with Keeper(interface) as keeper:
            for transport in ("tcp", "udp"):
                with work.progress.stage(f"burst {transport}"):
                    lost = max(burst(keeper, transport, _BURST)[0] for _ in range(times))
                yield Row(f"events lost of {_BURST:,} in a burst over {transport}, worst of {times} bursts", "", lost,
                          None, "", "0")
            with work.progress.stage("decode"):
                took = statistics.median(burst(keeper, "tcp", _MANY)[1] for _ in range(times))
            yield Row("processor time to receive and decode a million events over tcp", "s", took / _MANY * 1e6, None,
                      "", "20 s: 50,000 events/s on one core")
        with work.progress.stage("round trips"):
            slowest = statistics.median(statistics.quantiles(round_trips(interface, _TRIPS), n=100)[98]
                                        for _ in range(times))
        yield Row("round trip of the Management Interface, 99th percentile", "ms", slowest * 1000, None, "", "3 ms")
        with work.progress.stage("renewals"):
            lapsed = lapses(interface, place, _SUBSCRIPTIONS, _EXPIRE, _EXPIRIES)
        yield Row(f"lapses of {_SUBSCRIPTIONS:,} subscriptions that are renewed for {_EXPIRIES} expiries", "", lapsed,
                  None, "", "0")


def burst(keeper: Keeper, transport: str, count: int) -> tuple[int, float]:
    """Events that did not arrive of `count`, and seconds of processor time that this process took for the others."""
    with Subscriber(keeper, Here(transport, "127.0.0.1:0"), most=count) as one, one.reader() as reader:
        host, _, port = one.listener.name.partition(":")[2].rpartition(":")
        begun = time.process_time()
        subprocess.run([sys.executable, "-I", "-c", _SENDER, transport, host, port, str(count)], check=True)
        came = 0
        limit = Deadline(60)
        while came < count and not limit.expired:
            came += sum(1 for _ in reader.until(limit.within(0.3 if transport == "udp" else 1)))
            if transport == "udp" and came + one.losses.socket >= count:
                break
        return count - came, time.process_time() - begun


def round_trips(interface: EventInterface, count: int) -> list[float]:
    """Seconds that each of `count` requests took."""
    taken = []
    for _ in range(count):
        begin = time.perf_counter()
        interface.up_since()
        taken.append(time.perf_counter() - begin)
    return taken


def lapses(interface: EventInterface, place: str, count: int, expire: int, expiries: int) -> int:
    """How often one of `count` subscriptions was seen missing, by somebody else who looks all the time, or was taken
    anew, in the time of `expiries`."""
    events = interface.events()
    wanted = [(events[number % len(events)], f"udp:127.0.0.1:{_FIRST_PORT + number}") for number in range(count)]
    missing = 0
    stop = threading.Event()

    def look(other: EventInterface) -> None:
        nonlocal missing
        while not stop.wait(0.2):
            alive = {(one.event, one.socket) for event in events for one in other.subscriptions(event) if one.ttl}
            missing += len(set(wanted) - alive)

    with MiClient(place) as client, Keeper(interface, expire) as keeper:
        for event, name in wanted:
            keeper.keep(event, name)
        thread = threading.Thread(target=look, args=[EventInterface(client)])
        thread.start()
        try:
            time.sleep(expire * expiries)
        finally:
            stop.set()
            thread.join()
        return missing + len(keeper.gaps)
