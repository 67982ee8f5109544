"""Checks of a kept server, again and again."""

from __future__ import annotations

import io
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
    assert phase == "first boot" or Path(%r).exists()
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of a project with one check, that is red after a reboot until there is a file `repaired`."""
    (tmp_path / "appliances.yaml").write_text(DESCRIPTION)
    (tmp_path / "checks").mkdir()
    (tmp_path / "checks" / "test_it.py").write_text(CHECK % str(tmp_path / "repaired"))
    server = Server("server1", "id", "debian", "192.0.2.1", "", (), tmp_path / "console.log")
    monkeypatch.setattr(kept, "choose", lambda settings: SimpleNamespace(servers=lambda run: [server]))
    monkeypatch.setattr(stages.readiness, "reboot", lambda *args: SimpleNamespace(timings={}))
    return Settings(tmp_path, appliances=tmp_path / "appliances.yaml", runs=tmp_path / "runs")


def test_green_checks_after_a_red_reboot_are_green_everywhere(settings: Settings) -> None:
    run = Run.create(settings.runs, "relay", "local")

    def check(reboot: bool) -> tuple[int, str]:
        out = io.StringIO()
        code = kept.check_again(settings, Run.open(run.directory), Progress(out), selection=(), level=Level.BASIC,
                                reboot=reboot)
        return code, out.getvalue()

    run.save()
    run.unlock()
    code, said = check(reboot=True)
    assert code == 1 and "failed in" in said
    code, said = check(reboot=False)
    assert code == 0 and "passed in" in said
    assert 'failures="0"' in (run.directory / "junit.xml").read_text()
    assert not list(run.directory.glob("*after-reboot*"))
