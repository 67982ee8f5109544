"""Media by the clock: every stream sends a packet each 20 ms, and what comes is counted, in one thread.

Packets of one socket that are due together leave by one system call, and what came to a socket is fetched by one. A
packet's arrival is the time that the kernel received it, so that neither latency nor jitter depends on when this
process found time to look. A late sender shows in both, as it would with any sender: Health says how late it was.
"""

from __future__ import annotations

import errno
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from harness.errors import HostError
from harness.voip import batch, rtp
from harness.voip.batch import CONTROL, CONTROL_LENGTH, DATA, NAME, ROOM, SLOT, Incoming, Outgoing
from harness.voip.endpoint import Endpoint, Stream
from harness.voip.rtp import CLOCK, MARK, MARKED, MARKED_KEY, MARKER, PLAIN
from harness.voip.stats import Received

_LATE_SHARE: Final = 0.01
_LONGEST_SLEEP: Final = 0.05
_SILENCE_AT_MOST: Final = 10.0
_PAUSE_A_SOCKET: Final = 250_000
"""Nanoseconds from one look at the sockets to the next, for each that there is."""
_LONGEST_PAUSE: Final = 100_000_000


@dataclass(frozen=True)
class Health:
    """Whether the generator kept up; a measurement says something about the relay only where `limit` is empty.

    `seconds` is how long it sent, `busy` the share of one processor that it took, `late` the packets that left more
    than one packet interval after their time, `latest` the worst of them in seconds, `dropped` what the kernel received
    for this process but found no room for, `failed` what it refused to send, by error.
    """

    seconds: float
    packets: int
    busy: float
    late: int
    latest: float
    dropped: int
    failed: dict[str, int] = field(default_factory=dict)

    @property
    def limit(self) -> str:
        """How the generator was the limit, empty where it was not."""
        if self.dropped:
            return f"{self.dropped} packets found no room in this process's sockets"
        if self.failed:
            return ", ".join(f"{count} packets could not be sent ({name})" for name, count in self.failed.items())
        if self.late > _LATE_SHARE * self.packets:
            return f"{self.late} of {self.packets} packets were sent late, by up to {self.latest:.3f} s"
        return ""


class Flow(Protocol):
    """What sends and receives for Traffic. stop() may be asked again; `stopped` is set by it, or by what broke it."""

    stopped: threading.Event

    def start(self) -> None: ...

    def stop(self, linger: float) -> Health: ...

    @property
    def health(self) -> Health: ...


@dataclass(frozen=True)
class _Batch:
    """Streams of one socket that send at the same time."""

    outgoing: Outgoing
    first: int
    streams: Sequence[Stream]


