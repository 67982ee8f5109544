"""Who asks for a stage of cloud-init gets what the interpreter answers, and never waits for one that is gone."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT

STAGE = "modules --mode=final"
SCRIPT = PROJECT / "elements/voip-appliance/cloud-init-stages-root/usr/libexec/voip-appliance/cloud-init-stage"
ITSELF = "itself modules --mode=final\n"

Ask = Callable[[], "subprocess.Popen[str]"]


@pytest.fixture
def ask(tmp_path: Path) -> Iterator[Ask]:
    """Starts the script, its two paths below `tmp_path`; the program that it falls back to says so and ends with 7."""
    (tmp_path / "cloud-init").write_text('#!/bin/sh\necho "itself $*"\nexit 7\n')
    (tmp_path / "cloud-init").chmod(0o755)
    text = SCRIPT.read_text().replace("/run/cloud-init-stages", str(tmp_path / "run"))
    (tmp_path / "stage").write_text(text.replace("/usr/bin/cloud-init", str(tmp_path / "cloud-init")))
    started = []

    def start() -> "subprocess.Popen[str]":
        process = subprocess.Popen(["sh", str(tmp_path / "stage"), *STAGE.split()], text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


class Server:
    """The other end of the FIFOs."""

    def __init__(self, place: Path) -> None:
        place.mkdir()
        for name in ("ask", STAGE):
            os.mkfifo(place / name)
        self.ask = os.open(place / "ask", os.O_RDWR)
        self.answer = os.open(place / STAGE, os.O_RDWR)

    def asked(self, process: "subprocess.Popen[str]") -> None:
        assert os.read(self.ask, 100).decode() == f"{process.pid} {STAGE}\n"

    def say(self, line: str) -> None:
        os.write(self.answer, f"{line}\n".encode())

    def die(self) -> None:
        os.close(self.ask)
        os.close(self.answer)


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path / "run")


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=10)
    return process.returncode, out, err


@pytest.mark.parametrize("code", [0, 3])
def test_a_stage_ends_as_it_ended_in_the_interpreter(ask: Ask, server: Server, code: int) -> None:
    process = ask()
    server.asked(process)
    server.say("4194305")
    server.say(str(code))
    assert ended(process) == (code, "", "")


def test_without_the_interpreter_it_runs_by_itself(ask: Ask) -> None:
    assert ended(ask()) == (7, ITSELF, "")


def test_an_interpreter_that_died_before_is_not_waited_for(ask: Ask, server: Server) -> None:
    server.die()
    assert ended(ask()) == (7, ITSELF, "")


def test_an_interpreter_that_dies_when_asked_is_not_waited_for(ask: Ask, server: Server) -> None:
    process = ask()
    server.asked(process)
    server.die()
    assert ended(process) == (7, ITSELF, "")


def test_a_stage_that_was_killed_is_not_run_again(ask: Ask, server: Server) -> None:
    process = ask()
    server.asked(process)
    server.say("4194305")
    server.die()
    assert ended(process) == (1, "", f"cloud-init {STAGE}: process 4194305 was killed\n")


def test_the_stage_is_told_to_end_and_waited_for(ask: Ask, server: Server) -> None:
    stage = subprocess.Popen(["sleep", "60"])
    process = ask()
    server.asked(process)
    server.say(str(stage.pid))
    while not caught(process.pid, signal.SIGTERM):
        pass
    process.send_signal(signal.SIGTERM)
    assert stage.wait(10) == -signal.SIGTERM
    assert process.poll() is None
    server.say("1")
    assert ended(process) == (1, "", "")


def caught(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    mask = next(line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                if line.startswith("SigCgt"))
    return bool(int(mask, 16) >> (number - 1) & 1)
