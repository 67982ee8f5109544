import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BuildError, DescriptionError, HostError, RemovalError
from harness.resources import Awaited, Resource
from harness.run import Journal, Run, State, find_run, write_whole


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs", "relay", "local")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


def _names(resources: list[Resource]) -> list[str]:
    return [r.name for r in resources]


def test_what_was_announced_and_is_not_gone_is_outstanding_newest_first(journal):
    assert journal.outstanding() == []
    for name in ("a", "b", "c"):
        journal.creating(Resource("path", name, {"why": name}))
    journal.gone(Resource("path", "b"))
    assert journal.outstanding() == [Resource("path", "c", {"why": "c"}), Resource("path", "a", {"why": "a"})]
    journal.creating(Resource("path", "b"))
    assert _names(journal.outstanding()) == ["b", "c", "a"]


def test_the_same_name_of_another_kind_is_another_resource(journal):
    journal.creating(Resource("path", "x"))
    journal.creating(Resource("loop", "x"))
    journal.gone(Resource("path", "x"))
    assert journal.outstanding() == [Resource("loop", "x")]


def test_the_last_announcement_says_when(journal):
    journal.creating(Resource("link", "a"))
    between = time.time()
    journal.creating(Resource("link", "a"))
    after = time.time()
    journal.creating(Resource("process", "a"))
    journal.gone(Resource("link", "a"))
    assert between <= journal.announced("link", "a") <= after <= journal.announced("process", "a")


def test_a_torn_last_line_is_ignored_and_harms_no_later_line(journal):
    journal.creating(Resource("path", "a"))
    whole = journal.path.read_bytes()
    journal.creating(Resource("path", "b"))
    journal.path.write_bytes(journal.path.read_bytes()[: len(whole) + 20])
    assert _names(journal.outstanding()) == ["a"]
    journal.creating(Resource("path", "c"))
    assert _names(journal.outstanding()) == ["c", "a"]


@given(st.lists(st.tuples(st.sampled_from(["creating", "gone"]), st.sampled_from("abc"), st.sampled_from("xyz")),
                max_size=30), st.integers(min_value=0, max_value=200))
def test_outstanding_follows_a_simple_model_however_the_file_is_cut(tmp_path_factory, events, cut):
    journal = Journal(tmp_path_factory.mktemp("journal") / "journal.jsonl")
    model: list[list[tuple[str, str]]] = [[]]
    for event, kind, name in events:
        getattr(journal, event)(Resource(kind, name))
        others = [r for r in model[-1] if r != (kind, name)]
        model.append([*others, (kind, name)] if event == "creating" else others)
    if not events:
        return
    content = journal.path.read_bytes()
    kept = content[: max(0, len(content) - cut)]
    journal.path.write_bytes(kept)
    found = [(r.kind, r.name) for r in reversed(journal.outstanding())]
    lines = kept.count(b"\n")
    assert found in model[lines : lines + 2], "a line that lacks only its line end may count"


def test_removal_goes_on_after_a_refusal_and_says_what_is_left(journal):
    removed: list[str] = []

    def remover(resource: Resource) -> None:
        if resource.name == "stubborn":
            raise HostError("it is busy")
        if resource.name == "broken":
            raise OSError(5, "Input/output error")
        removed.append(resource.name)

    for name in ("first", "stubborn", "broken", "last"):
        journal.creating(Resource("path", name))
    journal.creating(Resource("moonbeam", "m"))
    left = journal.remove_outstanding({"path": remover})
    assert removed == ["last", "first"]
    assert {r.name: type(e) for r, e in left} == {"m": HostError, "broken": RemovalError, "stubborn": HostError}
    assert _names(journal.outstanding()) == ["m", "broken", "stubborn"]
    assert journal.remove_outstanding({"path": removed.append, "moonbeam": removed.append}) == []
    assert journal.outstanding() == []


def test_what_takes_a_while_is_begun_together_before_it_is_waited_for(journal):
    done: list[str] = []

    def begin(resource: Resource) -> None:
        done.append(f"begin {resource.name}")
        if resource.name == "refused":
            raise HostError("not now")

    slow = Awaited(begin, lambda resource: done.append(f"end {resource.name}"))
    for name in ("never asked", "refused", "first"):
        journal.creating(Resource("server", name))
    journal.creating(Resource("path", "quick"))
    assert journal.remove_outstanding({"server": slow, "path": lambda resource: done.append(resource.name)}) == []
    assert done == ["begin first", "begin refused", "quick", "end first", "end refused", "end never asked"]
    assert journal.outstanding() == []


