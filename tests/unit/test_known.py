"""Files of what is known: read by element and release, every mistake told with its place; what matches them."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest

from harness import appliance as appliances_file
from harness import known
from harness.errors import DescriptionError
from harness.known import Known, KnownFile, KnownLine
from tests import small_image
from tests.conftest import PROJECT

EVERY = """\
unowned:
  - paths: [/etc/a, "/etc/b*"]
    reason: made by a script
  - paths: [/etc/c]
    reason: only there
    releases: [bookworm]
    optional: true
log:
  - pattern: "^kernel: tsc: "
    reason: emulated
    until: 2027-03-01
"""


def written(directory: Path, **files: str) -> Known:
    (directory / "known").mkdir(exist_ok=True)
    for name, text in files.items():
        (directory / "known" / f"{name}.yaml").write_text(text)
    return known.load(replace(small_image.appliance(), file=directory / "appliances.yaml"))


def test_files_of_the_appliances_elements_are_read(tmp_path: Path) -> None:
    found = written(tmp_path, debian=EVERY, rtpengine="missing: [{paths: [/usr/x], reason: left out}]",
                    opensips="missing: [{paths: [/usr/y], reason: of another appliance}]")
    assert found.missing == (KnownFile("/usr/x", "left out", "known/rtpengine.yaml:1"),)
    assert [str(entry) for entry in found.unowned] == [
        "/etc/a (known/debian.yaml:2)", "/etc/b* (known/debian.yaml:2)", "/etc/c (known/debian.yaml:4)"]
    assert [entry.optional for entry in found.unowned] == [False, False, True]
    assert found.log == (KnownLine(re.compile("^kernel: tsc: "), "emulated", date(2027, 3, 1), "known/debian.yaml:9"),)
    assert (found.changed, found.units) == ((), ())


def test_entries_of_other_releases_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_releases", lambda: ["bookworm", "trixie"])
    found = written(tmp_path, debian=EVERY.replace("releases: [bookworm]", "releases: [trixie]"))
    assert [entry.pattern for entry in found.unowned] == ["/etc/a", "/etc/b*"]


def test_without_a_directory_beside_the_description_the_projects_is_read(tmp_path: Path) -> None:
    small = small_image.appliance()
    assert known.load(replace(small, file=tmp_path / "appliances.yaml")) == known.load(
        replace(small, file=PROJECT / "appliances.yaml")) != Known()


@pytest.mark.parametrize(("old", "new", "said"), [
    ("unowned:", "unowed:", "known/debian.yaml:1:1: unowed: unknown key; known: changed, log, missing, units, unowned"),
    ("optional: true", "optoinal: true", "known/debian.yaml:7:5: unowned.1.optoinal: unknown key; known: optional, "),
    ("reason: made by a script", 'reason: " "', 'known/debian.yaml:3:5: unowned.0.reason: " " is not a reason (like '),
    ("    reason: emulated\n", "", "known/debian.yaml:9:5: log.0: 'reason' is missing"),
    ("2027-03-01", "soon", 'known/debian.yaml:11:5: log.0.until: "soon" is not a date (like 2027-05-31)'),
    ("2027-03-01", "2027-02-30", "known/debian.yaml:11:5: log.0.until: 2027-02-30 is no day: day is out of range"),
    ("^kernel: tsc: ", "^kernel: (tsc", "known/debian.yaml:9:5: log.0.pattern: is no regular expression: missing )"),
    ("^kernel: tsc: ", "a{99999999999999999999}", "known/debian.yaml:9:5: log.0.pattern: is no regular expression: "),
    ("^kernel: tsc: ", "(" * 5000, "known/debian.yaml:9:5: log.0.pattern: is no regular expression: maximum "),
    ("[/etc/c]", "[etc/c]", 'known/debian.yaml:4:13: unowned.1.paths.0: "etc/c" is not an absolute path (like '),
    ("[bookworm]", "[bookwrm]", "known/debian.yaml:6:5: unowned.1.releases: there is no release bookwrm; known: bookw"),
    ("    until: 2027-03-01\n", "", "known/debian.yaml:9:5: log.0: 'until' is missing"),
    ("- paths: [/etc/c]", "- paths: [*c]", "known/debian.yaml:4:13: found undefined alias 'c'"),
])
def test_a_mistake_is_told_with_its_place(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in EVERY
    with pytest.raises(DescriptionError) as error:
        written(tmp_path, debian=EVERY.replace(old, new))
    assert error.value.message.startswith(said), error.value.message
    assert len(error.value.message.splitlines()) == 1


def test_a_file_that_is_empty_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"^known/debian.yaml:1:1: the file: None is not of type 'object'"):
        written(tmp_path, debian="")
    (tmp_path / "known/debian.yaml").write_bytes(b"\xff")
    with pytest.raises(DescriptionError, match=r"^known/debian.yaml cannot be read: 'utf-8' codec"):
        written(tmp_path)


def test_the_projects_own_files_are_sound_for_every_appliance() -> None:
    described = appliances_file.load(PROJECT / "appliances.yaml")
    for appliance in described.values():
        assert known.load(appliance).unowned
    names = {"debian", *(element for appliance in described.values() for element in appliance.elements)}
    assert {file.stem for file in (PROJECT / "known").iterdir()} <= names, "a file that no appliance reads"


@pytest.mark.parametrize("path", [
    "/home/debian/.netrc", "/home/debian/.aws/credentials", "/root/.ssh/config", "/run/secret",
    "/var/cache/apt/strange", "/etc/udev/rules.d/99-strange.rules", "/etc/systemd/system-generators/strange"])
def test_the_projects_own_files_leave_nothing_out_that_no_check_looks_for(path: str) -> None:
    for appliance in appliances_file.load(PROJECT / "appliances.yaml").values():
        assert known.unexpected([path], known.load(appliance).unowned)[0] == [path]


def test_paths_are_matched_as_by_dpkg() -> None:
    entries = [KnownFile(pattern, "because", f"known/a.yaml:{n}") for n, pattern in enumerate(
        ["/usr/share/man/*", "/etc/rc?.d/*", "/usr/share/*", "/usr/gone"], start=1)]
    paths = ["/usr/share/man/man1/x.gz", "/etc/rc2.d/S01x", "/etc/rc10.d/x", "/usr/share", "/etc/USR/share/x"]
    strange, unused = known.unexpected(paths, entries)
    assert strange == ["/etc/rc10.d/x", "/usr/share", "/etc/USR/share/x"]
    assert unused == [entries[3]]
    assert known.unexpected([], [replace(entries[3], optional=True)]) == ([], [])


def test_lines_stay_known_after_their_day_and_the_day_itself_is_in_time() -> None:
    entry = KnownLine(re.compile("tsc"), "emulated", date(2027, 3, 1), "known/a.yaml:1")
    assert known.unknown(["kernel: tsc: x", "kernel: fire"], [entry]) == ["kernel: fire"]
    assert known.expired([entry], date(2027, 3, 1)) == []
    assert known.expired([entry], date(2027, 3, 2)) == [entry]
    assert str(entry) == "known/a.yaml:1 (until 2027-03-01: emulated)"
