import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.voip.emodel import BEST, ROBUSTNESS_PLAIN, mos, rating

DELAYS = st.floats(0, 2000)
LOSSES = st.floats(0, 100)


@pytest.mark.parametrize(("delay", "loss", "robustness", "expected"), [
    (0, 0, 4.3, 93.2), (100, 0, 4.3, 93.2), (200, 0, 4.3, 90.16), (400, 0, 4.3, 69.1),
    (0, 1, 4.3, 75.3), (0, 5, 4.3, 42.1), (0, 1, 25.1, 89.6), (0, 5, 25.1, 77.4)])
def test_ratings_by_the_formulas_of_g_107(delay, loss, robustness, expected):
    assert rating(delay, loss, robustness=robustness) == pytest.approx(expected, abs=0.06)


@pytest.mark.parametrize(("value", "score"), [(93.2, 4.41), (90, 4.34), (80, 4.03), (70, 3.60), (60, 3.10), (50, 2.58),
                                              (0, 1.0), (100, 4.5), (-5, 1.0), (120, 4.5)])
def test_scores_are_those_of_annex_b(value, score):
    assert mos(value) == pytest.approx(score, abs=0.01)


@given(DELAYS, LOSSES)
def test_a_score_is_between_1_and_the_best(delay, loss):
    assert 1 <= mos(rating(delay, loss)) <= mos(BEST)


@given(DELAYS, DELAYS, LOSSES, LOSSES)
def test_more_delay_and_more_loss_are_never_better(delay, more, loss, further):
    better, worse = rating(min(delay, more), min(loss, further)), rating(max(delay, more), max(loss, further))
    assert worse <= better + 1e-9


def test_bursts_and_lacking_concealment_are_worse():
    assert rating(0, 5, burst_ratio=3) < rating(0, 5) and rating(0, 5, robustness=ROBUSTNESS_PLAIN) < rating(0, 5)
