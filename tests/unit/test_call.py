"""Against a test double of a relay that does to packets what it is told: each figure is seen to tell its fault."""

import json
import re
import time
from contextlib import ExitStack
from dataclasses import asdict

import pytest

from harness.voip.bencode import encode
from harness.voip.call import Call, CallFailed, placed
from harness.voip.endpoint import Endpoint
from harness.voip.ng import NgClient, NgNoAnswer, NgOutOfPorts
from harness.voip.traffic import Traffic
from tests.relay_double import Faults, relay_double


def called(faults=None, seconds=0.6, caller_address="127.0.0.1", callee_address="127.0.0.1", report_every=5.0,
           linger=0.4, **options):
    """The result of a call through a relay double with these faults, and the call."""
    with relay_double(faults) as relay, NgClient("127.0.0.1", relay.port) as client, \
            Endpoint(caller_address) as caller, Endpoint(callee_address, tos=32) as callee:
        with Call(client, caller, callee, **options) as call:
            assert len(relay.calls) == 1
            health = Traffic(call.streams, report_every=report_every).run(seconds, linger)
            result = call.result()
            assert not health.dropped and not health.failed
        assert not relay.calls and not caller.streams and not caller.received
        assert not caller.strangers() and not callee.strangers()
        return result, call


def test_a_call_without_faults():
    result, call = called(report_every=0.1)
    for direction, relay in ((result.to_callee, call.relay_to_callee), (result.to_caller, call.relay_to_caller)):
        assert direction.sent == direction.received == direction.expected > 5
        assert (direction.lost, direction.loss, direction.reordered, direction.duplicates) == (0, 0, 0, 0)
        assert (direction.failed, direction.restarts) == (0, 0)
        assert direction.sources == (f"127.0.0.1:{relay.port}",)
        assert direction.tos == (0,)
        assert direction.latency.minimum > 0 and direction.latency.minimum <= direction.latency.median
        assert direction.reported_lost == 0 and direction.round_trip >= 0
        assert direction.mos >= 4
    assert result.to_callee.ssrcs == (call.caller.ssrc,) and result.to_caller.ssrcs == (call.callee.ssrc,)
    assert json.loads(json.dumps(asdict(result)))["to_callee"]["lost"] == 0


def test_lost_packets_and_the_score_that_they_cost():
    result, _ = called(Faults(lose=lambda n: n % 5 == 3), report_every=0.1)
    for direction in (result.to_callee, result.to_caller):
        assert direction.lost == direction.sent - direction.received
        assert direction.loss == pytest.approx(20, abs=4)
        assert direction.reported_lost > 0
        assert direction.duplicates == direction.reordered == 0
        assert direction.mos < 3


def test_packets_lost_at_the_begin_and_at_the_end_are_lost():
    result, _ = called(Faults(lose=lambda n: n < 5 or n >= 15))
    assert result.to_callee.received == result.to_callee.expected == 10
    assert result.to_callee.lost == result.to_callee.sent - 10 >= 5


def test_reordered_packets():
    result, _ = called(Faults(swap=lambda n: n in (3, 10)))
    for direction in (result.to_callee, result.to_caller):
        assert (direction.reordered, direction.lost, direction.duplicates) == (2, 0, 0)


def test_duplicated_packets():
    result, _ = called(Faults(duplicate=lambda n: n in (3, 4, 9)))
    for direction in (result.to_callee, result.to_caller):
        assert (direction.duplicates, direction.lost, direction.reordered) == (3, 0, 0)
        assert direction.received == direction.sent + 3


def test_delay_is_latency_and_no_jitter():
    plain, _ = called()
    late, _ = called(Faults(delay=lambda n: 0.3), linger=1.5)
    assert late.to_callee.latency.minimum >= 300 > plain.to_callee.latency.median
    assert late.to_callee.lost == 0 and late.to_callee.jitter < 150
    assert late.to_callee.mos < plain.to_callee.mos


def test_delay_that_varies_is_jitter_and_too_late_for_the_buffer():
    result, _ = called(Faults(delay=lambda n: 0.1 * (n % 2)), seconds=1.2, linger=1.0)
    for direction in (result.to_callee, result.to_caller):
        assert direction.jitter > 50 and direction.jitter_max >= direction.jitter and direction.jitter_mean > 30
        assert direction.too_late >= 0.4 * direction.received
        assert direction.reordered > 10 and direction.lost == 0
        assert direction.mos < 3


