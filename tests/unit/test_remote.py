"""Endpoints at an agent's, which runs here: what they measure, and what becomes of them when it or its way is gone."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from harness.errors import HostError
from harness.voip import agent, remote
from harness.voip.call import Call, placed
from harness.voip.endpoint import Endpoint
from harness.voip.ng import NgClient
from harness.voip.remote import PROGRAM, Agent
from harness.voip.traffic import Traffic
from tests.relay_double import Faults, relay_double
from tests.unit.test_traffic import paired

ARGV = [sys.executable, "-I", "-S", "-c", PROGRAM]
"""Without the packages of this environment: another host has none of them."""


@pytest.fixture
def there() -> Iterator[Agent]:
    with Agent(ARGV, "the other host") as started:
        yield started
    assert started._process.poll() == 0, "it ended by itself"


def test_a_call_is_measured_as_by_endpoints_here(there: Agent) -> None:
    lost = Faults(lose=lambda number: number == 10)
    with relay_double(lost) as relay, NgClient("127.0.0.1", relay.port) as client, \
            there.endpoint("127.0.0.1", tos=184) as caller, there.endpoint("127.0.0.1") as callee, \
            Call(client, caller, callee) as call:
        health = Traffic(call.streams).run(0.6)
        result = call.result()
        for one in (result.to_callee, result.to_caller):
            assert (one.lost, one.duplicates, one.failed) == (1, 0, 0)
            assert 15 < one.sent == one.received + 1 <= 60 and one.latency is not None and one.latency.maximum < 1000
            assert one.reported_lost == 1, "RTCP goes on there, too"
        assert health.packets == result.to_callee.sent + result.to_caller.sent and health.seconds > 0.5
        assert not caller.strangers() and callee.address == "127.0.0.1" and caller.rtcp_port == caller.port + 1
    assert not relay.calls


def test_tos_and_source_are_those_seen_there(there: Agent) -> None:
    with there.endpoint("127.0.0.1", tos=184) as caller, there.endpoint("127.0.0.1") as callee:
        [out, _] = streams = paired(caller, callee)
        Traffic(streams, report_every=0).run(0.2)
        [seen] = callee.heard_from(out.sender).values()
        assert seen.tos == {184} and len(seen.sources) == 1
        assert abs(callee.clock() - time.time_ns()) < 5e9


def test_what_is_known_follows_media_that_flow(there: Agent) -> None:
    with relay_double() as relay, NgClient("127.0.0.1", relay.port) as client, \
            there.endpoint("127.0.0.1") as caller, there.endpoint("127.0.0.1") as callee, \
            placed([Call(client, caller, callee) for _ in range(5)]) as calls:
        streams = [stream for call in calls for stream in call.streams]
        with Traffic(streams, report_every=0) as traffic:
            traffic.wait(0.4)
            early = streams[0].sent
            first = [call.interval() for call in calls]
            traffic.wait(0.4)
            assert streams[0].sent > early > 5 and traffic.health.packets > 50 and not traffic.health.failed
        rest = [call.result() for call in calls]
        with Traffic(streams, report_every=0) as again:
            again.wait(0.2)
        assert streams[0].sent > sum(one.to_callee.sent for one in (first[0], rest[0]))
        assert sum(one.to_callee.restarts for one in [call.result() for call in calls]) == 0
    assert all(one.to_callee.received > 5 and one.to_callee.lost == 0 for one in [*first, *rest])


def test_several_traffics_at_once_and_strangers(there: Agent) -> None:
    with relay_double() as relay, NgClient("127.0.0.1", relay.port) as client, \
            there.endpoint("127.0.0.1") as caller, there.endpoint("127.0.0.1") as callee, \
            there.endpoint("127.0.0.1") as third, Call(client, caller, callee) as call, \
            Traffic(call.streams, report_every=0) as traffic:
        intruder = third.stream()
        intruder.towards(call.relay_to_caller)
        Traffic([intruder], report_every=0).run(0.3)
        traffic.wait(0.1)
        assert sum(seen.packets for seen in callee.strangers().values()) == intruder.sent > 5


def test_media_of_one_traffic_have_one_place(there: Agent) -> None:
    with there.endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee, \
            pytest.raises(ValueError, match="different places"):
        Traffic(paired(caller, callee))


def test_what_can_not_be_done_there_is_an_error_that_says_where(there: Agent) -> None:
    with pytest.raises(HostError, match=r"^the other host: no pair of UDP ports for RTP and RTCP at 192\.0\.2\.1"):
        there.endpoint("192.0.2.1")
    assert there.address_towards("127.0.0.1") == "127.0.0.1", "and it goes on"


def test_an_agent_that_is_killed_in_mid_call_is_an_error_and_the_call_is_deleted() -> None:
    with relay_double() as relay, NgClient("127.0.0.1", relay.port) as client, Agent(ARGV, "the other host") as gone, \
            gone.endpoint("127.0.0.1") as caller, gone.endpoint("127.0.0.1") as callee:
        with pytest.raises(HostError, match="no endpoints at the other host: it ended"), \
                Call(client, caller, callee) as call, Traffic(call.streams):
            os.kill(gone._process.pid, signal.SIGKILL)
            gone._process.wait()
        assert not relay.calls
        with pytest.raises(HostError, match="no endpoints at the other host: it ended"):
            gone.endpoint("127.0.0.1")


def test_an_interrupted_question_leaves_the_next_answer_right(there: Agent) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    with there.endpoint("127.0.0.1") as caller, there.endpoint("127.0.0.1") as callee:
        try:
            with pytest.raises(KeyboardInterrupt), Traffic(paired(caller, callee)) as traffic:
                signal.setitimer(signal.ITIMER_REAL, 0.2)
                traffic.stop(linger=1.0)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert there.address_towards("127.0.0.1") == "127.0.0.1"


@pytest.mark.parametrize("program, why", [
    ("import sys; sys.exit('Python 3.11 or later is needed, here is 3.9.2')", "here is 3.9.2"),
    ("import sys, pickle; sys.stdout.buffer.write(b'\\0\\0\\0\\5hello')", "it sent what is no answer"),
    ("import sys; sys.stdout.buffer.write(b'Welcome to net1')", "it sent what is no answer"),
    ("import sys; sys.exit('sudo: a password is required')", r"it ended (sudo: a password is required)"),
    ("import sys, pickle; d = pickle.dumps(7); sys.stdout.buffer.write(len(d).to_bytes(4, 'big') + d)",
     "it sent what is no answer")])
def test_a_host_that_runs_no_agent_is_an_error_that_says_why(program: str, why: str) -> None:
    with Agent([sys.executable, "-c", program], "the other host") as none, pytest.raises(HostError) as raised:
        none.address_towards("127.0.0.1")
    assert why in raised.value.message


def test_another_host_has_nothing_made_here_but_figures() -> None:
    evil = pickle.dumps((1, "", subprocess.Popen))
    with pytest.raises(pickle.UnpicklingError, match="subprocess"):
        remote._Unpickler(io.BytesIO(evil)).load()


def test_the_agent_ends_with_its_input_and_media_with_it() -> None:
    with Agent(ARGV, "the other host") as ended:
        caller, callee = ended.endpoint("127.0.0.1"), ended.endpoint("127.0.0.1")
        Traffic(paired(caller, callee)).__enter__()
        port = caller.port
    assert ended._process.returncode == 0
    with Endpoint("127.0.0.1", port=port):
        pass


def test_half_a_frame_is_no_request() -> None:
    sink = io.BytesIO()
    agent.serve(io.BytesIO(agent.frame(pickle.dumps((1, "address_towards", ("127.0.0.1",)))) + b"\0\0\1\0half"), sink)
    sink.seek(0)
    [answer] = agent.frames(sink)
    assert pickle.loads(answer) == (1, "", "127.0.0.1")
