"""The nights of all appliances: images first, several at a time, then night after night, and one matrix of them.

    <runs>/nights-<time>/index.html    the matrix, with links to the reports
    <runs>/nights-<time>/matrix.json
    <runs>/nights-<time>/log           what the runs printed, as JSON lines

Each run is a process of its own, as if it were started by hand.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

from harness import appliance as appliances_file
from harness.appliance import Appliance
from harness.cloud.choose import choose
from harness.deadline import Cancellable
from harness.errors import DescriptionError, ExitCode
from harness.image import repository
from harness.image.root import memory_available
from harness.levels import Level
from harness.nightly import stoppable, unstoppable
from harness.process import follow
from harness.progress import Progress
from harness.report import matrix
from harness.report import write as write_report
from harness.report.matrix import NOT_RUN, Row
from harness.run import Run, write_whole
from harness.settings import Settings
from harness.units import many, seconds

LIMIT = 24 * 3600.0
"""Seconds that all of it may take."""

CORES, MEMORY = 2, 2 * 2**30
"""What one build can use: processors, and octets for its files, its tools and the kernel's cache of them."""


@dataclass(frozen=True)
class Wanted:
    """What `--all` is asked for. `names` are appliances; without any it is all that have what they need."""

    names: tuple[str, ...]
    clouds: tuple[str, ...]
    level: Level
    keep: str
    force: bool


@dataclass
class _Told:
    """What a run's process has said so far: which run it is, or why there is none."""

    run: str = ""
    why: str = ""


def conduct(settings: Settings, wanted: Wanted, progress: Progress) -> int:
    """All nights, and the matrix. Returns the worst exit code of them.

    Raises DescriptionError for an unknown appliance or cloud, and where nothing can be run.
    """
    wanted = replace(wanted, names=tuple(dict.fromkeys(wanted.names)), clouds=tuple(dict.fromkeys(wanted.clouds)))
    described = appliances_file.load(settings.appliances)
    chosen = [appliances_file.select(described, name) for name in wanted.names] or list(described.values())
    for name in wanted.clouds:
        choose(replace(settings, cloud=name))
    rows, ready = divided(chosen, wanted)
    if not ready:
        raise DescriptionError("there is nothing to be run", excerpt="\n".join(
            f"{row.appliance} is not run: {row.said}" for row in rows))
    began, start = datetime.now(UTC), time.monotonic()
    place = settings.runs / f"nights-{began:%Y%m%d-%H%M%S}"
    place.mkdir(parents=True, mode=0o750)
    limit = Cancellable(LIMIT)
    progress.line(f"{many(len(ready), 'appliance')} on {', '.join(wanted.clouds)}")
    for row in rows:
        progress.line(f"  {row.appliance} is not run: {row.said}")
    with stoppable():
        with progress.stage("builds"):
            failed = _builds(settings, ready, wanted, place, progress, limit)
            rows += [replace(row, cloud=cloud) for row in failed for cloud in wanted.clouds]
            progress.detail(many(len(ready) - len(failed), "image") + (f", {len(failed)} FAILED" if failed else ""))
        built = [one for one in ready if one.name not in {row.appliance for row in failed}]
        for cloud in wanted.clouds:
            for one in built:
                with progress.stage(one.name if len(wanted.clouds) == 1 else f"{one.name} on {cloud}"):
                    words = ["--cloud", cloud, "--level", str(wanted.level), "--keep", wanted.keep]
                    rows.append(_run(settings, one, cloud, ["nightly", *words], place, progress.detail, limit))
                    progress.detail(rows[-1].said)
    rows.sort(key=lambda row: (list(described).index(row.appliance), row.cloud))
    took = time.monotonic() - start
    page = place / "index.html"
    write_whole(page, matrix.page(rows, f"{began:%d %b %Y, %H:%M} UTC", took, place))
    write_whole(place / "matrix.json", json.dumps([asdict(row) for row in rows], indent=1, default=os.fspath))
    progress.line(matrix.text(rows, settings.project))
    progress.line(os.path.relpath(page, settings.project))
    code = matrix.worst(rows)
    progress.line(f"{matrix.sentence(rows)} in {seconds(took)}" + (f" (exit {int(code)})" if code else ""))
    return int(code)


