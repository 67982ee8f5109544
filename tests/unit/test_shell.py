"""The root shell, with stand-ins for ssh and sudo that run the far end on this machine."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

from harness.access.shell import CommandStuck, ConnectionLost, Shell, ShellBackend


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    for name, text in {"ssh": 'shift 3; echo "Welcome"; exec /bin/sh -c "$*"', "sudo": 'shift; exec "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    made = Shell(tmp_path / "ssh_config", "server1", seconds=20)
    yield made
    made.close()


def test_code_and_both_outputs_come_back(shell: Shell) -> None:
    answer = shell.run("echo out; echo err >&2; exit 3")
    assert (answer.code, answer.stdout, answer.stderr) == (3, b"out\n", b"err\n")


def test_octets_are_not_touched(shell: Shell) -> None:
    octets = bytes(range(256)) * 4096
    assert shell.run("cat", stdin=octets).stdout == octets


def test_a_command_of_plain_words_needs_no_shell_and_means_the_same(shell: Shell) -> None:
    assert shell.run("echo a  b").stdout == b"a b\n"
    assert shell.run("exit 4").code == 4
    assert shell.run("no-such-program -x").code == 127


def test_death_by_a_signal_is_told_as_a_shell_does(shell: Shell) -> None:
    assert shell.run("kill -9 $$").code == 128 + 9


def test_files_are_read_without_a_process(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_bytes(b"one\n")
    (tmp_path / "b.conf").write_bytes(b"\0\xff")
    pattern = str(tmp_path / "*.conf")
    assert shell.read(pattern, str(tmp_path)) == {
        str(tmp_path / "a.conf"): b"one\n", str(tmp_path / "b.conf"): b"\0\xff", str(tmp_path): b""}
    assert shell.find(pattern) == [str(tmp_path / "a.conf"), str(tmp_path / "b.conf")]
    assert shell.read("/no/such") == {} and shell.find("/no/such") == []


def test_a_stuck_command_is_ended_and_the_shell_goes_on(shell: Shell, tmp_path: Path) -> None:
    with pytest.raises(CommandStuck, match="within 1 s"):
        shell.run(f"echo begun; sleep 60; touch {tmp_path}/late", seconds=1)
    assert shell.run("echo on").stdout == b"on\n"


@pytest.mark.parametrize("command", ["sleep 1; echo late", "yes late | head -c 3000000; sleep 1"])
def test_an_answer_that_nobody_waited_for_is_not_the_next_commands(shell: Shell, tmp_path: Path, command: str) -> None:
    """As when checks are ended: what they changed is put back by further commands, in their order."""
    shell.run(":")
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            shell.run(f"{command}; echo done >{tmp_path}/late")
    finally:
        signal.signal(signal.SIGALRM, before)
    assert shell.run(f"cat {tmp_path}/late; echo on").stdout == b"done\non\n"
    assert shell.read(f"{tmp_path}/late") == {f"{tmp_path}/late": b"done\n"}


def test_a_lost_connection_is_told_and_the_next_command_opens_another(shell: Shell) -> None:
    shell.run(":")
    assert shell._process is not None
    os.killpg(shell._process.pid, 9)
    time.sleep(0.1)
    with pytest.raises(ConnectionLost, match="server1"):
        shell.run("echo on")
    assert shell.run("echo on").stdout == b"on\n"


def test_an_ssh_that_fails_is_a_lost_connection_with_its_words(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\necho 'Connection refused' >&2\nexit 255\n")
    with pytest.raises(ConnectionLost) as lost:
        shell.run("echo on")
    assert lost.value.excerpt == "Connection refused"


def test_testinfra_runs_by_it(shell: Shell, tmp_path: Path) -> None:
    host = Host(ShellBackend(shell))
    (tmp_path / "with space").write_text("äö")
    assert host.check_output("cat %s", str(tmp_path / "with space")) == "äö"
    assert host.file(str(tmp_path)).is_directory
