"""What was found: by a check on a server, and by the inspection of an image that is not booted."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import Fault
from harness.levels import Level


@dataclass(frozen=True)
class Figure:
    """One number that a check measured. `better` is `more` or `less`, empty where neither is."""

    name: str
    value: float
    unit: str
    better: str = ""


@dataclass(frozen=True)
class Series:
    """A curve that a check measured, one of those of the plot that is titled `plot`.

    `x` and `y` name the axes with their units, `points` are (x, y).
    """

    plot: str
    name: str
    x: str
    y: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class CheckResult:
    """One check in one phase. `outcome` is passed, failed (the image), error (not the image) or skipped.

    `expected`, `seen`, `because` and `console` (lines) explain a failure, `message` is what pytest had to say,
    `reason` why it was skipped; `seconds` covers set-up and tear-down. `seen` of one that passed is what it measured in
    words, `figures` and `series` are it in numbers: of one that is red, what it had until then. `blamed` is the
    harness.errors.Fault that an error named, empty where it named none.
    """

    id: str
    title: str
    group: str
    phase: str
    server: str
    outcome: str
    seconds: float
    expected: str = ""
    seen: str = ""
    because: str = ""
    console: tuple[str, ...] = ()
    message: str = ""
    reason: str = ""
    figures: tuple[Figure, ...] = ()
    series: tuple[Series, ...] = ()
    blamed: str = ""

    @property
    def red(self) -> bool:
        return self.outcome in {"failed", "error"}

    @property
    def fault(self) -> Fault:
        """Whose fault a red one is: a check that could not be carried out says nothing about the image."""
        if self.outcome != "error":
            return Fault.IMAGE
        return Fault(self.blamed) if self.blamed in set(Fault) else Fault.CLOUD

    def again(self, level: str) -> str:
        """The command that repeats it, in all its variants, at the level that it ran at."""
        function = self.id.rsplit("::", 1)[-1].split("[")[0]
        return "./inv check" + (f" --level {level}" if level != Level.BASIC else "") + f" -- -k {function}"


@dataclass(frozen=True)
class Finding:
    """One line of an inspection. `outcome` is passed or failed (error where it can't be read back); `because` is
    empty where no cause was found. `note` is what somebody should know that is not the image's fault."""

    title: str
    outcome: str
    expected: str
    seen: str
    because: str = ""
    hint: str = ""
    note: str = ""

    @property
    def red(self) -> bool:
        return self.outcome in {"failed", "error"}
