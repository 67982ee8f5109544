"""The report as one HTML page: no script, no font, no file beside it; less than LARGEST octets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files

from harness import __version__
from harness.report import details, first_screen
from harness.report.explain import closing
from harness.report.markup import Markup, tag
from harness.report.measured import measured
from harness.report.model import Report
from harness.report.verdict import Outcome, Verdict
from harness.units import seconds

LARGEST = 2_000_000
"""Octets; mail gateways and phones take a page of this size."""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_SIGNS = {
    Outcome.PASSED: ("✓", "M15 25.5 l7 7 l14 -15"),
    Outcome.FAILED: ("✕", "M16 16 l18 18 m0 -18 l-18 18"),
    Outcome.BLOCKED: ("!", "M25 12 v16 m0 8 v.5"),
    Outcome.INTERRUPTED: ("■", "M19 15 v20 m12 -20 v20"),
    Outcome.UNFINISHED: ("?", "M17 25 h.5 m7.5 0 h.5 m7.5 0 h.5"),
}


@dataclass(frozen=True)
class Room:
    """How much of what can be long is shown, in characters and in failures."""

    console: int = 500_000
    log: int = 150_000
    explanation: int = 4_000
    failures: int = 12
    passed_names: bool = True


_ROOMS = (Room(), Room(150_000, 40_000, 1_500, 8), Room(30_000, 10_000, 300, 5),
          Room(8_000, 4_000, 120, 3, passed_names=False))


def render(report: Report, verdict: Verdict) -> str:
    """The whole page. What is long is cut, and says so, until the page is below LARGEST octets."""
    page = ""
    for room in _ROOMS:
        page = _page(report, verdict, room)
        if len(page.encode()) < LARGEST:
            break
    return page


def _page(report: Report, verdict: Verdict, room: Room) -> str:
    character, _ = _SIGNS[verdict.outcome]
    began = datetime.fromtimestamp(report.run.started, UTC)
    body = tag(
        "body", _hero(report, verdict, began),
        tag("main",
            first_screen.failures(report, verdict, room.failures, room.explanation),
            first_screen.warnings(report),
            tag("div", tag("div", first_screen.timeline(report), details.start(report), details.reboot(report)),
                tag("div", first_screen.image(report), details.cloud(report), details.machine(report)), class_="pair"),
            first_screen.conntrack(report),
            measured(report),
            details.checks(report, verdict, room.failures, room.explanation, passed_names=room.passed_names),
            details.history(report, verdict),
            details.sources(report),
            details.consoles(report, verdict, room.console),
            details.build_log(report, room.log),
            details.manifest(report),
            details.removed(report)),
        tag("footer", f"Dialtone {__version__} · run {report.run.id} · this page needs no network and no script"),
        class_=str(verdict.outcome))
    return document(f"{character} {report.appliance} {verdict.outcome}, {began:%Y-%m-%d}", icon(verdict.outcome), body)


def document(title: str, icon: str | None, body: Markup) -> str:
    """A whole page around `body`, with the style of all pages; `icon` is a URL."""
    head = tag(
        "head", tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("link", rel="icon", href=icon) if icon else None,
        tag("style", _style()))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _hero(report: Report, verdict: Verdict, began: datetime) -> Markup:
    facts: list[tuple[str, str | Markup]] = [
        ("appliance", " ".join(filter(None, (report.appliance, report.version)))),
        ("cloud", report.cloud),
        ("began", tag("time", f"{began:%d %b %Y, %H:%M} UTC", datetime=f"{began:%Y-%m-%dT%H:%M:%SZ}")),
        ("took", seconds(report.seconds)),
        ("exit code", "none" if verdict.exit_code is None else str(verdict.exit_code)),
    ]
    return tag(
        "header",
        tag("p", "Dialtone", tag("span", "run ", report.run.id), class_="brand"),
        tag("div", sign(verdict.outcome),
            tag("div", tag("h1", verdict.sentence),
                tag("p", closing(verdict, report.seconds), class_="closing")), class_="verdict"),
        tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts], class_="strip"))


def sign(outcome: Outcome) -> Markup:
    """The verdict as a picture."""
    _, path = _SIGNS[outcome]
    ground = (tag("path", d="M25 3 L48 45 H2 Z", class_="ground") if outcome is Outcome.BLOCKED
              else tag("circle", cx=25, cy=25, r=24, class_="ground"))
    return tag("svg", tag("title", str(outcome)), ground, tag("path", d=path, class_="stroke"), class_="sign",
               viewBox="0 0 50 50", role="img")


def icon(outcome: Outcome) -> str:
    """The same for a browser's tab, as a URL."""
    _, path = _SIGNS[outcome]
    colour = {"passed": "0b6e6e", "failed": "b3400a"}.get(outcome, "6b5a2a")
    return ("data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 50 50'>"
            f"<circle cx='25' cy='25' r='25' fill='%23{colour}'/>"
            f"<path d='{path}' fill='none' stroke='white' stroke-width='6' stroke-linecap='round'/></svg>")


@cache
def _style() -> Markup:
    return Markup(files("harness.report").joinpath("report.css").read_text(encoding="utf-8"))
