"""The mirrors come from apt's configuration, in both of its styles."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import HostError
from harness.image.mirrors import AptMirrors, Entry, apt_mirrors, deb822, listed, one_line
from harness.settings import Settings

MAIN = "http://mirror.example/debian"
SECURITY = "http://mirror.example/debian-security"
DATES = "check-date=yes check-valid-until=yes"


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "apt/sources.list.d").mkdir(parents=True)
    machine(monkeypatch, tmp_path, "")
    return tmp_path / "apt"


def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, configuration: str) -> None:
    """What this machine's apt is told."""
    file = tmp_path / "apt.conf"
    file.write_text(f'Dir::Etc "{tmp_path}/apt";\n{configuration}')
    monkeypatch.setenv("APT_CONFIG", str(file))


def settings(tmp_path: Path, **values: str) -> Settings:
    return Settings.load(tmp_path, environment={}, **values)


def test_deb822(apt: Path, tmp_path: Path) -> None:
    (apt / "sources.list.d/debian.sources").write_text(
        f"# a comment\nTypes: deb deb-src\nURIs: {MAIN}/\nSuites: bookworm bookworm-updates\nComponents: main contrib\n"
        f"\nTypes: deb\nURIs: {SECURITY}\nSuites: bookworm-security\nComponents: main\n")
    found = apt_mirrors(settings(tmp_path), "bookworm", apt)
    assert (found.main, found.security) == (MAIN, SECURITY)


def test_one_line_style(apt: Path, tmp_path: Path) -> None:
    (apt / "sources.list").write_text(
        f"# deb http://old.example/debian bookworm main\ndeb-src {MAIN} bookworm main\n"
        f"deb [ arch=amd64 signed-by=/k.gpg ] {MAIN} bookworm main # near\ndeb {SECURITY} bookworm-security main\n")
    found = apt_mirrors(settings(tmp_path), "bookworm", apt)
    assert (found.main, found.security) == (MAIN, SECURITY)


def test_others_repositories_are_no_mirror(apt: Path, tmp_path: Path) -> None:
    (apt / "sources.list.d/tool.list").write_text("deb http://tool.example/apt tool-bookworm main\n")
    with pytest.raises(HostError, match="no Debian mirror"):
        apt_mirrors(settings(tmp_path), "bookworm", apt)


def test_a_host_of_another_release_serves_this_one(apt: Path, tmp_path: Path) -> None:
    (apt / "sources.list").write_text(f"deb {MAIN} trixie main\ndeb {SECURITY} trixie-security main\n")
    assert apt_mirrors(settings(tmp_path), "bookworm", apt).main == MAIN


def test_the_wanted_release_wins(apt: Path, tmp_path: Path) -> None:
    (apt / "sources.list").write_text(f"deb http://first.example/debian sid main\ndeb {MAIN} bookworm main\n"
                                      f"deb {SECURITY} bookworm-security main\n")
    assert apt_mirrors(settings(tmp_path), "bookworm", apt).main == MAIN


def test_settings_win(apt: Path, tmp_path: Path) -> None:
    (apt / "sources.list").write_text(f"deb {MAIN} bookworm main\ndeb {SECURITY} bookworm-security main\n")
    found = apt_mirrors(settings(tmp_path, mirror="http://mine.example/debian/"), "bookworm", apt)
    assert (found.main, found.security) == ("http://mine.example/debian", SECURITY)


@pytest.mark.parametrize(("values", "told", "accepted"), [
    ({}, "", False), ({}, "true", False), ({}, "false", True), ({}, "0", True),
    ({"expired_mirrors": "accept"}, "", True), ({"expired_mirrors": "refuse"}, "false", False),
    ({"mirror": "http://mine.example"}, "false", False), ({"security_mirror": "http://mine.example"}, "false", False),
    ({"mirror": "http://mine.example", "expired_mirrors": "accept"}, "", True)])
