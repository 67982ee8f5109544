"""Runs after their end: servers that were kept are checked again or destroyed, what dead runs left is reaped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TextIO

from harness import appliance as appliances_file
from harness import checks, reaper
from harness.cloud.choose import choose
from harness.errors import DescriptionError, DialtoneError, ExitCode
from harness.levels import Level
from harness.nightly import stoppable, unstoppable
from harness.progress import Progress
from harness.report import write as write_report
from harness.report.explain import closing
from harness.report.explain import text as explain
from harness.report.model import load
from harness.report.verdict import judge
from harness.run import Run, State, find_run
from harness.settings import Settings
from harness.stages import FIRST_BOOT, Work


def find(settings: Settings, wanted: str | None) -> Run:
    """The run named `wanted`, else the only one that keeps a server. Raises DescriptionError."""
    if wanted:
        return find_run(settings.runs, wanted)
    runs = [r for r in Run.all(settings.runs) if r.state is State.KEPT]
    if len(runs) != 1:
        raise DescriptionError("no server is running" if not runs else
                               "several servers are running: " + ", ".join(r.id for r in runs),
                               hint="./inv launch starts one" if not runs else "name the run: --run ID")
    return runs[0]


def check_again(settings: Settings, run: Run, progress: Progress, *, selection: Sequence[str], level: Level,
                reboot: bool) -> int:
    """Run the checks on the kept server of `run` and write its report anew. Returns the exit code.

    What was red before these checks is no longer said: they were of a server as it is now.
    """
    run.lock()
    cloud = choose(replace(settings, cloud=run.cloud))
    appliance = appliances_file.select(appliances_file.load(settings.appliances), run.appliance)
    servers = cloud.servers(run)
    if not servers:
        raise DescriptionError(f"run {run.id} has no server", hint="./inv launch starts one")
    work = Work(settings, appliance, cloud, run, progress)
    run.facts["failures"] = []
    first: DialtoneError | None = None
    with stoppable():
        try:
            first = work.reboot(servers[0], level) if reboot else work.check(servers[0], selection, level)
            if reboot and checks.found_red(run, FIRST_BOOT):
                checks.discard(run, FIRST_BOOT)
        except DialtoneError as error:
            first = error
            work.fail(stage=error.stage or "check", title=error.message, next=error.hint or "", fault=error.fault,
                      message=str(error))
    run.facts["exit_code"] = int(first.exit_code) if first else 0
    run.save()
    write_report(run)
    if first:
        progress.line(explain(run))
    progress.line(closing(judge(load(run, history=0)), run.stages[-1].seconds or 0))
    return int(first.exit_code) if first else 0


def destroy(settings: Settings, wanted: str | None, out: TextIO) -> int:
    """Remove everything of the named run, or of all kept runs; say what could not be removed."""
    runs = [find_run(settings.runs, wanted)] if wanted else [
        r for r in Run.all(settings.runs) if r.state is State.KEPT]
    if not runs:
        print("no server is kept", file=out)
    code = ExitCode.PASSED
    for run in runs:
        run.lock()
        with unstoppable(Progress(out)):
            left = run.journal.remove_outstanding(choose(replace(settings, cloud=run.cloud)).removers)
        for resource, error in left:
            print(f"{run.id}: {resource} is not removed: {error.message}", file=out)
            code = ExitCode.NOT_REMOVED
        if not left:
            run.state = State.DONE
            run.save()
            print(f"{run.id}: nothing left", file=out)
        run.unlock()
    return int(code)


_AGE = re.compile(r"^(\d+)([smhd])$")
_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def age(text: str) -> float:
    """Seconds of an age like `90s`, `30m`, `6h`, `2d`. Raises DescriptionError."""
    match = _AGE.match(text)
    if not match:
        raise DescriptionError(f"{text!r} is no age", hint="like 90s, 30m, 6h or 2d")
    return int(match[1]) * _UNIT[match[2]]


def reap(settings: Settings, out: TextIO, *, dry_run: bool, older_than: str | None) -> int:
    """Print a table of what dead runs left and what became of it. Returns the exit code."""
    found = reaper.sweep(settings, older_than=age(older_than) if older_than else None, dry_run=dry_run)
    for entry in found:
        print(f"{entry.outcome:<13} {entry.run_id:<36} {entry.resource}" + (f"  {entry.why}" if entry.why else ""),
              file=out)
    if not found:
        print("dead runs left nothing behind", file=out)
    return int(ExitCode.NOT_REMOVED if any(e.outcome == "failed" for e in found) else ExitCode.PASSED)
