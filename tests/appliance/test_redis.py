"""Calls kept in Redis: what its own failures do to them."""

import time
from contextlib import ExitStack

import pytest

from harness import acceptance
from harness.plugin import expect
from harness.units import many
from harness.voip.call import Call, placed
from harness.voip.traffic import Traffic

pytestmark = [pytest.mark.level("acceptance"), pytest.mark.after("test_ten_calls", "test_redis_as_described")]

REDIS = "redis-server.service"
SECONDS = 1.0
LEARNED = 5.0
"""Seconds of media in which the relay learns where its ends are, and would tell Redis."""
LOSS = 0.001
"""Share of the new calls' packets that may be lost: what waited for Redis leaves in a burst, and a queue on its way may
drop one. Media that stand still lose hundreds."""
BUSY = 1.5
"""Seconds that a few calls may take beyond what the daemon is told to wait for Redis: a server may be emulated."""


@pytest.fixture
def kept(host, rtpengine):
    """kept(): the Call-IDs that Redis has."""
    if not rtpengine.redis_here:
        pytest.skip("no Redis on the appliance keeps calls")
    database = rtpengine.redis_endpoint.rpartition("/")[2]
    return lambda: set(host.check_output("redis-cli -n %s --scan", database).split())


@pytest.fixture
def kept_again(kept, daemon, switchboard, endpoint):
    """kept_again(): the seconds until Redis has a new call, None where it has none once the daemon must have tried."""
    limit = int(daemon.option("redis-disable-time", "10")) + BUSY

    def wait():
        caller, callee, begin = endpoint(), endpoint(), time.monotonic()
        while (seconds := time.monotonic() - begin) < limit:
            with Call(switchboard, caller, callee) as call:
                if call.id in kept():
                    return seconds
            time.sleep(0.5)
        return None

    return wait


@pytest.fixture
def patience(daemon):
    """Seconds that the daemon waits for a Redis that does not answer before it gives it up: for a command, then for a
    connection and the first command by it."""
    command, connect = (int(daemon.option(f"redis-{name}-timeout", default)) for name, default in (
        ("cmd", "0"), ("connect", "1000")))
    return (2 * command + connect) / 1000


def in_words(again):
    return "no new call kept" if again is None else f"new calls kept after {again:.1f} s"


def test_redis_restarted(host, kept, kept_again, settled, whole):
    """Redis is restarted in the middle of calls: their media go on, and Redis has them and new ones"""
    settled.during(0)
    host.check_output("systemctl restart %s", REDIS)
    again = kept_again()
    wanted, stored = {call.id for call in settled.calls}, kept()
    said = f"{len(wanted & stored)} of {many(len(wanted), 'call')} in Redis, {in_words(again)}"
    whole(settled.during(SECONDS), said)
    expect(wanted <= stored, f"{many(len(wanted), 'call')} in Redis", said)
    expect(again is not None, "new calls in Redis as well", said)


def test_redis_hangs(host, put_back, kept_again, settled, patience, switchboard, endpoint, arrived, whole):
    """Redis does not answer: calls wait for the daemon's time-outs at most, those in the kernel not at all"""
    caller, callee, came = endpoint(), endpoint(), arrived()
    calls = [Call(switchboard, caller, callee) for _ in settled.calls]
    settled.during(0)
    with ExitStack() as ended:
        with put_back(f"systemctl kill --signal=CONT {REDIS}"):
            host.check_output("systemctl kill --signal=STOP %s", REDIS)
            begin = time.monotonic()
            ended.enter_context(placed(calls))
            seconds = time.monotonic() - begin
            health = Traffic((s for call in calls for s in call.streams), report_every=0).run(
                LEARNED, acceptance.LINGER)
            results = [call.result() for call in calls]
            relayed = sum(switchboard.query(call.id)["totals"]["RTP"]["packets"] for call in calls)
        again = kept_again()  # before the calls end: the end of one that Redis does not hear of stays there
    came = arrived() - came
    acceptance.fit(results, [health], came)
    acceptance.reached(results, came)
    every = acceptance.directions(results)
    lost, gap = sum(map(acceptance.missing, every)), max(one.longest_gap for one in every) / 1000
    said = (f"without an answer of Redis {many(len(calls), 'call')} set up in {seconds:.1f} s, {lost:,} of their "
            f"{sum(one.sent for one in every):,} packets lost, none came for {gap:.2f} s; {in_words(again)}")
    whole(settled.during(SECONDS), said)
    most = int(LOSS * sum(one.sent for one in every))
    expect(lost <= most, f"{most} packets of the new calls lost at most", said,
           lambda: acceptance.cause(results, came, relayed))
    limit = patience + BUSY
    expect(seconds <= limit, f"the calls set up within {limit:.1f} s", said)
    expect(gap <= limit, f"no stream without media for more than {limit:.1f} s", said)
    expect(again is not None, "new calls in Redis when it answers again", said)


def test_redis_down(host, put_back, kept_again, switchboard, endpoint, arrived, seen):
    """Redis is down when the daemon starts: calls are relayed, and kept once it is back"""
    with put_back(f"systemctl start {REDIS} && systemctl start rtpengine.service"):
        host.check_output("systemctl stop %s", REDIS)
        started = host.run("systemctl restart rtpengine.service")
        expect(started.rc == 0, "the daemon starts", started.stderr.strip())
        came = arrived()
        with Call(switchboard, endpoint(), endpoint()) as call:
            health = Traffic(call.streams, report_every=0).run(SECONDS, acceptance.LINGER)
            result = call.result()
        state = host.run("systemctl is-active %s", REDIS).stdout.strip()
    acceptance.fit([result], [health], arrived() - came)
    expect(state in {"inactive", "failed"}, "Redis down until the call has ended", f"{REDIS} {state}")
    lost, again = sum(map(acceptance.missing, acceptance.directions([result]))), kept_again()
    said = f"{acceptance.in_words([result])} without Redis, {in_words(again)}"
    seen(said)
    expect(lost == 0 and again is not None, "a call without loss while Redis is down, and later ones in Redis", said)
