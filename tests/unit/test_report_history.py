from __future__ import annotations

from pathlib import Path

import pytest

from harness.report.history import last_night, red_since, trends
from harness.report.model import load
from harness.run import Run
from tests.report_samples import FAILURE, FIRST, facts, image, make, red, redden, stages, write_checks


def night(runs: Path, number: int, *, build: float, size: int = 100, from_cache: bool = False) -> Run:
    return make(runs, number, stages=stages(0.0, ("build", build, "passed", "")),
                image=image(size, from_cache=from_cache))


@pytest.mark.parametrize(("now", "word"), [(100.0, "as usual"), (109.0, "as usual"), (120.0, "worse"),
                                           (80.0, "better")])
def test_better_and_worse_are_against_the_median(tmp_path: Path, now: float, word: str) -> None:
    for number, took in enumerate((98.0, 100.0, 500.0), start=1):
        night(tmp_path, number, build=took)
    found = {trend.name: trend for trend in trends(load(night(tmp_path, 9, build=now)))}
    assert found["build"].word == word
    assert found["build"].values == (98.0, 100.0, 500.0, now)


def test_a_build_from_the_cache_is_compared_with_its_like(tmp_path: Path) -> None:
    night(tmp_path, 1, build=60.0)
    night(tmp_path, 2, build=0.5, from_cache=True)
    found = {trend.name: trend for trend in trends(load(night(tmp_path, 3, build=0.5, from_cache=True)))}
    assert found["build (from cache)"].values == (0.5, 0.5)
    assert found["image size"].values == (100.0, 100.0, 100.0)


def test_checks_are_compared_with_those_of_the_same_level(tmp_path: Path) -> None:
    for number, level, took in ((1, {}, 20.0), (2, {"level": "acceptance"}, 50.0), (3, {"level": "basic"}, 21.0)):
        run = make(tmp_path, number, stages=stages(0.0, ("check", took, "passed", "")), **level)
    found = {trend.name: trend for trend in trends(load(run))}
    assert found["check"].values == found["whole run"].values == (20.0, 21.0)


def test_the_first_run_is_compared_with_nothing(tmp_path: Path) -> None:
    assert {trend.word for trend in trends(load(night(tmp_path, 1, build=60.0)))} == {"nothing to compare with yet"}


def test_last_night_is_as_noted_else_as_found(tmp_path: Path) -> None:
    night(tmp_path, 1, build=60.0)
    assert last_night(load(night(tmp_path, 2, build=61.0))) == {"build": 60.0}
    noted = make(tmp_path, 3, **facts(previous={"build": 59.0, "odd": "x", "flag": True}))
    assert last_night(load(noted)) == {"build": 59.0}


def test_since_when_a_check_is_red(tmp_path: Path) -> None:
    for number, is_red in ((1, True), (2, False), (3, True), (4, True)):
        run = make(tmp_path, number, exit_code=int(is_red))
        write_checks(run, FIRST, redden if is_red else lambda entry: entry)
    report = load(make(tmp_path, 5, exit_code=1))
    assert str(red_since(report, str(FAILURE["where"]))).endswith("-rtpengine-0003")
    assert red_since(report, "tests/appliance/test_clean.py::test_units") is None


def test_runs_that_say_nothing_of_a_check_do_not_end_its_being_red(tmp_path: Path) -> None:
    for number in (1, 2):
        write_checks(make(tmp_path, number, exit_code=1), FIRST, redden)
    make(tmp_path, 3, exit_code=3, stages=stages(0.0, ("host", 1.0, "failed", "")))
    built = make(tmp_path, 4, exit_code=0, quiet=True, stages=stages(0.0, ("build", 60.0, "passed", "")))
    report = load(make(tmp_path, 5, exit_code=1))
    assert str(red_since(report, str(FAILURE["where"]))).endswith("-rtpengine-0001")
    assert built.id not in {past.id for past in report.history}


def test_a_night_that_skips_a_check_does_not_end_its_being_red(tmp_path: Path) -> None:
    alter = {1: redden, 2: lambda entry: {**entry, "outcome": "skipped"}, 3: redden}
    for number, change in alter.items():
        write_checks(make(tmp_path, number, exit_code=1), FIRST, change)
    report = load(make(tmp_path, 4, exit_code=1))
    assert str(red_since(report, str(FAILURE["where"]))).endswith("-rtpengine-0001")


def test_a_new_failure_is_new(tmp_path: Path) -> None:
    assert red_since(load(red(tmp_path)), str(FAILURE["where"])) is None
