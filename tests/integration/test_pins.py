"""Pins that age, by the lists that apt has of a signed repository on this machine: a release and its security suite."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from harness import appliance as appliances_file
from harness import host
from harness.appliance import Appliance, SourceSpec
from harness.deadline import Deadline
from harness.errors import BuildError, Fault
from harness.image import pins
from harness.image.apt import AptState, state_for
from harness.image.mirrors import AptMirrors
from harness.settings import Settings
from tests.conftest import PROJECT
from tests.real_server import work_in
from tests.stand_in import binary_package, gpg, make_key, publish, sha256, stanza

pytestmark = pytest.mark.root

OLD, NEW = "10.5.3.5-1", "10.5.3.5-1+deb12u1"
NAMES = ("rtpengine-daemon", "rtpengine-kernel-dkms")
KERNELS = {OLD: "linux-image-6.1.0-50-cloud-amd64", NEW: "linux-image-6.1.0-56-cloud-amd64"}
SENTENCE = f"is older than bookworm's {NEW} (security); take {NEW}"


@dataclass(frozen=True)
class Archive:
    """`debs` and `dscs` have the SHA-256 by name and version, by version."""

    mirrors: AptMirrors
    debs: dict[tuple[str, str], str]
    dscs: dict[str, str]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    place = tmp_path_factory.mktemp("archive")
    home = make_key(place / "gnupg")
    (place / "pool").mkdir()
    (place / "keyring.gpg").write_bytes(gpg(home, "--export"))
    debs, dscs = {}, {OLD: "a" * 64, NEW: "b" * 64}
    for version, suite in ((OLD, "bookworm"), (NEW, "bookworm-security")):
        files = {name: binary_package(place / f"{name}_{version}", place / "pool", version, name) for name in NAMES}
        debs |= {(name, version): sha256(file) for name, file in files.items()}
        kernel = f"Package: linux-image-cloud-amd64\nVersion: {version}\nArchitecture: amd64\nSize: 0\n" \
                 f"Filename: pool/x.deb\nDepends: {KERNELS[version]} (= 1)\nSHA256: {'0' * 64}\n"
        source = f"Package: rtpengine\nBinary: rtpengine-daemon\nVersion: {version}\nFormat: 3.0 (quilt)\n" \
                 f"Directory: pool\nChecksums-Sha256:\n {'c' * 64} 9 rtpengine_10.5.3.5.orig.tar.xz\n" \
                 f" {dscs[version]} 7 rtpengine_{version}.dsc\n"
        publish(place, home, suite, source, "\n".join([*map(stanza, files.values()), kernel]))
    publish(place, home, "bookworm-updates", "", "")
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=False)
    return Archive(AptMirrors(f"file:{place}", f"file:{place}", place / "keyring.gpg"), debs, dscs)


Judge = Callable[..., list[pins.AgedPin]]


@pytest.fixture
def judge(archive: Archive, tmp_path: Path) -> Judge:
    """judge(sources, ...): the aged pins of an appliance with these sources."""
    def state(source_packages: bool) -> AptState:
        return state_for(tmp_path, archive.mirrors, "bookworm", "amd64", source_packages=source_packages)

    def judged(*sources: SourceSpec, **changes: str) -> list[pins.AgedPin]:
        state(False).refresh(Deadline(60))
        return pins.aged(described(*sources, **changes), state(False), lambda: state(True), Deadline(60))

    return judged


def described(*sources: SourceSpec, **changes: str) -> Appliance:
    plain = appliances_file.load(PROJECT / "appliances.yaml")["rtpengine"]
    assert plain.rtpengine
    return replace(plain, rtpengine=replace(plain.rtpengine, sources=sources), **changes)


def debian_source(archive: Archive, version: str) -> SourceSpec:
    return SourceSpec("debian-source", version, package="rtpengine", sha256=archive.dscs[version], line=16)


def debian_packages(archive: Archive, version: str) -> SourceSpec:
    return SourceSpec("debian-packages", version, packages={name: archive.debs[name, version] for name in NAMES},
                      line=20)


def test_old_pins_are_named_with_version_and_hashes_to_take(archive: Archive, judge: Judge) -> None:
    source, packages = judge(debian_source(archive, OLD), debian_packages(archive, OLD))
    assert source.sentence == f"appliances.yaml:16: debian-source {OLD} {SENTENCE}"
    assert source.hashes == {"rtpengine": archive.dscs[NEW]}
    assert packages.sentence == f"appliances.yaml:20: debian-packages {OLD} {SENTENCE}"
    assert packages.hashes == {name: archive.debs[name, NEW] for name in NAMES}


def test_what_is_to_be_taken_is_not_old(archive: Archive, judge: Judge) -> None:
    assert judge(debian_source(archive, NEW), debian_packages(archive, NEW)) == []


def test_a_source_without_the_fix_is_named_with_the_kind_to_take(judge: Judge) -> None:
    [git] = judge(SourceSpec("git", "10.5.3.5", url="x", tag="mr10.5.3.5", commit="0" * 40, line=9))
    assert git.sentence == (f"appliances.yaml:9: git 10.5.3.5 lacks the fixes that bookworm's {NEW} (security) adds; "
                            f"take kind debian-source or debian-packages, version {NEW}")
    assert git.hashes == {}


@pytest.mark.nightly
def test_a_build_from_an_old_description_says_so_and_passes(real_settings: Settings, real_appliance: Appliance) -> None:
    """Also where the image is taken from the cache. What is old is a source that is not even there."""
    assert real_appliance.rtpengine
    git = SourceSpec("git", "10.5.3.5", url="/nowhere", tag="mr10.5.3.5", commit="0" * 40, line=9)
    relay = replace(real_appliance.rtpengine, sources=(git, *real_appliance.rtpengine.sources))
    host.prepare(real_settings, say=lambda text: None)
    for _ in ("built", "kept"):
        with work_in(real_settings, replace(real_appliance, rtpengine=relay)) as work:
            image = work.build()
            [pin] = work.run.facts["pins"]
            assert pin["sentence"].startswith("appliances.yaml:9: git 10.5.3.5 lacks the fixes that bookworm's ")
            assert f"    note: {pin['sentence']}\n" in work.progress.out.getvalue()
            assert work.run.stages[-1].outcome == "passed"
    assert image.from_cache


def test_an_old_kernel_is_named(judge: Judge) -> None:
    [kernel] = judge(kernel=KERNELS[OLD])
    assert kernel.sentence.endswith(f"kernel {KERNELS[OLD]} is older than bookworm's (security); take {KERNELS[NEW]}")
    assert judge(kernel=KERNELS[NEW]) == judge() == []


@pytest.mark.parametrize("version", [OLD, NEW])
def test_another_hash_for_the_pinned_version_is_an_error(archive: Archive, judge: Judge, version: str) -> None:
    pinned = debian_packages(archive, version)
    changed = replace(pinned, packages={**(pinned.packages or {}), NAMES[1]: "9" * 64})
    with pytest.raises(BuildError, match=f"bookworm's {NAMES[1]} .* expected 9{{64}}, got") as error:
        judge(changed)
    assert error.value.message.endswith(archive.debs[NAMES[1], version])
    assert error.value.fault is Fault.DESCRIPTION and "appliances.yaml:20" in (error.value.hint or "")


def test_another_hash_of_a_source_package_is_an_error_once_its_lists_are_there(archive: Archive, judge: Judge) -> None:
    changed = replace(debian_source(archive, NEW), sha256="9" * 64)
    assert judge(changed) == [], "no list is fetched for a pin that is not old"
    judge(debian_source(archive, OLD))
    with pytest.raises(BuildError, match=f"rtpengine .* expected 9{{64}}, got {archive.dscs[NEW]}"):
        judge(changed)
