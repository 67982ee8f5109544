"""Loop devices that ended builds left behind, and the stale partitions that poison the next build.

A partition that outlives its loop device (/dev/loop0p3 without anything attached to /dev/loop0) makes the next
build on that device fail. The kernel lets go of it only while a file is attached to the device again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from pathlib import Path
from typing import IO

from harness.deadline import Deadline
from harness.errors import HostError
from harness.process import CommandFailed, run
from harness.run import held

BLOCK = Path("/sys/block")
MAPPER = Path("/dev/mapper")
PATIENCE = 5.0
"""Seconds that a loop device may stay in use before that is an error."""

_PREFIX = "dialtone-"


def image_directory(token: str) -> str:
    """Name of the directory for a build's raw image: it names the build even when its file system is gone.

    A loop device whose backing file lay on a mount of ended namespaces shows the path inside that mount only.
    """
    return f"{_PREFIX}{token}"


def sweep(work: Path) -> list[str]:
    """Detach the loop devices of dead builds, whose directories are `work`/<token>, then remove stale partitions.

    Partitions are removed first, then the device. A build is alive while somebody holds its lock. A stale partition
    is one of a device to which nothing is attached: no use to anybody. Returns what was removed. Raises HostError
    where a device is still in use.
    """
    removed = []
    for device, backing in attached().items():
        token = _token(backing, work)
        if token and (work / token).is_dir() and not alive(work / token):
            detach(device, backing)
            removed.append(f"{device} of {backing}")
    for device in stale():
        if _remove_stale(device):
            removed.append(f"stale partitions of {device}")
    return removed


def lock(directory: Path) -> IO[str]:
    """Hold the build whose directory this is, until the result is closed or this process ends."""
    handle = (directory / "lock").open("w")
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def alive(directory: Path) -> bool:
    """Whether a process holds the build."""
    return held(directory / "lock")


def attached() -> dict[str, Path]:
    """Loop devices by name (`loop0`) with their backing files; a file that is deleted counts too."""
    found = {}
    for entry in sorted(BLOCK.glob("loop*/loop/backing_file")):
        with contextlib.suppress(OSError):
            found[entry.parent.parent.name] = Path(entry.read_text().rstrip("\n").removesuffix(" (deleted)"))
    return found


def stale() -> list[str]:
    """Loop devices with partitions and without a backing file."""
    return sorted({p.parent.name for p in BLOCK.glob("loop*/loop*p*") if not (p.parent / "loop/backing_file").exists()})


def detach(device: str, backing: Path) -> None:
    """Remove the partitions of a loop device and detach the file `backing`. Raises HostError where it is in use.

    Nothing is left to do where somebody else has detached it; the device may be another's by then.
    """
    for link in MAPPER.glob(f"{device}p*"):
        if link.is_symlink():
            link.unlink()
    patience = Deadline(PATIENCE)  # processes that were killed a moment ago still have it mounted
    while attached().get(device) == backing:
        try:
            if list((BLOCK / device).glob(f"{device}p*")):
                run(["partx", "--delete", f"/dev/{device}"])
            run(["losetup", "--detach", f"/dev/{device}"])
            return
        except CommandFailed as error:
            if patience.expired:
                raise HostError(f"the loop device {device} is still in use: {error.output.strip()}",
                                hint=f"look: losetup --list /dev/{device}; grep {device} /proc/*/mounts") from error
            time.sleep(0.2)


def _remove_stale(device: str) -> bool:
    with tempfile.NamedTemporaryFile(prefix="dialtone-", suffix=".raw") as file:
        os.truncate(file.name, 1 << 20)
        try:
            run(["losetup", f"/dev/{device}", file.name])
        except CommandFailed:
            return False  # somebody else has just attached something: no longer stale
        if backing := attached().get(device):
            detach(device, backing)
    return True


def _token(backing: Path, work: Path) -> str | None:
    """Whose build a backing file is of: by image_directory(), or by the directory below `work` that it lies in."""
    if backing.parent.name.startswith(_PREFIX):
        return backing.parent.name.removeprefix(_PREFIX)
    return backing.relative_to(work).parts[0] if work in backing.parents else None
