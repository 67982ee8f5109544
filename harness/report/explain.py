"""A red run explained in about ten lines per failure, as text for a terminal."""

from __future__ import annotations

from harness.errors import ExitCode, Fault
from harness.report.model import Failure, load
from harness.report.text import clip
from harness.report.verdict import Outcome, Verdict, blames_image, exit_phrase, fault_words, judge
from harness.run import Run
from harness.units import many, seconds

FIELDS = ("expected", "seen", "because", "also", "console", "look", "again", "next")
"""The rows of an explanation in their order; a row is there only where something was found."""

_SHOWN = 10
_TITLE_WIDTH = 50
_CONSOLE_LINES = 3
_ROW_LINES = 6
_WIDTH = 400


def text(run: Run) -> str:
    """Every failure of `run`, equal ones as one; an empty text where nothing failed."""
    failures = judge(load(run, history=0)).failures
    blocks = [block(failure) for failure in failures[:_SHOWN]]
    if len(failures) > _SHOWN:
        blocks.append(f"and {many(len(failures) - _SHOWN, 'more failure')}: {run.directory / 'report.html'}")
    return "\n".join(blocks)


def summary(run: Run) -> str:
    """The last line: `passed in 2 min 37 s`, or `failed in 3 min 02 s (exit 1: the image)`."""
    report = load(run, history=0)
    return closing(judge(report), report.seconds)


def closing(verdict: Verdict, took: float) -> str:
    """summary() of what is loaded already; `took` in seconds."""
    said = {Outcome.PASSED: "passed in", Outcome.INTERRUPTED: "interrupted after",
            Outcome.UNFINISHED: "no verdict after"}.get(verdict.outcome, "failed in")
    code, fault = verdict.exit_code, verdict.failures[0].fault if verdict.failures else ""
    if not code:
        return f"{said} {seconds(took)}"
    whose = fault_words(fault) if fault else exit_phrase(code)
    return f"{said} {seconds(took)} (exit {code}{'' if code == ExitCode.INTERRUPTED else f': {whose}'})"


def block(failure: Failure) -> str:
    """One failure: a line with its title and where it is, then its rows."""
    word = "FAILED " if blames_image(failure) else "STOPPED" if failure.fault == Fault.USER else "ERROR  "
    place = failure.where or (f"at {' and '.join(failure.stages)}" if failure.stages else "")
    out = [f"{word} {_oneline(failure.title):<{_TITLE_WIDTH}}{'  ' if place else ''}{place}".rstrip()]
    if not blames_image(failure) and failure.fault and failure.fault != Fault.USER:
        out += _row("fault", [f"{fault_words(failure.fault)}, not the image"])
    for name, rows in rows_of(failure):
        kept = rows[-_CONSOLE_LINES:] if name == "console" else rows[:_ROW_LINES]
        out += _row(name, [clip(line, _WIDTH) for line in kept])
    return "\n".join(out)


def rows_of(failure: Failure) -> list[tuple[str, list[str]]]:
    """The rows that `failure` has, as name and lines; the message stands in where nothing else was seen."""
    found = []
    for name in FIELDS:
        value = getattr(failure, name)
        if name == "also":
            rows = [f"{len(value)} more of the same cause: {'; '.join(value)}"] if value else []
        else:
            rows = list(value) if name == "console" else value.splitlines()
        if name == "seen" and not rows and failure.message and failure.title not in failure.message:
            rows = failure.message.splitlines()
        if rows:
            found.append((name, rows))
    return found


def _row(name: str, rows: list[str]) -> list[str]:
    return [f"  {name if number == 0 else '':<9} {line}".rstrip() for number, line in enumerate(rows)]


def _oneline(text: str) -> str:
    return " ".join(text.split())