def test_who_accepts_a_mirror_that_has_expired(apt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                               values: dict[str, str], told: str, accepted: bool) -> None:
    (apt / "sources.list").write_text(f"deb {MAIN} bookworm main\ndeb {SECURITY} bookworm-security main\n")
    machine(monkeypatch, tmp_path, f'Acquire::Check-Valid-Until "{told}";\n' if told else "")
    assert apt_mirrors(settings(tmp_path, **values), "bookworm", apt).accept_expired is accepted


def test_no_security_mirror_is_said(apt: Path, tmp_path: Path) -> None:
    (apt / "sources.list").write_text(f"deb {MAIN} bookworm main\n")
    with pytest.raises(HostError, match="no Debian security mirror") as error:
        apt_mirrors(settings(tmp_path), "bookworm", apt)
    assert "security_mirror" in (error.value.hint or "")


def test_disabled_and_source_only_entries_are_passed_over() -> None:
    assert list(deb822("Types: deb\nEnabled: no\nURIs: http://a\nSuites: bookworm\n")) == []
    assert list(deb822("Types: deb-src\nURIs: http://a\nSuites: bookworm\n")) == []
    assert list(one_line("deb-src http://a bookworm main\n")) == []


def test_several_uris_and_a_key_in_the_field() -> None:
    text = "Types: deb\nURIs: http://a http://b\nSuites: s\nComponents: main\nSigned-By:\n -----BEGIN PGP\n .\n x\n"
    assert [e.uri for e in deb822(text)] == ["http://a", "http://b"]
    assert all(e.keyring is None for e in deb822(text))


def test_options_of_the_one_line_style() -> None:
    line = "deb [arch=amd64 signed-by=/usr/share/keyrings/x.gpg] http://a bookworm main contrib"
    assert list(one_line(line)) == [Entry("http://a", ("bookworm",), ("main", "contrib"),
                                          Path("/usr/share/keyrings/x.gpg"))]


def test_text_for_a_release() -> None:
    mirrors = AptMirrors(MAIN, SECURITY, Path("/k.gpg"))
    lines = mirrors.sources("trixie", source_packages=True).splitlines()
    assert f"deb [{DATES} signed-by=/k.gpg] {MAIN} trixie-updates main" in lines
    assert f"deb-src [{DATES} signed-by=/k.gpg] {SECURITY} trixie-security main" in lines
    assert not any(line.startswith("deb-src") for line in mirrors.sources("trixie").splitlines())
    assert AptMirrors(MAIN, SECURITY).sources("trixie").splitlines()[0] == f"deb [{DATES}] {MAIN} trixie main"


def test_every_line_says_whether_an_expired_release_file_is_taken() -> None:
    """Whatever this machine's apt is told."""
    further = Entry("https://packages.example.org", ("bookworm",), ("main",), Path("/keys/proxy.gpg"))
    found = AptMirrors(MAIN, SECURITY, further=(further,), accept_expired=True)
    lines = found.sources("trixie", source_packages=True).splitlines()
    assert len(lines) == 7 and all("[check-date=yes check-valid-until=no" in line for line in lines)


def test_further_repositories_have_keys_of_their_own_and_no_source_packages() -> None:
    further = Entry("https://packages.example.org", ("bookworm",), ("4.0", "more"), Path("/keys/proxy.gpg"))
    found = AptMirrors("http://a", "http://b", Path("/keys/debian.gpg"), (further,))
    assert found.sources("bookworm", source_packages=True).splitlines()[-1] == (
        f"deb [{DATES} signed-by=/keys/proxy.gpg] https://packages.example.org bookworm 4.0 more")
    assert found.sources("bookworm").count("/keys/debian.gpg") == 3


@pytest.mark.parametrize(("uri", "name"), [
    ("http://mirror.example/debian/", "mirror.example_debian"), ("file:/srv/a_b~c", "_srv_a%5fb%7ec"),
    ("https://me:hush@h:8080/x", "h:8080_x"), ("mirror+file:///etc/m", "_etc_m")])
def test_how_apt_names_the_lists_of_a_mirror(uri: str, name: str) -> None:
    assert listed(uri) == name
