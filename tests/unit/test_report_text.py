from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report.text import clean, clip, scrub, words
from harness.units import octets, seconds
from tests.report_samples import HOSTILE


@pytest.mark.parametrize(("raw", "shown"), [
    ("\x1b[31;1mred\x1b[0m", "red"),
    ("\x1b]0;title\x07text", "text"),
    ("\x1b]8;;http://example.net\x1b\\link\x1b]8;;\x1b\\", "link"),
    ("\x1b(Bplain\x1bM", "plain"),
    ("10 %\r20 %\r\ndone", "10 %\n20 %\ndone"),
    ("nul\x00bell\x07", "nulbell\ufffd"),
    ("\u202egnp.exe", "\ufffdgnp.exe"),
    ("lone \ud800 surrogate", "lone \ufffd surrogate"),
    ("Grüße, 電話 ✓", "Grüße, 電話 ✓"),
])
def test_clean(raw: str, shown: str) -> None:
    assert clean(raw) == shown


@given(st.text())
def test_clean_leaves_only_what_xml_allows_and_is_stable(text: str) -> None:
    once = clean(text)
    assert clean(once) == once
    assert all(c in "\t\n" or " " <= c <= "\ud7ff" or "\ue000" <= c <= "\ufffd" or c > "\uffff" for c in once)
    once.encode()


def test_scrub_reaches_keys_and_depths() -> None:
    assert scrub({"a\x07": [{"b": HOSTILE}, 3, None, True]}) == {"a\ufffd": [{"b": clean(HOSTILE)}, 3, None, True]}


def test_words_for_any_json() -> None:
    values = (None, "a", ["a", "b"], 3, True, {"k": [1]})
    assert [words(value) for value in values] == ["", "a", "a\nb", "3", "yes", '{"k": [1]}']


def test_numbers_for_people() -> None:
    assert [seconds(v) for v in (0.44, 9.4, 47.6)] == ["0.4 s", "9.4 s", "48 s"]
    assert [seconds(v) for v in (157, 3720)] == ["2 min 37 s", "1 h 02 min"]
    assert [octets(v) for v in (12, 1500, 168_300_000, 4_294_967_296)] == ["12 B", "1.5 kB", "168 MB", "4.3 GB"]


def test_clip_says_how_much_is_missing() -> None:
    assert clip("short", 10) == "short"
    assert clip("x" * 1500, 100).endswith("… (1,400 characters more)")
