"""Manifests are read as they were written, and two of them compared."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import InspectError
from harness.image import manifest
from harness.image.manifest import Change, Manifest, Module
from harness.image.packages import Package

BEFORE = Manifest(
    image="image.qcow2", size=150_000_000, virtual_size=2**30, sha256="0" * 64, kernel="6.1.0-55-cloud-amd64",
    modules=(Module("xt_RTPENGINE", "/usr/lib/modules/x/extra/xt_RTPENGINE.ko", "6.1.0-55-cloud-amd64 SMP", "", "a"),),
    packages=(Package("bash", "5.2.15-2", "amd64", False), Package("iptables", "1.8.9-2", "amd64", False),
              Package("linux-image-cloud-amd64", "6.1.1", "amd64", True)),
    sysctls={"net.netfilter.nf_conntrack_max": "40448"}, units=("rtpengine.service", "ssh.service"),
    extra={"elements": {"conntrack": "1" * 64, "rtpengine": "2" * 64}, "diskimage_builder": "3.43.0",
           "source": {"kind": "debian-packages", "skipped": [{"kind": "debian-source", "reason": "404"}]}})


def write(path: Path, value: Manifest) -> Path:
    ours = asdict(value)
    path.write_text(json.dumps(ours.pop("extra") | ours))
    return path


def test_read_gives_what_was_written(tmp_path: Path) -> None:
    assert manifest.read(write(tmp_path / "manifest.json", BEFORE)) == BEFORE


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"image": 1}', '{"modules": [1]}', "null"])
def test_what_is_no_manifest_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(InspectError, match="is no manifest"):
        manifest.read(path)
    with pytest.raises(InspectError, match="is no manifest"):
        manifest.read(tmp_path / "nowhere.json")


def test_equal_images_do_not_differ() -> None:
    assert manifest.diff(BEFORE, BEFORE) == []


def test_every_part_is_compared() -> None:
    after = replace(
        BEFORE, size=160_000_000, kernel="6.1.0-56-cloud-amd64",
        modules=(replace(BEFORE.modules[0], sha256="b", vermagic="6.1.0-56-cloud-amd64 SMP"),),
        packages=(Package("bash", "5.2.15-3", "amd64", False), Package("nftables", "1.0.6-2", "amd64", False),
                  Package("linux-image-cloud-amd64", "6.1.1", "amd64", False)),
        sysctls={"net.netfilter.nf_conntrack_max": "80896"}, units=("ssh.service",),
        extra=dict(BEFORE.extra) | {"elements": {"conntrack": "1" * 64, "rtpengine": "3" * 64}})
    assert manifest.diff(BEFORE, after) == [
        Change("elements", "rtpengine", "2" * 64, "3" * 64),
        Change("image", "size", "150000000", "160000000"),
        Change("kernel", "release", "6.1.0-55-cloud-amd64", "6.1.0-56-cloud-amd64"),
        Change("module", "xt_RTPENGINE", "a for 6.1.0-55-cloud-amd64 SMP", "b for 6.1.0-56-cloud-amd64 SMP"),
        Change("package", "bash", "5.2.15-2 amd64", "5.2.15-3 amd64"),
        Change("package", "iptables", "1.8.9-2 amd64", ""),
        Change("package", "linux-image-cloud-amd64", "6.1.1 amd64 (held)", "6.1.1 amd64"),
        Change("package", "nftables", "", "1.0.6-2 amd64"),
        Change("sysctl", "net.netfilter.nf_conntrack_max", "40448", "80896"),
        Change("unit", "rtpengine.service", "enabled", ""),
    ]


packages = st.lists(st.builds(Package, st.sampled_from("abcd"), st.sampled_from(["1", "2"]),
                              st.sampled_from(["amd64", "i386"]), st.booleans()), max_size=5).map(tuple)


@given(packages, packages)
def test_a_difference_is_there_from_both_sides(one: tuple[Package, ...], other: tuple[Package, ...]) -> None:
    a, b = replace(BEFORE, packages=one), replace(BEFORE, packages=other)
    there = {(c.name, c.before, c.after) for c in manifest.diff(a, b)}
    back = {(c.name, c.after, c.before) for c in manifest.diff(b, a)}
    assert there == back
    assert bool(there) == (one != other) or sorted(map(str, one)) == sorted(map(str, other))
