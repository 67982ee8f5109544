"""Two runs side by side: checks that differ, and every number that either of them has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from harness.report.history import NOISE
from harness.report.measured import figures, plots
from harness.report.model import Report
from harness.report.plot import Curve
from harness.report.text import words
from harness.results import CheckResult
from harness.units import number, octets, seconds

NOT_RUN = "not run"
MEASURED = "Measured"


@dataclass(frozen=True)
class Row:
    """One number of both runs, None where a run has none. `better` as in Figure."""

    name: str
    first: float | None
    second: float | None
    show: Callable[[float], str]
    better: str = ""

    @property
    def ratio(self) -> float | None:
        """The second over the first."""
        return self.second / self.first if self.first and self.second is not None else None

    @property
    def word(self) -> str:
        """What the second is: better, worse, or nothing where it is as the first, or neither is better."""
        if self.ratio is None or not self.better or abs(self.ratio - 1) < NOISE:
            return ""
        return "better" if (self.ratio > 1) == (self.better == "more") else "worse"


@dataclass(frozen=True)
class Differing:
    """A check whose outcome is not the same in both runs; NOT_RUN where it was not looked at."""

    title: str
    place: str
    phase: str
    first: str
    second: str


@dataclass(frozen=True)
class Overlaid:
    """A plot that bears the curves of both runs."""

    title: str
    x: str
    y: str
    curves: tuple[Curve, ...]
    note: str


@dataclass(frozen=True)
class Comparison:
    """`about` are name, first, second; `numbers` are rows by the part of a run that they tell of."""

    about: tuple[tuple[str, str, str], ...]
    checks: tuple[Differing, ...]
    alike: int
    numbers: Mapping[str, tuple[Row, ...]]
    plots: tuple[Overlaid, ...]


def compare(first: Report, second: Report) -> Comparison:
    """What differs between two runs, and their numbers."""
    differing, alike = _checks(first.checks, second.checks)
    parts = {MEASURED: _measured(first, second), "Stages": _timings(first, second, _stages),
             "Start of the server": _timings(first, second, lambda one: _numbers(one.fact("server").get("timings"))),
             "Reboot": _timings(first, second, lambda one: _numbers(one.fact("reboot").get("timings"))),
             "Image": _sizes(first, second)}
    return Comparison(_about(first, second), differing, alike, {name: rows for name, rows in parts.items() if rows},
                      _plots(first, second))


def _about(first: Report, second: Report) -> tuple[tuple[str, str, str], ...]:
    def told(one: Report) -> dict[str, str]:
        return {"run": one.run.id, "appliance": " ".join(filter(None, (one.appliance, one.version))),
                "cloud": one.cloud, "accelerator": words(one.fact("host").get("accelerator")),
                "kernel": words(one.fact("image").get("kernel")), "level": words(one.facts.get("level")),
                "exit code": words(one.facts.get("exit_code"))}

    left, right = told(first), told(second)
    return tuple((name, left[name], right[name]) for name in left if left[name] or right[name])


def _checks(first: Iterable[CheckResult], second: Iterable[CheckResult]) -> tuple[tuple[Differing, ...], int]:
    left, right = ({(check.id, check.phase): check for check in checks} for checks in (first, second))
    found, alike = [], 0
    for key in dict.fromkeys([*left, *right]):
        before, after = (own[key].outcome if key in own else NOT_RUN for own in (left, right))
        if before == after:
            alike += 1
            continue
        check = right.get(key) or left[key]
        found.append(Differing(check.title, check.id, check.phase, before, after))
    return tuple(sorted(found, key=lambda one: NOT_RUN in (one.first, one.second))), alike


def _measured(first: Report, second: Report) -> tuple[Row, ...]:
    left, right = figures(first.checks), figures(second.checks)
    rows = []
    for name in dict.fromkeys([*left, *right]):
        one = left.get(name) or right[name]
        rows.append(Row(name, left[name].value if name in left else None, right[name].value if name in right else None,
                        _with_unit(one.unit), one.better))
    return tuple(rows)


def _with_unit(unit: str) -> Callable[[float], str]:
    return lambda value: f"{number(value)} {unit}".rstrip()


def _timings(first: Report, second: Report, take: Callable[[Report], Mapping[str, float]]) -> tuple[Row, ...]:
    left, right = take(first), take(second)
    return tuple(Row(name, left.get(name), right.get(name), seconds, "less") for name in dict.fromkeys([*left, *right]))


def _stages(report: Report) -> dict[str, float]:
    return {stage.name: stage.seconds for stage in report.stages if stage.seconds is not None}


def _sizes(first: Report, second: Report) -> tuple[Row, ...]:
    rows = (_row("file", first, second, lambda one: _numbers(one.fact("image")).get("size"), octets, "less"),
            _row("packages", first, second, _packages, number))
    return tuple(row for row in rows if row.first is not None or row.second is not None)


def _row(name: str, first: Report, second: Report, take: Callable[[Report], float | None],
         show: Callable[[float], str], better: str = "") -> Row:
    return Row(name, take(first), take(second), show, better)


def _packages(report: Report) -> float | None:
    listed = report.manifest.get("packages")
    return float(len(listed)) if isinstance(listed, list | dict) else None


def _numbers(value: Any) -> dict[str, float]:
    found = value if isinstance(value, dict) else {}
    return {name: float(one) for name, one in found.items() if isinstance(one, int | float) and one is not True}


def _plots(first: Report, second: Report) -> tuple[Overlaid, ...]:
    left, right = ({one.title: one for one in plots(report.checks)} for report in (first, second))
    found = []
    for title in dict.fromkeys([*left, *right]):
        sides = [("A", left.get(title), False), ("B", right.get(title), True)]
        names = list(dict.fromkeys(series.name for _, side, _ in sides if side for series in side.series))
        curves = tuple(Curve(f"{letter}: {series.name}", series.points, names.index(series.name), dashed)
                       for letter, side, dashed in sides if side for series in side.series)
        notes = [f"{letter} is {side.note}" for letter, side, _ in sides if side and side.note]
        axes = next(side for _, side, _ in sides if side)
        found.append(Overlaid(title, axes.x, axes.y, curves, "; ".join(notes)))
    return tuple(found)