class Generator:
    """Media of `streams` by a thread of this process: what Traffic does where their endpoints are here."""

    def __init__(self, streams: Sequence[Stream], report_every: float) -> None:
        self._streams = streams
        self._ptime, self._report_every = _interval(streams), report_every
        self._endpoints = endpoints_of(streams)
        self._slots = self._laid_out([stream for stream in self._streams if stream.sends])
        self._incoming = Incoming()
        # A socket that gets a packet each 20 ms is not worth a look for each of them: the kernel keeps the time.
        self._look_every = min(_PAUSE_A_SOCKET * 2 * len(self._endpoints), _LONGEST_PAUSE)
        self._look_at = 0
        self._ready: deque[int] = deque()
        self.stopped = threading.Event()
        self._thread = threading.Thread(target=self._guarded, name="media")
        self._error: BaseException | None = None
        self._linger = 0.3
        self._begin = self._end = self._busy = 0.0
        self._packets = self._late = self._latest = self._reported = self._report_due = 0
        self._failed: Counter[str] = Counter()
        self._dropped_before = self._dropped()
        self._dropped_after: int | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, linger: float) -> Health:
        self._linger = linger
        self.stopped.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.health

    @property
    def health(self) -> Health:
        """How the generator does so far."""
        end = self._end or time.monotonic()
        seconds = end - self._begin if self._begin else 0.0
        return Health(seconds, self._packets, self._busy / seconds if seconds and self._end else 0.0, self._late,
                      self._latest / 1e9, self._drops(), dict(self._failed))

    def _drops(self) -> int:
        """Since the traffic began; the sockets may be closed once it ended."""
        now = self._dropped() if self._dropped_after is None else self._dropped_after
        return now - self._dropped_before

    def _dropped(self) -> int:
        return sum(batch.dropped(own) for endpoint in self._endpoints for own in (endpoint.rtp, endpoint.rtcp))

    def _laid_out(self, streams: Sequence[Stream]) -> list[tuple[int, list[_Batch]]]:
        """When in a packet interval (ns) which batches are due; the streams are spread over it evenly."""
        count = max(1, min(len(streams), self._ptime))
        slots: list[list[_Batch]] = [[] for _ in range(count)]
        slot_of = {stream: number % count for number, stream in enumerate(streams)}
        for endpoint in self._endpoints:
            own = sorted((stream for stream in streams if stream.endpoint is endpoint), key=slot_of.__getitem__)
            if not own:
                continue
            size = rtp.HEADER + own[0].samples
            outgoing = Outgoing(endpoint.rtp, size, [batch.socket_address(*stream.target) for stream in own])
            for number, stream in enumerate(own):
                outgoing.buffer[number * size:(number + 1) * size] = bytes([stream.codec.silence]) * size
            for slot in range(count):
                due = [stream for stream in own if slot_of[stream] == slot]
                if due:
                    slots[slot].append(_Batch(outgoing, own.index(due[0]), due))
        interval = self._ptime * 1_000_000
        return [(interval * number // count, batches) for number, batches in enumerate(slots)]

    def _guarded(self) -> None:
        try:
            self._epoll = select.epoll()
            with self._epoll:
                self._ends: dict[int, tuple[Endpoint, bool]] = {}
                for endpoint in self._endpoints:
                    for own in (endpoint.rtp, endpoint.rtcp):
                        self._ends[own.fileno()] = endpoint, own is endpoint.rtp
                        self._epoll.register(own, select.EPOLLIN)
                self._go_on()
        except BaseException as error:
            self._error = error
            self.stopped.set()

    def _go_on(self) -> None:
        interval = self._ptime * 1_000_000
        self._begin, cpu = time.monotonic(), time.thread_time()
        begin = time.monotonic_ns()
        self._report_due = begin + int(self._report_every * 5e8)
        self._go_on_after_silence()
        marker, rounds, count = MARKER, 0, len(self._slots)
        while True:
            for number, (offset, batches) in enumerate(self._slots):
                due = begin + rounds * interval + offset
                while (now := time.monotonic_ns()) < due and not self.stopped.is_set():
                    time.sleep(min((due - now) / 1e9, _LONGEST_SLEEP))
                if self.stopped.is_set():
                    self._end, self._busy = time.monotonic(), time.thread_time() - cpu
                    self._last_words()
                    self._dropped_after = self._dropped()
                    return
                late = now - due
                self._latest = max(self._latest, late)
                sent = self._send(batches, marker)
                self._packets += sent
                if late > interval:
                    self._late += sent
                self._report_when_due(now)
                self._receive(due + (interval // count if number + 1 < count else 0))
            marker = 0
            rounds += 1

    def _go_on_after_silence(self) -> None:
        """The timestamps of streams that sent before go on by the time that has passed (RFC 3550, 5.1)."""
        now = time.time_ns()
        for offset, batches in self._slots:
            for stream in (stream for one in batches for stream in one.streams if stream.sent_at):
                passed = (now + offset - stream.sent_at) * CLOCK // 10**9
                stream.timestamp = stream.timestamp + passed - stream.samples & 0xFFFFFFFF

    def _send(self, batches: Sequence[_Batch], marker: int) -> int:
        """The next packet of every stream; how many that were."""
        pack, clock, total = MARKED.pack_into, time.time_ns, 0
        for one in batches:
            outgoing, streams = one.outgoing, one.streams
            buffer, size, at, units = outgoing.buffer, outgoing.size, one.first * outgoing.size, streams[0].samples
            now = clock()
            for stream in streams:
                sequence, timestamp = stream.sequence, stream.timestamp
                pack(buffer, at, PLAIN, stream.codec.payload_type | marker, sequence, timestamp, stream.ssrc,
                     stream.sender, MARK, now)
                stream.sequence, stream.timestamp = sequence + 1 & 0xFFFF, timestamp + units & 0xFFFFFFFF
                stream.packets += 1
                stream.sent_at = now
                at += size
            done, count = 0, len(streams)
            while done < count:
                try:
                    done += outgoing.send(one.first + done, count - done)
                except OSError as error:
                    name = errno.errorcode.get(error.errno or 0, str(error.errno))
                    streams[done].failed[name] += 1
                    self._failed[name] += 1
                    done += 1
            total += count
        return total

    def _receive(self, until: int) -> None:
        """Fetch what has come, until `until` (monotonic ns), and a share of it in any case."""
        if not self._ready and time.monotonic_ns() >= self._look_at:
            self._ready.extend(own for own, _ in self._epoll.poll(0))
            self._look_at = time.monotonic_ns() + self._look_every
        least = 1 + len(self._ready) // len(self._slots)
        while self._ready and (least > 0 or time.monotonic_ns() < until):
            self._fetch(self._ready.popleft())
            least -= 1

    def _fetch(self, own: int) -> None:
        endpoint, is_rtp = self._ends[own]
        count = ROOM
        while count == ROOM:
            count = self._incoming.receive(own)
            self._count(endpoint, is_rtp, count)

    def _count(self, endpoint: Endpoint, is_rtp: bool, count: int) -> None:
        """Take in the first `count` datagrams of the buffer."""
        incoming = self._incoming
        if incoming.control_lengths(count) != [CONTROL_LENGTH] * count:
            raise HostError("the kernel told no arrival time or no TOS of a packet")
        version6 = ":" in endpoint.address
        stamp = (batch.STAMP6 if version6 else batch.STAMP4).unpack_from
        name_end = NAME + (28 if version6 else 16)
        unpack, shortest, received = MARKED_KEY.unpack_from, MARKED_KEY.size, endpoint.received
        buffer, at = incoming.buffer, 0
        for length in incoming.lengths(count):
            seconds, nanoseconds, tos = stamp(buffer, at + CONTROL)
            first, _, sequence, timestamp, key, mark, sent = unpack(buffer, at + DATA)
            arrival = seconds * 1_000_000_000 + nanoseconds
            name = buffer[at + NAME:at + name_end]
            if mark == MARK and first == PLAIN and length >= shortest and is_rtp:
                seen = received.get(key)
                if seen is None:
                    seen = received[key] = Received()
                seen.packet(sequence, timestamp, arrival, sent, name, tos)
            else:
                self._unmarked(endpoint, bytes(buffer[at + DATA:at + DATA + length]), arrival, name, tos)
            at += SLOT

    @staticmethod
    def _unmarked(endpoint: Endpoint, data: bytes, arrival: int, name: bytes | bytearray,
                  tos: int) -> None:
        """RTCP, RTP of others, our own RTP with further header fields, or neither."""
        if rtp.is_rtcp(data):
            endpoint.heard(data, arrival)
        elif (packet := rtp.parse(data)) is None:
            endpoint.unrecognised += 1
        else:
            sender, sent = rtp.marked(packet.payload)
            key = rtp.key(packet.ssrc, sender)
            if key not in endpoint.received:
                endpoint.received[key] = Received()
            endpoint.received[key].packet(packet.sequence, packet.timestamp, arrival, sent, name, tos)

    def _report_when_due(self, now: int) -> None:
        """RTCP of the streams in turn, spread evenly over `report_every`; `now` is monotonic ns."""
        while self._streams and self._report_every and now >= self._report_due:
            self._report(self._streams[self._reported % len(self._streams)])
            self._reported += 1
            self._report_due += int(self._report_every * 1e9) // len(self._streams)

    def _report(self, stream: Stream) -> None:
        try:
            stream.endpoint.rtcp.sendto(stream.endpoint.report(stream, time.time_ns()), stream.rtcp_target)
        except OSError as error:
            self._failed[f"RTCP: {errno.errorcode.get(error.errno or 0, str(error.errno))}"] += 1

    def _last_words(self) -> None:
        """What the streams received in the end, and what is still on its way to them."""
        if self._report_every:
            for stream in self._streams:
                self._report(stream)
        while self._ready:
            self._fetch(self._ready.popleft())
        end = time.monotonic() + _SILENCE_AT_MOST
        while time.monotonic() < end and (ready := self._epoll.poll(self._linger)):
            for own, _ in ready:
                self._fetch(own)


def _interval(streams: Iterable[Stream]) -> int:
    intervals = {stream.ptime for stream in streams} or {20}
    if len(intervals) > 1:
        raise ValueError(f"streams of different packet intervals: {sorted(intervals)} ms")
    return intervals.pop()


def with_peers(streams: Iterable[Stream]) -> list[Stream]:
    """The streams and those of the other direction, each once."""
    return list(dict.fromkeys(one for stream in streams for one in (stream, stream.peer) if one is not None))


def endpoints_of(streams: Iterable[Stream]) -> list[Endpoint]:
    """Those that send or receive the streams, each once."""
    return list(dict.fromkeys(stream.endpoint for stream in with_peers(streams)))


class Traffic:
    """Media of `streams`, received by their endpoints and their peers' endpoints; run() it, or `with` it meanwhile.

    All streams have the same packet interval, all endpoints the same place: here, or one agent's (harness.voip.remote).
    `report_every` is the seconds between a stream's RTCP reports (RFC 3550 wants 5; 0: none). Streams go on where they
    stopped when another Traffic takes them over; an endpoint is read by one at a time.
    """

    def __init__(self, streams: Iterable[Stream], *, report_every: float = 5.0) -> None:
        given = list(streams)
        _interval(given)
        if any(not port for stream in given for _, port in (stream.target, stream.rtcp_target)):
            raise ValueError("a stream goes nowhere: towards() says where")
        places = {endpoint.place for endpoint in endpoints_of(given)}
        if len(places) > 1:
            raise ValueError("streams of endpoints at different places")
        place = places.pop() if places else None
        self._flow: Flow = Generator(given, report_every) if place is None else place.flow(given, report_every)

    def __enter__(self) -> Traffic:
        self._flow.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, seconds: float, linger: float = 0.3) -> Health:
        """Send for `seconds`, then receive until nothing came for `linger` seconds."""
        self._flow.start()
        try:
            self.wait(seconds)
        finally:
            self.stop(linger)
        return self.health

    def wait(self, seconds: float) -> None:
        """Let the traffic run for `seconds`, or until something breaks it: then stop() says what."""
        self._flow.stopped.wait(seconds)

    def stop(self, linger: float = 0.3) -> Health:
        """Stop sending; return when nothing came for `linger` seconds. Raises what broke the traffic."""
        return self._flow.stop(linger)

    @property
    def health(self) -> Health:
        """How the generator does so far."""
        return self._flow.health
