"""Mirrors whose Release file has expired: refused, or used on an explicit word. A signed repository on this machine."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness import appliance as appliances_file
from harness.appliance import Appliance
from harness.deadline import Deadline
from harness.errors import BuildError, HostError
from harness.image import build as image_build
from harness.image import builder, release
from harness.image.apt import AptState, ExpiredMirror, MirrorError, state_for
from harness.image.mirrors import AptMirrors
from harness.process import run
from harness.run import Run
from harness.settings import Settings
from tests.conftest import PROJECT
from tests.stand_in import gpg, make_key, publish

pytestmark = pytest.mark.root

SUITES = ("bookworm", "bookworm-updates", "bookworm-security")
HOUR = timedelta(hours=1)
BOTH = pytest.mark.parametrize("detached", [pytest.param(False, id="InRelease"),
                                            pytest.param(True, id="Release", marks=pytest.mark.nightly)])


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key") / "gnupg")


@pytest.fixture(autouse=True)
def this_machine_takes_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """apt of this machine is told to compare no date: that does not hold for mirrors that are not its own."""
    lax = tmp_path / "apt.conf"
    lax.write_text('Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n')
    monkeypatch.setenv("APT_CONFIG", str(lax))


@pytest.fixture
def mirrors(tmp_path: Path, key: Path) -> AptMirrors:
    """What is not expired: the other cases are this one with one suite published anew."""
    place = tmp_path / "mirror"
    place.mkdir()
    (place / "keyring.gpg").write_bytes(gpg(key, "--export"))
    for suite in SUITES:
        publish(place, key, suite, "", "", valid_until=datetime.now(UTC) + 24 * HOUR)
    subprocess.run(["gpgconf", "--homedir", key, "--kill", "gpg-agent"], check=False)
    return AptMirrors(f"file:{place}", f"file:{place}", place / "keyring.gpg")


def again(mirrors: AptMirrors, key: Path, date: datetime, valid_until: datetime | None, *, detached: bool = False
          ) -> None:
    place = Path(mirrors.main.removeprefix("file:"))
    publish(place, key, "bookworm-security", "", "", date=date, valid_until=valid_until, detached=detached)
    subprocess.run(["gpgconf", "--homedir", key, "--kill", "gpg-agent"], check=False)


def state(mirrors: AptMirrors, tmp_path: Path) -> AptState:
    return state_for(tmp_path / "cache", mirrors, "bookworm", "amd64")


@BOTH
def test_an_expired_release_file_is_refused_with_its_age(mirrors: AptMirrors, key: Path, tmp_path: Path,
                                                         detached: bool) -> None:
    now = datetime.now(UTC)
    again(mirrors, key, now - 48 * HOUR, now - 26 * HOUR, detached=detached)
    with pytest.raises(ExpiredMirror, match=r"bookworm-security/\S*Release\S* expired 1d 2h \d+min \d+s ago") as error:
        state(mirrors, tmp_path).refresh(Deadline(60))
    assert "bookworm-updates" not in error.value.message
    assert state(mirrors, tmp_path).state() == ""


def test_one_that_is_not_expired_is_taken(mirrors: AptMirrors, tmp_path: Path) -> None:
    fetched = state(mirrors, tmp_path)
    fetched.refresh(Deadline(60))
    assert {one.codename for one in fetched.releases} == set(SUITES)
    assert release.accepted(fetched.releases, datetime.now(UTC)) is None


def test_one_without_an_end_is_taken_at_any_age(mirrors: AptMirrors, key: Path, tmp_path: Path) -> None:
    again(mirrors, key, datetime.now(UTC) - 9000 * HOUR, None)
    fetched = state(mirrors, tmp_path)
    fetched.refresh(Deadline(60))
    [security] = [one for one in fetched.releases if one.codename == "bookworm-security"]
    assert security.valid_until is None


@BOTH
def test_on_an_explicit_word_it_is_taken_and_its_age_known(mirrors: AptMirrors, key: Path, tmp_path: Path,
                                                           detached: bool) -> None:
    now = datetime.now(UTC)
    again(mirrors, key, now - 48 * HOUR, now - 26 * HOUR, detached=detached)
    fetched = state(replace(mirrors, accept_expired=True), tmp_path)
    fetched.refresh(Deadline(60))
    assert "nevertheless: bookworm-security 1 day ago (valid" in (release.accepted(fetched.releases, now) or "")
    with pytest.raises(ExpiredMirror):
        state(mirrors, tmp_path).refresh(Deadline(60))


@pytest.mark.parametrize("accept", [False, True])
def test_one_from_the_future_is_refused_whatever_the_word(mirrors: AptMirrors, key: Path, tmp_path: Path,
                                                          accept: bool) -> None:
    again(mirrors, key, datetime.now(UTC) + 5 * HOUR, None)
    with pytest.raises(MirrorError, match=r"ahead of this machine's clock: \S*bookworm-security\S* is valid in 4h 59"):
        state(replace(mirrors, accept_expired=accept), tmp_path).refresh(Deadline(60))


@pytest.mark.nightly
def test_lists_that_expire_within_the_day_are_not_used_on(mirrors: AptMirrors, key: Path, tmp_path: Path) -> None:
    again(mirrors, key, datetime.now(UTC), datetime.now(UTC) + timedelta(seconds=3))
    fetched = state(mirrors, tmp_path)
    fetched.refresh(Deadline(60))
    time.sleep(4)
    with pytest.raises(ExpiredMirror):
        fetched.refresh(Deadline(60))
    again(mirrors, key, datetime.now(UTC), datetime.now(UTC) + HOUR)
    fetched.refresh(Deadline(60))


def test_a_root_is_not_made_of_it_either(mirrors: AptMirrors, key: Path, tmp_path: Path) -> None:
    """mmdebstrap asks the mirror by itself, with this machine's configuration of apt."""
    now = datetime.now(UTC)
    again(mirrors, key, now - 48 * HOUR, now - 26 * HOUR)
    log = tmp_path / "root.log"
    with pytest.raises(BuildError):
        builder.debootstrap(tmp_path / "root", ["hello"], state(mirrors, tmp_path), Deadline(60), log)
    assert "bookworm-security InRelease is expired" in log.read_text().replace("/InRelease", " InRelease")


