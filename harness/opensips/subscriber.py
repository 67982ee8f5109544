"""Receives the events of an OpenSIPS: a socket, what comes to it, and subscriptions that are kept alive meanwhile."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from harness.deadline import Deadline
from harness.errors import CheckFailed, DialtoneError, HostError
from harness.opensips.events import Decoder, Event, of_datagram, of_notification
from harness.opensips.intake import DATAGRAM, END, LOST, Intake, Piece
from harness.opensips.interface import EventInterface
from harness.opensips.keeper import Gap, Keeper
from harness.opensips.mi import MiClient, Way

MOST: Final = 100_000
"""Events that wait for a reader."""


class NoEvent(CheckFailed):
    """No event came before the deadline."""


class Listener(Protocol):
    """A socket that events come to; `name` is what OpenSIPS is told, like tcp:127.0.0.1:9999."""

    transport: str
    name: str

    def pieces(self) -> Iterator[list[Piece]]:
        """What comes, until stop(). Raises DialtoneError where the way to the socket is lost."""

    def stop(self) -> None: ...

    def close(self) -> None: ...


class Here:
    """A socket of this process: `transport` is udp, tcp (`place` is HOST:PORT, port 0 for one that is free) or unix (a
    path). Raises HostError, also where the place is taken."""

    def __init__(self, transport: str, place: str) -> None:
        try:
            self._intake = Intake(transport, place)
        except (OSError, OverflowError, ValueError) as error:
            raise refused(transport, place, error) from error
        self.transport, self.name = transport, self._intake.name
        self._wakes, self._wake = os.pipe()
        self._intake.also(self._wakes)

    def pieces(self) -> Iterator[list[Piece]]:
        return self._intake.pieces()

    def stop(self) -> None:
        os.write(self._wake, b"x")

    def close(self) -> None:
        self._intake.close()
        os.close(self._wake)
        os.close(self._wakes)


def refused(transport: str, place: str, error: Exception) -> HostError:
    """Why events can't be received at a place."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return HostError(f"events can't be received at {transport}:{place}: it is taken",
                         hint="port 0 takes one that is free" if transport != "unix" else
                         "another subscriber has it, or one that was killed left it: then remove it")
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return HostError(f"events can't be received at {transport}:{place}: {why}")


@dataclass(frozen=True)
class Losses:
    """What did not become an event for a reader: datagrams that found no room in the socket, events that found none
    because the reader was slower than they came, and pieces that are no events.

    What OpenSIPS itself could not send is in its log only.
    """

    socket: int = 0
    queue: int = 0
    malformed: int = 0

    def __bool__(self) -> bool:
        return bool(self.socket or self.queue or self.malformed)

    def __str__(self) -> str:
        return (f"{self.socket} datagrams found no room in the socket, {self.queue} events none in the queue, "
                f"{self.malformed} pieces were no events")


