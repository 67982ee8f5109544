"""Building for real: compiling a stand-in in all three parts, loop devices, a full disk, a build that is killed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness import appliance as appliances
from harness.appliance import Appliance, SourceSpec
from harness.deadline import Deadline
from harness.errors import BuildError, Fault, HostError
from harness.image import build, loops, sources
from harness.image.apt import AptState, state_for
from harness.image.compile import Artifact, compile_artifact
from harness.image.mirrors import AptMirrors, apt_mirrors
from harness.reaper import sweep
from harness.resources import mounts_below, processes_with
from harness.run import Run
from harness.settings import Settings
from tests.stand_in import DEBIAN_VERSION, PATCHED, UNPATCHED, VERSION, archive, make_repository, write_tree

pytestmark = pytest.mark.root


@pytest.fixture
def settings(project: Path, tmp_path: Path) -> Settings:
    """The project with runs and a cache of the test's own; package lists, builder and base roots are shared."""
    cache = tmp_path / "cache"
    cache.mkdir()
    own = Settings.load(project, environment={})
    for name in ("apt", "builder", "base"):
        (own.cache / name).mkdir(parents=True, exist_ok=True)
        (cache / name).symlink_to(own.cache / name)
    return replace(own, cache=cache, runs=tmp_path / "runs")


@pytest.fixture
def run(settings: Settings) -> Run:
    return Run.create(settings.runs, "rtpengine", "local")


@pytest.fixture
def relay(settings: Settings) -> Appliance:
    return appliances.load(settings.appliances)["rtpengine"]


@pytest.fixture
def state(settings: Settings) -> AptState:
    found = state_for(settings.cache, apt_mirrors(settings), "bookworm", "amd64")
    found.refresh(Deadline(120))
    return found


def compiled(spec: SourceSpec, relay: Appliance, settings: Settings, run: Run, state: AptState,
             source_state: AptState | None = None) -> Artifact:
    known = sources.kinds(lambda: state, lambda: source_state or state)
    choice = sources.fetch_first([spec], settings, run, lambda text: None, Deadline(120), known)
    return compile_artifact(relay, choice, settings, run, lambda text: None, Deadline(1200), state)


def tarball(directory: Path, tree: Path) -> SourceSpec:
    files = {str(p.relative_to(tree)): p.read_text() for p in sorted(tree.rglob("*")) if p.is_file()}
    file = directory / "stand-in.tar.xz"
    file.write_bytes(archive(files, f"rtpengine-{VERSION}/"))
    return SourceSpec("tarball", VERSION, url=str(file), sha256=build.sha256(file))


def members(artifact: Artifact, to: Path) -> Path:
    subprocess.run(["tar", "--zstd", "-C", to, "-xf", artifact.path], check=True)
    return to


def test_a_stand_in_is_compiled_in_all_three_parts(relay: Appliance, settings: Settings, run: Run, state: AptState,
                                                   tmp_path: Path) -> None:
    """A stand-in, not RTPEngine: what is proved is the way from a source tree to an artifact for one kernel."""
    spec = tarball(tmp_path, write_tree(tmp_path / "tree"))
    artifact = compiled(spec, relay, settings, run, state)
    (tmp_path / "out").mkdir()
    out = members(artifact, tmp_path / "out")
    assert {p.name for p in out.iterdir()} == {"usr"}
    assert UNPATCHED.encode() in (out / "usr/sbin/rtpengine").read_bytes()
    assert (out / "usr/lib/x86_64-linux-gnu/xtables/libxt_RTPENGINE.so").exists()
    module = out / "usr/lib/modules" / artifact.kernel / "extra/xt_RTPENGINE.ko"
    assert b"description=stand-in, not RTPEngine" in module.read_bytes()
    assert artifact.vermagic.split(" ")[0] == artifact.kernel
    assert (out / "usr/share/rtpengine/packages").read_text().split() == ["libc6", "zlib1g"]
    again = compiled(spec, relay, settings, run, state)
    assert again.from_cache and not artifact.from_cache and again.sha256 == artifact.sha256
    assert run.journal.outstanding() == []

    artifact.path.write_bytes(artifact.path.read_bytes()[:-1])
    assert not compiled(spec, relay, settings, run, state).from_cache


