from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.report.plot import Curve, axis, plot


@pytest.mark.parametrize(("values", "ticks"), [
    ([0, 800], [0, 200, 400, 600, 800]), ([25, 50, 400], [0, 100, 200, 300, 400]),
    ([0, 0, 0], [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ([0.02, 0.09], [0, 0.02, 0.04, 0.06, 0.08, 0.1]), ([61, 64], [61, 62, 63, 64]), ([], [0, 0.2, 0.4, 0.6, 0.8, 1])])
def test_ticks_are_round(values: list[float], ticks: list[float]) -> None:
    assert axis(values).ticks == pytest.approx(ticks)


@given(st.lists(st.floats(-1e12, 1e12).map(lambda value: float(f"{value:.6g}")), min_size=1))
def test_an_axis_holds_all_values_and_few_ticks(values: list[float]) -> None:
    found = axis(values)
    assert 2 <= len(found.ticks) <= 8
    for value in values:
        assert -1e-6 <= found.part(value) <= 1 + 1e-6


def test_a_curve_lies_where_its_numbers_say() -> None:
    drawn = plot("Loss", "calls", "%", [Curve("one", ((0, 0), (100, 10)), 0), Curve("two", ((50, 5),), 7, second=True)])
    assert 'points="50.0,178.0 336.0,10.0"' in drawn
    assert drawn.count("<polyline") == 1, "a single point has no line"
    assert 'class="curve h1 second"' in drawn and drawn.count("<li>") == 2
    assert "<th scope=\"row\">50</th><td></td><td>5</td>" in drawn


def test_what_was_not_measured_is_not_drawn() -> None:
    drawn = plot("Loss", "calls", "%", [Curve("one", (), 0)], note="not whole")
    assert "<polyline" not in drawn and "<li>" not in drawn and "not whole" in drawn


def test_long_curves_are_thinned() -> None:
    drawn = plot("Entries", "s", "n", [Curve("one", tuple((x, math.sin(x)) for x in range(5000)), 0)])
    assert len(drawn) < 60_000
    assert len(re.findall(r"<tr>", drawn)) <= 402


def test_names_are_escaped() -> None:
    assert "<b>" not in plot("<b>", "<b>", "<b>", [Curve("<b>", ((1, 1),), 0)], "<b>")


def test_every_hue_has_a_colour_on_screen_in_the_dark_and_on_paper(project: Path) -> None:
    style = (project / "harness" / "report" / "report.css").read_text()
    for hue in range(6):
        assert style.count(f"--h{hue}: #") == 3 and f".h{hue} {{ --hue: var(--h{hue}); }}" in style
