"""The removers on real namespaces, links, mounts and loop devices; each is asked twice."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import HostError
from harness.process import run
from harness.resources import (
    Resource,
    mounts_below,
    remove_link,
    remove_loop,
    remove_mount,
    remove_namespace,
    remove_path,
)

pytestmark = pytest.mark.root


@pytest.fixture
def name() -> str:
    return f"dt{uuid.uuid4().hex[:10]}"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk image with one GPT partition that holds a file system."""
    path = tmp_path / uuid.uuid4().hex / "disk.raw"
    path.parent.mkdir()
    with path.open("wb") as out:
        out.truncate(32 << 20)
    run(["sgdisk", "--new=1:2048:0", path])
    yield path
    for device in _loops(path):
        run(["losetup", "--detach", device], check=False)


def _loops(backing: Path) -> list[str]:
    return run(["losetup", "--noheadings", "--output", "NAME", "--associated", backing]).stdout.split()


def test_a_namespace_goes_with_its_links(name):
    run(["ip", "netns", "add", name])
    run(["ip", "-n", name, "link", "add", "inside", "type", "bridge"])
    for _ in range(2):
        remove_namespace(Resource("namespace", name))
    assert name not in run(["ip", "netns", "list"]).stdout


def test_a_link(name):
    run(["ip", "link", "add", name, "type", "bridge"])
    for _ in range(2):
        remove_link(Resource("link", name))
    assert not Path("/sys/class/net", name).exists()


def test_mounts_go_innermost_first_and_only_then_the_tree(tmp_path):
    tree = tmp_path / "a tree"
    (tree / "outer").mkdir(parents=True)
    run(["mount", "-t", "tmpfs", "tmpfs", tree / "outer"])
    try:
        (tree / "outer" / "inner").mkdir()
        run(["mount", "-t", "tmpfs", "tmpfs", tree / "outer" / "inner"])
        with pytest.raises(HostError, match="still mounted"):
            remove_path(Resource("path", os.fspath(tree)))
    finally:
        for _ in range(2):
            remove_mount(Resource("mount", os.fspath(tree)))
    assert list(mounts_below(tree)) == []
    remove_path(Resource("path", os.fspath(tree)))
    assert not tree.exists()


def test_a_loop_device_goes_with_its_partitions(disk):
    device = run(["losetup", "--find", "--show", disk]).stdout.strip()
    run(["partx", "--add", device])
    partitions = Path("/sys/block", Path(device).name)
    assert list(partitions.glob("loop*p1"))
    bystander = disk.parent.parent / "other.raw"
    bystander.write_bytes(bytes(1 << 20))
    other = run(["losetup", "--find", "--show", bystander]).stdout.strip()
    try:
        for _ in range(2):
            remove_loop(Resource("loop", os.fspath(disk.parent)))
        assert _loops(disk) == [] and not list(partitions.glob("loop*p1"))
        assert _loops(bystander) == [other]
    finally:
        run(["losetup", "--detach", other])


def test_a_loop_device_that_is_in_use_is_not_called_gone(disk, tmp_path):
    """losetup --detach answers 0 for a mounted device, and leaves it for later."""
    device = run(["losetup", "--find", "--show", "--offset", str(1 << 20), disk]).stdout.strip()
    run(["mkfs.ext4", "-q", device])
    point = tmp_path / "point"
    point.mkdir()
    run(["mount", device, point])
    try:
        with pytest.raises(HostError, match="in use"):
            remove_loop(Resource("loop", os.fspath(disk.parent)))
    finally:
        subprocess.run(["umount", point], check=True)
    remove_loop(Resource("loop", os.fspath(disk.parent)))
    assert _loops(disk) == []
