from __future__ import annotations

import pytest

from harness.units import many, number, octets, seconds


@pytest.mark.parametrize(("value", "text"), [
    (0.01, "0 s"), (0.4, "0.4 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (157, "2 min 37 s"),
    (3599.7, "1 h 00 min"), (3720, "1 h 02 min")])
def test_durations_read_well(value: float, text: str) -> None:
    assert seconds(value) == text


def test_sizes_are_decimal() -> None:
    assert octets(168_400_000) == "168 MB"


def test_counts() -> None:
    assert (many(1, "check"), many(3, "process", "processes")) == ("1 check", "3 processes")


@pytest.mark.parametrize(("value", "text"), [
    (0, "0"), (-0.0, "0"), (-0.0001, "0"), (0.127, "0.127"), (0.0004, "0"), (1.5, "1.5"), (2.0, "2"), (12.74, "12.7"),
    (100, "100"), (12_000.4, "12,000"), (-3.25, "-3.25")])
def test_numbers_have_three_digits_or_more(value: float, text: str) -> None:
    assert number(value) == text
