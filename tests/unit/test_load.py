"""What is concluded from the steps of a search for the most calls that are held."""

from dataclasses import replace

import pytest

from harness import load
from harness.load import BOUNDS, Cost, Moment, Step
from harness.voip.call import CallResult
from harness.voip.mediastats import Latency, MediaStats
from harness.voip.traffic import Health

DIRECTION = MediaStats(
    sent=200, failed=0, received=200, expected=200, lost=0, reordered=0, duplicates=0, restarts=0, jitter=1.0,
    jitter_mean=1.0, jitter_max=2.0, latency=Latency(1.0, 2.0, 3.0, 4.0, 5.0), too_late=0, longest_gap=21.0,
    gap_began=0.0, sources=(), tos=(), ssrcs=(), round_trip=None, reported_lost=None, mos=4.4)
WELL, LATE = Health(4.0, 400, 0.1, 0, 0.0, 0), Health(4.0, 400, 0.1, 8, 0.1, 0)
STEP = Step(100, 10_000, 10_000, 0.0, 5.0, 2.0, 9.0, 1.0, Cost(0.05, 0.1, 0.5), 2, "", 0.0)


def files(uptime="100.00 150.00", threads=("1500000000 7 3", "500000000 1 1"), entries="12\n", idle="9000 100"):
    cpus = "\n".join(f"cpu{n} 1 2 3 4 5 6 7 8 9 10" for n in range(2))
    found = {"/proc/uptime": f"{uptime}\n", "/proc/stat": f"cpu  10 0 20 {idle} 5 6 0 0 0\n{cpus}\nctxt 5\n"}
    found |= {f"/proc/42/task/{n}/schedstat": text for n, text in enumerate(threads)}
    return found | ({load.ENTRIES: entries} if entries else {})


def test_a_moment_is_read_from_the_kernels_files():
    assert load.moment(files()) == Moment(100.0, 91.0, 0.11, 2, 2.0, 12)
    assert load.moment(files(entries=None)).entries is None
    assert {path.replace("*", "0") for path in load.moment_files(42)} <= files().keys()


def test_a_thread_that_ends_while_it_is_read_counts_nothing():
    assert load.moment(files(threads=("1500000000 7 3", ""))).daemon == 1.5


@pytest.mark.parametrize("threads", [(), ("",)])
def test_a_daemon_that_is_gone_is_told(threads):
    with pytest.raises(ValueError, match="gone"):
        load.moment(files(threads=threads))


def test_cost_is_what_was_not_idle():
    before, after = Moment(100.0, 90.0, 7.0, 2, 1.0, 0), Moment(104.0, 94.0, 8.0, 2, 1.2, 0)
    spent = load.cost(before, after)
    assert spent == Cost(pytest.approx(0.05), pytest.approx(0.25), pytest.approx(1.0))


def test_processor_time_a_packet_is_in_microseconds():
    assert (STEP.daemon_per_packet, STEP.server_per_packet) == (pytest.approx(5.0), pytest.approx(50.0))
    assert replace(STEP, packets=0.0).daemon_per_packet == 0


@pytest.mark.parametrize(("change", "held"), [
    ({}, True), ({"loss": BOUNDS.loss}, True), ({"loss": BOUNDS.loss * 1.01}, False),
    ({"jitter": BOUNDS.jitter}, True), ({"jitter": BOUNDS.jitter + 0.1}, False),
    ({"limit": "5 packets were sent late"}, True), ({"sent": 9700.0}, False)])
def test_a_step_is_held_within_the_bounds(change, held):
    assert replace(STEP, **change).held() is held


def test_a_step_sums_up_all_directions():
    calls = [CallResult(replace(DIRECTION, jitter_mean=n / 10), DIRECTION) for n in range(10)]
    silent = replace(DIRECTION, received=0, lost=200, jitter_mean=0.0, latency=None)
    slow = replace(DIRECTION, jitter_mean=30.0, latency=Latency(1.0, 8.0, 9.0, 90.0, 95.0))
    made = load.step([*calls, CallResult(slow, silent)], rate=1090.0, kernel=0.9, spent=Cost(0.1, 0.2, 1.0),
                     processors=2, health=LATE)
    assert (made.calls, made.kernel, made.limit, made.processors) == (11, 0.9, LATE.limit, 2)
    assert made.loss == pytest.approx(100 * 200 / (22 * 200))
    assert made.packets == pytest.approx(1090 * (1 - made.loss / 100))
    assert (made.jitter, made.latency, made.latency_p99) == (1.0, 2.0, 90.0)


def test_a_generator_that_sends_less_is_the_limit():
    def made(rate):
        return load.step([CallResult(DIRECTION, DIRECTION)], rate=rate, kernel=1, spent=Cost(0, 0, 0), processors=1,
                         health=WELL)

    assert made(98.5).limit == "" and made(98.5).held()
    assert made(90.0).limit == "90 of 100 packets a second were sent" and not made(90.0).held()


@pytest.mark.parametrize(("loss", "excused"), [(0.0, True), (2.0, True), (5.0, False)])
def test_late_packets_excuse_no_more_loss_than_there_are_of_them(loss, excused):
    assert replace(STEP, loss=loss, limit="8 of 400 were sent late", hampered=2.0).excused is excused
    assert not replace(STEP, loss=loss).excused


def test_what_the_generator_did_not_do_is_counted():
    made = load.step([CallResult(DIRECTION, DIRECTION)], rate=95.0, kernel=1, spent=Cost(0, 0, 0), processors=1,
                     health=LATE)
    assert made.hampered == pytest.approx(2 + 5)


def test_nothing_sent_is_all_lost():
    assert load.step([], rate=0, kernel=0, spent=Cost(0, 0, 0), processors=1, health=WELL).loss == 100


def test_both_ways_are_compared_at_the_most_calls_that_both_held():
    kernel = [replace(STEP, calls=calls, sent=100.0 * calls) for calls in (25, 50, 100, 200)]
    user = [replace(STEP, calls=25), replace(STEP, calls=50), replace(STEP, calls=100, loss=5)]
    assert load.most_held(kernel).calls == 200 and load.most_held(user).calls == 50
    assert [one.calls for one in load.in_common(kernel, user)] == [50, 50]
    assert load.in_common(kernel, [replace(STEP, calls=75)]) is None
    assert load.most_held([replace(STEP, loss=5)]) is None


def test_growth_is_told_from_the_upper_half():
    points = [(0, 50e6), (100, 50e6), (200, 50e6), (300, 53e6), (400, 57e6), (500, 61e6), (600, 65e6)]
    assert load.slope(points) == pytest.approx(40_000)


def test_streams_of_the_module():
    assert load.targets("Refcount:    3\nControl PID: 512\nTargets:     20\nBuckets:  1\n") == 20
    assert load.targets("") == 0


def test_bounds_read_well():
    assert str(BOUNDS) == "0.1 % of loss and 20 ms of jitter"