def test_a_source_package_is_compiled_with_its_patches(relay: Appliance, settings: Settings, run: Run,
                                                       state: AptState, tmp_path: Path) -> None:
    repository = make_repository(tmp_path / "repository")
    mirrors = AptMirrors(repository.uri, repository.uri, repository.keyring)
    own = AptState(tmp_path / "apt", mirrors, "bookworm", "amd64", source_packages=True)
    spec = SourceSpec("debian-source", DEBIAN_VERSION, package="rtpengine", sha256=repository.dsc)
    artifact = compiled(spec, relay, settings, run, state, own)
    (tmp_path / "out").mkdir()
    daemon = (members(artifact, tmp_path / "out") / "usr/sbin/rtpengine").read_bytes()
    assert PATCHED.encode() in daemon and UNPATCHED.encode() not in daemon


def test_a_source_that_does_not_compile(relay: Appliance, settings: Settings, run: Run, state: AptState,
                                        tmp_path: Path) -> None:
    broken = {"kernel-module/xt_RTPENGINE.c": "#include <linux/module.h>\nint x = nothing_of_that_name;\n"}
    with pytest.raises(BuildError, match="can't be compiled for 6") as error:
        compiled(tarball(tmp_path, write_tree(tmp_path / "tree", broken)), relay, settings, run, state)
    assert "nothing_of_that_name" in (error.value.excerpt or "")
    assert error.value.fault is Fault.IMAGE
    log = re.search(r"the whole log: (\S+)", error.value.hint or "")
    assert log and "nothing_of_that_name" in Path(log[1]).read_text()
    assert list((settings.cache / "compile").iterdir()) == []
    assert run.journal.outstanding() == []


@pytest.fixture
def loop_file(tmp_path: Path) -> Iterator[Path]:
    """A raw disk with one partition; what a test leaves attached is detached."""
    file = tmp_path / "work" / "dead" / "tmp" / "image0.raw"
    file.parent.mkdir(parents=True)
    subprocess.run(["truncate", "-s", "16M", file], check=True)
    subprocess.run(["sgdisk", file, "-n", "1:0:+4M"], check=True, capture_output=True)
    yield file
    for device in [d for d, backing in loops.attached().items() if backing == file]:
        loops.detach(device, file)


def attach(file: Path) -> str:
    made = subprocess.run(["losetup", "--find", "--show", file], check=True, capture_output=True, text=True)
    device = made.stdout.strip().removeprefix("/dev/")
    subprocess.run(["partx", "--add", f"/dev/{device}"], check=True)
    return device


def test_a_stale_partition_is_seen_and_removed(loop_file: Path, tmp_path: Path) -> None:
    """The defect: the device is detached before its partitions are. The next build on it could not add its own."""
    device = attach(loop_file)
    subprocess.run(["losetup", "--detach", f"/dev/{device}"], check=True)
    assert Path(f"/dev/{device}p1").exists()
    assert loops.stale() == [device]

    subprocess.run(["losetup", f"/dev/{device}", loop_file], check=True)
    poisoned = subprocess.run(["partx", "--add", f"/dev/{device}"], capture_output=True, text=True)
    subprocess.run(["losetup", "--detach", f"/dev/{device}"], check=True)
    assert poisoned.returncode != 0 and "error adding partition" in poisoned.stderr

    assert loops.sweep(tmp_path / "work") == [f"stale partitions of {device}"]
    assert not Path(f"/dev/{device}p1").exists()
    assert attach(loop_file)


