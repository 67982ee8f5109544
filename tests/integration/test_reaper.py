"""A process that launched a server is killed; what it left is found, removed, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import reaper
from harness.cloud import local
from harness.cloud.local import LocalCloud
from harness.cloud.ownership import Mark, owner
from harness.deadline import Deadline
from harness.resources import processes_with
from harness.run import Run, State
from harness.settings import Settings
from tests import small_guest
from tests.conftest import PROJECT, lacking

pytestmark = pytest.mark.root

LAUNCHING = """
import sys, time
from pathlib import Path
from harness.cloud.local import LocalCloud
from harness.deadline import Deadline
from harness.run import Run, State
from harness.settings import Settings
from tests import small_guest
settings = Settings.load(Path(sys.argv[1]), {}, accelerator="tcg")
run = Run.create(settings.runs, "x", "local")
print(run.id, flush=True)
LocalCloud(settings).launch(run, [small_guest.spec(settings.project / "image.qcow2")], Deadline(60))
if sys.argv[2] == "kept":
    run.state = State.KEPT
    run.save()
    sys.exit()
print("launched", flush=True)
time.sleep(600)
"""


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    for program in local.PROGRAMS:
        if shutil.which(program) is None:
            lacking(f"{program} is not installed")
    small_guest.image(tmp_path / "image.qcow2")
    made = Settings.load(tmp_path, {}, accelerator="tcg")
    yield made
    for run in Run.all(made.runs):
        run.journal.remove_outstanding(LocalCloud(made).removers)
    assert traces(made) == []


def launching(settings: Settings, how: str = "dies") -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", LAUNCHING, settings.project, how], cwd=PROJECT, text=True,
                            stdout=subprocess.PIPE, start_new_session=True)


def kill(process: subprocess.Popen[str]) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.stdout
    process.stdout.close()


def killed_with_a_server(settings: Settings) -> str:
    """The id of a run whose process was killed after it had launched a server."""
    process = launching(settings)
    assert process.stdout
    run_id = process.stdout.readline().strip()
    assert process.stdout.readline() == "launched\n"
    kill(process)
    assert {"process", "link", "namespace", "path"} <= {t.split()[0] for t in traces(settings)}
    return run_id


def traces(settings: Settings) -> list[str]:
    """What the host shows of this checkout's servers, whatever the run."""
    mine = f"dialtone:{owner(settings)}:"
    listed = json.loads(subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout)
    links = [entry["ifname"] for entry in listed if mine in entry.get("ifalias", "")]
    routes = subprocess.run(["ip", "route", "show", "table", "all"], capture_output=True, text=True, check=True).stdout
    found = [f"link {name}" for name in links]
    found += [f"route {line}" for line in routes.splitlines() if any(name in line for name in links)]
    found += [f"process {pid}" for pid in processes_with(mine)]
    for path in Path("/run/netns").glob("qrouter-*"):
        inside = subprocess.run(["ip", "-n", path.name, "link"], capture_output=True, text=True, check=False).stdout
        found += [f"namespace {path.name}"] if mine in inside else []
    runs = [p for p in settings.runs.rglob("*") if p.suffix in {".qcow2", ".iso", ".sock"}]
    parts = list(settings.cache.rglob(".*.raw"))
    return found + [f"path {p}" for p in (*runs, *parts)]


def whole_host() -> list[str]:
    """What must not change by anything that Dialtone does."""
    commands = (["nft", "list", "ruleset"], ["losetup", "--list", "--noheadings"],
                ["sysctl", "net.ipv4.ip_forward", "net.ipv4.conf.all.forwarding"])
    return [subprocess.run(c, capture_output=True, text=True, check=True).stdout for c in commands]


def test_what_a_killed_run_left_is_removed_at_once(settings: Settings) -> None:
    before = whole_host()
    run_id = killed_with_a_server(settings)
    assert whole_host() == before
    begin = time.monotonic()
    reaped = reaper.sweep(settings)
    seconds = time.monotonic() - begin
    assert {r.outcome for r in reaped} == {"removed"}
    assert {r.resource.kind for r in reaped} == {"process", "link", "namespace", "path"}
    assert traces(settings) == []
    assert seconds < 10
    assert Run.open(settings.runs / run_id).state is State.DONE
    assert reaper.sweep(settings) == []


