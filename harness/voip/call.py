"""Calls through a relay: offer and answer by the ng protocol, two endpoints, media both ways, and what became of it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from harness.deadline import Deadline
from harness.errors import CheckFailed
from harness.voip import sdp
from harness.voip.bencode import Value
from harness.voip.endpoint import Endpoint, Stream
from harness.voip.mediastats import MediaStats, media_stats
from harness.voip.ng import NgClient, NgError, NgUnknownCall
from harness.voip.rtp import PCMU, Codec
from harness.voip.sdp import Media

OPTIONS: Final[Mapping[str, Value]] = {
    "flags": ["strict source"], "replace": ["origin", "session connection"], "ICE": "remove"}
"""Of every offer and answer: nobody but the signalled endpoints gets into a stream."""
_HANG_UP: Final = 10.0
_HANG_UP_ONE: Final = 5.0


class CallFailed(CheckFailed):
    """The relay's answer to an offer or an answer can't be used; the message says which and why."""


@dataclass(frozen=True)
class CallResult:
    to_callee: MediaStats
    to_caller: MediaStats


@dataclass(frozen=True)
class _Counted:
    """Where a stream stood when its figures were last taken."""

    packets: int = 0
    failed: int = 0
    intervals: bool = False


class Exchange:
    """Media both ways between two endpoints through a relay, and their figures, however the relay was told of them.

    `shared_clock`: both endpoints' hosts have one clock, so that one-way latency can be told. Endpoints may be shared
    by any number of exchanges and stay open.
    """

    def __init__(self, caller: Endpoint, callee: Endpoint, *, codec: Codec = PCMU, ptime: int = 20,
                 shared_clock: bool = True) -> None:
        self.caller, self.callee = caller.stream(codec, ptime), callee.stream(codec, ptime)
        self.caller.peer, self.callee.peer = self.callee, self.caller
        self.relay_to_caller: Media | None = None
        """Where the caller sends to and hears from: the relay's address, by its answer."""
        self.relay_to_callee: Media | None = None
        self._shared_clock = shared_clock
        self._counted = {self.caller: _Counted(), self.callee: _Counted()}

    @property
    def streams(self) -> tuple[Stream, Stream]:
        """The caller's and the callee's, for Traffic."""
        return self.caller, self.callee

    def connect(self, relay_to_caller: Media, relay_to_callee: Media) -> None:
        """Both streams go to where the relay says."""
        self.relay_to_caller, self.relay_to_callee = relay_to_caller, relay_to_callee
        self.caller.towards(relay_to_caller)
        self.callee.towards(relay_to_callee)

    def forget(self) -> None:
        """Take the streams from their endpoints: what comes of them from now on is a stranger's."""
        for stream, peer in (self.streams, self.streams[::-1]):
            stream.endpoint.streams.pop(stream.ssrc, None)
            peer.endpoint.forget(stream.sender)

    def result(self) -> CallResult:
        """Both directions since the beginning, or since the last interval().

        To be asked when the traffic has stopped: what is on its way counts as lost.
        """
        return self._result(final=True)

    def interval(self) -> CallResult:
        """Both directions up to now; what comes next counts anew. While media flows: lost are gaps between two packets
        of the interval, so that a gap from one interval to the next is in neither."""
        result = self._result(final=False)
        for stream, peer in (self.streams, self.streams[::-1]):
            peer.endpoint.forget(stream.sender)
            self._counted[stream] = _Counted(stream.packets, stream.failed.total(), intervals=True)
        return result

    def _result(self, *, final: bool) -> CallResult:
        caller, callee = self.streams
        return CallResult(self._direction(caller, callee.endpoint, final),
                          self._direction(callee, caller.endpoint, final))

    def _direction(self, stream: Stream, receiver: Endpoint, final: bool) -> MediaStats:
        before, seen = self._counted[stream], receiver.heard_from(stream.sender)
        failed = stream.failed.total() - before.failed
        sent = stream.packets - before.packets - failed
        gaps = sum(one.lost for one in seen.values()) - failed
        if final and not seen:
            lost = sent
        elif final and before.intervals:
            # What was on its way when the interval began is in no count of sent packets: go by sequence numbers.
            last = max(seen.values(), key=lambda one: one.last)
            lost = gaps + (stream.sequence - 1 - last.highest & 0xFFFF)
        elif final:
            lost = sent - sum(one.unique for one in seen.values())
        else:
            lost = gaps
        return media_stats(stream, sent, failed, seen, lost=max(lost, 0), shared_clock=self._shared_clock)