def test_the_loop_device_of_a_dead_build_goes_and_of_a_living_one_stays(loop_file: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    device = attach(loop_file)
    with loops.lock(work / "dead"):
        assert loops.sweep(work) == []
    assert loops.sweep(tmp_path / "somebody else's") == []
    assert Path(f"/dev/{device}p1").exists()
    assert loops.sweep(work) == [f"{device} of {loop_file}"]
    assert not Path(f"/dev/{device}p1").exists()
    assert loop_file not in loops.attached().values()


def test_a_loop_device_in_use_is_said_and_left(loop_file: Path, tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "PATIENCE", 0.0)
    device = attach(loop_file)
    with Path(f"/dev/{device}p1").open("rb"), pytest.raises(HostError, match=f"loop device {device} is still in use"):
        loops.sweep(tmp_path / "work")
    assert loops.sweep(tmp_path / "work") == [f"{device} of {loop_file}"]


def test_a_full_disk(relay: Appliance, settings: Settings, run: Run, state: AptState, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", small], check=True)
    try:
        (small / "apt").symlink_to(settings.cache / "apt")
        full = replace(settings, cache=small)
        with pytest.raises(HostError, match="the disk is full"):
            compiled(tarball(tmp_path, write_tree(tmp_path / "tree")), relay, full, run, state)
        assert [p.name for p in (small / "builder").iterdir()] == []
        assert [p.name for p in (small / "compile").iterdir()] == []
        assert run.journal.outstanding() == []
    finally:
        subprocess.run(["umount", small], check=True)


_BUILD = """
import sys
from pathlib import Path
from harness import appliance
from harness.deadline import Deadline
from harness.image.build import build
from harness.run import Run
from harness.settings import Settings
settings = Settings.load(Path(sys.argv[1]), {}, cache=sys.argv[2], runs=sys.argv[3])
run = Run.create(settings.runs, "rtpengine", "local")
build(appliance.load(settings.appliances)["rtpengine"], settings, run, lambda text: None, Deadline(1200), force=False)
"""


def _end_midway(settings: Settings, number: signal.Signals) -> str:
    """Start a build, end it while the image's partitions are mounted; the loop device it had."""
    command = [sys.executable, "-c", _BUILD, settings.project, settings.cache, settings.runs]
    with subprocess.Popen(command, cwd=settings.project, stderr=subprocess.DEVNULL) as process:
        try:
            device = _wait_for_loop(settings, process)
            process.send_signal(number)
            process.wait(60)
        finally:
            process.kill()
    until = Deadline(10)
    while processes_with(str(settings.cache)) and not until.expired:
        time.sleep(0.1)
    assert processes_with(str(settings.cache)) == []
    return device


def _nothing_left(settings: Settings, device: str) -> None:
    assert device not in loops.attached()
    assert not list(Path("/dev").glob(f"{device}p*"))
    assert list(mounts_below(settings.cache)) == []
    assert list((settings.cache / "work").iterdir()) == []
    assert not list((settings.cache / "images").glob("*"))
    assert [r.journal.outstanding() for r in Run.all(settings.runs)] == [[]]


@pytest.mark.guest
def test_an_interrupted_build_leaves_nothing(settings: Settings) -> None:
    _nothing_left(settings, _end_midway(settings, signal.SIGINT))


@pytest.mark.guest
def test_a_killed_build_leaves_nothing_after_the_next_command(settings: Settings) -> None:
    """The reaper is the next command."""
    device = _end_midway(settings, signal.SIGKILL)
    assert device in loops.attached()
    assert [r for r in sweep(settings) if r.outcome == "failed"] == []
    _nothing_left(settings, device)


def _wait_for_loop(settings: Settings, process: subprocess.Popen[bytes]) -> str:
    """Until the build has its partitions mounted: the name of its loop device."""
    until = Deadline(900)
    while process.poll() is None and not until.expired:
        for device, backing in loops.attached().items():
            if str(settings.cache) in str(backing) or backing.parent.name.startswith("dialtone-"):
                log = next(settings.runs.glob("*/build.log"), None)
                if log and "finalise.d" in log.read_text(errors="replace"):
                    return device
        time.sleep(0.2)
    raise AssertionError(f"the build ended by itself, exit code {process.poll()}")
