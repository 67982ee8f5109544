"""When I do this, that event arrives: `with events.expect("E_PIKE_BLOCKED", ip=address, within=5): flood()`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from harness.deadline import Deadline
from harness.errors import CheckFailed
from harness.opensips.events import Event, Value
from harness.opensips.subscriber import NoEvent, Reader, Subscriber

_TOLD = 5


class EventMissing(CheckFailed):
    """What was expected did not come; `came` is what came instead, `doubts` why it may have been lost."""

    def __init__(self, expected: str, came: list[Event], doubts: list[str]) -> None:
        seen = ", ".join(map(str, came[-_TOLD:])) or "nothing"
        more = f" and {len(came) - _TOLD} before" if len(came) > _TOLD else ""
        super().__init__("; ".join([f"{expected} did not come; what came is {seen}{more}", *doubts]))
        self.came, self.doubts = came, doubts


@dataclass
class Expected:
    """What came: `events` are all of the block and of the wait after it, `event` is the one that was expected."""

    events: list[Event] = field(default_factory=list)
    found: Event | None = None

    @property
    def event(self) -> Event:
        """Not there before the block has ended."""
        if self.found is None:
            raise LookupError("the block that the event is expected of has not ended")
        return self.found


class Events:
    """Expectations of what comes to `subscriber`."""

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber

    @contextmanager
    def expect(self, name: str, /, *, within: float = 5.0, **params: Value) -> Iterator[Expected]:
        """The event `name` with these parameters comes during the block, or up to `within` seconds after its end.

        Raises EventMissing. Where the block raises, nothing is waited for.
        """
        self.subscriber.subscribe(name)
        with self.subscriber.reader() as reader:
            expected = Expected()
            yield expected
            expected.found = self._wait(reader, expected, name, params, Deadline(within))
            if expected.found is None:
                wanted = f"{name} with {params}" if params else name
                raise EventMissing(f"{wanted} within {within:.1f} s", expected.events, reader.doubts())

    @contextmanager
    def none(self, name: str, /, *, within: float = 1.0) -> Iterator[None]:
        """The event `name` does not come during the block, nor up to `within` seconds after its end."""
        with self.subscriber.reader() as reader:
            yield
            came = [event for event in reader.until(Deadline(within)) if event.name == name]
            if came:
                raise CheckFailed(f"{came[0]} came, which nobody should have been told")

    @staticmethod
    def _wait(reader: Reader, expected: Expected, name: str, params: dict[str, Value], deadline: Deadline
              ) -> Event | None:
        while True:
            try:
                event = reader.next(deadline)
            except NoEvent:
                return None
            expected.events.append(event)
            if event.name == name and event.matches(params):
                return event