def test_a_gap_and_when_it_was():
    result, call = called(Faults(lose=lambda n: 10 <= n < 30), seconds=0.9)
    assert 400 <= result.to_callee.longest_gap < 700
    assert result.to_callee.lost == 20
    assert result.to_callee.gap_began < call.caller.sent_at / 1e9 - 0.3


def test_a_stream_whose_ssrc_the_relay_changes_is_still_one():
    def rewrite(number, data):
        return data if number < 10 else data[:8] + b"\0\0\xab\xcd" + data[12:]

    result, call = called(Faults(rewrite=rewrite, lose=lambda n: n in (4, 15)))
    assert result.to_callee.ssrcs == (call.caller.ssrc, 0xABCD)
    assert result.to_callee.lost == 2 and result.to_callee.received == result.to_callee.sent - 2
    assert result.to_callee.expected == result.to_callee.sent and result.to_callee.restarts == 0


def test_tos_that_the_relay_sets():
    result, _ = called(Faults(tos=184), seconds=0.3)
    assert result.to_callee.tos == result.to_caller.tos == (184,)


def test_a_relay_that_relays_nothing():
    result, _ = called(Faults(relayed=False), seconds=0.3)
    for direction in (result.to_callee, result.to_caller):
        assert direction.lost == direction.sent > 0 and direction.received == 0 and direction.loss == 100
        assert direction.latency is None and direction.mos == 1.0 and direction.sources == ()


@pytest.mark.parametrize(("caller", "callee"), [("::1", "::1"), ("127.0.0.1", "::1"), ("::1", "127.0.0.1")])
def test_ipv6_and_from_one_family_to_the_other(caller, callee):
    result, call = called(seconds=0.4, caller_address=caller, callee_address=callee)
    assert result.to_callee.lost == result.to_caller.lost == 0
    assert call.relay_to_callee.address == callee and call.relay_to_caller.address == caller


def test_without_a_shared_clock_there_is_no_latency():
    result, _ = called(seconds=0.3, shared_clock=False)
    assert result.to_callee.latency is None and result.to_callee.jitter >= 0 and result.to_callee.mos > 4


def test_an_interval_begins_anew():
    with relay_double(Faults(lose=lambda n: n == 5)) as relay, NgClient("127.0.0.1", relay.port) as client, \
            Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee, Call(client, caller, callee) as call:
        with Traffic(call.streams) as traffic:
            traffic.wait(0.5)
            before = call.interval()
            traffic.wait(0.3)
        after = call.result()
        assert before.to_callee.lost == 1 and after.to_callee.lost == 0
        assert before.to_callee.sent + after.to_callee.sent == call.caller.sent
        assert 5 < after.to_callee.received < before.to_callee.received


def test_many_calls_share_two_endpoints():
    with relay_double(Faults(lose=lambda n: n == 7)) as relay, NgClient("127.0.0.1", relay.port) as client, \
            Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        with placed([Call(client, caller, callee) for _ in range(8)]) as calls:
            Traffic(stream for call in calls for stream in call.streams).run(0.5)
            for call in calls:
                result = call.result()
                assert result.to_callee.lost == result.to_caller.lost == 1
                assert result.to_callee.sources == (f"127.0.0.1:{call.relay_to_callee.port}",)
        assert not relay.calls and relay.commands["delete"] == 8


def test_strict_source_is_asked_for_unless_told_otherwise():
    for options, flags in ((None, ["strict source"]), ({"flags": []}, [])):
        with relay_double() as relay, NgClient("127.0.0.1", relay.port) as client, \
                Endpoint("127.0.0.1") as caller, Endpoint("::1") as callee, \
                Call(client, caller, callee, options=options):
            offer, answer = relay.arguments
            assert offer["flags"] == answer["flags"] == flags
            assert (offer["address-family"], answer["address-family"]) == ("IP6", "IP4")
            assert offer["call-id"] == answer["call-id"] and offer["from-tag"] == answer["from-tag"]


@pytest.fixture
def ends():
    with relay_double() as relay, NgClient("127.0.0.1", relay.port, seconds=1) as client, \
            Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        yield relay, client, caller, callee


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_call_is_deleted_whatever_ends_the_block(ends, error):
    relay, client, caller, callee = ends
    with pytest.raises(error), Call(client, caller, callee):
        assert relay.calls
        raise error
    assert not relay.calls


