"""What the element does with the EFI system partition: on files, by mtools, as it does it on partitions."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests import small_image
from tests.conftest import PROJECT

ELEMENT = PROJECT / "elements/voip-appliance"


@pytest.fixture
def loader(tmp_path: Path) -> Path:
    directory = tmp_path / "loader"
    directory.mkdir()
    for name, content in small_image.PROGRAMS.items():
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def devices(tmp_path: Path) -> dict[str, Path]:
    """What stands for partitions: a root file system, and zeros."""
    found = {name: tmp_path / name for name in ("root", "ESP")}
    for path in found.values():
        path.touch()
        os.truncate(path, 16 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-U", small_image.ROOT_UUID, found["root"]], check=True)
    return found


def fill(loader: Path | str, devices: dict[str, Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ELEMENT / "cleanup.d/80-voip-appliance-efi"], capture_output=True, text=True,
        env={"PATH": f"{PROJECT}/harness/image/shims:{os.environ['PATH']}:/usr/sbin", "DIB_VOIP_EFI": os.fspath(loader),
             "IMAGE_BLOCK_DEVICES": " ".join(f"[{name}]={path}" for name, path in devices.items())})


def content(esp: Path, path: str) -> bytes:
    return subprocess.run(["mtype", "-i", esp, f"::/{path}"], check=True, capture_output=True).stdout


def test_the_partition_gets_the_loader_and_the_way_to_the_root(loader: Path, devices: dict[str, Path]) -> None:
    done = fill(loader, devices)
    assert done.returncode == 0, done.stderr
    for name, program in small_image.PROGRAMS.items():
        assert content(devices["ESP"], f"EFI/BOOT/{name}") == program
    configuration = content(devices["ESP"], "EFI/debian/grub.cfg").decode()
    assert f"--set=root {small_image.ROOT_UUID}\n" in configuration
    assert "configfile $prefix/grub.cfg" in configuration


def test_a_block_device_without_the_partition_is_an_error(loader: Path, devices: dict[str, Path]) -> None:
    del devices["ESP"]
    done = fill(loader, devices)
    assert done.returncode == 1
    assert "no partitions ESP and root" in done.stderr


def test_a_loader_that_does_not_fit_is_an_error(loader: Path, devices: dict[str, Path]) -> None:
    (loader / "grubx64.efi").write_bytes(bytes(20 * 2**20))
    assert fill(loader, devices).returncode != 0


def test_nothing_is_done_where_no_loader_is_given(devices: dict[str, Path]) -> None:
    assert fill("", devices).returncode == 0
    assert not any(devices["ESP"].read_bytes())
