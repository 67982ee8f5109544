"""The journal as journalctl prints it, without what checks made the server say."""

from __future__ import annotations

import json

import pytest

from harness import journal
from harness.journal import Entry

PRINTED = "".join(json.dumps({"__MONOTONIC_TIMESTAMP": str(time), **fields}) + "\n" for time, fields in [
    (1_500_000, {"SYSLOG_IDENTIFIER": "kernel", "MESSAGE": "tsc: unstable"}),
    (20_000_000, {"_COMM": "x", "MESSAGE": "two\nlines"}),
    (30_000_000, {"SYSLOG_IDENTIFIER": ["a", "b"], "MESSAGE": [104, 255]}),
    (40_000_000, {"MESSAGE": None}),
])


def test_every_form_of_a_field_is_read() -> None:
    assert list(map(str, journal.read(PRINTED))) == ["kernel: tsc: unstable", "x: two\nlines", "a b: h\ufffd", "?: "]
    assert [entry.seconds for entry in journal.read(PRINTED)] == [1.5, 20, 30, 40]
    assert journal.read("") == []


def test_what_is_no_journal_is_an_error() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        journal.read("No journal files were found.\n")


@pytest.mark.parametrize(("noted", "windows", "left"), [
    ("", [], [1.5, 20, 30, 40]),
    ("begin 10.5\n", [(10.5, float("inf"))], [1.5]),
    ("begin 10.5\nend 25.0\nbegin 35\n", [(10.5, 25), (35, float("inf"))], [1.5, 30]),
    ("begin 10.5\nbegin 25.0\nend 30 apart\n", [(10.5, 25), (25, 30)], [1.5, 40]),
    ("begin 10\nend 12\nend 25\nbegin 50\n", [(10, 12), (50, float("inf"))], [1.5, 20, 30, 40]),
])
def test_what_checks_made_the_server_say_is_left_out(noted: str, windows: list[tuple[float, float]],
                                                      left: list[float]) -> None:
    assert journal.windows(noted) == windows
    entries = [Entry(seconds, "a", "b") for seconds in (1.5, 20, 30, 40)]
    assert [entry.seconds for entry in journal.apart(entries, windows)] == left
