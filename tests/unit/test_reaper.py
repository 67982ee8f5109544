"""Which runs are swept; files stand for all that a run can leave."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness import reaper
from harness.cloud.ownership import Mark, owner
from harness.image import loops
from harness.process import Completed
from harness.reaper import began, sweep
from harness.resources import Resource
from harness.run import Run, State
from harness.settings import Settings


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(reaper, "_marked", lambda: iter(()))
    monkeypatch.setattr(reaper, "_sweep_loops", lambda settings: [])
    return Settings.load(tmp_path, {})


def a_run(settings: Settings, *, state: State = State.ACTIVE, alive: bool = False) -> tuple[Run, Path]:
    """A run that left a file, and that file; dead unless `alive`."""
    run = Run.create(settings.runs, "x", "local")
    left = settings.project / f"left-{run.id}"
    run.journal.creating(Resource("path", str(left)))
    left.write_text("left")
    run.state = state
    run.save()
    if not alive:
        run.unlock()
    return run, left


def test_dead_run_is_removed_at_once_and_done(settings: Settings) -> None:
    run, left = a_run(settings)
    assert [(r.run_id, r.resource.name, r.outcome) for r in sweep(settings)] == [(run.id, str(left), "removed")]
    assert not left.exists()
    assert Run.open(run.directory).state is State.DONE
    assert sweep(settings) == []


def test_run_at_work_is_left_alone(settings: Settings) -> None:
    _, left = a_run(settings, alive=True)
    assert sweep(settings) == []
    assert left.exists()


def test_kept_run_is_left_alone(settings: Settings) -> None:
    _, left = a_run(settings, state=State.KEPT)
    assert sweep(settings) == []
    assert left.exists()


def test_run_that_ended_as_kept_while_others_were_swept_is_left_alone(settings: Settings,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    run, left = a_run(settings)
    read = Run.all(settings.runs)
    run.state, run.facts = State.KEPT, {"level": "basic"}
    run.save()
    monkeypatch.setattr(Run, "all", lambda runs: read)
    assert sweep(settings) == []
    assert left.exists()
    again = Run.open(run.directory)
    assert (again.state, again.facts) == (State.KEPT, {"level": "basic"})


def test_done_run_that_could_not_remove_everything_is_tried_again(settings: Settings) -> None:
    _, left = a_run(settings, state=State.DONE)
    assert [r.outcome for r in sweep(settings)] == ["removed"]
    assert not left.exists()


def test_dry_run_only_says(settings: Settings) -> None:
    run, left = a_run(settings)
    assert [r.outcome for r in sweep(settings, dry_run=True)] == ["would remove"]
    assert left.exists()
    assert Run.open(run.directory).dead


def test_younger_runs_are_left_alone(settings: Settings) -> None:
    run, left = a_run(settings)
    assert sweep(settings, older_than=3600) == []
    run.started -= 7200
    run.save()
    assert [r.outcome for r in sweep(settings, older_than=3600)] == ["removed"]
    assert not left.exists()


def test_what_can_not_be_removed_is_said_and_tried_again(settings: Settings) -> None:
    run, left = a_run(settings)
    run.journal.creating(Resource("thing", "stuck"))
    outcomes = {r.resource.name: (r.outcome, r.why) for r in sweep(settings)}
    assert outcomes["stuck"] == ("failed", "nothing here knows how to remove a thing")
    assert outcomes[str(left)][0] == "removed"
    assert Run.open(run.directory).dead
    assert [r.resource.name for r in sweep(settings)] == ["stuck"]


def test_new_run_that_is_not_locked_yet_is_no_dead_one(settings: Settings) -> None:
    run = Run.create(settings.runs, "x", "local")
    run.unlock()
    assert sweep(settings) == []
    assert Run.open(run.directory).state is State.ACTIVE


def test_old_dead_run_without_resources_is_done(settings: Settings) -> None:
    run = Run.create(settings.runs, "x", "local")
    run.unlock()
    run.started -= 3600
    run.save()
    assert sweep(settings) == []
    assert Run.open(run.directory).state is State.DONE


def test_directory_of_a_build_that_nobody_holds_goes_at_the_second_sighting(settings: Settings) -> None:
    dead, held = (settings.cache / "work" / name for name in ("20260101-000000-x-dead", "20260101-000000-x-held"))
    for directory in (dead, held):
        (directory / "output").mkdir(parents=True)
    with loops.lock(held):
        assert [(r.resource.name, r.outcome) for r in sweep(settings, dry_run=True)] == [(str(dead), "seen")]
        assert [(r.resource.name, r.outcome) for r in sweep(settings)] == [(str(dead), "seen")]
        assert dead.exists(), "once may be a build that has just begun"
        assert [(r.resource.name, r.outcome) for r in sweep(settings)] == [(str(dead), "removed")]
    assert not dead.exists() and held.exists()


class Strays:
    """Marked things on a host, as the reaper lists them."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.there: list[tuple[Mark, Resource]] = []
        self.removed: list[str] = []
        monkeypatch.setattr(reaper, "_marked", lambda: iter(self.there))
        monkeypatch.setitem(reaper.REMOVERS, "link", lambda resource: self.removed.append(resource.name))

    def add(self, mark: Mark, name: str) -> None:
        self.there.append((mark, Resource("link", name)))