def divided(chosen: Iterable[Appliance], wanted: Wanted) -> tuple[list[Row], list[Appliance]]:
    """Rows of what lacks a setting, and what can be run. What was asked for by its name counts as not passed."""
    rows, ready = [], []
    for one in chosen:
        if why := lacking(one):
            code = ExitCode.DESCRIPTION if one.name in wanted.names else ExitCode.PASSED
            rows.append(Row(one.name, one.version, one.release, ", ".join(wanted.clouds), NOT_RUN, why, code))
        else:
            ready.append(one)
    return rows, ready


def lacking(appliance: Appliance) -> str:
    """The setting without which no image of `appliance` can be built; empty where nothing is missing."""
    if appliance.opensips:
        try:
            repository.required(appliance)
        except DescriptionError as error:
            return error.message
    return ""


def at_once(builds: int, cores: int, memory: int) -> int:
    """How many builds may run at a time, at least one; `memory` that is free, in octets."""
    return max(1, min(builds, cores // CORES, memory // MEMORY))


def _builds(settings: Settings, ready: Sequence[Appliance], wanted: Wanted, place: Path,
            progress: Progress, limit: Cancellable) -> list[Row]:
    """Build all images; the rows of those that could not be built. Those of one release, which share what the cache
    holds, one after the other, so that the second finds it there."""
    groups = [list(group) for _, group in groupby(sorted(ready, key=lambda one: one.release), lambda one: one.release)]
    doing: dict[str, str] = {}

    def build(group: Sequence[Appliance]) -> list[Row]:
        rows = []
        for one in group:
            def shown(text: str, name: str = one.name) -> None:
                doing[name] = text
                progress.detail("; ".join(f"{who}: {what}" for who, what in list(doing.items())))

            row = _run(settings, one, settings.cloud, ["build", *(["--force"] if wanted.force else [])], place, shown,
                       limit)
            doing.pop(one.name, None)
            if row.code:
                rows.append(row)
        return rows

    number = at_once(len(groups), len(os.sched_getaffinity(0)), memory_available())
    with ThreadPoolExecutor(number) as pool:
        running = [pool.submit(build, group) for group in groups]
        try:
            wait(running)
        except KeyboardInterrupt:
            limit.cancelled.set()
            with unstoppable(progress):
                wait(running)
    return [row for group in running for row in group.result()]


def _run(settings: Settings, one: Appliance, cloud: str, words: Sequence[str], place: Path,
         say: Callable[[str], None], limit: Cancellable) -> Row:
    """A run in a process of its own; its row. After Ctrl-C, which ends the one that runs, no other begins."""
    def not_run(why: str, code: ExitCode) -> Row:
        return Row(one.name, one.version, one.release, cloud, NOT_RUN, why, code)

    told, code = _Told(), int(ExitCode.INTERRUPTED)
    argv = [os.fspath(settings.project / "inv"), words[0], "--json", "--appliance", one.name, *words[1:]]
    if limit.expired:
        return not_run("interrupted", ExitCode.INTERRUPTED)
    try:
        code = follow(argv, place / "log", deadline=limit, on_line=lambda line: heard(line, told, say))
    except KeyboardInterrupt:
        limit.cancelled.set()
    if not told.run:
        return not_run(told.why or f"exit {code}", ExitCode(code) if code in set(ExitCode) else ExitCode.HOST)
    run = Run.open(settings.runs / told.run)
    page = run.directory / "report.html"
    return matrix.of_run(run, one.version, one.release, page if page.exists() else write_report(run))


def heard(line: str, told: _Told, say: Callable[[str], None]) -> None:
    """Take in what a run's process printed: JSON lines of Progress, and plain ones of a command that never began."""
    try:
        entry = json.loads(line)
    except ValueError:
        entry = None
    if not isinstance(entry, Mapping):
        told.why = told.why or line.strip()
    elif entry.get("event") == "run":
        told.run = str(entry.get("run"))
    elif entry.get("event") == "start":
        say(str(entry.get("stage")))
