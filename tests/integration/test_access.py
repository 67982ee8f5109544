"""Reaching a real server: by every alias, over one root shell, through a reboot and a panic."""

from __future__ import annotations

import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_STREAM

import pytest

from harness import process
from harness.access import keys, namespace, readiness, ssh_config
from harness.access.shell import ConnectionLost, Shell
from harness.appliance import Appliance
from harness.cloud import Route, RouteKind, Server
from harness.cloud.local import LocalCloud
from harness.deadline import Deadline
from harness.errors import HostError, NotReadyError
from harness.image.build import Image
from harness.process import CommandTimedOut
from harness.resources import REMOVERS
from harness.run import Run
from harness.settings import Settings
from tests import small_guest
from tests.real_server import Booted, server_of

pytestmark = pytest.mark.root

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"


@pytest.fixture
def isolated() -> Iterator[str]:
    """A network namespace with nothing but its own loopback."""
    name = f"dialtone-test-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.mark.parametrize("family, address", [(AF_INET, "127.0.0.1"), (AF_INET6, "::1")])
def test_a_socket_is_inside_the_namespace_and_the_process_is_not(isolated: str, family, address) -> None:
    before = Path("/proc/thread-self/ns/net").readlink()
    with namespace.open_socket(isolated, SOCK_STREAM, family) as listener, \
            namespace.open_socket(isolated, SOCK_STREAM, family) as inside, \
            namespace.open_socket("", SOCK_STREAM, family) as outside:
        listener.bind((address, 0))
        listener.listen()
        inside.connect(listener.getsockname())
        with pytest.raises(ConnectionRefusedError):
            outside.connect(listener.getsockname())
    assert Path("/proc/thread-self/ns/net").readlink() == before


def test_a_namespace_that_is_not_there_is_named() -> None:
    with pytest.raises(HostError, match="qrouter-none"):
        namespace.open_socket("qrouter-none", SOCK_STREAM)


def test_an_ssh_that_is_ended_leaves_nothing_on_its_way(tiny: tuple[LocalCloud, Run], isolated: str) -> None:
    _, run = tiny
    route = Route(RouteKind.NAMESPACE, "127.0.0.1", isolated)
    server = Server("server1", "id", "debian", route.address, "", (route,), Path("console.log"))
    config = ssh_config.write(run, [server])
    with namespace.open_socket(isolated, SOCK_STREAM) as silent:
        silent.bind((route.address, 22))
        silent.listen()
        with pytest.raises(CommandTimedOut):
            process.run(["ssh", "-F", config, "server1", "true"], deadline=Deadline(1))
        end = Deadline(5)
        while (left := processes_in(isolated)) and not end.expired:
            time.sleep(0.1)
    assert left == []


def processes_in(name: str) -> list[str]:
    """The commands that run inside a network namespace, with their process numbers."""
    pids = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True).stdout.split()
    return subprocess.run(["ps", "-o", "pid=,args=", "-p", ",".join(pids)], capture_output=True, text=True
                          ).stdout.splitlines() if pids else []


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[tuple[LocalCloud, Run]]:
    """A cloud and a run for guests of a few bytes."""
    settings = Settings.load(tmp_path, {}, accelerator="tcg")
    run = Run.create(settings.runs, "x", "local")
    try:
        yield LocalCloud(settings), run
    finally:
        assert run.journal.remove_outstanding(REMOVERS) == []
        run.unlock()


@pytest.mark.parametrize("ends, error", [(True, readiness.MachineDied), (False, readiness.HostKeyNotShown)])
def test_a_server_that_never_comes_up_is_told_with_its_console(
        tiny: tuple[LocalCloud, Run], tmp_path: Path, ends: bool, error: type[NotReadyError]) -> None:
    cloud, run = tiny
    server = cloud.launch(run, [small_guest.spec(small_guest.image(tmp_path / "x.qcow2", ends=ends))], Deadline(60))[0]
    ssh_config.write(run, [server])
    with pytest.raises(error) as never:
        readiness.wait(cloud, run, server, Deadline(8), lambda text: None)
    assert small_guest.GREETING in (never.value.excerpt or "")


