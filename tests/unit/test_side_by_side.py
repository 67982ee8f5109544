"""Two steps at the same time: both results, or the first error and nothing running on."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import BuildError
from harness.image.side_by_side import side_by_side
from harness.process import CommandTimedOut, run_logged


def fails(limit: Deadline) -> None:
    raise BuildError("it broke")


def sleeps(log: Path, limit: Deadline) -> None:
    run_logged(["sleep", "60"], log, deadline=limit)


def test_both_run_at_once() -> None:
    met = threading.Barrier(2, timeout=5)

    def one(limit: Deadline) -> str:
        met.wait()
        return "one"

    def two(limit: Deadline) -> int:
        met.wait()
        return 2

    assert side_by_side(one, two, Deadline(10)) == ("one", 2)


@pytest.mark.parametrize("first_fails", [True, False])
def test_an_error_ends_the_other(tmp_path: Path, first_fails: bool) -> None:
    def other(limit: Deadline) -> None:
        sleeps(tmp_path / "log", limit)

    pair = (fails, other) if first_fails else (other, fails)
    with pytest.raises(BuildError, match="it broke"):
        side_by_side(*pair, Deadline(30))
    assert "ended: no result" in (tmp_path / "log").read_text()
    assert threading.active_count() == 1


def test_an_interrupt_ends_both(tmp_path: Path) -> None:
    def interrupted(limit: Deadline) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side(interrupted, lambda limit: sleeps(tmp_path / "log", limit), Deadline(30))
    assert threading.active_count() == 1


def test_the_deadline_is_one_for_both(tmp_path: Path) -> None:
    with pytest.raises(CommandTimedOut):
        side_by_side(lambda limit: sleeps(tmp_path / "a", limit), lambda limit: sleeps(tmp_path / "b", limit),
                     Deadline(0.3))
