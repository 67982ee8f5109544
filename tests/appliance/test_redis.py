"""Calls kept in Redis: what its own failures do to them."""

import time
from contextlib import ExitStack

import pytest

from harness import acceptance
from harness.plugin import expect
from harness.units import many
from harness.voip.call import Call
from harness.voip.traffic import Traffic

pytestmark = [pytest.mark.level("acceptance"), pytest.mark.after("test_ten_calls", "test_redis_as_described")]

REDIS = "redis-server.service"
SECONDS = 1.0


@pytest.fixture
def kept(host, rtpengine):
    """kept(): the Call-IDs that Redis has."""
    if not rtpengine.redis_here:
        pytest.skip("no Redis on the appliance keeps calls")
    database = rtpengine.redis_endpoint.rpartition("/")[2]
    return lambda: set(host.check_output("redis-cli -n %s --scan", database).split())


def test_redis_restarted(host, kept, talk, switchboard, endpoint, whole):
    """Redis is restarted in the middle of calls: their media go on, and Redis has them and new ones"""
    talk.during(0)
    host.check_output("systemctl restart %s", REDIS)
    with Call(switchboard, endpoint(), endpoint()) as call:
        stored = kept()
        results = talk.during(SECONDS)
    wanted = {one.id for one in (*talk.calls, call)}
    said = f"{len(wanted & stored)} of {many(len(wanted), 'call')} in Redis"
    whole(results, said)
    expect(wanted <= stored, f"{many(len(wanted), 'call')} in Redis", said)


def test_redis_hangs(host, kept, talk, switchboard, endpoint, whole):
    """Redis does not answer: media go on, and calls are set up all the same"""
    talk.during(0)
    with ExitStack() as ended:
        host.check_output("systemctl kill --signal=STOP %s", REDIS)
        try:
            begin = time.monotonic()
            ended.enter_context(Call(switchboard, endpoint(), endpoint()))
            said = f"a call set up in {time.monotonic() - begin:.1f} s without an answer of Redis"
        finally:
            host.check_output("systemctl kill --signal=CONT %s", REDIS)
        whole(talk.during(SECONDS), said)


def test_redis_down(host, kept, switchboard, endpoint, arrived, seen):
    """Redis is down when the daemon starts: calls are relayed, and kept once it is back"""
    host.check_output("systemctl stop %s", REDIS)
    try:
        started = host.run("systemctl restart rtpengine.service")
        expect(started.rc == 0, "the daemon starts", started.stderr.strip())
        came = arrived()
        with Call(switchboard, endpoint(), endpoint()) as call:
            health = Traffic(call.streams, report_every=0).run(SECONDS, acceptance.LINGER)
            result = call.result()
    finally:
        host.check_output("systemctl start %s && systemctl start rtpengine.service", REDIS)
    acceptance.fit([result], [health], arrived() - came)
    lost = sum(acceptance.missing(one) for one in acceptance.directions([result]))
    with Call(switchboard, endpoint(), endpoint()) as later:
        stored = later.id in kept()
    said = f"{acceptance.in_words([result])} without Redis, the next {'is' if stored else 'is not'} in Redis"
    seen(said)
    expect(lost == 0 and stored, "a call without loss while Redis is down, and the next one in Redis", said)