@pytest.fixture(scope="module")
def booted(real_settings: Settings, real_appliance: Appliance, real_image: Image) -> Iterator[Booted]:
    with server_of(real_settings, real_appliance, real_image) as server:
        yield server


def ssh(booted: Booted, alias: str, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ssh", "-F", ssh_config.path(booted.work.run), *options, alias, command],
                          capture_output=True, text=True, timeout=120)


@pytest.mark.guest
def test_every_alias_reaches_the_server(booted: Booted) -> None:
    seen = {alias: ssh(booted, alias, BOOT_ID).stdout for alias in ssh_config.aliases(booted.work.run)}
    assert list(seen) == ["server1", "server1-floating"]
    assert len(set(seen.values())) == 1 and len(seen["server1"].strip()) == 36


@pytest.mark.guest
def test_another_host_key_is_refused(booted: Booted, tmp_path: Path) -> None:
    pinned = keys.known_hosts(booted.work.run).read_text()
    other = tmp_path / "known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    key = (tmp_path / "key.pub").read_text().split()[1]
    other.write_text(f"{pinned.split()[0]} ssh-ed25519 {key}\n")
    for file in (other, tmp_path / "empty"):
        done = ssh(booted, "server1", "true", "-o", f"UserKnownHostsFile={file}", "-o", "ControlPath=none")
        assert done.returncode == 255 and "Host key verification failed" in done.stderr


@pytest.mark.guest
def test_the_shell_is_root_and_survives_a_lost_connection(booted: Booted) -> None:
    shell = Shell(ssh_config.path(booted.work.run), "server1")
    octets = bytes(range(256)) * 1000
    try:
        assert shell.run("id -u").stdout == b"0\n"
        assert shell.run("cat", stdin=octets).stdout == octets
        assert b"linux" in shell.read("/etc/os-release")["/etc/os-release"].lower()
        ssh(booted, "server1", "true", "-O", "exit")
        with pytest.raises(ConnectionLost):
            shell.run("id -u")
        assert shell.run("id -u").stdout == b"0\n"
    finally:
        shell.close()


@pytest.mark.guest
def test_a_shared_connection_outlives_the_command_that_opened_it(booted: Booted) -> None:
    ssh(booted, "server1", "true", "-O", "exit")
    process.run(["ssh", "-F", ssh_config.path(booted.work.run), "server1", "true"])
    for _ in range(20):
        assert ssh(booted, "server1", "true", "-O", "check").returncode == 0
        time.sleep(0.1)


@pytest.mark.guest
def test_a_reboot_ends_with_another_boot_id(booted: Booted) -> None:
    before = ssh(booted, "server1", BOOT_ID).stdout.strip()
    ready = readiness.reboot(booted.work.cloud, booted.work.run, booted.server, Deadline(600), lambda text: None)
    after = ssh(booted, "server1", BOOT_ID)
    assert ready.boot_id == after.stdout.strip() != before, after.stderr
    assert ready.system == "running" and not ready.errors


@pytest.mark.guest
def test_a_panic_is_told_by_its_words(booted: Booted) -> None:
    subprocess.run(["ssh", "-F", ssh_config.path(booted.work.run), "-o", "ControlPath=none", "server1",
                    "sudo -n sh -c 'sleep 1; echo c >/proc/sysrq-trigger' >/dev/null 2>&1 </dev/null &"], timeout=60)
    with pytest.raises(readiness.KernelPanicked, match="sysrq triggered crash") as panic:
        while True:
            readiness.wait(booted.work.cloud, booted.work.run, booted.server, Deadline(60), lambda text: None)
    assert "Kernel panic - not syncing" in str(panic.value) and panic.value.excerpt, "its words, and the console's tail"
