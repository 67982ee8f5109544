"""When I do this, that event arrives: `with events.expect("E_PIKE_BLOCKED", ip=address, within=5): flood()`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    """What came: `found` are the events that were expected, one of each subscriber, `came` all until then."""

    came: list[Event] = field(default_factory=list)
    found: tuple[Event, ...] = ()

    @property
    def event(self) -> Event:
        """The first subscriber's. Not there before the block has ended."""
        if not self.found:
            raise LookupError("the block that the event is expected of has not ended")
        return self.found[0]


class Events:
    """Expectations of what comes to `subscribers`: to each of them, `within` seconds unless said otherwise."""

    def __init__(self, *subscribers: Subscriber, within: float = 5.0) -> None:
        self.subscribers, self.within = subscribers, within

    @contextmanager
    def expect(self, name: str, /, *, within: float | None = None, **params: Value) -> Iterator[Expected]:
        """The event `name` with these parameters comes during the block, or up to `within` seconds after its end.

        Raises EventMissing. Where the block raises, nothing is waited for.
        """
        for one in self.subscribers:
            one.subscribe(name)
        expected = Expected()
        with ExitStack() as opened:
            readers = [opened.enter_context(one.reader()) for one in self.subscribers]
            yield expected
            limit = Deadline(self.within if within is None else within)
            for one, reader in zip(self.subscribers, readers, strict=True):
                came: list[Event] = []
                found = _wait(reader, came, name, params, limit)
                expected.came += came
                if found is None:
                    wanted = f"{name} with {params}" if params else name
                    raise EventMissing(f"{wanted} within {limit.seconds:.1f} s over {one.listener.transport}", came,
                                       reader.doubts())
                expected.found += (found,)

    @contextmanager
    def none(self, name: str, /, *, within: float = 1.0) -> Iterator[None]:
        """The event `name` comes to nobody during the block, nor up to `within` seconds after its end."""
        with ExitStack() as opened:
            readers = [opened.enter_context(one.reader()) for one in self.subscribers]
            yield
            limit = Deadline(within)
            came = [event for reader in readers for event in reader.until(limit) if event.name == name]
            if came:
                raise CheckFailed(f"{came[0]} came, which nobody should have been told")


def _wait(reader: Reader, came: list[Event], name: str, params: dict[str, Value], deadline: Deadline) -> Event | None:
    """The event; None where it does not come. All until then are added to `came`."""
    while True:
        try:
            event = reader.next(deadline)
        except NoEvent:
            return None
        came.append(event)
        if event.name == name and event.matches(params):
            return event
