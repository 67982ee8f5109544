"""Checks of a kept server, again and again."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import kept, stages
from harness.cloud import Server
from harness.levels import Level
from harness.progress import Progress
from harness.run import Run
from harness.settings import Settings

DESCRIPTION = """\
appliances:
  relay: {description: a relay, release: bookworm, elements: [voip-appliance], checks: [checks]}
"""
CHECK = """\
from pathlib import Path

def test_it(phase):
    assert not Path(%r + phase).exists()
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of a project with one check, that is red in a phase while there is a file `broken `<phase>."""
    (tmp_path / "appliances.yaml").write_text(DESCRIPTION)
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks" / "test_it.py").write_text(CHECK % str(tmp_path / "broken "))
    server = Server("server1", "id", "debian", "192.0.2.1", "", (), tmp_path / "console.log")
    monkeypatch.setattr(kept, "choose", lambda settings: SimpleNamespace(servers=lambda run: [server]))
    monkeypatch.setattr(stages.readiness, "reboot", lambda *args: SimpleNamespace(timings={}))
    return Settings(tmp_path, appliances=tmp_path / "appliances.yaml", runs=tmp_path / "runs")


@pytest.fixture
def check(settings: Settings) -> Callable[[bool], tuple[int, str]]:
    """check(reboot): checks the run's server; the exit code, and what is said."""
    run = Run.create(settings.runs, "relay", "local")
    run.save()
    run.unlock()

    def again(reboot: bool) -> tuple[int, str]:
        out = io.StringIO()
        code = kept.check_again(settings, Run.open(run.directory), Progress(out), selection=(), level=Level.BASIC,
                                reboot=reboot)
        return code, out.getvalue()

    return again


@pytest.mark.parametrize(("broken", "reboots"), [("after reboot", True), ("first boot", False)])
def test_green_checks_after_red_ones_are_green_everywhere(settings: Settings, check: Callable[[bool], tuple[int, str]],
                                                          broken: str, reboots: bool) -> None:
    defect = settings.project / f"broken {broken}"
    defect.touch()
    code, said = check(reboots)
    assert code == 1 and "failed in" in said
    defect.unlink()
    code, said = check(not reboots)
    assert code == 0 and "passed in" in said
    directory, = settings.runs.glob("*-relay-*")
    assert 'failures="0"' in (directory / "junit.xml").read_text()
    assert not list(directory.glob(f"*{broken.replace(' ', '-')}*"))


def test_green_checks_of_the_first_boot_are_kept_beside_those_after_a_reboot(
        settings: Settings, check: Callable[[bool], tuple[int, str]]) -> None:
    assert [check(reboot)[0] for reboot in (False, True)] == [0, 0]
    directory, = settings.runs.glob("*-relay-*")
    assert len(list(directory.glob("checks-*.jsonl"))) == 2
