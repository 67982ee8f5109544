"""Partition tables, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.image import gpt
from tests import small_image


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return small_image.partitioned(tmp_path / "disk", size_mib=8)


@pytest.mark.parametrize(("offset", "what"), [
    (450, "no protective MBR"),
    (512, "primary table: there is none"),
    (512 + 16, "primary table: the checksum of its header is wrong"),
    (512 + 12, "primary table: its header is damaged"),
    (1024 + 32, "primary table: the checksum of its entries is wrong"),
    (8 * 2**20 - 512, "backup table: there is none"),
])
def test_a_damaged_partition_table_is_described(disk: Path, offset: int, what: str) -> None:
    with disk.open("r+b") as file:
        good = gpt.read(file)
        assert good.problems == ()
        assert good.root and (good.root.offset, good.root.name) == (2 * 2**20, "root")
        assert good.bios_boot and good.bios_boot.number == 1
        assert good.efi_system and (good.efi_system.number, good.efi_system.name) == (3, "ESP")
        file.seek(offset)
        file.write(b"\xff" * 4)
        file.flush()
        table = gpt.read(file)
    assert table.problems == (what,)
    assert table.partitions == good.partitions


def test_no_partition_table(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.write_bytes(bytes(2**20))
    with empty.open("rb") as file:
        table = gpt.read(file)
    assert table.root is None and len(table.problems) == 3