class Reader:
    """The events of a subscriber from when this was made, in their order."""

    def __init__(self, subscriber: Subscriber, most: int) -> None:
        self._subscriber, self._most = subscriber, most
        self._waiting: deque[Event] = deque()
        self._before, self._gaps = subscriber.losses, len(subscriber.gaps)
        self._full = 0

    def put(self, events: list[Event]) -> None:
        room = max(self._most - len(self._waiting), 0)
        self._waiting.extend(events[:room])
        self._full += max(len(events) - room, 0)

    def next(self, deadline: Deadline) -> Event:
        """The next event. Raises NoEvent at the deadline, and where the way to the socket is lost."""
        with self._subscriber.changed:
            while not self._waiting:
                self._subscriber.check()
                if deadline.expired:
                    raise NoEvent("; ".join([f"no event came to {self._subscriber.listener.name} within "
                                             f"{deadline.seconds:.1f} s", *self.doubts()]))
                self._subscriber.changed.wait(min(deadline.remaining, 0.5))
            return self._waiting.popleft()

    def until(self, deadline: Deadline) -> Iterator[Event]:
        """Events as they come, up to the deadline."""
        while True:
            try:
                yield self.next(deadline)
            except NoEvent:
                return

    @property
    def losses(self) -> Losses:
        """Since this reader was made."""
        now, before = self._subscriber.losses, self._before
        return Losses(now.socket - before.socket, self._full, now.malformed - before.malformed)

    def doubts(self) -> list[str]:
        """Why an event that was sent may not be here: losses, gaps, trouble with subscriptions."""
        trouble = self._subscriber.keeper.trouble
        return [*([str(self.losses)] if self.losses else []), *map(str, self._subscriber.gaps[self._gaps:]),
                *([trouble.message] if trouble else [])]

    def close(self) -> None:
        self._subscriber.leave(self)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Subscriber:
    """Events that come to `listener`, for those that `keeper` is to keep subscribed; close() it or use `with`.

    On the way out the subscriptions end and the socket is closed. `events` are subscribed to at once; further ones by
    subscribe(). Several subscribers may share a keeper.
    """

    def __init__(self, keeper: Keeper, listener: Listener, *events: str, most: int = MOST) -> None:
        self.keeper, self.listener, self.most = keeper, listener, most
        self.changed = threading.Condition()
        self.received = 0
        """Events so far."""
        self._readers: list[Reader] = []
        self._names: dict[str, None] = {}
        self._decoders: dict[int, Decoder] = {}
        """By number of the connection."""
        self._socket = self._malformed = 0
        self._broken: DialtoneError | None = None
        self._thread = threading.Thread(target=self._receive, name=f"events at {listener.name}", daemon=True)
        self._thread.start()
        try:
            for event in events:
                self.subscribe(event)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def subscribe(self, event: str) -> None:
        """Have it come here from now on. Raises MiRefused, MiNoAnswer."""
        if event not in self._names:
            self.keeper.keep(event, self.listener.name)
            self._names[event] = None

    def unsubscribe(self, event: str) -> None:
        """What is raised in the same second may still come."""
        self._names.pop(event, None)
        self.keeper.drop(event, self.listener.name)

    def reader(self) -> Reader:
        """Reads what comes from now on."""
        with self.changed:
            reader = Reader(self, self.most)
            self._readers.append(reader)
        return reader

    def leave(self, reader: Reader) -> None:
        with self.changed:
            self._readers.remove(reader)

    @property
    def losses(self) -> Losses:
        """All that was lost before readers came into it."""
        return Losses(self._socket, 0, self._malformed)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """Times in which this subscriber was told nothing."""
        return tuple(gap for gap in self.keeper.gaps if gap.socket == self.listener.name)

    def check(self) -> None:
        """Raises where nothing is received any more."""
        if not self._thread.is_alive():
            raise self._broken or HostError(f"nothing receives events at {self.listener.name} any more")

    def close(self) -> None:
        try:
            for event in list(self._names):
                self._forget(event)
        finally:
            self.listener.stop()
            self._thread.join()
            self.listener.close()

    def _forget(self, event: str) -> None:
        try:
            self.unsubscribe(event)
        except DialtoneError:
            # It expires by itself where OpenSIPS can't be told.
            return

    def _receive(self) -> None:
        try:
            for pieces in self.listener.pieces():
                now = time.time()
                events = [event for piece in pieces for event in self._found(piece, now)]
                with self.changed:
                    self.received += len(events)
                    for reader in self._readers:
                        reader.put(events)
                    self.changed.notify_all()
        except DialtoneError as error:
            self._broken = error

    def _found(self, piece: Piece, now: float) -> Iterable[Event]:
        """The events that a piece completes; what is lost is counted."""
        kind, number, data = piece
        transport = self.listener.transport
        if kind == DATAGRAM:
            event = of_datagram(data, now, transport)
            self._malformed += event is None
            return [event] if event else []
        if kind == LOST:
            self._socket += number
            return []
        if kind == END:
            # An object of which the end never came.
            self._malformed += self._decoders.pop(number, Decoder()).begun
            return []
        decoder = self._decoders.setdefault(number, Decoder())
        before, objects = decoder.malformed, decoder.feed(data)
        found = [event for one in objects if (event := of_notification(one, now, transport))]
        self._malformed += decoder.malformed - before + len(objects) - len(found)
        return found


@contextmanager
def listening(place: str | Way, listener: Listener, *events: str, expire: int = 60) -> Iterator[Reader]:
    """What an OpenSIPS tells of `events`, or of all that it has: `place` is its Management Interface (mi.FORMS).

    With the block the subscriptions end.
    """
    with MiClient(place) as client:
        interface = EventInterface(client)
        with Keeper(interface, expire) as keeper, Subscriber(keeper, listener) as one, one.reader() as reader:
            for event in events or interface.events():
                one.subscribe(event)
            yield reader
