"""Media."""

from dataclasses import dataclass

import pytest

from harness import acceptance
from harness.plugin import expect
from harness.units import many
from harness.voip.call import Call, CallResult, placed
from harness.voip.traffic import Traffic

pytestmark = [pytest.mark.level("acceptance"), pytest.mark.after("test_ten_calls")]

CALLS = 10
SECONDS = 2.0


@dataclass(frozen=True)
class InUserSpace:
    """Calls that the daemon itself relayed to their end; `worked` is how many ms each of its worker threads ran."""

    results: list[CallResult]
    worked: dict[str, float]


@pytest.fixture(scope="module")
def in_user_space(switchboard, endpoint, read, firewall, arrived, daemon):
    # Anew: the daemon may have been restarted since it was first looked at.
    file = daemon.option("pidfile")
    tasks = f"/proc/{read(file)[file].strip()}/task/*"

    def work():
        return acceptance.work(read(f"{tasks}/comm"), read(f"{tasks}/schedstat"))

    caller, callee, came = endpoint(), endpoint(), arrived()
    calls = [Call(switchboard, caller, callee) for _ in range(CALLS)]
    with placed(calls):
        streams = [stream for call in calls for stream in call.streams]
        with firewall(*acceptance.past_module(stream.target[1] for stream in streams)):
            before = work()
            health = Traffic(streams, report_every=0).run(SECONDS, acceptance.LINGER)
            after = work()
        results = [call.result() for call in calls]
    acceptance.fit(results, [health], arrived() - came)
    return InUserSpace(results, {thread: after[thread] - before.get(thread, 0) for thread in after})


def test_tos_in_user_space(in_user_space, rtpengine, seen):
    """what the daemon sends bears the described TOS"""
    marked(in_user_space.results, rtpengine.tos, seen)


@pytest.mark.after("test_forwarded_by_module")
def test_tos_in_kernel(table, conversation, rtpengine, seen):
    """what the kernel module sends bears the described TOS"""
    # Of the whole calls: those of them that the daemon sent, before it had learned their endpoints, bear it as well.
    marked(conversation.results, rtpengine.tos, seen)


def marked(results, wanted, seen):
    every = acceptance.directions(results)
    found = sorted({tos for one in every for tos in one.tos})
    said = f"TOS {', '.join(map(str, found))} of {sum(one.received for one in every):,} packets"
    seen(said)
    expect(found == [wanted], f"TOS {wanted} of every packet", said)


def test_threads_share_work(in_user_space, seen):
    """several threads of the daemon relay media"""
    worked = sorted((ms for ms in in_user_space.worked.values() if ms), reverse=True)
    said = (f"{len(worked)} of {many(len(in_user_space.worked), 'thread')} ran, "
            f"for {', '.join(f'{ms:.0f}' for ms in worked)} ms")
    seen(said)
    expect(len(worked) > 1, "two threads or more that ran while ten calls were relayed", said)
