import json

import pytest

from harness.voip import ceiling
from harness.voip.traffic import Health


def keeps_up_to(most):
    """A runner that sends late from `most` calls on."""
    def run(calls, seconds):
        packets = int(calls * 100 * seconds)
        return Health(seconds, packets, 0.5, packets if calls > most else 0, 0.1, 0), 0

    return run


@pytest.mark.parametrize("most", [20, 77, 640, 1000, 5000])
def test_the_highest_rate_that_is_kept_up_is_found(most):
    steps = ceiling.ceiling(keeps_up_to(most), 1.0)
    found = ceiling.summary(steps)
    assert most * 0.85 <= found["calls"] <= most
    assert found["packets_per_second"] == found["calls"] * 100
    assert len(steps) <= 13


def test_losses_are_not_kept_up():
    assert ceiling.summary(ceiling.ceiling(lambda calls, seconds: (Health(1, 100, 0.5, 0, 0, 0), 1), 1.0)) == {
        "packets_per_second": 0.0,
        "steps": [{"calls": 20, "packets_per_second": 100, "lost": 1, "limit": "", "cost": 5000.0}]}


def test_one_interruption_is_forgiven():
    healthy = keeps_up_to(100)
    tries = []

    def run(calls, seconds):
        tries.append(calls)
        return (Health(1, 100, 0.5, 0, 0, 0), 1) if tries == [20] else healthy(calls, seconds)

    steps = ceiling.ceiling(run, 1.0)
    assert tries[:3] == [20, 20, 40] and steps[0].kept_up


@pytest.mark.parametrize("run", [ceiling.shared, ceiling.own, ceiling.plain])
def test_each_way_counts_what_it_sends_and_receives(run):
    health, lost = run(4, 0.3)
    assert 8 * 12 <= health.packets <= 8 * 17
    assert lost == 0 and health.dropped == 0 and 0 < health.busy <= 2


def test_it_prints_json(capsys, monkeypatch):
    monkeypatch.setattr(ceiling, "_MOST", 40)
    ceiling.main(["--seconds", "0.1", "--ways", "plain", "shared"])
    result = json.loads(capsys.readouterr().out)
    assert result["processors"] >= 1 and result["plain"]["steps"] and result["shared"]["steps"]
