"""GUID partition tables (UEFI specification 2.10, chapter 5), read and verified."""

from __future__ import annotations

import struct
import uuid
import zlib
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

SECTOR = 512
BIOS_BOOT = "21686148-6449-6e6f-744e-656564454649"
EFI_SYSTEM = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
LINUX_TYPES = frozenset({
    "0fc63daf-8483-4772-8e79-3d69d8477de4",  # Linux file system
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",  # root of x86-64 (Discoverable Partitions Specification)
})

_HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
_ENTRY = struct.Struct("<16s16sQQQ72s")


@dataclass(frozen=True)
class Partition:
    """Number from 1 on; `offset` and `size` in octets; `type` a GUID in lower case."""

    number: int
    type: str
    name: str
    offset: int
    size: int


@dataclass(frozen=True)
class PartitionTable:
    """The partitions in the order of their numbers, and what is wrong with the table."""

    partitions: tuple[Partition, ...]
    problems: tuple[str, ...]

    @property
    def root(self) -> Partition | None:
        """The first partition that is meant for a Linux file system."""
        return next((p for p in self.partitions if p.type in LINUX_TYPES), None)

    @property
    def bios_boot(self) -> Partition | None:
        return self._first(BIOS_BOOT)

    @property
    def efi_system(self) -> Partition | None:
        return self._first(EFI_SYSTEM)

    def _first(self, kind: str) -> Partition | None:
        return next((p for p in self.partitions if p.type == kind), None)


def read(disk: BinaryIO) -> PartitionTable:
    """Read and verify both copies of the table; the partitions are those of the first good one (none if both are bad).

    `disk` is a raw disk of 512-octet sectors.
    """
    sectors = disk.seek(0, 2) // SECTOR
    problems = []
    mbr = _sectors(disk, 0, 1)
    if mbr[510:512] != b"\x55\xaa" or mbr[450:451] != b"\xee":
        problems.append("no protective MBR")
    copies: list[tuple[Partition, ...]] = []
    for name, place in (("primary", 1), ("backup", sectors - 1)):
        try:
            copies.append(_copy(disk, place, sectors))
        except ValueError as error:
            problems.append(f"{name} table: {error}")
    if len(copies) == 2 and copies[0] != copies[1]:
        problems.append("primary and backup table differ")
    partitions = copies[0] if copies else ()
    ordered = sorted(partitions, key=lambda p: p.offset)
    problems += [f"partitions {a.number} and {b.number} overlap"
                 for a, b in pairwise(ordered) if a.offset + a.size > b.offset]
    return PartitionTable(partitions, tuple(problems))


def _sectors(disk: BinaryIO, first: int, count: int) -> bytes:
    disk.seek(first * SECTOR)
    return disk.read(count * SECTOR)


def _copy(disk: BinaryIO, place: int, sectors: int) -> tuple[Partition, ...]:
    sector = _sectors(disk, place, 1)
    if len(sector) < SECTOR or sector[:8] != b"EFI PART":
        raise ValueError("there is none")
    (_, _, length, checksum, _, here, _, first, last, _, entries, count, entry_size, entries_checksum) = \
        _HEADER.unpack_from(sector)
    if not _HEADER.size <= length <= SECTOR or entry_size < _ENTRY.size or count > 1024:
        raise ValueError("its header is damaged")
    if zlib.crc32(sector[:16] + bytes(4) + sector[20:length]) != checksum:
        raise ValueError("the checksum of its header is wrong")
    if here != place:
        raise ValueError(f"it says that it is in sector {here}, but it is in {place}")
    table = _sectors(disk, entries, -(-count * entry_size // SECTOR))[:count * entry_size]
    if zlib.crc32(table) != entries_checksum:
        raise ValueError("the checksum of its entries is wrong")
    found = []
    for number in range(count):
        kind, _, begin, end, _, name = _ENTRY.unpack_from(table, number * entry_size)
        if kind == bytes(16):
            continue
        if not first <= begin <= end <= last or last >= sectors:
            raise ValueError(f"partition {number + 1} lies outside of the disk")
        found.append(Partition(number + 1, str(uuid.UUID(bytes_le=kind)), name.decode("utf-16-le").rstrip("\0"),
                               begin * SECTOR, (end - begin + 1) * SECTOR))
    return tuple(found)
