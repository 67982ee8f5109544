"""Figures of a benchmark: how they are taken, and the table of them.

The ratio to a peer comes first: seconds depend on the machine and its load.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from harness import nightly
from harness.appliance import Appliance
from harness.cloud import Cloud
from harness.cloud.local import LocalCloud
from harness.errors import ExitCode, HostError, Interrupted
from harness.progress import Progress
from harness.resources import Resource
from harness.run import Run, write_whole
from harness.settings import Settings
from harness.stages import Work

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """One figure, less is better. `peer` is None where there is nobody to compare with; `reach` as in words."""

    what: str
    unit: str
    ours: float
    peer: float | None
    peer_is: str
    reach: str

    @property
    def ratio(self) -> float | None:
        return round(self.ours / self.peer, 2) if self.peer else None


@dataclass(frozen=True)
class Table:
    """A page of figures: its `title`, the `command` that writes it, and a phrase that says where it was measured."""

    title: str
    command: str
    cloud: str


def measure(settings: Settings, appliance: Appliance, progress: Progress, rows: Callable[[Work], Iterable[Row]],
            about: Table, out: Path) -> int:
    """Take all figures in one run and write `out`.json and `out`.md. Returns the exit code.

    Everything is done in a cache of its own below the cache, removed afterwards.
    """
    own = replace(settings, cache=settings.cache / "bench")
    load = os.getloadavg()[0]
    taken: list[Row] = []

    def stages(work: Work) -> None:
        work.run.journal.creating(Resource("path", os.fspath(own.cache)))
        work.host()
        taken.extend(rows(work))

    code = nightly.conduct(own, appliance, LocalCloud(own), progress, stages, keep="never", quiet=True)
    if code == 0:
        where = machine(about.cloud, load)
        write_whole(out.with_suffix(".json"), json.dumps(
            {"machine": where, "rows": [asdict(row) | {"ratio": row.ratio} for row in taken]}, indent=1))
        write_whole(out.with_suffix(".md"), table(about, where, taken))
    return code


def machine(cloud: str, load: float) -> dict[str, Any]:
    """What the figures depend on besides the code; `load` is that of before."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {"processor": model[1] if model else "unknown", "cores": len(os.sched_getaffinity(0)),
            "load": round(load, 1), "cloud": cloud, "date": time.strftime("%Y-%m-%d", time.gmtime())}


def table(about: Table, where: dict[str, Any], rows: Sequence[Row]) -> str:
    """The figures as Markdown."""
    lines = [f"# {about.title}", "",
             f"Written by `{about.command}`; ours and the peer's were measured in the same run.", "",
             ", ".join(f"{key}: {value}" for key, value in where.items()), "",
             "| what | ours | peer | ratio | to reach |", "| --- | ---: | ---: | ---: | --- |"]
    for row in rows:
        peer = f"{_number(row.peer)} {row.unit} ({row.peer_is})" if row.peer else "-"
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(f"| {row.what} | {_number(row.ours)} {row.unit} | {peer} | {ratio} | {row.reach or '-'} |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.1f}"


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """Seconds that `action` takes, and what it returns."""
    begin = time.monotonic()
    result = action()
    return time.monotonic() - begin, result


def passed(code: int, what: str) -> None:
    """Raises HostError where a run inside the benchmark was red: its time says nothing then."""
    if code == ExitCode.INTERRUPTED:
        raise Interrupted("interrupted")
    if code:
        raise HostError(f"{what} ended with exit code {code}: its figure would say nothing",
                        hint="what went wrong is said above")


@dataclass(frozen=True)
class Night:
    """Seconds that all of it took, and its build."""

    seconds: float
    build: float


def night(work: Work, settings: Settings, cloud: Cloud) -> Night:
    """A whole night as a run of its own. Raises HostError when it is red."""
    seconds, code = timed(lambda: nightly.conduct(settings, work.appliance, cloud, work.progress, nightly.nightly,
                                                  keep="never"))
    passed(code, "the night")
    stages = {s.name: s.seconds or 0.0 for s in Run.open(settings.runs / "latest").stages}
    return Night(seconds, stages["build"])