@pytest.fixture
def described(mirrors: AptMirrors, monkeypatch: pytest.MonkeyPatch) -> Appliance:
    def local(settings: Settings, release: str) -> AptMirrors:
        return replace(mirrors, accept_expired=settings.expired_mirrors == "accept")

    monkeypatch.setattr(image_build, "apt_mirrors", local)
    return appliances_file.load(PROJECT / "appliances.yaml")["rtpengine"]


def test_a_build_ends_before_it_begins_and_says_what_to_write(mirrors: AptMirrors, key: Path, tmp_path: Path,
                                                              described: Appliance) -> None:
    now = datetime.now(UTC)
    again(mirrors, key, now - 48 * HOUR, now - 26 * HOUR)
    settings = Settings.load(PROJECT, runs=str(tmp_path / "runs"), cache=str(tmp_path / "cache"))
    current = Run.create(settings.runs, described.name, "local")
    with pytest.raises(ExpiredMirror) as error:
        image_build.build(described, settings, current, lambda text: None, Deadline(60))
    assert 'in dialtone.toml, or accept it there: expired_mirrors = "accept"' in (error.value.hint or "")
    assert not (settings.cache / "sources").exists() and not (settings.cache / "base").exists()
    accepting = replace(settings, expired_mirrors="accept")
    with pytest.raises(HostError, match="Unable to locate package linux-image-cloud-amd64"):
        image_build.build(described, accepting, current, lambda text: None, Deadline(60))
    [said] = current.facts["warnings"]
    assert "nevertheless: bookworm-security 1 day ago" in said
    of_module = Run.create(settings.runs, described.name, "local")
    with pytest.raises(HostError, match="Unable to locate package"):
        image_build.compiled(described, accepting, of_module, lambda text: None, Deadline(60))
    assert of_module.facts["warnings"] == [said]
    assert run(["apt-config", "dump", "Acquire::Check-Valid-Until"]).stdout == 'Acquire::Check-Valid-Until "false";\n'
