"""The whole path: build, inspect, launch, check, reboot, check, remove, report; and how each way out ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

from harness import checks
from harness.appliance import Appliance
from harness.cloud import Cloud
from harness.errors import DialtoneError, HostError, Interrupted, from_os_error
from harness.levels import Level
from harness.process import STOP_SIGNALS
from harness.progress import Progress
from harness.report import write as write_report
from harness.report.explain import summary
from harness.report.explain import text as explain
from harness.run import Run
from harness.settings import Settings
from harness.stages import Work, finish, previous_stages


@contextmanager
def _on_stop(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def stoppable() -> AbstractContextManager[None]:
    """SIGTERM and a closed terminal stop a run like Ctrl-C does."""
    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    return _on_stop(stop)


def unstoppable(progress: Progress) -> AbstractContextManager[None]:
    """While things are removed a further Ctrl-C only says so: it must not leave more behind than the first."""
    def wait(number: int, frame: FrameType | None) -> None:
        progress.line("  removing what the run made; a moment")

    progress.unheard = True
    return _on_stop(wait)


def conduct(settings: Settings, appliance: Appliance, cloud: Cloud, progress: Progress,
            stages: Callable[[Work], None], *, keep: str, quiet: bool = False) -> int:
    """Do `stages` as one run; remove, report and settle whatever happens. Returns the exit code.

    `keep` says when servers stay: never, failed, always, or passed (when nothing failed). The first cause gives the
    exit code; all failures are in the report. A `quiet` run ends without a report (a single stage that only builds).
    """
    run = Run.create(settings.runs, appliance.name, cloud.name)
    run.keep = keep
    run.facts["quiet"] = quiet
    run.facts["previous"] = progress.previous = previous_stages(run)
    work = Work(settings, appliance, cloud, run, progress)
    first: DialtoneError | None = None
    mistake: Exception | None = None
    with stoppable():
        try:
            progress.run(f"{appliance.name} {appliance.version} "
                         f"on debian {appliance.release}, cloud {cloud.describe()}, run {run.id}", run.id)
            stages(work)
        except KeyboardInterrupt:
            first = Interrupted("interrupted")
            first.stage = run.stages[-1].name if run.stages else None
        except DialtoneError as error:
            first = error
        except OSError as error:
            first = from_os_error(error)
            first.stage = run.stages[-1].name if run.stages else None
        except Exception as error:
            mistake = error
            first = HostError(f"a mistake in Dialtone itself: {type(error).__name__}: {error}")
            first.stage = run.stages[-1].name if run.stages else None
        kept = _keeps(keep, first) and bool(cloud.servers(run))
        with unstoppable(progress):
            if first and not run.facts.get("failures"):
                with work.noting():
                    work.fail(stage=first.stage or "", title=first.message, seen=first.excerpt or "",
                              next=first.hint or "", fault=first.fault, message=str(first))
            if not kept:
                try:
                    work.remove()
                except (DialtoneError, OSError) as error:
                    left = error if isinstance(error, DialtoneError) else from_os_error(error)
                    with work.noting():
                        work.fail(stage="remove", title=left.message, next=left.hint or "", fault=left.fault)
                    first = first or left
            with work.noting():
                finish(work, first, kept)
            if not quiet:
                with work.noting(), progress.stage("report"):
                    progress.detail(os.path.relpath(write_report(run), settings.project))
            run.unlock()
    if mistake:
        raise mistake
    if first:
        progress.line(explain(run))
    progress.line(summary(run))
    return int(first.exit_code) if first else 0


def _keeps(keep: str, first: DialtoneError | None) -> bool:
    if first is None:
        return keep in {"always", "passed"}
    return keep == "always" or (keep == "failed" and not isinstance(first, Interrupted))


def nightly(work: Work, *, force: bool = False, level: Level = Level.BASIC) -> None:
    """All stages of a night in their order; raises the first failure."""
    checks.places(work.appliance)
    work.host()
    image = work.build(force=force)
    work.inspect(image)
    work.gate(image)
    [server] = work.launch(work.upload(image))
    if red := work.check(server, level=level):
        raise red
    if red := work.reboot(server, level.after_reboot):
        raise red
