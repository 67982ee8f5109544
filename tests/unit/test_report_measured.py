from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from harness.report import write, write_comparison
from harness.report.compare import NOT_RUN, Row, compare
from harness.report.measured import figures, plots
from harness.report.model import checks, load
from harness.results import CheckResult, Figure, Series
from harness.run import Run
from harness.units import number
from tests.report_samples import FIRST, green, loaded, red
from tests.unit.test_report_html import Page

CHECK = CheckResult("test_load.py::test_calls", "calls are held", "load", FIRST, "server1", "passed", 1.0,
                    figures=(Figure("calls held", 120, "calls", "more"),),
                    series=(Series("Loss", "kernel", "calls", "%", ((25, 0), (50, 1))),))


def test_one_place_of_measuring_needs_no_name() -> None:
    assert figures([CHECK]) == {"calls held": CHECK.figures[0]}
    assert plots([CHECK])[0].series == CHECK.series


def test_phases_and_servers_are_told_apart() -> None:
    again, other = replace(CHECK, phase="after reboot"), replace(CHECK, server="server2")
    assert list(figures([CHECK, again])) == ["calls held, first boot", "calls held, after reboot"]
    assert [one.name for one in plots([CHECK, other])[0].series] == ["kernel, server1", "kernel, server2"]


def test_series_of_several_checks_share_a_plot_and_a_red_one_marks_it() -> None:
    user = replace(CHECK, title="calls in user space", outcome="error", series=(replace(CHECK.series[0], name="user"),))
    [found] = plots([CHECK, user])
    assert [one.name for one in found.series] == ["kernel", "user"]
    assert found.note == "not whole: calls in user space"
    assert plots([CHECK])[0].note == ""


def test_the_page_shows_figures_and_plots_and_marks_what_is_not_whole(tmp_path: Path) -> None:
    page = Page(write(loaded(tmp_path)))
    for words in ("calls held, in the kernel", "640 calls", "Loss over calls", "% of packets lost",
                  "packets relayed a second", "not whole: calls are held, user_space"):
        assert words in page.text, words
    assert page.elements.count("figure") == 4
    assert "figure" not in Page(write(green(tmp_path / "other"))).elements


def test_programs_get_the_numbers_too(tmp_path: Path) -> None:
    run = loaded(tmp_path)
    write(run)
    data = json.loads((run.directory / "report.json").read_text())
    taken = [check for check in data["checks"] if check["figures"]]
    assert [one["value"] for check in taken for one in check["figures"]] == [640, 130]
    assert taken[0]["series"][0]["points"][0] == [25, 0]


@pytest.mark.parametrize("torn", [
    {"figures": 5, "series": "x"}, {"figures": [5, {}, {"value": "many"}], "series": [5, {}, {"points": 7}]},
    {"figures": [{"name": "a", "value": True}], "series": [{"plot": "p", "points": [5, [1], [1, "x"], [None, 1]]}]}])
def test_numbers_of_a_wrong_shape_are_passed_over(tmp_path: Path, torn: dict[str, object]) -> None:
    run = green(tmp_path)
    with (run.directory / "checks-first-boot.jsonl").open("a") as out:
        out.write(json.dumps({"id": "x", "title": "torn", "phase": FIRST, "outcome": "passed"} | torn) + "\n")
    found = checks(run.directory)[-1]
    assert found.figures == () and all(one.points == () for one in found.series)
    Page(write(run))


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    found = compare(load(loaded(tmp_path, 20)), load(loaded(tmp_path, 21, 0.5)))
    held = {row.name: row for row in found.numbers["Measured"]}["calls held, in the kernel"]
    assert (held.first, held.second, held.ratio, held.word) == (640, 320, 0.5, "worse")
    check = {row.name: row for row in found.numbers["Stages"]}["check"]
    assert (check.ratio, check.word) == (0.5, "better")
    assert found.checks == () and found.alike > 20
    loss = found.plots[0]
    assert [(one.name, one.hue, one.second) for one in loss.curves] == [
        ("A: in the kernel", 0, False), ("A: in user space", 1, False), ("B: in the kernel", 0, True),
        ("B: in user space", 1, True)]


def test_a_run_by_kernel_beside_a_run_by_user_space(tmp_path: Path) -> None:
    """Each measured one way only: both are in the same plot, and nothing is divided by nothing."""
    def only(number: int, kept: str) -> Run:
        run = loaded(tmp_path, number)
        file = run.directory / "checks-first-boot.jsonl"
        lines = [line for line in file.read_text().splitlines() if "test_load.py" not in line or kept in line]
        file.write_text("\n".join(lines) + "\n")
        return run

    kernel, user = only(20, "test_kernel"), only(21, "test_user_space")
    text, page = write_comparison(kernel, user)
    said = " ".join(text.split())
    assert "calls held, in the kernel 640 calls – " in said and "calls held, in user space – 130 calls " in said
    shown = Page(page)
    assert page.parent == user.directory and "A: in the kernel" in shown.text and "B: in user space" in shown.text
    assert "is not whole" in shown.text and shown.elements.count("figure") == 3


def test_checks_that_differ_are_named(tmp_path: Path) -> None:
    first, second = green(tmp_path / "a"), red(tmp_path / "b")
    text, page = write_comparison(first, second)
    assert "media is forwarded in the kernel (first boot) passed failed" in " ".join(text.split())
    shown = Page(page).text
    assert "media is forwarded in the kernel" in shown and NOT_RUN in shown and "after reboot" in shown


@pytest.mark.parametrize(("first", "second", "better", "ratio", "word"), [
    (100, 120, "more", 1.2, "better"), (100, 120, "less", 1.2, "worse"), (100, 105, "more", 1.05, ""),
    (100, 120, "", 1.2, ""), (0, 120, "more", None, ""), (None, 1, "more", None, ""), (1, None, "less", None, "")])
def test_better_and_worse(first: float, second: float, better: str, ratio: float | None, word: str) -> None:
    row = Row("x", first, second, number, better)
    assert (row.ratio, row.word) == (ratio, word)
