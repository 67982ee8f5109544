"""Looking into an image without booting it: every check is reported, not only the first that is red."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from harness.deadline import Deadline
from harness.errors import InspectError
from harness.image import esp, gpt, hygiene, ownership, software, unitfiles
from harness.image.finding import Check, Expectation, Seen, expectation
from harness.image.root import Root, loop_device, mounted, raw_copy, virtual_size
from harness.process import run as command
from harness.results import Finding

__all__ = ["Expectation", "Finding", "expectation", "inspect"]

_FREE_SHARE = 0.1
_QEMU_IMG_CHECK = {2: "errors", 3: "leaked clusters"}


def inspect(image: Path, expect: Expectation, say: Callable[[str], None], deadline: Deadline) -> list[Finding]:
    """Compare the qcow2 file `image` with what it is expected to be; one finding for each check, in a fixed order.

    Needs root. Nothing of it outlives this process. Raises InspectError where the image is so damaged that nothing
    in it can be read, HostError where this host cannot read it.
    """
    findings: list[Finding] = []

    def add(title: str, seen: Seen) -> None:
        findings.append(seen.titled(title))
        say(f"{len(findings)} checks")

    add("the qcow2 file is intact", _qcow2(image, deadline))
    add("the image is not too large", _sizes(image, expect, deadline))
    say("unpacking")
    with raw_copy(image, deadline) as disk:
        table = gpt.read(disk)
        add("the partition table is sound", _partitions(table))
        add("a boot loader is installed", _boot_loader(disk, table))
        if table.root is None:
            raise InspectError(f"{image}: there is no partition for a Linux file system",
                               excerpt="\n".join(table.problems) or None)
        add("UEFI finds its boot loader", _uefi(disk, table, expect, deadline))
        with loop_device(disk, table.root) as device:
            add("the file system is clean", _file_system(device, deadline))
            with mounted(device) as root:
                add("the root file system has room", _room(root))
                for finding in contents(root, expect):
                    findings.append(finding)
                    say(f"{len(findings)} checks")
                add(unitfiles.TITLE, unitfiles.verified(device, root, expect, deadline))
    return findings


def contents(root: Root, expect: Expectation) -> Iterator[Finding]:
    """The findings in a root file system alone."""
    for check in _selected(expect):
        yield _look(check, root, expect).titled(check.title)


def _selected(expect: Expectation) -> Iterator[Check]:
    yield from software.SYSTEM_CHECKS
    if expect.relay:
        yield from software.RELAY_CHECKS
        yield from software.SIGNATURE_CHECKS if expect.certificate else ()
    if expect.proxy:
        yield from software.PROXY_CHECKS
    if expect.conntrack:
        yield from software.CONNTRACK_CHECKS
    yield from hygiene.CHECKS
    yield from ownership.CHECKS


def _look(check: Check, root: Root, expect: Expectation) -> Seen:
    try:
        return check.look(root, expect)
    except FileNotFoundError as error:
        return Seen(False, f"{error.filename} is there", f"{error.filename} is missing")
    except (OSError, ValueError) as error:
        return Seen(False, "a file that can be read", str(error))


def _qcow2(image: Path, deadline: Deadline) -> Seen:
    virtual_size(image, deadline)
    result = command(["qemu-img", "check", "-q", "-f", "qcow2", image], deadline=deadline, check=False)
    if result.returncode not in (0, *_QEMU_IMG_CHECK):
        raise InspectError(f"{image} cannot be checked", excerpt=result.stdout.strip())
    return Seen(result.returncode == 0, "no errors", _QEMU_IMG_CHECK.get(result.returncode, "no errors"),
                because=(result.stdout.strip().splitlines() or [""])[0], hint="./inv build --force builds it again")


def _sizes(image: Path, expect: Expectation, deadline: Deadline) -> Seen:
    octets, disk = image.stat().st_size, virtual_size(image, deadline)
    return Seen(octets <= expect.limit and disk <= expect.disk,
                f"file at most {expect.limit / 1e6:.0f} MB, disk at most {expect.disk / 2**30:.1f} GiB",
                f"file {octets / 1e6:.0f} MB, disk {disk / 2**30:.1f} GiB",
                hint="manifest.json beside the image names its packages; server.disk in appliances.yaml is the disk")


def _partitions(table: gpt.PartitionTable) -> Seen:
    problems = [*table.problems, *([] if table.bios_boot else ["no BIOS boot partition"]),
                *([] if table.root else ["no partition for a Linux file system"])]
    names = ", ".join(f"{p.number} {p.name} {p.size / 2**20:.0f} MiB" for p in table.partitions)
    return Seen(not problems, "GPT with a BIOS boot and a root partition", "; ".join(problems) or names,
                hint="./inv build --force builds it again")


def _boot_loader(disk: BinaryIO, table: gpt.PartitionTable) -> Seen:
    disk.seek(0)
    code = any(disk.read(440))
    core = False
    if table.bios_boot:
        disk.seek(table.bios_boot.offset)
        core = any(disk.read(gpt.SECTOR))
    missing = [name for name, there in (("the MBR", code), ("the BIOS boot partition", core)) if not there]
    return Seen(not missing, "code in the MBR and the BIOS boot partition",
                f"no code in {' and '.join(missing)}" if missing else "code in both",
                hint="grub-install did not reach the disk")


def _uefi(disk: BinaryIO, table: gpt.PartitionTable, expect: Expectation, deadline: Deadline) -> Seen:
    found = list(esp.problems(disk, table, expect.loader, deadline))
    wanted = "shim and GRUB as Debian signed them, and where the root file system is"
    return Seen(not found and bool(expect.loader), wanted, "; ".join(found) or ", ".join(expect.loader),
                hint="./inv build --force builds it again")


def _file_system(device: str, deadline: Deadline) -> Seen:
    result = command(["e2fsck", "-n", "-f", device], deadline=deadline, check=False)
    lines = [line for line in result.stdout.splitlines() if line.strip()]
    complaints = [line for line in lines if not re.match(r"e2fsck \d|Pass \d|.*: \d+/\d+ files", line)]
    clean = result.returncode == 0
    return Seen(clean, "clean", "clean" if clean else f"e2fsck ends with {result.returncode}",
                because=complaints[0] if complaints else "", hint="./inv build --force builds it again")


def _room(root: Root) -> Seen:
    size, free = root.space
    return Seen(free >= size * _FREE_SHARE, f"at least {_FREE_SHARE:.0%} free",
                f"{free / size:.0%} free of {size / 2**20:.0f} MiB",
                hint="the image must boot and write logs before its root is grown: DIB_IMAGE_EXTRA_SIZE")
