"""`./inv test` as a process: what a signal to it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import until

_TESTS = """
import time
from pathlib import Path

import pytest


@pytest.fixture
def made():
    Path("made").touch()
    yield
    Path("made").unlink()


def test_long(made):
    Path("begun").touch()
    time.sleep(60)
"""
_STARTED = """
import sys
from pathlib import Path

from harness import host, owntests
from harness.settings import Settings

host.prepare = lambda *_, **__: None
owntests.run_lint = lambda _: 0
owntests.run_tests(Settings(Path(sys.argv[1])), unit=True, nightly=False,
                   options=["-p", "no:cacheprovider", *sys.argv[2:]])
"""


def test_named_tests_are_run_alone(tmp_path: Path) -> None:
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    for name in ("one", "two"):
        (tmp_path / "tests" / "unit" / f"test_{name}.py").write_text("def test_it(): pass\n")

    def ran(*options: str) -> str:
        return subprocess.run([sys.executable, "-c", _STARTED, os.fspath(tmp_path), *options], capture_output=True,
                              text=True, check=True).stdout

    assert "2 passed" in ran() and "1 passed" in ran("tests/unit/test_one.py::test_it")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_tests_take_away_what_they_made(number: signal.Signals, project: Path, tmp_path: Path) -> None:
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    (tmp_path / "tests" / "unit" / "test_long.py").write_text(_TESTS)
    (tmp_path / "tests" / "conftest.py").write_text((project / "tests" / "conftest.py").read_text())
    started = subprocess.Popen([sys.executable, "-c", _STARTED, os.fspath(tmp_path)],
                               cwd=project, stdout=subprocess.PIPE, text=True)
    try:
        until((tmp_path / "begun").exists, "the test has begun", 30)
        assert (tmp_path / "made").exists()
        started.send_signal(number)
        said, _ = started.communicate(timeout=10)
    finally:
        started.kill()
    assert started.returncode == pytest.ExitCode.INTERRUPTED, said
    assert not (tmp_path / "made").exists()