class Call(Exchange):
    """A call from `caller` to `callee` through the relay that `client` controls; use `with`, or placed() for many.

    On the way out of the block it is deleted on the relay, whatever happened, also where only the offer came through.
    `options` are added to OPTIONS in offer and answer (a key of theirs replaces it); the address family is each side's
    own.
    """

    def __init__(self, client: NgClient, caller: Endpoint, callee: Endpoint, *,
                 options: Mapping[str, Value] | None = None, codec: Codec = PCMU, ptime: int = 20,
                 shared_clock: bool = True) -> None:
        super().__init__(caller, callee, codec=codec, ptime=ptime, shared_clock=shared_clock)
        self.id = f"dialtone-{secrets.token_hex(8)}"
        self.from_tag, self.to_tag = secrets.token_hex(4), secrets.token_hex(4)
        self._client = client
        self._options = {**OPTIONS, **(options or {})}
        self._on_relay = False
        self.answered: float | None = None
        """When the answer was sent to the relay, by time.monotonic(); None before that."""

    def __enter__(self) -> Call:
        try:
            self._set_up()
        except BaseException as error:
            _hang_up([self], error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _hang_up([self], error)

    def _set_up(self) -> None:
        """Offer, answer, and both streams sent to where the relay says."""
        caller, callee = self.caller.endpoint, self.callee.endpoint
        self._on_relay = True  # before the offer: its answer may get lost
        to_callee = self._media("offer", callee, self._client.offer(
            self.id, self.from_tag, sdp.build([self.caller.media]), self._options_for(callee)))
        self.answered = time.monotonic()
        to_caller = self._media("answer", caller, self._client.answer(
            self.id, self.from_tag, self.to_tag, sdp.build([self.callee.media]), self._options_for(caller)))
        self.connect(to_caller, to_callee)

    def delete(self, deadline: Deadline) -> None:
        """Delete the call on the relay and forget its streams. Raises NgError; a call that is gone already is none."""
        self.forget()
        if self._on_relay:
            with suppress(NgUnknownCall):
                self._client.delete(self.id, self.from_tag, deadline=deadline)
            self._on_relay = False

    def _options_for(self, receiver: Endpoint) -> Mapping[str, Value]:
        return {"address-family": sdp.family(receiver.address), **self._options}

    def _media(self, command: str, receiver: Endpoint, text: str) -> Media:
        try:
            audio = next((media for media in sdp.parse(text) if media.kind == "audio"), None)
        except sdp.SdpError as error:
            raise CallFailed(f"the relay's answer to the {command} of {self.id}: {error}", excerpt=text) from error
        if audio is None or not audio.port:
            raise CallFailed(f"the relay's answer to the {command} of {self.id} has no audio", excerpt=text)
        if audio.family != sdp.family(receiver.address):
            raise CallFailed(f"the relay's answer to the {command} of {self.id} has {audio.address} for the endpoint "
                             f"{receiver.address}, which is of another family", excerpt=text)
        return audio


@contextmanager
def placed(calls: Sequence[Call]) -> Iterator[Sequence[Call]]:
    """Set up all the calls; on the way out of the block they are deleted, within 10 s where the relay is gone."""
    error: BaseException | None = None
    try:
        for call in calls:
            call._set_up()
        yield calls
    except BaseException as caught:
        error = caught
        raise
    finally:
        _hang_up(calls, error)


def _hang_up(calls: Sequence[Call], error: BaseException | None) -> None:
    """Delete the calls; the first failure is raised, or noted on the `error` that already ends the block."""
    deadline = Deadline(_HANG_UP)
    failures = []
    for call in calls:
        try:
            call.delete(deadline.within(_HANG_UP_ONE))
            deadline = Deadline(_HANG_UP)  # many calls of a slow relay take longer than that, as long as it answers
        except NgError as failure:
            failures.append(failure)
    if failures and error is not None:
        error.add_note(f"{len(failures)} calls were not deleted on the relay: {failures[0]}")
    elif failures:
        raise failures[0]
