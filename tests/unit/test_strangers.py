"""What strangers get into calls and out of them, here through a relay that takes whom it is told to for the caller."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness import strangers
from harness.strangers import Attempt, Share, Watched, When
from harness.voip.call import Call, CallFailed, placed
from harness.voip.endpoint import Endpoint
from harness.voip.ng import NgClient
from tests.relay_double import Faults, relay_double


def watched(faults: Faults, learning: float = 3.0, is_learned: bool = True) -> Watched:
    """Three calls, one for each time to come."""
    with relay_double(faults) as relay, NgClient("127.0.0.1", relay.port) as client, Endpoint("127.0.0.1") as caller, \
            Endpoint("127.0.0.1") as callee, Endpoint("127.0.0.1") as third:
        attempts = [Attempt(Call(client, caller, callee), third, "127.0.0.1", when) for when in When]
        with placed([attempt.call for attempt in attempts]):
            return strangers.watch(attempts, lambda: is_learned, silence=0.2, learning=learning, afterwards=0.2,
                                   linger=0.1)


def test_a_relay_that_takes_packets_from_everybody_lets_everything_in_and_nothing_out() -> None:
    seen = watched(Faults())
    first, during, after = seen.intrusions.values()
    assert [one.when for one in (first, during, after)] == list(When)
    for one in (first, during, after):
        assert one.late.came == one.late.sent > 0 and one.early.came == one.early.sent
        assert one.heard == Share(one.heard.sent, 0) and one.heard.sent > 0 and not one.shut_out
    assert first.early.sent > during.early.sent > after.early.sent == 0
    assert first.unheard.sent > 0 == during.unheard.sent == after.unheard.sent
    assert first.until > 0.8 and not any(health.dropped or health.failed for health in seen.health)


def test_a_relay_that_follows_the_last_packet_gives_calls_away() -> None:
    first, during, after = watched(Faults(follow=True)).intrusions.values()
    for one in (first, during, after):
        assert one.heard.came > 0
    assert first.unheard.came > 0


def test_it_is_told_whether_the_relay_ever_learned() -> None:
    assert watched(Faults()).learned is not None
    assert watched(Faults(), learning=1.0, is_learned=False).learned is None


def test_a_caller_that_began_when_the_relay_had_learned_was_too_late() -> None:
    seen = watched(Faults(), learning=1.0, is_learned=False)
    assert 0.2 <= seen.begun < strangers.LEARNING - 0.5 and not seen.too_late
    assert replace(seen, begun=2.6).too_late
    assert not replace(seen, begun=2.6, learned=1.0).too_late
    first, *_ = seen.intrusions
    shut_out = {first: replace(seen.intrusions[first], shut_out=True)}
    assert replace(seen, begun=2.6, learned=1.0, intrusions=shut_out).too_late
    assert not replace(seen, begun=2.4, learned=1.0, intrusions=shut_out).too_late


def test_a_call_without_media_says_so() -> None:
    with pytest.raises(CallFailed, match="a callee heard nothing of its caller for 0 s"):
        watched(Faults(relayed=False), learning=0.3)


@pytest.mark.parametrize(("flags", "sure"), [
    ([["RTP", "confirmed"], ["RTP", "filled", "confirmed"]], True), ([["RTP", "confirmed"], ["RTP", "filled"]], False),
    ([["RTP", "confirmed"], ["RTCP", "filled"]], True), ([["RTCP", "confirmed"]], False), ([], False)])
def test_a_relay_is_sure_when_every_rtp_stream_is_confirmed(flags: list[list[str]], sure: bool) -> None:
    answer: dict[str, Any] = {"tags": {"a": {"medias": [{"streams": [{"flags": one} for one in flags]}]}, "b": {}}}
    assert strangers.learned(answer) is sure


def test_shares_add_up() -> None:
    assert str(strangers.total([Share(1000, 5), Share(234, 0)])) == "5 of 1,234"
