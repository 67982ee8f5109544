"""A run directory as one value: all that a report says, read from disk and made safe to print.

Everything but run.json may be missing, torn or of a wrong shape: a run that died at its first stage must
still give a good report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.levels import Level
from harness.report.text import clean, lines, scrub, words
from harness.results import CheckResult, Figure, Finding, Series
from harness.run import Run, Stage

CONSOLE_OCTETS = 4_000_000
"""No more than this is read from the end of a console or log."""


@dataclass(frozen=True)
class Failure:
    """What the ten lines of an explanation say; `fault` is a harness.errors.Fault, or empty where unknown.

    `also` names further failures of the same cause, `places` where all of them are.
    """

    title: str
    stages: tuple[str, ...] = ()
    where: str = ""
    expected: str = ""
    seen: str = ""
    because: str = ""
    console: tuple[str, ...] = ()
    look: str = ""
    again: str = ""
    next: str = ""
    fault: str = ""
    message: str = ""
    also: tuple[str, ...] = ()
    places: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """A resource of the run; `gone` says that it was removed."""

    kind: str
    name: str
    gone: bool


@dataclass(frozen=True)
class Log:
    """The end of a text file: `omitted` octets before it are not in `text`."""

    name: str
    text: str
    omitted: int = 0


@dataclass(frozen=True)
class Past:
    """An earlier run, as the history needs it. `ran` holds the ids of its checks that were not skipped."""

    id: str
    started: float
    exit_code: int | None
    stages: dict[str, float]
    size: int | None
    from_cache: bool
    ready: float | None
    ran: frozenset[str]
    red: frozenset[str]
    level: str


@dataclass(frozen=True)
class Report:
    """A run, loaded. `history` holds earlier runs of the same appliance on the same cloud, oldest first.

    `project` is the beginning that paths of this project have on this machine, with a slash at its end.
    """

    run: Run
    dead: bool
    stages: tuple[Stage, ...]
    checks: tuple[CheckResult, ...]
    findings: tuple[Finding, ...]
    told: tuple[Failure, ...]
    manifest: dict[str, Any]
    consoles: tuple[Log, ...]
    build_log: Log | None
    made: tuple[Made, ...]
    facts: dict[str, Any]
    history: tuple[Past, ...]
    project: str

    def fact(self, name: str) -> dict[str, Any]:
        """A fact that is a mapping; empty where it is missing or something else."""
        value = self.facts.get(name)
        return value if isinstance(value, dict) else {}

    def facts_list(self, name: str) -> list[Any]:
        value = self.facts.get(name)
        return value if isinstance(value, list) else [value] if value else []

    @property
    def appliance(self) -> str:
        return clean(self.run.appliance)

    @property
    def cloud(self) -> str:
        return clean(self.run.cloud)

    @property
    def seconds(self) -> float:
        """From the start of the run to the end of its last stage."""
        ends = [stage.started + (stage.seconds or 0.0) for stage in self.stages]
        return max([end - self.run.started for end in ends] or [0.0])

    @property
    def version(self) -> str:
        used = self.fact("source").get("used")
        return words(used.get("version")) if isinstance(used, dict) else ""


def load(run: Run, *, history: int = 20) -> Report:
    """Everything that is known of `run`, with up to `history` earlier runs that lie beside it."""
    directory = run.directory
    facts = scrub(run.facts)
    # Paths below the project read better, and can be pasted, without the part that is this machine's.
    project = f"{directory.parent.parent}/"
    return Report(
        run=run,
        dead=run.dead,
        stages=tuple(Stage(clean(s.name), s.started, s.seconds, s.outcome, clean(s.detail)) for s in run.stages),
        checks=checks(directory),
        findings=tuple(_finding(entry) for entry in _entries(_json(directory / "inspect.json"))),
        told=tuple(_failure(entry, project) for entry in _entries(facts.get("failures"))),
        manifest=_manifest(directory, facts),
        consoles=tuple(log for path in sorted(directory.glob("*/console.log"))
                       if (log := tail(path, clean(path.parent.name)))),
        build_log=_build_log(directory, facts),
        made=_made(directory / "journal.jsonl"),
        facts=facts,
        history=tuple(_past(other) for other in run.earlier()[-history:]) if history else (),
        project=project,
    )


def checks(directory: Path) -> tuple[CheckResult, ...]:
    """The checks of a run directory in the order in which they were written, first boot before later ones."""
    files = sorted(directory.glob("checks-*.jsonl"), key=lambda path: (path.stat().st_mtime_ns, path.name))
    return tuple(_check(entry, path.stem.removeprefix("checks-")) for path in files for entry in _json_lines(path))


def ran(found: Iterable[CheckResult]) -> frozenset[str]:
    """Ids of the checks that say something of the image: a skipped one is neither red nor green."""
    return frozenset(check.id for check in found if check.outcome != "skipped")


def tail(path: Path, name: str) -> Log | None:
    """The last CONSOLE_OCTETS of a text file, cleaned; None where there is nothing to read."""
    try:
        with path.open("rb") as file:
            omitted = max(0, path.stat().st_size - CONSOLE_OCTETS)
            file.seek(omitted)
            text = clean(file.read().decode("utf-8", "replace"))
    except OSError:
        return None
    return Log(name, text.strip("\n"), omitted) if text.strip() else None


def _check(entry: dict[str, Any], phase: str) -> CheckResult:
    return CheckResult(
        id=words(entry.get("id")), title=words(entry.get("title")) or words(entry.get("id")) or "a check",
        group=words(entry.get("group")) or "other", phase=words(entry.get("phase")) or phase,
        server=words(entry.get("server")), outcome=words(entry.get("outcome")) or "error",
        seconds=_number(entry.get("seconds")) or 0.0, expected=words(entry.get("expected")),
        seen=words(entry.get("seen")), because=words(entry.get("because")),
        console=tuple(lines(entry.get("console"))), message=words(entry.get("message")),
        reason=words(entry.get("reason")),
        figures=tuple(figure for one in _entries(entry.get("figures")) if (figure := _figure(one))),
        series=tuple(_series(one) for one in _entries(entry.get("series"))), blamed=words(entry.get("blamed")))


def _figure(entry: dict[str, Any]) -> Figure | None:
    value = _number(entry.get("value"))
    return None if value is None else Figure(words(entry.get("name")), value, words(entry.get("unit")),
                                             words(entry.get("better")))


def _series(entry: dict[str, Any]) -> Series:
    points = entry.get("points")
    pairs = [tuple(_number(value) for value in point) for point in (points if isinstance(points, list) else ())
             if isinstance(point, list)]
    return Series(words(entry.get("plot")), words(entry.get("name")), words(entry.get("x")), words(entry.get("y")),
                  tuple((pair[0], pair[1]) for pair in pairs
                        if len(pair) == 2 and pair[0] is not None and pair[1] is not None))


def _finding(entry: dict[str, Any]) -> Finding:
    return Finding(words(entry.get("title")) or "a finding", words(entry.get("outcome")) or "error",
                   words(entry.get("expected")), words(entry.get("seen")), words(entry.get("because")),
                   words(entry.get("hint")))


def _failure(entry: dict[str, Any], project: str) -> Failure:
    stage = words(entry.get("stage"))
    title = words(entry.get("title")) or words(entry.get("message")) or "a failure that says nothing of itself"
    return Failure(
        title=title, stages=(stage,) if stage else (), where=words(entry.get("where")).removeprefix(project),
        expected=words(entry.get("expected")), seen=words(entry.get("seen")), because=words(entry.get("because")),
        console=tuple(lines(entry.get("console"))), look=words(entry.get("look")), again=words(entry.get("again")),
        next=words(entry.get("next")), fault=words(entry.get("fault")), message=words(entry.get("message")))


def _made(journal: Path) -> tuple[Made, ...]:
    gone: dict[tuple[str, str], bool] = {}
    for entry in _json_lines(journal):
        gone[words(entry.get("kind")), words(entry.get("name"))] = entry.get("event") == "gone"
    return tuple(Made(kind, name, is_gone) for (kind, name), is_gone in gone.items())


def _past(run: Run) -> Past:
    image, server, code = (run.facts.get(name) for name in ("image", "server", "exit_code"))
    image, timings = _mapping(image), _mapping(_mapping(server).get("timings"))
    size = _number(image.get("size"))
    found = checks(run.directory)
    return Past(
        id=run.id, started=run.started, exit_code=code if isinstance(code, int) else None,
        stages={s.name: s.seconds for s in run.stages if s.seconds is not None and s.outcome == "passed"},
        size=None if size is None else int(size), from_cache=bool(image.get("from_cache")),
        ready=_number(timings.get("ready")),
        ran=ran(found), red=frozenset(check.id for check in found if check.red),
        level=level_of(run.facts))


def level_of(facts: dict[str, Any]) -> str:
    """The level at which a run's checks ran."""
    level = facts.get("level")
    return level if isinstance(level, str) else Level.BASIC


def _build_log(directory: Path, facts: dict[str, Any]) -> Log | None:
    own = tail(directory / "build.log", "build.log")
    named = facts.get("build_log")
    return own or (tail(directory / named, Path(named).name) if isinstance(named, str) else None)


def _manifest(directory: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The run's own manifest, else the one beside the image where that still is the image of this run."""
    own = _mapping(_json(directory / "manifest.json"))
    image = _mapping(facts.get("image"))
    if own or not isinstance(image.get("path"), str):
        return own
    beside = _mapping(_json((directory / image["path"]).parent / "manifest.json"))
    return beside if beside.get("sha256") == image.get("sha256") else {}


def _json(path: Path) -> Any:
    try:
        return scrub(json.loads(path.read_text(encoding="utf-8", errors="replace")))
    except (OSError, ValueError):
        return None


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.split("\n"):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield scrub(entry)


def _entries(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        yield from (entry for entry in value if isinstance(entry, dict))


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite else None