def test_a_run_is_saved_and_read_back(run):
    run.facts["image"] = {"size": 3}
    run.keep = "failed"
    with run.stage("build") as entry:
        entry.detail = "168 MB"
    again = Run.open(run.directory)
    assert (again.id, again.appliance, again.cloud, again.state, again.keep, again.facts, again.stages) == (
        run.id, "relay", "local", State.ACTIVE, "failed", {"image": {"size": 3}}, run.stages)
    assert again.stages[0].outcome == "passed" and again.stages[0].seconds is not None


def test_latest_is_the_newest_run(tmp_path):
    runs = tmp_path / "runs"
    first = Run.create(runs, "relay", "local")
    second = Run.create(runs, "relay", "local")
    assert find_run(runs, None).id == second.id
    assert [r.id for r in Run.all(runs)] == sorted([first.id, second.id]), "the link is no run of its own"
    assert not list(runs.glob(".latest*"))


def test_a_failing_stage_stands_in_the_timeline_and_names_itself_in_the_error(run):
    with pytest.raises(BuildError) as caught, run.stage("nightly"), run.stage("build"):
        raise BuildError("no compiler")
    assert caught.value.stage == "build"
    assert [(s.name, s.outcome, s.detail) for s in Run.open(run.directory).stages] == [
        ("nightly", "failed", "no compiler"), ("build", "failed", "no compiler")]
    with pytest.raises(KeyboardInterrupt), run.stage("check"):
        assert Run.open(run.directory).stages[-1].outcome == "running"
        raise KeyboardInterrupt
    assert Run.open(run.directory).stages[-1].outcome == "failed"


def test_an_outcome_that_a_stage_sets_itself_stands(run):
    with run.stage("boot") as entry:
        entry.outcome = "skipped"
    assert run.stages[0].outcome == "skipped"


def test_only_one_works_on_a_run(run):
    other = Run.open(run.directory)
    with pytest.raises(HostError, match="being worked on by another process"):
        other.lock()
    assert not other.dead
    run.unlock()
    other.lock()
    other.unlock()


def test_a_run_whose_process_was_killed_is_known_to_be_dead(tmp_path):
    program = ("import os, signal; from pathlib import Path; from harness.run import Run\n"
               f"Run.create(Path({str(tmp_path)!r}), 'relay', 'local')\nos.kill(os.getpid(), signal.SIGKILL)")
    subprocess.run([sys.executable, "-c", program], check=False)
    dead = find_run(tmp_path, None)
    assert dead.dead
    dead.state = State.KEPT
    assert not dead.dead, "kept on purpose"


def test_a_run_is_never_seen_without_its_lock(tmp_path, monkeypatch):
    """Else a sweep in between would take a run that begins for one that died."""
    seen: list[bool] = []
    save = Run.save

    def spy(self: Run) -> None:
        save(self)
        seen.append(Run.open(self.directory).dead)

    monkeypatch.setattr(Run, "save", spy)
    Run.create(tmp_path, "relay", "local")
    assert seen == [False]


def test_runs_are_found_by_id_beginning_or_path(tmp_path, run):
    runs = run.directory.parent
    run.unlock()
    for wanted in (run.id, run.id[:-3], os.fspath(run.directory), None):
        assert find_run(runs, wanted).id == run.id
    Run.create(runs, "relay", "local")
    with pytest.raises(DescriptionError, match="more than one run begins with"):
        find_run(runs, run.id[:4])
    with pytest.raises(DescriptionError, match="no run begins with 'x'"):
        find_run(runs, "x")
    with pytest.raises(DescriptionError, match="there is no run yet"):
        find_run(tmp_path / "none", None)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"appliance": 3}', "\u2400"])
def test_a_directory_that_is_no_run(run, text):
    run.unlock()
    (run.directory / "run.json").write_text(text)
    with pytest.raises(DescriptionError, match="is not a run"):
        Run.open(run.directory)
    assert Run.all(run.directory.parent) == []


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.json"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \udcff")
    assert path.read_text() == "old"
    write_whole(path, json.dumps({"ü": 1}), mode=0o600)
    assert json.loads(path.read_text()) == {"ü": 1} and path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
