"""`./inv` as a whole, on the real image: nights that pass, are red, are interrupted, are killed; nothing is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.image.build import Image
from harness.run import Run, State
from tests import leftovers
from tests.command_line import Ended, Inv
from tests.conftest import PROJECT

pytestmark = [pytest.mark.root, pytest.mark.guest]

LONG = 1800.0
"""Seconds that a night may take on a loaded machine without hardware acceleration."""


@pytest.fixture
def inv(tmp_path: Path, real_image: Image) -> Inv:
    """The command line, with the image in the project's cache already."""
    return Inv(tmp_path)


def run_of(process: subprocess.Popen[str], lines: list[str]) -> str:
    """The run's id, from the first line that it prints."""
    assert process.stdout
    lines.append(process.stdout.readline())
    found = re.search(r"run (\S+)$", lines[0])
    assert found, lines
    return found[1]


def until(process: subprocess.Popen[str], what: Callable[[], object], seconds: float = LONG) -> None:
    """Wait until `what` is so, which it must be before the process ends."""
    deadline = Deadline(seconds)
    while not what():
        assert process.poll() is None and not deadline.expired, process.communicate()[0]
        time.sleep(0.1)


def in_stage(inv: Inv, run: str, name: str) -> bool:
    """Whether the run is in that stage now."""
    found = Run.open(inv.settings.runs / run)
    return bool(found.stages) and found.stages[-1].name == name and found.stages[-1].outcome == "running"


def building(inv: Inv, run: str) -> bool:
    """Whether diskimage-builder is at work on the image's file system."""
    log = inv.settings.runs / run / "build.log"
    return log.exists() and "/environment.d" in log.read_text(errors="replace")


def emulated(inv: Inv, run: str) -> bool:
    """Whether the run's machine has begun to boot."""
    console = inv.settings.runs / run / "server1" / "console.log"
    return console.exists() and console.stat().st_size > 0


def checking(inv: Inv, run: str) -> bool:
    results = inv.settings.runs / run / "checks-first-boot.jsonl"
    return in_stage(inv, run, "check") and results.exists() and results.read_text().count("\n") > 2


def interrupted(process: subprocess.Popen[str]) -> Ended:
    """Ctrl-C, and once more from somebody who is impatient."""
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.5)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=300)
    return Ended(process.returncode, out)


def test_a_night_passes_while_another_is_interrupted(inv: Inv) -> None:
    first, second = inv.start("nightly"), inv.start("nightly")
    said: list[str] = []
    passes, stopped = run_of(first, said), run_of(second, [])
    until(second, lambda: checking(inv, stopped))
    ended = interrupted(second)
    assert ended.code == 130 and "interrupted after" in ended.out and "Traceback" not in ended.out, ended.out
    assert Run.open(inv.settings.runs / stopped).state is State.DONE
    out, _ = first.communicate(timeout=LONG)
    assert first.returncode == 0, out
    assert leftovers.of(inv.settings) == []

    stages = re.findall(r"^  (\w+) +(?! |\.\.\.(?: |$))", out, re.MULTILINE)
    assert stages[-7:] == ["build", "inspect", "launch", "check", "reboot", "remove", "report"], out
    assert "nothing changed" in out and re.search(r"^passed in ", out.splitlines()[-1]), out
    directory = inv.settings.runs / passes
    path = re.search(r"^  report\s+(\S+report\.html)", out, re.MULTILINE)
    assert path and (PROJECT / path[1]).resolve() == directory / "report.html"
    assert 10_000 < (directory / "report.html").stat().st_size < 2_000_000
    suites = ElementTree.parse(directory / "junit.xml").getroot()
    cases = list(suites.iter("testcase"))
    assert len(cases) > 80, "the checks of two boots, and the findings of the inspection"
    assert not list(suites.iter("failure")) and not list(suites.iter("error"))


RED = '''
"""A check that is red."""

def test_red(host):
    """the server has what nobody put there"""
    assert host.file("/nowhere").exists
'''


def test_a_red_night_keeps_its_server_for_whoever_looks(inv: Inv, tmp_path: Path) -> None:
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "test_red.py").write_text(RED)
    text = (PROJECT / "appliances.yaml").read_text()
    checks = f"    checks: [red, {PROJECT}/tests/appliance/test_boot.py]\n    elements:"
    (tmp_path / "appliances.yaml").write_text(text.replace("    elements:", checks, 1))
    red = inv.having(appliances=tmp_path / "appliances.yaml")

    ended = red("nightly", "--keep", "failed", seconds=LONG)
    assert ended.code == 1 and "exit 1: the image" in ended.out, ended.out
    for word in ("FAILED", "the server has what nobody put there", "test_red.py::test_red", "./inv ssh",
                 "./inv check -- -k test_red"):
        assert word in ended.out, f"{word}\n{ended.out}"
    try:
        assert red("ssh", "--", "true").code == 0
        assert red("ssh", "--", "sh -c 'exit 7'").code == 7
        assert "uid=0" in red("ssh", "--", "sudo", "id").out
        assert "SSH HOST KEY" in red("console").out
        green = red("check", "--", "-k", "test_machine_id")
        assert green.code == 0 and "1 passed" in green.out, green.out
        again = red("check", "--", "-k", "test_red")
        assert again.code == 1 and "test_red.py::test_red" in again.out, again.out
        none = red("check", "--", "-k", "test_of_nothing")
        assert none.code == 2 and "no check of rtpengine at level basic is selected" in none.out, none.out
        assert red("reap").code == 0
        assert red("ssh", "--", "true").code == 0, "a server that is kept is not reaped"
        assert leftovers.of(red.settings), "the control: what looks for leftovers sees a running server"
    finally:
        gone = red("destroy")
    assert gone.code == 0 and "nothing left" in gone.out, gone.out
    assert leftovers.of(red.settings) == []
    assert "no server is kept" in red("destroy").out


@pytest.mark.parametrize(("arguments", "moment"), [(("build", "--force"), building), (("nightly",), emulated)],
                         ids=["build", "launch"])
def test_ctrl_c(inv: Inv, real_image: Image, arguments: tuple[str, ...], moment: Callable[[Inv, str], bool]) -> None:
    process = inv.start(*arguments)
    run = run_of(process, [])
    until(process, lambda: moment(inv, run))
    ended = interrupted(process)
    inv.refused(ended, 130, "interrupted")
    assert Run.open(inv.settings.runs / run).state is State.DONE
    assert real_image.path.exists()


@pytest.mark.parametrize(("arguments", "moment"), [(("build", "--force"), building), (("nightly",), emulated)],
                         ids=["build", "launch"])
def test_kill_9(inv: Inv, real_image: Image, arguments: tuple[str, ...], moment: Callable[[Inv, str], bool]) -> None:
    process = inv.start(*arguments)
    run = run_of(process, [])
    until(process, lambda: moment(inv, run))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert leftovers.of(inv.settings), "the control: something was there to be left"
    dry = inv("reap", "--dry-run")
    assert dry.code == 0 and run in dry.out, dry.out
    reaped = inv("reap")
    assert reaped.code == 0 and "removed" in reaped.out, reaped.out
    assert leftovers.of(inv.settings) == []
    assert Run.open(inv.settings.runs / run).state is State.DONE
    assert "dead runs left nothing behind" in inv("reap").out
    assert real_image.path.exists()
