"""The command line, and the monitor against a small server that talks QMP."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
from pathlib import Path

import pytest

from harness.cloud import qemu
from harness.deadline import Deadline
from harness.errors import CloudError


def machine(directory: Path, accelerator: str = "tcg") -> qemu.Machine:
    return qemu.Machine(
        token="dialtone:0:run:server1:", uuid="u", accelerator=accelerator, cpu="qemu64", cpus=2, memory=1024,
        disk=directory / "disk.qcow2", config_drive=directory / "config.iso", tap="tap0", mac="fa:16:3e:00:00:0a",
        console_log=directory / "console.log", log=directory / "qemu.log")


def test_command_names_the_machine_and_its_size() -> None:
    argv = qemu.command(machine(Path("/r")))
    pairs = list(itertools.pairwise(argv))
    assert ("-name", "dialtone:0:run:server1:") in pairs
    assert ("-smp", "2") in pairs
    assert ("-m", "1024") in pairs
    assert ("-cpu", "qemu64") in pairs
    assert ("-accel", "tcg,thread=multi") in pairs


def test_command_for_kvm_has_no_tcg_property() -> None:
    argv = qemu.command(machine(Path("/r"), accelerator="kvm"))
    assert argv[argv.index("-accel") + 1] == "kvm"


def test_comma_in_a_path_does_not_end_the_option() -> None:
    assert any("file=/a,,b/disk.qcow2" in argument for argument in qemu.command(machine(Path("/a,b"))))


def test_sockets_are_relative_whatever_the_directory() -> None:
    argv = " ".join(qemu.command(machine(Path("/" + "x" * 200))))
    assert "unix:qmp.sock," in argv
    assert "path=console.sock," in argv


class Monitor(threading.Thread):
    """Answers each command from `answers`; a command that isn't there ends the connection."""

    def __init__(self, path: Path, answers: dict[str, dict[str, object]]) -> None:
        super().__init__(daemon=True)
        self.answers = answers
        self.asked: list[str] = []
        self.socket = socket.socket(socket.AF_UNIX)
        with contextlib.chdir(path.parent):  # as QEMU does it: the whole path may be too long for an address
            self.socket.bind(path.name)
        self.socket.listen()

    def run(self) -> None:
        connection, _ = self.socket.accept()
        with connection, connection.makefile("rw") as stream:
            stream.write('{"QMP": {"version": {}, "capabilities": []}}\n{"event": "RESUME"}\n')
            stream.flush()
            for line in stream:
                name = json.loads(line)["execute"]
                self.asked.append(name)
                if name not in self.answers:
                    return
                stream.write(json.dumps(self.answers[name]) + "\n")
                stream.flush()


OK: dict[str, dict[str, object]] = {"qmp_capabilities": {"return": {}}}


def test_execute_returns_the_answer_from_a_long_path(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120)
    directory.mkdir()
    monitor = Monitor(directory / "qmp.sock", {**OK, "query-status": {"return": {"status": "running"}}})
    monitor.start()
    assert qemu.execute(directory / "qmp.sock", "query-status", Deadline(5)) == {"status": "running"}
    assert monitor.asked == ["qmp_capabilities", "query-status"]


def test_execute_says_what_the_machine_refused(tmp_path: Path) -> None:
    Monitor(tmp_path / "qmp.sock", {**OK, "no": {"error": {"class": "C", "desc": "no such command"}}}).start()
    with pytest.raises(CloudError, match="no such command"):
        qemu.execute(tmp_path / "qmp.sock", "no", Deadline(5))


def test_execute_returns_none_where_the_machine_ends(tmp_path: Path) -> None:
    Monitor(tmp_path / "qmp.sock", OK).start()
    assert qemu.execute(tmp_path / "qmp.sock", "quit", Deadline(5)) is None


def test_execute_without_a_machine_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(CloudError, match="doesn't answer"):
        qemu.execute(tmp_path / "qmp.sock", "quit", Deadline(1))
