"""What a user can get wrong, and what can be wrong around: one clear error by the real command line, nothing left."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.image.build import Image
from tests import small_guest
from tests.command_line import Inv
from tests.conftest import PROJECT

Alter = Callable[[str], Image]

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
DESCRIPTION = """\
appliances:
  small:
    description: a relay that nobody builds
    release: bookworm
    elements: [voip-appliance, rtpengine]
    rtpengine:
      version: 10.5.3.5
      sources:
"""


@pytest.fixture
def inv(tmp_path: Path) -> Inv:
    return Inv(tmp_path)


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that every user of this host may write to."""
    with tempfile.TemporaryDirectory(prefix="dialtone-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def described(directory: Path, text: str) -> Path:
    file = directory / "appliances.yaml"
    file.write_text(text)
    return file


def test_an_unknown_appliance(inv: Inv) -> None:
    inv.refused(inv("build", "--appliance", "nosuch"), 2, "there is no appliance 'nosuch'", "known: opensips, rtpe")
    assert not (inv.directory / "runs").exists()


def test_a_proxy_without_a_repository_of_its_packages(inv: Inv) -> None:
    inv.refused(inv("build", "--appliance", "opensips"), 2, "appliances.opensips.opensips: repository is missing",
                "write url, suite, components, key and fingerprint")


def test_an_unknown_key(inv: Inv, tmp_path: Path) -> None:
    file = described(tmp_path, (PROJECT / "appliances.yaml").read_text().replace("    kernel: ", "    kernal: "))
    line = next(n for n, text in enumerate(file.read_text().splitlines(), 1) if "kernal" in text)
    ended = inv.having(appliances=file)("build")
    inv.refused(ended, 2, f"appliances.yaml:{line}:", "kernal")


def test_a_mistake_in_what_is_known(inv: Inv, tmp_path: Path) -> None:
    file = described(tmp_path, (PROJECT / "appliances.yaml").read_text())
    (tmp_path / "known").mkdir()
    (tmp_path / "known/rtpengine.yaml").write_text(
        'log:\n  - pattern: "^kernel: ("\n    reason: it is so\n    until: 2027-02-30\n')
    inv.refused(inv.having(appliances=file)("build"), 2,
                "known/rtpengine.yaml:2:5: log.0.pattern: is no regular expression: missing ), unterminated subpattern")


def test_no_description_at_all(inv: Inv, tmp_path: Path) -> None:
    inv.refused(inv.having(appliances=tmp_path / "nowhere.yaml")("build"), 2, "nowhere.yaml: No such file")


@pytest.mark.parametrize(("arguments", "words"), [
    (("biuld",), ("biuld", "./inv --list")),
    (("build", "--fource"), ("--fource", "./inv --help TASK")),
    (("nightly", "--keep", "sometimes"), ("sometimes", "never, failed, always")),
    (("nightly", "--level", "deep"), ("--level is 'deep'", "basic or acceptance or load")),
    (("check", "--level", "deep"), ("--level is 'deep'", "basic or acceptance or load")),
    (("report.compare", "nobody", "nothing"), ("no run begins with 'nobody'",)),
    (("nightly", "--cloud", "nimbus"), ("there is no cloud 'nimbus'", "known: local")),
    (("report",), ("there is no run yet", "./inv nightly")),
    (("report", "--run", "nosuch"), ("no run begins with 'nosuch'",)),
    (("ssh",), ("no server is running", "./inv launch")),
    (("console",), ("no server is running", "./inv launch")),
    (("check",), ("no server is running", "./inv launch")),
    (("destroy", "--run", "nosuch"), ("no run begins with 'nosuch'",)),
    (("reap", "--older-than", "long"), ("'long' is no age", "6h")),
])
def test_a_mistake_on_the_command_line(inv: Inv, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    (inv.directory / "runs").mkdir()
    inv.refused(inv(*arguments), 2, *words)


def test_an_unknown_setting(inv: Inv) -> None:
    ended = inv.having(runs=inv.directory / "runs", cahce="x").start("appliances").communicate(timeout=60)[0]
    assert "DIALTONE_CAHCE" in ended and "DIALTONE_CACHE" in ended and "exit 2" in ended and "Traceback" not in ended


def without(program: str, directory: Path) -> str:
    """A PATH with all programs of this host's, that one excepted."""
    directory.mkdir()
    for place in ("/usr/bin", "/usr/sbin"):
        for file in Path(place).iterdir():
            if file.name != program and not (directory / file.name).is_symlink():
                (directory / file.name).symlink_to(file)
    return os.fspath(directory)


@pytest.mark.root
def test_a_package_is_missing_and_this_is_not_root(open_directory: Path) -> None:
    inv = Inv(open_directory, {"PATH": without("genisoimage", open_directory / "bin")}, NOBODY)
    ended = inv.having(cache=open_directory / "cache")("nightly")
    inv.refused(ended, 3, "at host", "genisoimage", "sudo apt-get install", "this is not root", "sudo ./inv")


@pytest.mark.root
def test_a_program_is_missing_although_its_package_is_there(inv: Inv, real_image: Image, tmp_path: Path) -> None:
    lacking = Inv(tmp_path, {"PATH": without("genisoimage", tmp_path / "bin")})
    inv.refused(lacking("launch"), 3, "genisoimage")


@pytest.mark.root
def test_no_right_to_write(open_directory: Path) -> None:
    (open_directory / "runs").mkdir(mode=0o700)
    inv = Inv(open_directory, prefix=NOBODY)
    inv.refused(inv("build"), 3, "Permission denied", "sudo")


@pytest.mark.root
def test_the_mirror_is_out_of_reach(inv: Inv, tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9/debian"
    ended = inv.having(cache=tmp_path / "cache", mirror=nowhere, security_mirror=nowhere)("build")
    inv.refused(ended, 3, "at build", "the package lists can't be fetched", "127.0.0.1", "dialtone.toml")


@pytest.mark.root
def test_no_source_is_to_be_had(inv: Inv, tmp_path: Path) -> None:
    file = described(tmp_path, DESCRIPTION + f"""\
        - {{kind: tarball, version: 10.5.3.5, url: '{tmp_path}/nowhere.tar.gz', sha256: '{'0' * 64}'}}
        - {{kind: git, version: 10.5.3.5, url: '{tmp_path}/no-repository', tag: mr10.5.3.5, commit: '{'0' * 40}'}}
""")
    ended = inv.having(appliances=file)("build", "--appliance", "small")
    inv.refused(ended, 4, "at build", "none of the sources can be had", "nowhere.tar.gz", "no-repository",
                "name another source in appliances.yaml")


@pytest.mark.root
def test_a_source_is_not_what_was_pinned(inv: Inv, tmp_path: Path) -> None:
    tarball = tmp_path / "rtpengine.tar.gz"
    tarball.write_bytes(b"something else")
    file = described(tmp_path, DESCRIPTION + f"""\
        - {{kind: tarball, version: 10.5.3.5, url: '{tarball}', sha256: '{'0' * 64}'}}
        - {{kind: git, version: 10.5.3.5, url: '{tmp_path}/never-tried', tag: mr10.5.3.5, commit: '{'0' * 40}'}}
""")
    ended = inv.having(appliances=file)("build", "--appliance", "small")
    inv.refused(ended, 4, "at build", "is not what was pinned", hashlib.sha256(b"something else").hexdigest(),
                "appliances.yaml:9")
    assert "never-tried" not in ended.out


@pytest.mark.root
def test_a_disk_that_is_too_small(inv: Inv, tmp_path: Path) -> None:
    mount = f'mkdir {tmp_path}/cache; mount -t tmpfs -o size=30m tmpfs {tmp_path}/cache; "$@"'
    small = Inv(tmp_path, prefix=("unshare", "--mount", "sh", "-ec", mount, "sh"))
    ended = small.having(cache=tmp_path / "cache")("build")
    inv.refused(ended, 3, "at host", "0.0 GB free", "6 GB are needed", "free some room")


@pytest.mark.root
def test_a_full_disk_under_the_runs(inv: Inv, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    mount = f'mount -t tmpfs -o size=4k tmpfs {tmp_path}/runs; "$@"'
    full = Inv(tmp_path, prefix=("unshare", "--mount", "sh", "-ec", mount, "sh"))
    inv.refused(full("build"), 3, "No space left on device")


@pytest.mark.root
def test_the_floating_network_is_taken(inv: Inv, real_image: Image) -> None:
    ended = inv.having(floating_cidr="127.0.0.0/24")("launch")
    inv.refused(ended, 3, "at launch", "127.0.0.0/24 overlap", "set floating_cidr")


@pytest.fixture
def own_cache(inv: Inv, real_image: Image, tmp_path: Path) -> Callable[[Path], Inv]:
    """own_cache(file): the command line with a cache in which `file` is the appliance's image as it was built."""
    def cached(file: Path) -> Inv:
        cache, origin = tmp_path / "cache", real_image.path.parent
        place = cache / "images" / origin.name
        place.mkdir(parents=True)
        for name in ("apt", "packages", "accelerator.json"):
            (cache / name).symlink_to(PROJECT / ".cache" / name)
        for name in ("manifest.json", "sbom.cdx.json", "build.log"):
            shutil.copy(origin / name, place)
        file.rename(place / "image.qcow2")
        state = (place / "image.qcow2").stat()
        facts = json.loads((origin / "image.json").read_text())
        facts |= {"stat": [state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]}
        (place / "image.json").write_text(json.dumps(facts))
        return inv.having(cache=cache)

    return cached


@pytest.mark.root
@pytest.mark.parametrize("task", ["inspect", "launch"])
def test_the_image_is_damaged(own_cache: Callable[[Path], Inv], real_image: Image, tmp_path: Path, task: str) -> None:
    copy = tmp_path / "image.qcow2"
    shutil.copy(real_image.path, copy)
    inv = own_cache(copy)
    image = next((tmp_path / "cache").glob("images/*/image.qcow2"))
    with image.open("r+b") as file:
        file.seek(image.stat().st_size // 2)
        file.write(os.urandom(1 << 16))
    inv.refused(inv(task), 5, "image.qcow2", "damaged", "./inv build")


@pytest.mark.root
@pytest.mark.guest
def test_a_guest_that_does_not_come_up(own_cache: Callable[[Path], Inv], tmp_path: Path) -> None:
    """The image is a boot sector that greets and then does nothing."""
    inv = own_cache(small_guest.image(tmp_path / "small.qcow2"))
    ended = inv.patched("import harness.stages; harness.stages.DEADLINES['launch'] = 20", "launch")
    inv.refused(ended, 6, "at launch", "did not show its SSH host key on the console within", small_guest.GREETING,
                "console.log")


@pytest.mark.root
@pytest.mark.guest
def test_a_guest_that_panics(own_cache: Callable[[Path], Inv], altered: Alter) -> None:
    image = altered("sed -Ei 's/^([[:space:]]*linux[[:space:]].*)/\\1 rdinit=none/' boot/grub/grub.cfg")
    inv = own_cache(image.path)
    began = time.monotonic()
    inv.refused(inv("launch"), 6, "at launch", "has a kernel that gave up: Kernel panic", "console.log")
    assert time.monotonic() - began < 300, "it is not waited for what can't come"


@pytest.mark.root
def test_the_disk_fills_up_in_a_build(inv: Inv, real_image: Image, tmp_path: Path) -> None:
    """The project's cache lies below a file system with room for the first look at it; then something else takes it."""
    disk, point, cache = tmp_path / "disk.raw", tmp_path / "disk", tmp_path / "cache"
    with disk.open("wb") as file:
        file.truncate(8 << 30)
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", disk], check=True)
    for directory in (point, cache):
        directory.mkdir()
    script = f"""
        mount -o loop {disk} {point}
        mkdir {point}/upper {point}/work
        mount -t overlay -o lowerdir={PROJECT}/.cache,upperdir={point}/upper,workdir={point}/work overlay {cache}
        (
            until ls {tmp_path}/runs/2*/build.log; do sleep 0.1; done
            free=$(df --output=avail --block-size=1 {point} | tail -n 1)
            fallocate --length $((free - 60000000)) {point}/ballast
        ) >/dev/null 2>&1 &
        "$@"
    """
    full = Inv(tmp_path, prefix=("unshare", "--mount", "sh", "-ec", script, "sh")).having(cache=cache)
    ended = full("build", "--force")
    inv.refused(ended, 3, "at build", "the disk is full", "make room")
    assert subprocess.run(["losetup", "--associated", disk], capture_output=True, text=True).stdout == ""