@pytest.mark.parametrize(("command", "body", "message"), [
    ("answer", encode({"result": "ok", "sdp": "v=0\r\n"}), "to the answer of dialtone-.*: the SDP has no o= line"),
    ("offer", encode({"result": "ok", "sdp": "v=0\r\no=-\r\ns=-\r\nt=0 0\r\n"}), "answer to the offer .* no media"),
    ("answer", b"garbage", "answer to answer is not bencode"),
])
def test_a_call_that_can_not_be_set_up_is_deleted(ends, command, body, message):
    relay, client, caller, callee = ends
    relay.answers[command] = body
    with pytest.raises(Exception, match=message), Call(client, caller, callee):
        pass
    assert relay.commands["delete"] == 1 and not relay.calls and not caller.streams


def test_an_offer_whose_answer_never_comes_is_deleted(ends):
    relay, client, caller, callee = ends
    relay.lose_answers = 2
    with pytest.raises(NgNoAnswer), Call(client, caller, callee):
        pass
    assert relay.commands == {"offer": 1, "delete": 1} and not relay.calls


@pytest.mark.parametrize(("old", "new", "message"), [
    ("m=audio", "m=video", "has no audio"), (r"m=audio \d+", "m=audio 0", "has no audio"),
    ("IN IP4 127.0.0.1", "IN IP6 ::1", "has ::1 for the endpoint 127.0.0.1, which is of another family")])
def test_media_that_can_not_be_used_is_told(ends, old, new, message):
    relay, client, caller, callee = ends
    sdp = ("v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\n")
    relay.answers["answer"] = encode({"result": "ok", "sdp": re.sub(old, new, sdp)})
    with pytest.raises(CallFailed, match=message), Call(client, caller, callee):
        pass
    assert not relay.calls


def test_calls_until_the_ports_are_exhausted(ends):
    relay, client, caller, callee = ends
    relay.most_calls = 3
    with ExitStack() as stack:
        with pytest.raises(NgOutOfPorts):
            while True:
                stack.enter_context(Call(client, caller, callee))
        assert len(relay.calls) == 3
    assert not relay.calls


def test_one_of_many_that_fails_takes_the_others_down(ends):
    relay, client, caller, callee = ends
    relay.most_calls = 2
    with pytest.raises(NgOutOfPorts), placed([Call(client, caller, callee) for _ in range(4)]):
        pass
    assert relay.commands["offer"] == 3 and not relay.calls and not callee.streams


def test_many_calls_of_a_slow_relay_are_all_deleted(ends, monkeypatch):
    relay, client, caller, callee = ends
    monkeypatch.setattr("harness.voip.call._HANG_UP", 0.4)
    delete = client.delete

    def slowly(*arguments, **options):
        time.sleep(0.1)
        return delete(*arguments, **options)

    monkeypatch.setattr(client, "delete", slowly)
    with placed([Call(client, caller, callee) for _ in range(8)]):
        assert len(relay.calls) == 8
    assert not relay.calls


def test_a_call_that_the_relay_ended_itself_is_no_error(ends):
    _, client, caller, callee = ends
    with Call(client, caller, callee) as call:
        client.delete(call.id, call.from_tag)


def test_a_relay_that_dies_in_mid_call_is_told_and_the_measurement_kept():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee, ExitStack() as stack:
        with relay_double() as relay:
            client = stack.enter_context(NgClient("127.0.0.1", relay.port, seconds=0.6))
            calls = stack.enter_context(placed([Call(client, caller, callee) for _ in range(2)]))
            traffic = Traffic(stream for call in calls for stream in call.streams)
            traffic.__enter__()
            traffic.wait(0.4)
        traffic.wait(0.4)
        traffic.stop()
        result = calls[0].result()
        assert result.to_callee.received > 5 and result.to_callee.lost > 5
        with pytest.raises(NgNoAnswer, match="did not answer delete"):
            stack.close()


def test_an_error_is_not_hidden_by_a_relay_that_is_gone(ends):
    relay, client, caller, callee = ends
    relay.lose_answers = 0
    with pytest.raises(RuntimeError) as error, Call(client, caller, callee):
        relay.lose_answers = 10
        raise RuntimeError("the first cause")
    assert "1 calls were not deleted on the relay: the relay at 127.0.0.1" in error.value.__notes__[0]
