import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import process
from harness.deadline import Deadline
from harness.process import CommandFailed, CommandMissing, CommandTimedOut, run, run_logged, running
from harness.resources import processes_with


def _sleeper(tmp_path: Path) -> str:
    """A command line of sleep(1) that no other process has."""
    return f"60.{os.getpid()}{abs(hash(tmp_path)) % 10**9}"


def _gone(token: str) -> bool:
    """SIGKILL takes effect a moment after it was sent."""
    limit = Deadline(5)
    while processes_with(token) and not limit.expired:
        time.sleep(0.02)
    return not processes_with(token)


def test_output_and_input():
    assert run(["cat"], stdin="grüße\n").stdout == "grüße\n"
    both = run(["sh", "-c", "echo out; echo err >&2"]).stdout
    assert both == "out\nerr\n"
    assert run(["cat"]).stdout == "", "standard input is empty unless given"


def test_bytes_that_are_no_text_do_not_hurt():
    assert run(["printf", r"a\377b"]).stdout == "a\ufffdb"


def test_environment_and_directory(tmp_path):
    result = run(["/bin/sh", "-c", "echo $COLOUR; pwd"], env={"COLOUR": "red"}, cwd=tmp_path)
    assert result.stdout == f"red\n{tmp_path}\n"


def test_a_failure_shows_code_command_and_last_lines():
    with pytest.raises(CommandFailed) as caught:
        run(["sh", "-c", "seq 1 100; exit 7"])
    assert caught.value.returncode == 7
    assert "sh ended with exit code 7" in caught.value.message
    assert (caught.value.excerpt or "").splitlines() == [str(n) for n in range(89, 101)]
    assert run(["sh", "-c", "exit 7"], check=False).returncode == 7


def test_a_program_that_is_not_there():
    with pytest.raises(CommandMissing, match="the program no-such-program is not on this host"):
        run(["no-such-program"])
    with pytest.raises(CommandMissing):
        run(["ls"], env={"PATH": "/nowhere"})


def test_at_the_deadline_the_whole_group_is_ended(tmp_path):
    token = _sleeper(tmp_path)
    begin = time.monotonic()
    with pytest.raises(CommandTimedOut, match="did not end within"):
        run(["sh", "-c", f"sleep {token} & sleep {token}"], deadline=Deadline(0.3))
    assert time.monotonic() - begin < 4
    assert _gone(token)


def test_children_that_outlive_their_command_are_ended(tmp_path):
    token = _sleeper(tmp_path)
    run(["sh", "-c", f"sleep {token} >/dev/null 2>&1 &"])
    assert _gone(token)


def test_a_command_that_ignores_sigterm_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "PATIENCE", 0.3)
    log = tmp_path / "log"
    with pytest.raises(CommandTimedOut):
        run_logged(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"], log, deadline=Deadline(0.5))
    assert log.read_text() == "ready\nended: no result within 0 s\n"


TIDY = "trap 'sleep 0.6; echo tidy >%s; exit' TERM; echo ready; while :; do sleep 0.05; done"


def test_a_command_with_something_to_put_back_has_longer(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "PATIENCE", 0.1)
    put_back = tmp_path / "put-back"
    with pytest.raises(CommandTimedOut):
        run_logged(["sh", "-c", TIDY % put_back], tmp_path / "log", deadline=Deadline(0.5), patience=20)
    assert put_back.exists()


def test_a_second_interrupt_kills_what_is_still_putting_back(tmp_path):
    token, begin = _sleeper(tmp_path), time.monotonic()

    def interrupt(number, frame):
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
        with pytest.raises(KeyboardInterrupt):
            run_logged(["sh", "-c", f"trap '' TERM; echo ready; while :; do sleep {token}; done"], tmp_path / "log",
                       deadline=Deadline(60), patience=60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    assert time.monotonic() - begin < 20
    assert _gone(token)


def test_a_logged_command_tells_every_line_and_how_it_ended(tmp_path):
    log, seen = tmp_path / "new" / "log", []
    result = run_logged(["sh", "-c", "echo one; printf 'two\\r\\nthree'"], log, deadline=Deadline(20),
                        on_line=seen.append)
    assert seen == ["one", "two", "three"]
    assert log.read_text() == "one\ntwo\nthree\nexit code: 0\n"
    assert result.stdout == "one\ntwo\nthree"
    with pytest.raises(CommandFailed):
        run_logged(["sh", "-c", "echo bad; exit 3"], log, deadline=Deadline(20))
    assert log.read_text().endswith("exit code: 0\nbad\nexit code: 3\n")


def test_a_logged_command_keeps_the_last_200_lines(tmp_path):
    result = run_logged(["seq", "1", "5000"], tmp_path / "log", deadline=Deadline(20))
    assert result.stdout.splitlines() == [str(n) for n in range(4801, 5001)]
    assert len((tmp_path / "log").read_text().splitlines()) == 5001


def test_a_command_that_closes_its_output_still_has_a_deadline(tmp_path):
    with pytest.raises(CommandTimedOut):
        run_logged(["sh", "-c", "exec >/dev/null 2>&1; sleep 30"], tmp_path / "log", deadline=Deadline(0.3))
    assert "ended: no result" in (tmp_path / "log").read_text()


def test_a_grandchild_that_holds_the_output_does_not_hold_us(tmp_path):
    token = _sleeper(tmp_path)
    begin = time.monotonic()
    run_logged(["sh", "-c", f"sleep {token} & echo done"], tmp_path / "log", deadline=Deadline(30))
    assert time.monotonic() - begin < 10
    assert _gone(token)


def test_a_callers_error_ends_the_command(tmp_path):
    token = _sleeper(tmp_path)

    def refuse(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_logged(["sh", "-c", f"echo go; sleep {token}"], tmp_path / "log", deadline=Deadline(30), on_line=refuse)
    assert _gone(token)
    assert (tmp_path / "log").read_text().endswith("ended: KeyboardInterrupt\n")


def test_a_command_that_runs_beside_a_block_is_ended_with_it(tmp_path):
    token = _sleeper(tmp_path)
    log = tmp_path / "log"
    log.write_text("before\n")
    with pytest.raises(KeyboardInterrupt), \
            running(["sh", "-c", f"echo out; echo err >&2; sleep {token} & sleep {token}"], log) as beside:
        limit = Deadline(5)
        while log.read_text() != "before\nout\nerr\n" and not limit.expired:
            time.sleep(0.02)
        assert beside.poll() is None and processes_with(token)
        raise KeyboardInterrupt
    assert _gone(token)
    assert log.read_text() == "before\nout\nerr\n"


def test_commands_die_with_us_even_when_we_are_killed(tmp_path):
    token = _sleeper(tmp_path)
    program = f"from harness.process import run; run(['sleep', '{token}'])"
    parent = subprocess.Popen([sys.executable, "-c", program])
    try:
        limit = Deadline(20)
        while len(processes_with(token)) < 2 and not limit.expired:
            time.sleep(0.02)
        assert len(processes_with(token)) == 2
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    assert _gone(token)


@pytest.mark.parametrize(("parent", "code"), [("os.getppid()", 0), ("os.getpid()", -signal.SIGKILL)])
def test_a_child_whose_parent_died_before_it_could_ask_dies_too(parent, code):
    program = f"import os; from harness import process; process._die_with({parent})"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2]).returncode == code
