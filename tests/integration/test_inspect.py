"""Inspection of real qcow2 files: one defect, one red line; a damaged file is an error; nothing stays behind."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import HostError, InspectError
from harness.image import gpt, inspect, manifest, ownership, unitfiles
from harness.image.root import loop_device, root_of
from harness.known import KnownLine
from tests import small_image
from tests.small_image import KERNEL

pytestmark = pytest.mark.root
EXPECT = inspect.expectation(small_image.appliance(), KERNEL, small_image.LOADER)
INTACT, KNOWN = (check.title for check in ownership.CHECKS)


@pytest.fixture(scope="session")
def good_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("good")
    return small_image.disk(small_image.tree(directory / "tree"), directory / "disk")


@pytest.fixture
def disk(good_disk: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "disk"
    subprocess.run(["cp", "--sparse=always", good_disk, copy], check=True)
    return copy


@pytest.fixture
def image(disk: Path) -> Path:
    return small_image.qcow2(disk, disk.with_name("image.qcow2"))


def look(image: Path, expect: inspect.Expectation = EXPECT) -> list[inspect.Finding]:
    return inspect.inspect(image, expect, lambda text: None, Deadline(60))


def red(image: Path, expect: inspect.Expectation = EXPECT) -> list[str]:
    return [f.title for f in look(image, expect) if f.outcome != "passed"]


def loops() -> str:
    return subprocess.run(["losetup", "--list", "--noheadings"], check=True, capture_output=True, text=True).stdout


def overwrite(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as handle:
        handle.seek(offset)
        handle.write(data)


def debugfs(*commands: str) -> Callable[[Path], None]:
    def change(disk: Path) -> None:
        for command in commands:
            result = subprocess.run(["debugfs", "-w", "-R", command, f"{disk}?offset={2 * 2**20}"], check=True,
                                    capture_output=True, text=True)
            assert len(result.stderr.splitlines()) == 1, result.stderr

    return change


@pytest.mark.parametrize("memory", [0, 2**40], ids=["on disk", "in memory"])
def test_a_good_image_is_green_and_nothing_stays(image: Path, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.image.root.memory_available", lambda: memory)
    before = sorted(image.parent.iterdir())
    spoken: list[str] = []
    findings = inspect.inspect(image, EXPECT, spoken.append, Deadline(60))
    assert [f for f in findings if f.outcome != "passed"] == []
    assert len(findings) >= 26
    assert spoken[-1] == f"{len(findings)} checks"
    assert sorted(image.parent.iterdir()) == before
    assert str(image.parent) not in loops()


def test_partition_tables_are_read_as_sgdisk_does(disk: Path, tmp_path: Path) -> None:
    verified = subprocess.run(["sgdisk", "--verify", disk], check=True, capture_output=True, text=True).stdout
    assert "No problems found" in verified
    other = tmp_path / "other"
    other.touch()
    os.truncate(other, 16 * 2**20)
    subprocess.run(["sgdisk", "--new=1:2048:4095", "--typecode=1:ef02", "--new=3:8192:0", "--change-name=3:here",
                    "--typecode=3:8300", other], check=True, capture_output=True)
    with other.open("rb") as file:
        table = gpt.read(file)
    assert table.problems == ()
    assert table.bios_boot and table.bios_boot.size == 2**20
    assert table.root and (table.root.number, table.root.name, table.root.offset) == (3, "here", 4 * 2**20)


@pytest.mark.parametrize(("title", "defect"), [
    ("the partition table is sound", lambda disk: overwrite(disk, 64 * 2**20 - 512, bytes(8))),
    ("the partition table is sound", lambda disk: subprocess.run(
        ["sgdisk", "--typecode=1:0700", disk], check=True, capture_output=True)),
    ("a boot loader is installed", lambda disk: overwrite(disk, 0, bytes(440))),
    ("a boot loader is installed", lambda disk: overwrite(disk, 2**20, bytes(512))),
    ("UEFI finds its boot loader", lambda disk: subprocess.run(
        ["sgdisk", "--typecode=3:8300", disk], check=True, capture_output=True)),
    ("UEFI finds its boot loader", lambda disk: overwrite(disk, 61 * 2**20, bytes(2 * 2**20))),
    ("UEFI finds its boot loader", lambda disk: small_image.mtools(
        "mdel", small_image.esp(disk), "::/EFI/BOOT/grubx64.efi")),
    ("UEFI finds its boot loader", lambda disk: small_image.put(
        small_image.esp(disk), "EFI/BOOT/BOOTX64.EFI", b"MZ of somebody else")),
    ("UEFI finds its boot loader", lambda disk: small_image.put(
        small_image.esp(disk), "EFI/BOOT/BOOTX64.EFI", b"")),
    ("UEFI finds its boot loader", lambda disk: small_image.mtools(
        "mdel", small_image.esp(disk), "::/EFI/debian/grub.cfg")),
    ("UEFI finds its boot loader", lambda disk: small_image.put(
        small_image.esp(disk), "EFI/debian/grub.cfg", b"search --fs-uuid --set=root 12345678-9abc-def0\n")),
    ("the file system is clean", debugfs("set_inode_field /etc/passwd links_count 5")),
    (unitfiles.TITLE, debugfs("rm /usr/bin/sh")),
    (INTACT, debugfs("rm /usr/share/bash/text", "write /proc/self/cmdline /usr/share/bash/text")),
    (KNOWN, debugfs("write /proc/self/cmdline /etc/strange")),
    ("exactly one kernel", debugfs(f"rm /boot/vmlinuz-{KERNEL}")),
    ("no SSH host keys", debugfs("write /proc/self/cmdline /etc/ssh/ssh_host_rsa_key")),
    ("no password is set", debugfs("rm /etc/shadow")),
    ("units are enabled", debugfs("rm /etc/systemd/system/rtpengine.service")),
])
def test_a_defect_turns_one_line_red(disk: Path, title: str, defect: Callable[[Path], object]) -> None:
    defect(disk)
    lines = red(small_image.qcow2(disk, disk.with_name("image.qcow2")))
    if title in {"a boot loader is installed", "the partition table is sound"}:
        # Without its type the BIOS boot partition is not found, so neither is the code in it.
        assert lines[0] == title and set(lines) <= {"the partition table is sound", "a boot loader is installed"}
    else:
        assert [line for line in lines if line != INTACT or title == INTACT] == [title]


def test_what_systemd_analyze_says_is_quoted_and_may_be_known(tmp_path: Path) -> None:
    tree = small_image.tree(tmp_path / "tree")
    (tree / "usr/bin/systemd-analyze").write_text('#!/bin/sh\necho "a.service: ordering cycle of $*"\n')
    image = small_image.qcow2(small_image.disk(tree, tmp_path / "disk"), tmp_path / "image.qcow2")
    (finding,) = [f for f in look(image) if f.outcome != "passed"]
    assert finding.title == unitfiles.TITLE
    assert finding.seen.startswith("a.service: ordering cycle of verify --man=no default.target cloud-config.service")
    assert "leaving out" in finding.because
    entry = KnownLine(re.compile("^a.service: ordering cycle"), "because", date.max, "known/a.yaml:3")
    assert red(image, replace(EXPECT, known=replace(EXPECT.known, units=(entry,)))) == []
    old = replace(EXPECT, known=replace(EXPECT.known, units=(replace(entry, until=date(2026, 1, 1)),)))
    (finding,) = [f for f in look(image, old) if f.outcome != "passed"]
    assert finding.seen == "known/a.yaml:3 (until 2026-01-01: because) is to be looked at again"


def test_a_leaked_cluster(image: Path) -> None:
    # The first cluster is in use once; refcounts are 16 bits (QEMU, docs/interop/qcow2.txt).
    table = struct.unpack(">Q", image.read_bytes()[48:56])[0]
    block = struct.unpack(">Q", image.read_bytes()[table:table + 8])[0]
    overwrite(image, block, b"\0\2")
    (finding,) = [f for f in look(image) if f.outcome != "passed"]
    assert (finding.title, finding.seen) == ("the qcow2 file is intact", "leaked clusters")


def test_too_large(image: Path) -> None:
    assert red(image, replace(EXPECT, disk=32 * 2**20)) == ["the image is not too large"]
    os.truncate(image, EXPECT.limit + 1)
    assert red(image) == ["the image is not too large"]


def test_a_full_file_system(tmp_path: Path) -> None:
    tree = small_image.tree(tmp_path / "tree")
    (tree / "srv").mkdir()
    (tree / "srv/ballast").write_bytes(os.urandom(47 * 2**20))
    small_image.owned(tree)
    disk = small_image.disk(tree, tmp_path / "disk")
    assert red(small_image.qcow2(disk, tmp_path / "image.qcow2")) == ["the root file system has room"]


@pytest.mark.parametrize(("name", "damage"), [
    ("no qcow2 file", lambda image: image.write_text("no image")),
    ("cut short", lambda image: os.truncate(image, image.stat().st_size // 2)),
    ("not there", lambda image: image.unlink()),
    ("compressed data", lambda image: overwrite(image, 5 * 65536 + 4096, os.urandom(300_000))),
])
def test_a_damaged_file_is_one_clear_error(image: Path, name: str, damage: Callable[[Path], object]) -> None:
    damage(image)
    with pytest.raises(InspectError) as error:
        look(image)
    assert str(image) in error.value.message
    assert str(image.parent) not in loops()


@pytest.mark.parametrize(("damage", "words"), [
    (lambda disk: overwrite(disk, 512, bytes(63 * 512)), ""),
    (lambda disk: overwrite(disk, 2 * 2**20 + 1024, bytes(1024)), "no ext4 file system"),
])
def test_a_disk_without_a_root_file_system(disk: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(disk)
    overwrite(disk, 64 * 2**20 - 512, bytes(512))
    with pytest.raises(InspectError, match=words or "no partition"):
        look(small_image.qcow2(disk, disk.with_name("image.qcow2")))


@pytest.mark.parametrize("memory", [0, 2**40], ids=["on disk", "in memory"])
def test_kill_9_leaves_nothing(image: Path, project: Path, memory: int) -> None:
    program = ("import sys, time, pathlib, harness.image.root\n"
               f"harness.image.root.memory_available = lambda: {memory}\n"
               "from harness.deadline import Deadline\n"
               "from harness.image.root import root_of\n"
               "with root_of(pathlib.Path(sys.argv[1]), Deadline(60)) as root:\n"
               "    print(root.text('/etc/passwd').split(':')[0], flush=True)\n"
               "    time.sleep(60)\n")
    before = sorted(image.parent.iterdir())
    child = subprocess.Popen([sys.executable, "-c", program, image], cwd=project, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    with child.stdout:
        assert child.stdout.readline() == "root\n"
        assert str(image.parent) in loops()
        child.send_signal(signal.SIGKILL)
        child.wait(timeout=10)
    assert sorted(image.parent.iterdir()) == before
    until = Deadline(5)
    while str(image.parent) in loops() and not until.expired:
        pass
    assert str(image.parent) not in loops()


def test_reading_changes_nothing_in_the_image(image: Path) -> None:
    before = image.read_bytes()
    with root_of(image, Deadline(60)) as root:
        assert root.text("/etc/passwd").startswith("root:")
    assert image.read_bytes() == before


def test_no_room_beside_the_image(image: Path, project: Path) -> None:
    program = ("mount -t tmpfs -o size=3m tmpfs \"$2\" && cp \"$1\" \"$2\" && exec \"$3\" -c '"
               "import sys, pathlib\n"
               "from harness.deadline import Deadline\n"
               "from harness.errors import HostError\n"
               "import harness.image.root\n"
               "harness.image.root.memory_available = lambda: 0\n"
               "try:\n"
               "    with harness.image.root.raw_copy(pathlib.Path(sys.argv[1]), Deadline(60)): pass\n"
               "except HostError as error: print(error.message)' \"$2/image.qcow2\"")
    place = image.parent / "small"
    place.mkdir()
    done = subprocess.run(["unshare", "--mount", "sh", "-c", program, "sh", image, place, sys.executable], cwd=project,
                          check=True, capture_output=True, text=True)
    assert done.stdout.startswith("no room beside")


def test_without_root_the_error_says_so(disk: Path) -> None:
    with disk.open("rb") as file:
        partition = gpt.read(file).root
        assert partition
        os.seteuid(65534)
        try:
            with pytest.raises(HostError, match="Permission denied") as error, loop_device(file, partition):
                pass
        finally:
            os.seteuid(0)
    assert "root" in (error.value.hint or "")


def test_the_manifest_says_what_is_in_the_image(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "manifest.json"
    written = manifest.write(image, out, {"elements": {"conntrack": "1" * 64}}, Deadline(60))
    assert manifest.read(out) == written
    assert written.sha256 == subprocess.run(["sha256sum", image], check=True, capture_output=True,
                                            text=True).stdout.split()[0]
    assert (written.image, written.size, written.virtual_size) == (image.name, image.stat().st_size, 64 * 2**20)
    assert written.kernel == KERNEL
    assert [(m.name, m.vermagic) for m in written.modules] == [("xt_RTPENGINE", f"{KERNEL} SMP mod_unload")]
    assert [(p.name, p.held) for p in written.packages] == [
        ("bash", False), ("gcc-12-base", False), (f"linux-image-{KERNEL}", True)]
    assert written.sysctls["net.netfilter.nf_conntrack_max"] == "40448"
    assert "rtpengine.service" in written.units and "redis-server.service" not in written.units
    assert written.extra == {"elements": {"conntrack": "1" * 64}}


def test_a_manifest_needs_a_module_that_can_be_read(disk: Path, tmp_path: Path) -> None:
    path = f"/usr/lib/modules/{KERNEL}/extra/xt_RTPENGINE.ko"
    debugfs(f"rm {path}", f"write /etc/hostname {path}")(disk)
    with pytest.raises(InspectError, match=r"no 64-bit|too early"):
        manifest.write(small_image.qcow2(disk, tmp_path / "image.qcow2"), tmp_path / "manifest.json", {}, Deadline(60))
    assert not (tmp_path / "manifest.json").exists()