GONE = "20260101-000000-x-0000"


def test_stray_is_removed_on_the_second_sighting(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    strays = Strays(settings, monkeypatch)
    strays.add(Mark(owner(settings), GONE), "dt-1")
    assert [r.outcome for r in sweep(settings)] == ["seen"]
    assert strays.removed == []
    assert [r.outcome for r in sweep(settings)] == ["removed"]
    assert strays.removed == ["dt-1"]


def test_stray_that_the_system_refuses_to_remove_is_said_and_the_rest_goes(settings: Settings,
                                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    strays = Strays(settings, monkeypatch)
    strays.add(Mark(owner(settings), GONE), "dt-1")
    strays.add(Mark(owner(settings), GONE), "dt-2")

    def remove(resource: Resource) -> None:
        if resource.name == "dt-1":
            raise OSError(1, "Operation not permitted")
        strays.removed.append(resource.name)

    monkeypatch.setitem(reaper.REMOVERS, "link", remove)
    sweep(settings)
    refused = next(iter(sweep(settings)))
    assert (refused.outcome, refused.why) == ("failed", "Operation not permitted")
    assert strays.removed == ["dt-2"]


def test_dry_run_does_not_count_as_a_sighting(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    strays = Strays(settings, monkeypatch)
    strays.add(Mark(owner(settings), GONE), "dt-1")
    sweep(settings, dry_run=True)
    assert [r.outcome for r in sweep(settings)] == ["seen"]


def test_stray_that_went_away_and_came_back_is_seen_anew(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    strays = Strays(settings, monkeypatch)
    strays.add(Mark(owner(settings), GONE), "dt-1")
    sweep(settings)
    stray = strays.there.pop()
    sweep(settings)
    strays.there.append(stray)
    assert [r.outcome for r in sweep(settings)] == ["seen"]


class Elsewhere:
    """A cloud with one stray of this checkout."""

    def __init__(self, name: str, settings: Settings) -> None:
        self.name, self._mine = name, owner(settings)
        self.removed: list[str] = []
        self.removers = {"os-port": lambda resource: self.removed.append(resource.name)}

    def marked(self) -> Iterator[tuple[Mark, Resource]]:
        yield Mark(self._mine, GONE), Resource("os-port", "port", {"cloud": self.name})


def test_clouds_that_are_swept_in_turn_have_sightings_of_their_own(settings: Settings,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = Elsewhere("one", settings), Elsewhere("two", settings)
    here = Strays(settings, monkeypatch)
    here.add(Mark(owner(settings), GONE), "dt-1")
    turns = iter([one, two, one, two])
    monkeypatch.setattr(reaper, "choose", lambda settings: next(turns))
    outcomes = [[(r.resource.kind, r.outcome) for r in sweep(settings)] for _ in range(4)]
    assert outcomes[:2] == [[("os-port", "seen"), ("link", "seen")], [("os-port", "seen"), ("link", "removed")]]
    assert [each[0] for each in outcomes[2:]] == [("os-port", "removed"), ("os-port", "removed")]
    assert (one.removed, two.removed) == (["port"], ["port"])


@pytest.mark.parametrize("text", ["", "[]", '{"link dt-1": 1764374400.0}'])
def test_sightings_of_another_form_are_none(settings: Settings, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    strays = Strays(settings, monkeypatch)
    strays.add(Mark(owner(settings), GONE), "dt-1")
    settings.cache.mkdir(parents=True, exist_ok=True)
    (settings.cache / "sightings.json").write_text(text)
    assert [r.outcome for r in sweep(settings)] == ["seen"]
    assert [r.outcome for r in sweep(settings)] == ["removed"]


def test_another_checkout_s_things_are_not_ours(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    strays = Strays(settings, monkeypatch)
    strays.add(Mark(owner(replace(settings, runs=settings.project / "elsewhere")), GONE), "dt-1")
    assert sweep(settings) == []
    assert sweep(settings) == []
    assert strays.removed == []


def test_marked_thing_of_a_done_run_is_a_stray(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = a_run(settings, state=State.DONE)
    sweep(settings)
    strays = Strays(settings, monkeypatch)
    strays.add(Mark(owner(settings), run.id), "dt-1")
    assert [(r.outcome, r.why) for r in sweep(settings)] == [("seen", "its run is done; the next sweep removes it")]
    assert [r.outcome for r in sweep(settings)] == ["removed"]


def test_marked_thing_of_a_kept_run_is_no_stray(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run, _ = a_run(settings, state=State.KEPT)
    strays = Strays(settings, monkeypatch)
    strays.add(Mark(owner(settings), run.id), "dt-1")
    assert sweep(settings) == []
    assert sweep(settings) == []


def test_when_a_run_began_is_in_its_id() -> None:
    assert began("19700101-000100-x-0000") == 60.0
    assert began("nonsense") == 0.0
    assert abs(began(time.strftime("%Y%m%d-%H%M%S", time.gmtime())) - time.time()) < 5


def test_links_that_go_while_they_are_listed_end_no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """ip(8) says so on its standard error, and ends with 0."""
    printed = "Dump was interrupted and may be inconsistent.\n" + '[{"ifname": "lo"}]'
    monkeypatch.setattr(reaper, "run_command", lambda argv: Completed(tuple(argv), 0, printed))
    assert reaper._links() == {}
