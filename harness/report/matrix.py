"""Nights of several appliances in one table: for a terminal, and as a page that leads to the report of each."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ExitCode
from harness.report.explain import closing
from harness.report.first_screen import outcome_sign, section
from harness.report.html import document, icon, sign
from harness.report.markup import Markup, tag
from harness.report.model import load
from harness.report.verdict import EXIT_CODES, Outcome, judge
from harness.run import Run
from harness.units import many, octets, seconds

NOT_RUN = "not run"
SEVERITY = (ExitCode.PASSED, ExitCode.CLOUD, ExitCode.HOST, ExitCode.DESCRIPTION, ExitCode.BUILD, ExitCode.INSPECT,
            ExitCode.NOT_READY, ExitCode.CHECK, ExitCode.NOT_REMOVED, ExitCode.INTERRUPTED)
"""Exit codes, the worst last: what says something of an image is worse than what hindered it from being said."""

_HEAD = ("appliance", "version", "release", "cloud", "time", "size", "verdict", "report")
_NOTHING = "–"


@dataclass(frozen=True)
class Row:
    """One appliance on one cloud. `outcome` is an Outcome or NOT_RUN, `said` says it in words, `took` is in seconds and
    `size` of the image in octets, None where nothing is known; `page` is the report, None where there is none."""

    appliance: str
    version: str
    release: str
    cloud: str
    outcome: str
    said: str
    code: ExitCode
    took: float | None = None
    size: int | None = None
    page: Path | None = None


def of_run(run: Run, version: str, release: str, page: Path) -> Row:
    """The row of a run that has ended."""
    report = load(run, history=0)
    verdict = judge(report)
    size = report.fact("image").get("size")
    code = ExitCode.HOST if verdict.exit_code is None else ExitCode(verdict.exit_code)
    return Row(run.appliance, version, release, run.cloud, verdict.outcome, closing(verdict, report.seconds), code,
               report.seconds, size if isinstance(size, int) else None, page)


def worst(rows: Sequence[Row]) -> ExitCode:
    """The exit code of all rows together."""
    return max((row.code for row in rows), key=SEVERITY.index, default=ExitCode.PASSED)


def sentence(rows: Sequence[Row]) -> str:
    """How many nights passed, and how many appliances had none."""
    nights = [row for row in rows if row.outcome != NOT_RUN]
    passed = sum(row.outcome == Outcome.PASSED for row in nights)
    out = len(rows) - len(nights)
    return (f"{passed} of {many(len(nights), 'night')} passed" + (f", {out} not run" if out else ""))


def text(rows: Sequence[Row], beside: Path) -> str:
    """Columns of plain text; reports are named from the directory `beside`."""
    lines = [_HEAD, *(_cells(row, beside) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEAD))]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
                     for line in lines)


def page(rows: Sequence[Row], began: str, took: float, beside: Path) -> str:
    """The whole page, which lies in the directory `beside`; `began` is a time in words, `took` in seconds."""
    outcome = _outcome(rows)
    code = worst(rows)
    body = tag(
        "body",
        tag("header", tag("p", "Dialtone", class_="brand"),
            tag("div", sign(outcome), tag("div", tag("h1", sentence(rows)),
                tag("p", f"exit {int(code)}: {EXIT_CODES[code]}", class_="closing")), class_="verdict"),
            tag("dl", [tag("div", tag("dt", name), tag("dd", value))
                       for name, value in (("began", began), ("took", seconds(took)))], class_="strip")),
        tag("main", section("Nights", tag("table", tag("thead", tag("tr", [tag("th", name, scope="col")
                                                                           for name in _HEAD])),
                                          tag("tbody", [_line(row, beside) for row in rows]), class_="compared"),
                            id_="nights")),
        class_=str(outcome))
    return document(f"{sentence(rows)}, {began}", icon(outcome), body)


def _outcome(rows: Sequence[Row]) -> Outcome:
    """The page's: that of the row that is worst."""
    code = worst(rows)
    found = next((row.outcome for row in rows if row.code == code and row.outcome != NOT_RUN), None)
    return Outcome(found) if found else Outcome.BLOCKED if code else Outcome.PASSED


def _line(row: Row, beside: Path) -> Markup:
    name, *cells, said, link = _cells(row, beside)
    mark = {Outcome.PASSED: "passed", Outcome.FAILED: "failed", NOT_RUN: "skipped"}.get(row.outcome, "error")
    return tag("tr", tag("th", name, scope="row"), [tag("td", cell) for cell in cells],
               tag("td", outcome_sign(mark), " ", said), tag("td", tag("a", "report", href=link) if row.page else link))


def _cells(row: Row, beside: Path) -> tuple[str, ...]:
    return (row.appliance, row.version, row.release, row.cloud, _NOTHING if row.took is None else seconds(row.took),
            _NOTHING if row.size is None else octets(row.size), row.said,
            os.path.relpath(row.page, beside) if row.page else _NOTHING)
