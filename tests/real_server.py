"""Servers of an appliance's image for tests, in runs of their own that leave nothing behind."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from harness import journal
from harness.appliance import Appliance
from harness.checks import run_checks
from harness.cloud import Server
from harness.cloud.local import LocalCloud
from harness.deadline import Deadline
from harness.image.build import Image
from harness.levels import Level
from harness.progress import Progress
from harness.results import CheckResult
from harness.run import Run
from harness.settings import Settings
from harness.stages import FIRST_BOOT, Work
from tests import leftovers


@dataclass(frozen=True)
class Booted:
    """A running server of the appliance, and the stages to use it by."""

    work: Work
    server: Server

    def red(self, *selection: str, level: Level = Level.BASIC) -> list[str]:
        """Run the checks, all or those that pytest's options select; names of those that are not green, sorted."""
        return sorted(name(result) for result in self.results(*selection, level=level) if result.red)

    def results(self, *selection: str, level: Level = Level.BASIC) -> list[CheckResult]:
        return run_checks(self.work.run, self.server, self.work.appliance, FIRST_BOOT, lambda text: None,
                          Deadline(600), selection=selection, level=level)

    def root(self, script: str) -> str:
        """What a script of bash prints that is run as root on the server; it must end well.

        What is logged from then on, until the next checks are at their end, is the test's own doing."""
        noted = f"{journal.note('begin')}\n{script}"
        done = subprocess.run(["ssh", "-F", self.work.run.directory / "ssh_config", self.server.name,
                               "sudo -n bash -eu"], input=noted, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout


def name(result: CheckResult) -> str:
    """A check's own name; of an error, which is never the image's fault, with the message."""
    short = result.id.rsplit("::", 1)[-1]
    return short if result.outcome in {"failed", "passed"} else f"{short} ({result.outcome}: {result.message})"


@contextmanager
def server_of(settings: Settings, appliance: Appliance, image: Image) -> Iterator[Booted]:
    with work_in(settings, appliance) as work:
        yield Booted(work, work.launch(work.upload(image))[0])
    for copy in settings.cache.glob("raw/*.raw"):
        copy.unlink()


@contextmanager
def work_in(settings: Settings, appliance: Appliance) -> Iterator[Work]:
    """A run and its stages; what it made is removed at the end, and this host shows nothing of it."""
    run = Run.create(settings.runs, appliance.name, "local")
    said = io.StringIO()
    work = Work(settings, appliance, LocalCloud(settings), run, Progress(said))
    try:
        yield work
    finally:
        work.remove()
        run.unlock()
    assert leftovers.of(settings) == []
