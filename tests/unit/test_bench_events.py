from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bench import events
from harness.errors import HostError
from harness.opensips.interface import EventInterface
from harness.opensips.keeper import Keeper
from harness.opensips.mi import MiClient
from harness.settings import Settings
from tests.opensips_double import OpenSipsDouble, opensips_double


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenSipsDouble]:
    with opensips_double("4.0.1", tmp_path) as running:
        yield running


@pytest.fixture
def interface(double: OpenSipsDouble) -> Iterator[EventInterface]:
    with MiClient(double.places[0]) as client:
        yield EventInterface(client)


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_burst_is_counted(interface, transport):
    with Keeper(interface) as keeper:
        lost, took = events.burst(keeper, transport, 100)
    assert lost == 0 and took > 0


def test_round_trips_are_timed(interface):
    assert len(trips := events.round_trips(interface, 20)) == 20 and all(0 < trip < 1 for trip in trips)


def test_subscriptions_that_are_kept_do_not_lapse(interface, double):
    assert events.lapses(interface, double.places[0], 20, 6, 2) == 0  # seconds enough for a busy machine


def test_a_subscription_that_lapses_is_seen(interface, double, monkeypatch):
    monkeypatch.setattr(Keeper, "_look", lambda self: None)
    assert events.lapses(interface, double.places[0], 20, 2, 2) >= 20


def test_without_an_opensips_nothing_is_measured(tmp_path):
    with pytest.raises(HostError, match="no OpenSIPS to measure with"):
        events.bench(Settings(tmp_path), None, None, boots=1, out=tmp_path)
