"""Pins that age: which are old, and what to write instead."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.appliance import SourceSpec
from harness.deadline import Deadline
from harness.image.apt import AptState, Offer
from harness.image.mirrors import AptMirrors
from harness.image.pins import AgedPin, aged, old_kernel, outdated, stamped
from harness.image.release import Release
from tests import small_image
from tests.web import Handler, serving

SECURITY = (Offer("10.5.3.5-1+deb12u1", "bookworm-security"), Offer("10.5.3.5-1", "bookworm"))
STAMP = "20261126T210335Z"
DATE = datetime(2026, 11, 26, 21, 3, 35, tzinfo=UTC)


@pytest.mark.parametrize(("kind", "version", "offers", "because"), [
    ("debian-source", "10.5.3.5-1", SECURITY, "is older than bookworm's 10.5.3.5-1+deb12u1 (security)"),
    ("debian-source", "10.5.3.5-1", SECURITY[::-1], "is older than bookworm's 10.5.3.5-1+deb12u1 (security)"),
    ("debian-source", "10.5.3.5-1+deb12u1", SECURITY, None),
    ("debian-packages", "10.5.3.5-1+deb12u2", SECURITY, None),
    ("git", "10.5.3.5", SECURITY, "lacks the fixes that bookworm's 10.5.3.5-1+deb12u1 (security) adds"),
    ("git", "10.5.3.4", SECURITY, "is older than bookworm's 10.5.3.5-1+deb12u1 (security)"),
    ("tarball", "12.5.1.31", SECURITY, None),
    ("tarball", "10.5.3.5", SECURITY[1:], None),
    ("git", "10.5.3.5", (), None),
])
def test_which_source_is_old(kind: str, version: str, offers: tuple[Offer, ...], because: str | None) -> None:
    found = outdated(SourceSpec(kind, version), "bookworm", offers)
    assert found == (None if because is None else (because, "10.5.3.5-1+deb12u1"))


@pytest.mark.parametrize(("pinned", "old"), [
    ("linux-image-6.1.0-9-cloud-amd64", True), ("linux-image-6.1.0-56-cloud-amd64", False),
    ("linux-image-6.12.1-1-cloud-amd64", False), ("linux-image-cloud-amd64", False),
    ("linux-image-6.1.0-9-amd64", False)])
def test_which_kernel_is_old(pinned: str, old: bool) -> None:
    assert old_kernel(pinned, "linux-image-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64") is old


def test_a_pin_says_where_and_what_to_take() -> None:
    pin = AgedPin("appliances.yaml:16", "debian-source 10.5.3.5-1", "is older than x", "10.5.3.5-1+deb12u1", {"a": "0"})
    assert pin.sentence == ("appliances.yaml:16: debian-source 10.5.3.5-1 is older than x; take 10.5.3.5-1+deb12u1")
    assert replace(pin, take="").sentence.endswith("is older than x")


@pytest.mark.parametrize(("url", "other"), [
    ("http://a/archive/debian/20250520T000000Z", f"http://a/archive/debian/{STAMP}"),
    ("http://a/archive/debian/20250520T000000Z/", f"http://a/archive/debian/{STAMP}/"),
    (f"http://a/archive/debian/{STAMP}", None), ("http://a/debian", None), ("http://a/x20250520T000000Z", None)])
def test_another_snapshot_of_the_archive(url: str, other: str | None) -> None:
    assert stamped(url, STAMP) == other


class Lists(AptState):
    """Package lists that were never fetched: only the suites' dates are known."""

    @property
    def releases(self) -> list[Release]:
        other = Release("bookworm", DATE.replace(year=2030), None, "c_dists_x")
        return [*(Release(suite, DATE, None, f"a_dists_{suite}") for suite in ("bookworm", "bookworm-security")), other]

    def offers(self, package: str) -> list[Offer]:
        return []


class Archive(Handler):
    """A snapshot of an archive, and a host that is busy."""

    def answer(self) -> None:
        code = 503 if "busy" in self.path else 200 if self.path == f"/debian/{STAMP}/dists/bookworm/Release" else 404
        self.send_response(code)
        self.end_headers()


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Archive) as address:
        yield address


def mirrors(main: str, tmp_path: Path) -> list[str]:
    described = replace(small_image.appliance(), image_mirror=main)
    state = Lists(tmp_path, AptMirrors("http://a", "http://b"), "bookworm", "amd64")
    return [pin.sentence for pin in aged(described, state, lambda: state, Deadline(30))]


def test_a_snapshot_that_is_there(archive: str, tmp_path: Path) -> None:
    assert mirrors(f"{archive}/debian/{STAMP}", tmp_path) == []
    assert mirrors("", tmp_path) == []


def test_a_snapshot_that_has_gone(archive: str, tmp_path: Path) -> None:
    [said] = mirrors(f"{archive}/debian/20250520T000000Z", tmp_path)
    assert said == (f"appliances.yaml:1: image_mirrors.main {archive}/debian/20250520T000000Z answers 404 Not Found "
                    f"for dists/bookworm/Release; take {archive}/debian/{STAMP}")


def test_nothing_is_named_to_take_that_is_not_there(archive: str, tmp_path: Path) -> None:
    [said] = mirrors(f"{archive}/elsewhere/20250520T000000Z", tmp_path)
    assert "404" in said and "take" not in said


def test_a_mirror_of_which_nothing_is_known(archive: str, tmp_path: Path) -> None:
    [said] = mirrors(f"{archive}/busy", tmp_path)
    assert "answers 503" in said
    [said] = mirrors("http://127.0.0.1:1/debian", tmp_path)
    assert "can't be looked at from this machine: Connection refused" in said
    [said] = mirrors(f"{archive}/other", tmp_path)
    assert "can't be looked at from this machine: what answers there is no web server: 'SSH-2.0-x'" in said
    [said] = mirrors("http://127.0.0.1:x/debian", tmp_path)
    assert "can't be looked at from this machine: nonnumeric port: 'x'" in said
