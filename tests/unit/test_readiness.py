"""Readiness, with a cloud whose console is scripted and stand-ins for ssh and the TCP probe."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.access import readiness, ssh_config
from harness.access.readiness import (
    CloudInitNotDone,
    HostKeyMismatch,
    HostKeyNotShown,
    KernelPanicked,
    LoginFailed,
    MachineDied,
    NotRebooted,
    PortClosed,
    SystemNotStarted,
)
from harness.cloud import Route, RouteKind, Server
from harness.deadline import Deadline
from harness.errors import ExitCode, Fault, NotReadyError
from harness.resources import REMOVERS
from harness.run import Run
from tests.unit.test_keys import blob, block

KEY = block(f"ssh-ed25519 {blob(7)} root@server1")
RESULT = json.dumps({"v1": {"datasource": "DataSourceConfigDrive", "errors": ["one"]}})


@dataclass
class ScriptedCloud:
    """A console that shows one more line with every look."""

    lines: list[str] = field(default_factory=list)
    living: bool = True
    shown: int = 0
    name: str = "scripted"

    def console(self, run: Run, server: Server) -> str:
        self.shown += 1
        return "".join(self.lines[: self.shown])

    def alive(self, run: Run, server: Server) -> bool:
        return self.living


@dataclass
class Bench:
    run: Run
    server: Server
    bin: Path
    said: list[str] = field(default_factory=list)

    def ssh(self, *lines: str, code: int = 0) -> None:
        """Each ssh session runs one of the lines (sh), the last one again and again."""
        for number, line in enumerate(lines):
            (self.bin / f"session{number}").write_text(line)
        (self.bin / "ssh").write_text(
            f"#!/bin/sh\ncase $* in *'-O exit'*) exit 0;; esac\ncd {self.bin}\n"
            "if [ -e session1 ]; then f=$(ls session* | head -n 1); mv $f now; else f=session; cp session? now; fi\n"
            f". ./now\nexit {code}\n")
        (self.bin / "ssh").chmod(0o755)

    def wait(self, cloud: Any, seconds: float = 20) -> readiness.Ready:
        return readiness.wait(cloud, self.run, self.server, Deadline(seconds), self.said.append)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    run = Run.create(tmp_path / "runs", "relay", "local")
    server = Server("server1", "id", "debian", "10.0.0.2", "198.18.0.7",
                    (Route(RouteKind.NAMESPACE, "10.0.0.2", "qrouter-x"),), run.directory / "console.log")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(readiness._Watch, "_port_open", lambda self: True)
    monkeypatch.setattr(readiness, "_ALIVE", 0.0)
    ssh_config.write(run, [server])
    yield Bench(run, server, tmp_path / "bin")
    assert run.journal.remove_outstanding(REMOVERS) == []


def says(*words: str) -> str:
    return "\n".join(f"echo '{word}'" for word in words)


def test_a_server_becomes_ready_stage_by_stage(bench: Bench) -> None:
    bench.ssh(says("boot 1-2", f"result {RESULT}", "system running"))
    ready = bench.wait(ScriptedCloud(["[ 0.0] Linux\n", KEY]))
    assert (ready.boot_id, ready.datasource, ready.errors, ready.system) == (
        "1-2", "DataSourceConfigDrive", ("one",), "running")
    assert list(ready.timings) == ["key", "port", "ssh", "cloud-init", "ready"]
    assert list(ready.timings.values()) == sorted(ready.timings.values())
    assert f"ssh-ed25519 {blob(7)}" in (bench.run.directory / "known_hosts").read_text()
    assert bench.said[0] == "waiting for the host key on the console"


def test_no_key_on_the_console(bench: Bench) -> None:
    with pytest.raises(HostKeyNotShown) as late:
        bench.wait(ScriptedCloud(["\x1b[0mGRUB\r\n"]), seconds=0.5)
    assert late.value.excerpt == "GRUB" and late.value.reached == "started"
    assert late.value.exit_code == ExitCode.NOT_READY and late.value.fault == Fault.IMAGE


def test_a_closed_port(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness._Watch, "_port_open", lambda self: False)
    with pytest.raises(PortClosed) as late:
        bench.wait(ScriptedCloud([KEY]), seconds=0.5)
    assert late.value.reached == "key"


def test_no_login_tells_what_ssh_said(bench: Bench) -> None:
    bench.ssh("echo 'debian@10.0.0.2: Permission denied (publickey).' >&2", code=255)
    with pytest.raises(LoginFailed) as late:
        bench.wait(ScriptedCloud([KEY]), seconds=5)
    assert "ssh: debian@10.0.0.2: Permission denied" in (late.value.excerpt or "")


def test_another_host_key_is_an_error_at_once(bench: Bench) -> None:
    bench.ssh("echo 'Host key verification failed.' >&2", code=255)
    begin = time.monotonic()
    with pytest.raises(HostKeyMismatch):
        bench.wait(ScriptedCloud([KEY]))
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize("said, error", [
    (says("boot 1") + "\nsleep 30", CloudInitNotDone),
    (says("boot 1", f"result {RESULT}") + "\nsleep 30", SystemNotStarted),
    (says("boot 1", "off is not installed"), CloudInitNotDone),
    (says("boot 1"), CloudInitNotDone),
])
def test_what_never_ends_has_its_own_error(bench: Bench, said: str, error: type[NotReadyError]) -> None:
    bench.ssh(said)
    with pytest.raises(error):
        bench.wait(ScriptedCloud([KEY]), seconds=2)


def test_a_session_that_is_cut_is_tried_again(bench: Bench) -> None:
    bench.ssh(says("boot 1"), says("boot 1", f"result {RESULT}", "system degraded"))
    assert bench.wait(ScriptedCloud([KEY])).system == "degraded"


@pytest.mark.parametrize("stage", ["key", "cloud-init"])
def test_a_panic_ends_the_wait_at_once(bench: Bench, stage: str) -> None:
    bench.ssh(says("boot 1") + "\nsleep 30")
    before = [] if stage == "key" else [KEY, "", "", ""]
    panic = "[ 9.1] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"
    begin = time.monotonic()
    with pytest.raises(KernelPanicked, match="Unable to mount root"):
        bench.wait(ScriptedCloud([*before, panic]))
    assert time.monotonic() - begin < 5


def test_a_dead_machine_ends_the_wait_at_once_and_is_not_the_images_fault(bench: Bench) -> None:
    with pytest.raises(MachineDied) as dead:
        bench.wait(ScriptedCloud(["Linux\n"], living=False))
    assert dead.value.fault == Fault.CLOUD


def doors(*states: bool) -> Callable[[object], bool]:
    left = list(states)
    return lambda self: left.pop(0) if len(left) > 1 else left[0]


def test_a_reboot_is_over_when_the_boot_id_is_another(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness._Watch, "_port_open", doors(True, False, False, True))
    bench.ssh(says("1"), says("boot 1"), says("boot 2", f"result {RESULT}", "system running"))
    cloud = ScriptedCloud(["Kernel panic - not syncing: of the boot before\n"])
    ready = readiness.reboot(cloud, bench.run, bench.server, Deadline(20), bench.said.append)
    assert ready.boot_id == "2"
    assert list(ready.timings) == ["down", "port", "ssh", "cloud-init", "ready"]


def test_a_server_that_stays_up_was_not_rebooted(bench: Bench) -> None:
    bench.ssh(says("1"))
    with pytest.raises(NotRebooted):
        readiness.reboot(ScriptedCloud(), bench.run, bench.server, Deadline(2), bench.said.append)
