"""Packets of a third address in calls: what of them a relay passes on, and what of a call it sends there.

A stranger sends RTP to the relay's port for a caller. A relay that takes it for the caller passes that on to the
callee (injected), and sends it what the callee says (stolen). RTPEngine learns an endpoint's address from packets for
the first 3 s after the last signal, and after that drops others' only where `strict source` was asked for; that it went
on to divert media which the announced address itself had taken up is CVE-2025-53399.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Final

from harness.voip.call import Call, CallFailed
from harness.voip.endpoint import Endpoint, Stream
from harness.voip.traffic import Health, Traffic

LEARNING: Final = 3.0
"""Seconds after a call's last signal in which RTPEngine learns (its documentation of `endpoint-learning`)."""
_LOOK_EVERY: Final = 0.3
_ON_THE_WAY: Final = 0.5
"""Seconds of LEARNING that are left to a packet between its being due and the relay's having heard it."""


class When(StrEnum):
    """When the stranger begins to send, which it then does to the end."""

    FIRST = "before the first packet"
    DURING = "during learning"
    AFTER = "after learning"


@dataclass(frozen=True)
class Share:
    """Packets that were sent, and how many of them came where they must not."""

    sent: int
    came: int

    def __str__(self) -> str:
        return f"{self.came:,} of {self.sent:,}"


def total(shares: Iterable[Share]) -> Share:
    every = list(shares)
    return Share(sum(one.sent for one in every), sum(one.came for one in every))


@dataclass(frozen=True)
class Intrusion:
    """What a stranger got into a call (`early` until the relay had learned, `late` after that) and out of it (`unheard`
    of what the callee sent before it could hear the caller, `heard` after that).

    `until` is how many seconds after the call began the last of its packets came to the callee, 0 where none did;
    `shut_out` says that none of the caller's own ever did.
    """

    when: When
    early: Share
    late: Share
    unheard: Share
    heard: Share
    until: float
    shut_out: bool


class Attempt:
    """A stranger at `third` that sends to the relay's port for the caller of `call`, at `address` of the relay.

    Every phase has a stream of its own, so that no packet on its way is taken for one of another phase.
    """

    def __init__(self, call: Call, third: Endpoint, address: str, when: When) -> None:
        self.call, self.third, self.when = call, third, when
        self.early, self.late = third.stream(), third.stream()
        self.unheard = call.callee.endpoint.stream()
        self._address = address

    @property
    def ports(self) -> list[int]:
        """The relay's ports that the call's media come to."""
        return [stream.target[1] for stream in self.call.streams]

    def aim(self) -> None:
        """Send to where the relay said; the call is set up."""
        towards = self.call.relay_to_caller
        assert towards is not None and self.call.relay_to_callee is not None
        for stream in (self.early, self.late):
            stream.towards(replace(towards, address=self._address))
        self.unheard.towards(self.call.relay_to_callee)

    # In each phase the stranger's packets are sent between the caller's and the callee's: a relay that takes whom it
    # heard last for the caller sends the callee's to the stranger.

    def before_caller(self) -> list[Stream]:
        caller, callee = self.call.streams
        return [self.early, self.unheard] if self.when is When.FIRST else [caller, callee]

    def with_caller(self) -> list[Stream]:
        caller, callee = self.call.streams
        return [caller, self.early] if self.when is When.FIRST else [caller, callee]

    def while_learning(self) -> list[Stream]:
        caller, callee = self.call.streams
        return [caller, callee] if self.when is When.AFTER else [caller, self.early, callee]

    def after_learning(self) -> list[Stream]:
        caller, callee = self.call.streams
        return [caller, self.late, callee]

    def outcome(self, begin: int) -> Intrusion:
        """What came of it; `begin` is when the call began, in nanoseconds since 1970 by the callee's clock."""
        callee = self.call.callee
        injected = [seen for stream in (self.early, self.late)
                    for seen in callee.endpoint.heard_from(stream.sender).values()]
        return Intrusion(
            self.when, _share(self.early, callee.endpoint), _share(self.late, callee.endpoint),
            _share(self.unheard, self.third), _share(callee, self.third),
            max(((seen.last - begin) / 1e9 for seen in injected), default=0.0), not self.is_heard)

    @property
    def is_heard(self) -> bool:
        """Whether the callee heard the caller."""
        return bool(self.call.callee.endpoint.heard_from(self.call.caller.sender))


def _share(stream: Stream, where: Endpoint) -> Share:
    return Share(stream.sent, sum(seen.packets for seen in where.heard_from(stream.sender).values()))


def learned(answer: Mapping[str, Any]) -> bool:
    """Whether the relay is sure where both ends of a call are, by its answer to `query`: then it learns no more."""
    flags = [stream.get("flags", ()) for tag in answer["tags"].values()
             for media in tag.get("medias", ()) for stream in media.get("streams", ())]
    return all("confirmed" in one for one in flags if "RTP" in one) and any("RTP" in one for one in flags)


@dataclass(frozen=True)
class Watched:
    """`learned` is after how many seconds the relay had learned all endpoints, None where it never did; `begun` how
    many seconds after the answer of its call the last of the callers began that were silent first."""

    intrusions: Mapping[Attempt, Intrusion]
    health: Sequence[Health]
    learned: float | None
    begun: float

    @property
    def too_late(self) -> bool:
        """Whether a relay was right to take a stranger for the caller: nobody else was there while it learned."""
        missed = self.learned is None or any(one.shut_out for one in self.intrusions.values())
        return missed and self.begun > LEARNING - _ON_THE_WAY


def watch(attempts: Sequence[Attempt], has_learned: Callable[[], bool], *, silence: float = 0.5,
          learning: float = 15.0, afterwards: float = 2.0, linger: float = 0.3) -> Watched:
    """Let the media of all calls and their strangers flow; the calls are set up, and were just now.

    A caller whose stranger comes first is silent for `silence` seconds. The relay has `learning` seconds at most to
    learn; `afterwards` is how long the media go on after that. Raises CallFailed where a callee does not hear its
    caller, although no stranger came first.
    """
    for attempt in attempts:
        attempt.aim()
    begins = {attempt: attempt.call.callee.endpoint.clock() for attempt in attempts}
    clock = time.monotonic()
    health = []

    def until(reached: Callable[[], bool], limit: float, phase: Callable[[Attempt], Iterable[Stream]],
              linger: float = 0) -> bool:
        with Traffic((stream for attempt in attempts for stream in phase(attempt)), report_every=0) as traffic:
            there = False
            while not there and (left := limit - time.monotonic()) > 0:
                traffic.wait(min(_LOOK_EVERY, left))
                there = reached()
            health.append(traffic.stop(linger))
        return there

    until(lambda: False, clock + silence, Attempt.before_caller)
    begun = max((time.monotonic() - attempt.call.answered for attempt in attempts
                 if attempt.when is When.FIRST and attempt.call.answered is not None), default=0.0)
    limit = clock + learning
    until(lambda: all(attempt.is_heard for attempt in attempts), limit, Attempt.with_caller)
    if not all(attempt.is_heard for attempt in attempts if attempt.when is not When.FIRST):
        raise CallFailed(f"a callee heard nothing of its caller for {learning:.0f} s")
    is_learned = until(has_learned, limit, Attempt.while_learning)
    seconds = time.monotonic() - clock
    until(lambda: False, time.monotonic() + afterwards, Attempt.after_learning, linger)
    return Watched({attempt: attempt.outcome(begins[attempt]) for attempt in attempts}, health,
                   seconds if is_learned else None, begun)