@pytest.mark.parametrize("after", [0.02, 0.06, 0.1, 0.15, 0.2, 0.3])
def test_killed_in_the_middle_of_launching(settings: Settings, after: float) -> None:
    process = launching(settings)
    assert process.stdout
    run = Run.open(settings.runs / process.stdout.readline().strip())
    time.sleep(after)
    kill(process)
    deadline = Deadline(5)
    while not run.dead:  # a command that was just being started holds the lock a moment longer than its parent
        assert not deadline.expired
        time.sleep(0.01)
    reaper.sweep(settings)
    assert traces(settings) == []


def test_kept_server_is_left_alone(settings: Settings) -> None:
    process = launching(settings, "kept")
    out, _ = process.communicate(timeout=60)
    run = Run.open(settings.runs / out.strip())
    cloud = LocalCloud(settings)
    assert reaper.sweep(settings) == []
    assert reaper.sweep(settings) == []
    assert cloud.alive(run, cloud.servers(run)[0])
    assert run.journal.remove_outstanding(cloud.removers) == []


def test_dry_run_leaves_everything(settings: Settings) -> None:
    killed_with_a_server(settings)
    there = traces(settings)
    assert {r.outcome for r in reaper.sweep(settings, dry_run=True)} == {"would remove"}
    assert traces(settings) == there
    reaper.sweep(settings)


def test_what_outlived_its_run_directory_goes_at_the_second_sighting(settings: Settings) -> None:
    killed_with_a_server(settings)
    shutil.rmtree(settings.runs)
    assert {r.outcome for r in reaper.sweep(settings)} == {"seen"}
    assert traces(settings)
    reaped = reaper.sweep(settings)
    assert {r.outcome for r in reaped} == {"removed"}
    assert {r.resource.kind for r in reaped} == {"process", "link", "namespace"}
    assert traces(settings) == []


@pytest.fixture
def foreign() -> Iterator[str]:
    """A router of a real Neutron, or of another checkout: its namespace's name is like ours."""
    name = f"qrouter-{uuid.uuid4()}"
    bridge = f"qr-{name[8:19]}"
    mark = Mark("0" * 12, "20260101-000000-x-0000")
    try:
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["ip", "-n", name, "link", "add", bridge, "type", "bridge"], check=True)
        subprocess.run(["ip", "-n", name, "link", "set", bridge, "alias", str(mark)], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def test_what_is_not_surely_ours_is_left_alone(settings: Settings, foreign: str) -> None:
    for _ in range(3):
        assert reaper.sweep(settings) == []
    assert Path("/run/netns", foreign).exists()


def test_in_nested_namespaces(settings: Settings, tmp_path: Path) -> None:
    """A mount, process and host name namespace of its own with an empty /run, on the host's network."""
    script = f"""
        mount --make-rprivate / && mount -t tmpfs tmpfs /run && mount -t proc proc /proc
        {sys.executable} -c "$1" {tmp_path} kept >{tmp_path}/id && sleep 1
        cat {tmp_path}/runs/*/server1/console.log
        {sys.executable} -c "$2" {tmp_path}
    """
    removing = """
import sys
from pathlib import Path
from harness.cloud.local import LocalCloud
from harness.run import Run
from harness.settings import Settings
settings = Settings.load(Path(sys.argv[1]), {}, accelerator="tcg")
for run in Run.all(settings.runs):
    cloud = LocalCloud(settings)
    print("alive", cloud.alive(run, cloud.servers(run)[0]), run.journal.remove_outstanding(cloud.removers))
"""
    done = subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--uts", "--ipc",
                           "sh", "-ec", script, "sh", LAUNCHING, removing],
                          cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert small_guest.GREETING in done.stdout
    assert "alive True []" in done.stdout
    assert traces(settings) == []
