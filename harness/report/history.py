"""A run against the runs before it: which figures got better or worse, and which failures are new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from harness.report.model import Past, Report, level_of, ran
from harness.units import octets, seconds

NOISE = 0.10
"""A change below this part of the usual value is as usual; on a shared machine times vary by more than that."""


@dataclass(frozen=True)
class Trend:
    """One figure over the runs, oldest first and this run's last; less is better for all of them.

    `change` is relative to the median of the runs before, None where there are none.
    """

    name: str
    values: tuple[float, ...]
    show: Callable[[float], str]
    change: float | None

    @property
    def word(self) -> str:
        """better, worse, as usual; or that there is nothing to compare with."""
        if self.change is None:
            return "nothing to compare with yet"
        if abs(self.change) < NOISE:
            return "as usual"
        return "better" if self.change < 0 else "worse"


def trends(report: Report) -> tuple[Trend, ...]:
    """The figures that this run has. Like is compared with like: stages, level, whether the image is from the cache."""
    now = _as_past(report)
    alike = [past for past in report.history if past.from_cache == now.from_cache]
    checked = [past for past in report.history if past.level == now.level]
    whole = [past for past in alike if past in checked and past.stages.keys() == now.stages.keys()]
    found = [
        _trend("whole run", lambda p: sum(p.stages.values()) if p.exit_code == 0 else None, seconds, whole, now),
        _trend("build" + (" (from cache)" if now.from_cache else ""), lambda p: p.stages.get("build"), seconds,
               alike, now),
        _trend("server ready", lambda p: p.ready, seconds, report.history, now),
        _trend("check", lambda p: p.stages.get("check"), seconds, checked, now),
        _trend("reboot", lambda p: p.stages.get("reboot"), seconds, checked, now),
        _trend("image size", lambda p: p.size, octets, report.history, now),
    ]
    return tuple(trend for trend in found if trend)


def last_night(report: Report) -> dict[str, float]:
    """Seconds of each stage in the run before: as the run noted it, else as found beside it."""
    noted = {name: float(value) for name, value in report.fact("previous").items()
             if isinstance(value, int | float) and not isinstance(value, bool)}
    if noted or not report.history:
        return noted
    return report.history[-1].stages


def red_since(report: Report, check_id: str) -> str | None:
    """Id of the run since which a check is red without a break, None where it is new (or nothing is known).

    Runs that ended before the check, or skipped it, say nothing of it.
    """
    since = None
    for past in reversed(report.history):
        if check_id in past.red:
            since = past.id
        elif check_id in past.ran:
            break
    return since


def _trend(name: str, take: Callable[[Past], float | None], show: Callable[[float], str],
           before: list[Past] | tuple[Past, ...], now: Past) -> Trend | None:
    current = take(now)
    if current is None:
        return None
    earlier = [value for past in before if (value := take(past)) is not None]
    usual = median(earlier) if earlier else None
    return Trend(name, (*earlier, current), show, (current - usual) / usual if usual else None)


def _as_past(report: Report) -> Past:
    code, image = report.facts.get("exit_code"), report.fact("image")
    timings = report.fact("server").get("timings")
    ready = timings.get("ready") if isinstance(timings, dict) else None
    size = image.get("size")
    return Past(
        id=report.run.id, started=report.run.started, exit_code=code if isinstance(code, int) else None,
        stages={s.name: s.seconds for s in report.stages if s.seconds is not None and s.outcome == "passed"},
        size=size if isinstance(size, int) else None, from_cache=bool(image.get("from_cache")),
        ready=float(ready) if isinstance(ready, int | float) else None,
        ran=ran(report.checks),
        red=frozenset(check.id for check in report.checks if check.red), level=level_of(report.facts))
