"""The dates of a mirror's Release files, and what apt says of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness.image.apt import ExpiredMirror, MirrorError, refusal
from harness.image.release import accepted, age, parse, read

TEXT = """-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

Origin: Debian
Suite: testing
Codename: forky
Date: Fri, 30 Oct 2026 08:08:01 UTC
Valid-Until: Fri, 06 Nov 2026 08:08:01 UTC
SHA256:
 0000 1 main/Date
"""
NOW = datetime(2026, 11, 28, 11, 0, tzinfo=UTC)


def test_the_dates_of_a_release_file() -> None:
    found = parse(TEXT)
    assert found and found.codename == "forky"
    assert found.expired(NOW) == timedelta(days=22, hours=2, minutes=51, seconds=59)
    assert found.facts(NOW) == {"date": "2026-10-30 08:08 UTC", "valid_until": "2026-11-06 08:08 UTC",
                                "expired": "22 days"}
    assert found.facts(datetime(2026, 11, 1, tzinfo=UTC)) == {"date": "2026-10-30 08:08 UTC",
                                                              "valid_until": "2026-11-06 08:08 UTC"}


def test_one_without_an_end_never_expires() -> None:
    found = parse(TEXT.replace("Valid-Until", "Other"))
    assert found and found.valid_until is None and found.expired(NOW) is None
    assert found.facts(NOW) == {"date": "2026-10-30 08:08 UTC"}
    assert accepted([found], NOW) is None


def test_it_expires_with_its_last_second() -> None:
    found = parse(TEXT)
    assert found and found.valid_until
    assert found.expired(found.valid_until) is None
    assert found.expired(found.valid_until + timedelta(seconds=1)) == timedelta(seconds=1)


@pytest.mark.parametrize("date", ["", "Date: soon\n", "Date: \n", "Date: Fri, 99 Oct 2026 08:08:01 UTC\n"])
def test_what_has_no_date_is_none(date: str) -> None:
    assert parse(f"Codename: forky\n{date}") is None


def test_of_every_suite_in_the_lists(tmp_path: Path) -> None:
    for name in ("a_dists_forky_InRelease", "a_dists_x_Release"):
        (tmp_path / name).write_text(TEXT)
    (tmp_path / "a_dists_forky_main_binary-amd64_Packages").write_text(TEXT)
    assert [one.list for one in read(tmp_path)] == ["a_dists_forky", "a_dists_x"]
    assert read(tmp_path / "nowhere") == []


def test_the_age_is_said_where_it_is_accepted() -> None:
    found = parse(TEXT)
    assert found
    assert accepted([found, found], NOW) == (
        "the mirror has expired and is used nevertheless: forky 22 days ago (valid until 2026-11-06 08:08 UTC), "
        "forky 22 days ago (valid until 2026-11-06 08:08 UTC)")


@pytest.mark.parametrize(("span", "text"), [
    (timedelta(days=22, hours=3), "22 days"), (timedelta(days=1), "1 day"), (timedelta(hours=23), "23 hours"),
    (timedelta(minutes=61), "1 hour"), (timedelta(seconds=59), "0 minutes")])
def test_an_age_as_people_say_it(span: timedelta, text: str) -> None:
    assert age(span) == text


def test_what_apt_says_of_dates() -> None:
    error = refusal("E: Release file for http://a/dists/forky/InRelease is expired (invalid since 22d 3h 1min 13s). "
                    "Updates for this repository will not be applied.\n"
                    "E: Release file for http://a/dists/x/InRelease is expired (invalid since 2h 1min 5s). Updates ...")
    assert isinstance(error, ExpiredMirror)
    assert error.message == ("the mirror is too old: http://a/dists/forky/InRelease expired 22d 3h 1min 13s ago, "
                             "http://a/dists/x/InRelease expired 2h 1min 5s ago")
    early = refusal("E: Release file for http://a/dists/forky/InRelease is not valid yet (invalid for another 1h 59min "
                    "50s). Updates for this repository will not be applied.")
    assert not isinstance(early, ExpiredMirror) and "clock" in early.message and "timedatectl" in (early.hint or "")
    other = refusal("E: Failed to fetch http://a  404  Not Found\n")
    assert type(other) is MirrorError and other.message.startswith("the package lists can't be fetched")


@pytest.mark.parametrize("has", ["does not have", "no longer has"])
def test_what_apt_says_of_a_snapshot_that_is_not_there(has: str) -> None:
    said = "E: The repository 'http://a/archive/debian/{}bookworm Release' " + f"{has} a Release file.\n"
    gone = refusal("Err:1 http://a\n  404  Not Found\n" + said.format("20250520T000000Z/ "))
    assert type(gone) is MirrorError
    assert gone.message == "the snapshot http://a/archive/debian/20250520T000000Z/ has no bookworm (any more)"
    assert "apt configuration" not in (gone.hint or "") and "mirror, security_mirror" in (gone.hint or "")
    assert "apt configuration" in (refusal(said.format(" ")).hint or "")
