import pytest

from harness import deadline
from harness.deadline import Deadline


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(deadline.time, "monotonic", lambda: now[0])
    return now


def test_counts_down_and_stops_at_zero(clock):
    limit = Deadline(10)
    assert limit.remaining == 10 and not limit.expired
    clock[0] += 4
    assert limit.remaining == 6
    clock[0] += 7
    assert limit.remaining == 0 and limit.expired


def test_an_inner_deadline_never_outlives_the_outer(clock):
    outer = Deadline(10)
    clock[0] += 7
    assert outer.within(60).remaining == 3
    assert outer.within(1).remaining == 1
