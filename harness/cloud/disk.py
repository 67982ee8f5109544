"""A server's root disk: an overlay on a raw copy of the image.

The copy costs a few seconds once per image and saves more at every boot, for each read of a compressed qcow2 file
unpacks a cluster again.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import CloudError, DescriptionError, Fault
from harness.process import CommandFailed, run
from harness.resources import Resource
from harness.run import Journal

PROGRAM = "qemu-img"
GIB = 1 << 30
KEPT_COPIES = 3


def create(image: Path, disk: Path, size: int, cache: Path, journal: Journal, deadline: Deadline) -> None:
    """Make the qcow2 file `disk` of `size` GiB over `image`, which is never written to.

    Raises CloudError (the image's fault) where the image is damaged, DescriptionError where it is larger than `size`.
    """
    base = raw_copy(image, cache, journal, deadline)
    if base.stat().st_size > size * GIB:
        raise DescriptionError(f"{image} holds a disk of {base.stat().st_size / GIB:.1f} GiB, "
                               f"more than the {size} GiB of the server", hint="server.disk in appliances.yaml")
    journal.creating(Resource("path", os.fspath(disk)))
    run([PROGRAM, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", os.fspath(base.absolute()), disk, f"{size}G"],
        deadline=deadline)


def raw_copy(image: Path, cache: Path, journal: Journal, deadline: Deadline) -> Path:
    """The raw copy of `image` in the cache, made where it is not there yet; the newest few are kept."""
    try:
        seen = image.stat()
    except OSError as error:
        raise CloudError(f"{image}: {error.strerror}", hint="./inv build builds it", fault=Fault.IMAGE) from error
    identity = json.dumps([os.fspath(image.absolute()), seen.st_ino, seen.st_size, seen.st_mtime_ns])
    directory = cache / "raw"
    directory.mkdir(parents=True, exist_ok=True)
    copy = directory / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.raw"
    with (directory / "lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if copy.exists():
            os.utime(copy)
        else:
            _convert(image, copy, journal, deadline)
    return copy


def _convert(image: Path, copy: Path, journal: Journal, deadline: Deadline) -> None:
    part = Resource("path", os.fspath(copy.absolute().with_name(f".{journal.path.parent.name}-{copy.name}")))
    journal.creating(part)
    try:
        # Reading a cluster that lies beyond the end of a file cut short gives zeros and no error.
        run([PROGRAM, "check", "-q", "-f", "qcow2", image], deadline=deadline)
        run([PROGRAM, "convert", "-f", "qcow2", "-O", "raw", "-W", "-t", "unsafe", image, part.name], deadline=deadline)
    except CommandFailed as error:
        raise CloudError(f"{image} can't be read as a disk image", excerpt=error.excerpt,
                         hint="./inv build --force builds it anew", fault=Fault.IMAGE) from error
    Path(part.name).replace(copy)
    journal.gone(part)
    for old in sorted(copy.parent.glob("*.raw"), key=lambda p: p.stat().st_mtime, reverse=True)[KEPT_COPIES:]:
        old.unlink(missing_ok=True)
