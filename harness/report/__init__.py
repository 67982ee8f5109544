"""What is left of a run for people and machines to read: report.html, junit.xml, report.json in its directory."""

from __future__ import annotations

import json
from pathlib import Path

from harness.report import compare_view, html, junit
from harness.report.compare import compare
from harness.report.data import as_data
from harness.report.model import load
from harness.report.verdict import judge
from harness.run import Run, write_whole

__all__ = ["write", "write_comparison"]


def write(run: Run) -> Path:
    """Write the three files of `run`; return the path of the page. Raises OSError where they can't be written.

    Works for a run in any state: what is not known is not said.
    """
    report = load(run)
    verdict = judge(report)
    write_whole(run.directory / "report.json", json.dumps(as_data(report, verdict), indent=1, ensure_ascii=False))
    write_whole(run.directory / "junit.xml", junit.render(report, verdict))
    page = run.directory / "report.html"
    write_whole(page, html.render(report, verdict))
    return page


def write_comparison(first: Run, second: Run) -> tuple[str, Path]:
    """Two runs side by side: the text, and the page, which is written into the second one's directory."""
    found = compare(load(first, history=0), load(second, history=0))
    page = second.directory / f"compared-with-{first.id}.html"
    write_whole(page, compare_view.page(found))
    return compare_view.text(found), page
