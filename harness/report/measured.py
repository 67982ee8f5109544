"""What the checks of a run measured, in figures and plots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from harness.report.first_screen import facts_list, section
from harness.report.markup import Markup, tag
from harness.report.model import Report
from harness.report.plot import Curve, plot
from harness.report.text import words
from harness.results import CheckResult, Figure, Series
from harness.units import number


@dataclass(frozen=True)
class Plotted:
    """Series that belong into one plot, and the titles of checks that came to no good end after having measured."""

    title: str
    x: str
    y: str
    series: tuple[Series, ...]
    broken: tuple[str, ...]

    @property
    def note(self) -> str:
        return f"not whole: {', '.join(self.broken)}" if self.broken else ""


def figures(checks: Sequence[CheckResult]) -> dict[str, Figure]:
    """All figures by name, which bears the phase and the server where checks of several have measured."""
    suffix = _suffixes(checks)
    return {figure.name + suffix(check): figure for check in checks for figure in check.figures}


def plots(checks: Sequence[CheckResult]) -> list[Plotted]:
    """All series by the plot that they belong to, in the order in which they were measured; named as figures are."""
    suffix = _suffixes(checks)
    found: dict[str, list[tuple[Series, CheckResult]]] = {}
    for check in checks:
        for one in check.series:
            found.setdefault(one.plot, []).append((replace(one, name=one.name + suffix(check)), check))
    return [Plotted(title, own[0][0].x, own[0][0].y, tuple(one for one, _ in own),
                    tuple(dict.fromkeys(check.title for _, check in own if check.red)))
            for title, own in found.items()]


def _suffixes(checks: Sequence[CheckResult]) -> Callable[[CheckResult], str]:
    """What tells a check's measurements from those of another phase or server."""
    places = {(check.phase, check.server) for check in checks if check.figures or check.series}
    phases, servers = {phase for phase, _ in places}, {server for _, server in places}

    def suffix(check: CheckResult) -> str:
        return (f", {check.phase}" if len(phases) > 1 else "") + (f", {check.server}" if len(servers) > 1 else "")

    return suffix


def shown(figure: Figure) -> str:
    """A figure with its unit."""
    return f"{number(figure.value)} {figure.unit}".rstrip()


def measured(report: Report) -> Markup | None:
    """The section of the page; None where no check measured anything."""
    numbers, curves = figures(report.checks), plots(report.checks)
    if not numbers and not curves:
        return None
    drawn = [plot(one.title, one.x, one.y,
                  [Curve(series.name, series.points, hue) for hue, series in enumerate(one.series)], one.note)
             for one in curves]
    return section("Measured", facts_list([(name, shown(figure)) for name, figure in numbers.items()], "facts numbers"),
                   tag("div", *drawn, class_="plots") if drawn else None,
                   id_="measured", note=words(report.fact("host").get("accelerator")))
