"""The ways a run ends, with a cloud that is a few lines long."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from harness import appliance as appliances_file
from harness import nightly
from harness.access import shell
from harness.appliance import Appliance
from harness.cloud import ImageFile, Need, Say, Server, ServerSpec
from harness.cloud.ownership import Mark
from harness.deadline import Deadline
from harness.errors import BuildError, CloudError, HostError
from harness.nightly import conduct
from harness.process import CommandTimedOut
from harness.progress import Progress
from harness.resources import Remover, Resource
from harness.run import Journal, Run, State
from harness.settings import Settings
from harness.stages import Work


class SmallCloud:
    """Journals things and removes them, except those named in `stuck`."""

    name = "small"
    uploads = False
    calls: ClassVar[dict[str, int]] = {}

    def __init__(self, stuck: Sequence[str] = ()) -> None:
        self.stuck = stuck
        self.removed: list[str] = []
        self.interrupt_removal = False

    @property
    def removers(self) -> Mapping[str, Remover]:
        return {"thing": self._remove}

    def _remove(self, resource: Resource) -> None:
        if self.interrupt_removal:
            os.kill(os.getpid(), signal.SIGINT)
        if resource.name in self.stuck:
            raise CloudError(f"{resource.name} is in use")
        self.removed.append(resource.name)

    def describe(self) -> str:
        return "small"

    def look(self, need: Need, deadline: Deadline) -> str:
        raise NotImplementedError

    def upload(self, run: Run, image: ImageFile, deadline: Deadline, say: Say) -> str:
        raise NotImplementedError

    def marked(self) -> Iterator[tuple[Mark, Resource]]:
        raise NotImplementedError

    def console_url(self, server: Server) -> str:
        raise NotImplementedError

    def launch(self, run: Run, specs: Sequence[ServerSpec], deadline: Deadline) -> list[Server]:
        raise NotImplementedError

    def servers(self, run: Run) -> Sequence[Server]:
        return [Server("s", "1", "debian", "", "", (), Path()) for r in run.journal.outstanding()]

    def alive(self, run: Run, server: Server) -> bool:
        return True

    def console(self, run: Run, server: Server) -> str:
        return ""


@pytest.fixture
def settings(tmp_path: Path, project: Path) -> Settings:
    return Settings(tmp_path, appliances=project / "appliances.yaml", runs=tmp_path / "runs", cache=tmp_path / "cache")


@pytest.fixture
def relay(settings: Settings) -> Appliance:
    return appliances_file.load(settings.appliances)["rtpengine"]


def things(*names: str) -> list[Resource]:
    return [Resource("thing", name) for name in names]


def make(work: Work, *names: str) -> None:
    for resource in things(*names):
        work.run.journal.creating(resource)


def test_all_is_removed_newest_first_after_success(settings: Settings, relay: Appliance) -> None:
    cloud = SmallCloud()
    out = io.StringIO()
    assert conduct(settings, relay, cloud, Progress(out), lambda w: make(w, "a", "b"), keep="never") == 0
    assert cloud.removed == ["b", "a"]
    assert out.getvalue().rstrip().splitlines()[-1].startswith("passed in")
    assert Run.open(settings.runs / "latest").state is State.DONE


def test_all_is_removed_after_an_error_and_its_kind_is_the_exit_code(settings: Settings, relay: Appliance) -> None:
    cloud = SmallCloud()

    def stages(work: Work) -> None:
        make(work, "a")
        with work.run.stage("build"):
            raise BuildError("no compiler", hint="install one")

    out = io.StringIO()
    assert conduct(settings, relay, cloud, Progress(out), stages, keep="never") == 4
    assert cloud.removed == ["a"]
    assert "no compiler" in out.getvalue() and "install one" in out.getvalue()
    report = json.loads((settings.runs / "latest" / "report.json").read_text())
    assert "no compiler" in json.dumps(report)


@pytest.mark.parametrize("as_json", [False, True])
def test_all_is_removed_when_nobody_reads_any_more(settings: Settings, relay: Appliance, as_json: bool) -> None:
    """As where a terminal closed, or the process at the other end of a pipe ended."""
    cloud = SmallCloud()
    ours, theirs = os.pipe()
    with os.fdopen(theirs, "w") as out:
        def stages(work: Work) -> None:
            make(work, "a", "b")
            os.close(ours)
            os.kill(os.getpid(), signal.SIGHUP)

        assert conduct(settings, relay, cloud, Progress(out, as_json=as_json), stages, keep="never") == 130
    assert cloud.removed == ["b", "a"]
    assert Run.open(settings.runs / "latest").state is State.DONE
    assert (settings.runs / "latest" / "report.html").exists()


def test_a_pipe_that_nobody_reads_ends_a_run_before_its_removal(settings: Settings, relay: Appliance) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as out:
        assert conduct(settings, relay, SmallCloud(), Progress(out), lambda work: None, keep="never") == 3


def test_an_ssh_that_is_stuck_or_missing_hinders_no_removal(settings: Settings, relay: Appliance,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    def stuck(run: Run) -> None:
        raise CommandTimedOut("ssh did not end within 120 s")

    monkeypatch.setattr(shell, "close_all", stuck)
    cloud = SmallCloud()
    assert conduct(settings, relay, cloud, Progress(io.StringIO()), lambda w: make(w, "a"), keep="never") == 0
    assert cloud.removed == ["a"]


def test_checks_that_are_not_there_end_a_night_before_its_first_stage(settings: Settings, relay: Appliance) -> None:
    out = io.StringIO()
    described = replace(relay, checks=("tests/nowhere",))
    assert conduct(settings, described, SmallCloud(), Progress(out), nightly.nightly, keep="never") == 2
    assert "tests/nowhere is not there" in out.getvalue()
    assert [stage.name for stage in Run.open(settings.runs / "latest").stages] == ["remove"]


def test_an_interrupted_run_removes_all_and_ends_with_130(settings: Settings, relay: Appliance) -> None:
    cloud = SmallCloud()
    cloud.interrupt_removal = True

    def stages(work: Work) -> None:
        make(work, "a", "b")
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal did not arrive")

    assert conduct(settings, relay, cloud, Progress(io.StringIO()), stages, keep="failed") == 130
    assert cloud.removed == ["b", "a"], "a second Ctrl-C while removing leaves nothing behind"


def test_what_cannot_be_removed_is_said_with_its_own_exit_code(settings: Settings, relay: Appliance) -> None:
    cloud = SmallCloud(stuck=["a"])
    out = io.StringIO()
    assert conduct(settings, relay, cloud, Progress(out), lambda w: make(w, "a", "b"), keep="never") == 8
    assert cloud.removed == ["b"]
    assert "a is in use" in out.getvalue()
    assert things("a") == Run.open(settings.runs / "latest").journal.outstanding()


def test_the_first_cause_wins_over_a_removal_that_fails(settings: Settings, relay: Appliance) -> None:
    def stages(work: Work) -> None:
        make(work, "a")
        raise HostError("no disk")

    assert conduct(settings, relay, SmallCloud(stuck=["a"]), Progress(io.StringIO()), stages, keep="never") == 3


@pytest.mark.parametrize(("keep", "fails", "kept"), [
    ("never", True, False), ("failed", True, True), ("failed", False, False), ("always", False, True),
    ("always", True, True), ("passed", False, True), ("passed", True, False)])
def test_keep(settings: Settings, relay: Appliance, keep: str, fails: bool, kept: bool) -> None:
    cloud = SmallCloud()

    def stages(work: Work) -> None:
        make(work, "a")
        if fails:
            raise CloudError("quota")

    conduct(settings, relay, cloud, Progress(io.StringIO()), stages, keep=keep)
    assert (cloud.removed == []) is kept
    assert (Run.open(settings.runs / "latest").state is State.KEPT) is kept


def test_all_is_removed_after_a_mistake_of_our_own(settings: Settings, relay: Appliance) -> None:
    cloud = SmallCloud()

    def stages(work: Work) -> None:
        make(work, "a")
        raise KeyError("nobody thought of this")

    with pytest.raises(KeyError):
        conduct(settings, relay, cloud, Progress(io.StringIO()), stages, keep="never")
    assert cloud.removed == ["a"]
    assert Run.open(settings.runs / "latest").state is State.DONE


def full(*_: object) -> None:
    """What stands in for whatever writes to a disk."""
    raise OSError(28, "No space left on device")


def test_on_a_full_disk_all_is_removed_nevertheless(settings: Settings, relay: Appliance,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = SmallCloud()

    def stages(work: Work) -> None:
        make(work, "a", "b")
        monkeypatch.setattr(Run, "save", full)
        monkeypatch.setattr(nightly, "write_report", full)
        raise CloudError("quota")

    out = io.StringIO()
    assert conduct(settings, relay, cloud, Progress(out), stages, keep="never") == 7
    assert cloud.removed == ["b", "a"]
    assert out.getvalue().count("note: not written down: No space left on device") == 1
    assert "quota" in out.getvalue()


def test_what_is_gone_and_can_not_be_noted_is_left_and_the_rest_is_removed(settings: Settings, relay: Appliance,
                                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    cloud = SmallCloud()

    def stages(work: Work) -> None:
        make(work, "a", "b")
        monkeypatch.setattr(Journal, "gone", full)

    assert conduct(settings, relay, cloud, Progress(io.StringIO()), stages, keep="never") == 8
    assert cloud.removed == ["b", "a"]
    assert Run.open(settings.runs / "latest").journal.outstanding() == things("b", "a")


def test_a_full_disk_is_this_hosts_fault(settings: Settings, relay: Appliance) -> None:
    def stages(work: Work) -> None:
        raise OSError(28, "No space left on device", "/x")

    out = io.StringIO()
    assert conduct(settings, relay, SmallCloud(), Progress(out), stages, keep="never") == 3
    assert "No space left on device: /x" in out.getvalue()
