import pytest

from harness.voip.endpoint import Endpoint
from harness.voip.mediastats import media_stats
from harness.voip.stats import Received

TICK = 20_000_000
BEGIN = 1_795_619_041 * 10**9


@pytest.fixture
def stream():
    with Endpoint("127.0.0.1") as endpoint:
        yield endpoint.stream()


def figures(stream, missing=(), latency=lambda number: 1_000_000, count=200, shared_clock=True):
    """Of `count` packets that were sent all but the `missing` came, after `latency` ns."""
    seen = Received()
    for number in range(count):
        if number not in missing:
            sent = BEGIN + number * TICK
            seen.packet(number, number * 160, sent + latency(number), sent, bytes(16), 0)
    return media_stats(stream, count, 0, {stream.key: seen}, lost=len(missing), shared_clock=shared_clock)


def test_percentiles_of_latency(stream):
    latency = figures(stream, latency=lambda number: (number % 100 + 1) * 1_000_000).latency
    assert (latency.minimum, latency.median, latency.p95, latency.p99, latency.maximum) == (1, 51, 96, 100, 100)


def test_the_best_score_is_that_of_g_107(stream):
    assert figures(stream).mos == 4.41 and figures(stream, shared_clock=False).mos == 4.41


def test_the_same_loss_in_bursts_costs_more(stream):
    scattered = figures(stream, missing=range(5, 200, 10))
    bursts = figures(stream, missing=[number + at for at in (20, 60, 100, 140) for number in range(5)])
    assert scattered.lost == bursts.lost == 20
    assert bursts.mos < scattered.mos - 0.1


def test_delay_costs_from_where_people_notice_it(stream):
    scores = [figures(stream, latency=lambda number, ms=ms: ms * 1_000_000).mos for ms in (1, 30, 150, 400)]
    assert scores[0] == scores[1] > scores[2] > scores[3]


def test_what_comes_too_late_for_the_buffer_is_lost_to_the_listener(stream):
    punctual = figures(stream, latency=lambda number: 39_000_000 * (number % 2))
    late = figures(stream, latency=lambda number: 42_000_000 * (number % 2))
    assert (punctual.too_late, late.too_late) == (0, 100)
    assert late.lost == 0 and late.mos < punctual.mos - 1


def test_nothing_came(stream):
    nothing = media_stats(stream, 50, 0, {}, lost=50, shared_clock=True)
    assert (nothing.received, nothing.loss, nothing.mos, nothing.latency, nothing.jitter) == (0, 100, 1.0, None, 0)
    assert media_stats(stream, 0, 0, {}, lost=0, shared_clock=True).loss == 0
