"""The EFI system partition of an image, read by mtools: not every host can mount FAT."""

from __future__ import annotations

import hashlib
import os
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from harness.deadline import Deadline
from harness.image import gpt
from harness.process import CommandFailed, run

PROGRAMS = "efi/boot"
"""Where UEFI looks for BOOTX64.EFI on a disk that no boot entry of its own names."""
CONFIGURATION = "efi/debian/grub.cfg"
"""Where GRUB as Debian signs it looks first."""

_SUPERBLOCK, _UUID = 1024, 0x68  # ext4's, fs/ext4/ext4.h


def problems(disk: BinaryIO, table: gpt.PartitionTable, loader: Mapping[str, str], deadline: Deadline) -> Iterator[str]:
    """What keeps UEFI from booting the raw disk, each in a phrase; nothing where all is well.

    `loader` has the SHA-256 of the programs that must be there, by name. The table must have a root partition.
    """
    assert table.root
    if table.efi_system is None:
        yield "there is no EFI system partition"
        return
    try:
        files = _files(disk, table.efi_system, deadline)
    except CommandFailed as error:
        yield f"the EFI system partition can't be read: {(error.output.strip().splitlines() or ['no reason'])[-1]}"
        return
    for name, digest in loader.items():
        content = files.get(f"{PROGRAMS}/{name.lower()}")
        if content is None:
            yield f"{name} is missing"
        elif hashlib.sha256(content).hexdigest() != digest:
            yield f"{name} is not the program of Debian's package"
    root = _uuid(disk, table.root)
    if CONFIGURATION not in files:
        yield "grub.cfg is missing"
    elif root not in files[CONFIGURATION].decode(errors="replace").split():
        yield f"grub.cfg does not name {root}, the root file system"


def _files(disk: BinaryIO, partition: gpt.Partition, deadline: Deadline) -> dict[str, bytes]:
    """What lies below EFI/ in the partition's FAT, by path in small letters. Raises CommandFailed, CommandMissing."""
    image = f"/proc/{os.getpid()}/fd/{disk.fileno()}@@{partition.offset}"
    with tempfile.TemporaryDirectory(prefix="dialtone-") as name:
        directory = Path(name)
        run(["mcopy", "-s", "-i", image, "::/EFI", directory], deadline=deadline,
            env={**os.environ, "MTOOLS_SKIP_CHECK": "1"})
        return {os.fspath(path.relative_to(directory)).lower(): path.read_bytes()
                for path in directory.rglob("*") if path.is_file()}


def _uuid(disk: BinaryIO, partition: gpt.Partition) -> str:
    disk.seek(partition.offset + _SUPERBLOCK + _UUID)
    return str(uuid.UUID(bytes=disk.read(16)))
