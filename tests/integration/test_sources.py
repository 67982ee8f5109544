"""apt's part of fetching for real: a signed repository on this machine; its signature, its hashes, its patches.

The source package is a stand-in and not RTPEngine: mirrors exist that do not serve RTPEngine's source files.
"""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.appliance import SourceSpec
from harness.deadline import Deadline
from harness.errors import BuildError
from harness.image import sources
from harness.image.apt import AptState, MirrorError, state_for
from harness.image.mirrors import AptMirrors
from harness.image.sources import SourceChoice, fetch_first
from harness.run import Run
from harness.settings import Settings
from tests.stand_in import DEBIAN_VERSION, PATCH, PATCHED, Repository, make_repository

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Repository:
    directory = tmp_path_factory.mktemp("repository")
    made = make_repository(directory)
    subprocess.run(["gpgconf", "--homedir", directory / "gnupg", "--kill", "gpg-agent"], check=False)
    return made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(tmp_path, environment={})


@pytest.fixture
def run(settings: Settings) -> Run:
    return Run.create(settings.runs, "relay", "local")


def state(settings: Settings, repository: Repository, *, keyring: Path | None = None) -> AptState:
    mirrors = AptMirrors(repository.uri, repository.uri, keyring or repository.keyring)
    return state_for(settings.cache, mirrors, "bookworm", "amd64", source_packages=True)


def fetch(settings: Settings, run: Run, apt: AptState, *specs: SourceSpec) -> SourceChoice:
    return fetch_first(specs, settings, run, lambda text: None, Deadline(120), sources.kinds(lambda: apt, lambda: apt))


def source_of(repository: Repository) -> SourceSpec:
    return SourceSpec("debian-source", DEBIAN_VERSION, package="rtpengine", sha256=repository.dsc)


def packages_of(repository: Repository) -> SourceSpec:
    return SourceSpec("debian-packages", DEBIAN_VERSION, packages=repository.debs)


def test_a_source_package(settings: Settings, run: Run, repository: Repository) -> None:
    choice = fetch(settings, run, state(settings, repository), source_of(repository))
    names = sorted(p.name for p in choice.used.path.iterdir())
    assert names == ["rtpengine_10.5.3.5-1.debian.tar.xz", "rtpengine_10.5.3.5-1.dsc", "rtpengine_10.5.3.5.orig.tar.xz"]
    assert choice.used.hashes == {"rtpengine_10.5.3.5-1.dsc": repository.dsc}
    assert not any(p.is_symlink() for p in choice.used.path.iterdir())
    assert sources.patches(choice.used) == {"debian/patches/fix.patch": hashlib.sha256(PATCH.encode()).hexdigest()}


def test_binary_packages(settings: Settings, run: Run, repository: Repository) -> None:
    choice = fetch(settings, run, state(settings, repository), packages_of(repository))
    assert sources.patches(choice.used) == {}
    assert [p.name for p in choice.used.path.iterdir()] == [f"rtpengine-daemon_{DEBIAN_VERSION}_amd64.deb"]
    assert not list(settings.cache.glob("sources/*.part-*"))


@pytest.mark.parametrize("kind", ["debian-source", "debian-packages"])
def test_another_hash_than_the_pinned_one(settings: Settings, run: Run, repository: Repository, kind: str) -> None:
    wrong = (replace(source_of(repository), sha256="0" * 64) if kind == "debian-source"
             else replace(packages_of(repository), packages={"rtpengine-daemon": "0" * 64}))
    with pytest.raises(BuildError, match="is not what was pinned"):
        fetch(settings, run, state(settings, repository), wrong, packages_of(repository))
    assert list((settings.cache / "sources").iterdir()) == []


def test_a_missing_file_of_the_source_package_leads_to_the_next(settings: Settings, run: Run,
                                                                repository: Repository) -> None:
    aside = repository.orig().rename(repository.path / "aside")
    try:
        choice = fetch(settings, run, state(settings, repository), source_of(repository), packages_of(repository))
    finally:
        aside.rename(repository.orig())
    assert choice.used.spec.kind == "debian-packages"
    assert "rtpengine_10.5.3.5.orig.tar.xz" in choice.skipped[0][1]


def test_a_tampered_file_is_refused_by_apt(settings: Settings, run: Run, repository: Repository) -> None:
    before = repository.orig().read_bytes()
    repository.orig().write_bytes(before[:-1] + b"x")
    try:
        with pytest.raises(BuildError, match="none of the sources can be had"):
            fetch(settings, run, state(settings, repository), source_of(repository))
    finally:
        repository.orig().write_bytes(before)


def test_a_key_that_did_not_sign_is_no_signature(settings: Settings, repository: Repository,
                                                 tmp_path_factory: pytest.TempPathFactory) -> None:
    other = make_repository(tmp_path_factory.mktemp("other"))
    subprocess.run(["gpgconf", "--homedir", other.path / "gnupg", "--kill", "gpg-agent"], check=False)
    with pytest.raises(MirrorError, match="package lists can't be fetched"):
        state(settings, repository, keyring=other.keyring).refresh(Deadline(60))


def test_a_mirror_that_is_not_there(settings: Settings, repository: Repository) -> None:
    nowhere = replace(repository, path=repository.path / "nowhere")
    with pytest.raises(MirrorError) as error:
        state(settings, nowhere).refresh(Deadline(60))
    assert "security_mirror" in (error.value.hint or "")
    assert state(settings, nowhere).state() == ""


def test_the_patch_is_in_the_package_and_not_in_the_tree(repository: Repository) -> None:
    """What makes the test of the compilation meaningful: only unpacking with patches gives the patched text."""
    orig = subprocess.run(["tar", "-xOJf", repository.orig()], check=True, capture_output=True, text=True).stdout
    assert PATCHED not in orig
