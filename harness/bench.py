"""Measures the figures of docs/performance.md: ours and a peer in the same run.

The peer of a build is stock diskimage-builder (no RTPEngine in it) with an image cache of its own; the peer of the
checks is testinfra's own ssh back end. The ratio comes first: seconds depend on the machine and its load.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness import nightly
from harness.appliance import Appliance
from harness.checks import run_checks
from harness.cloud import Cloud, Server, ServerSpec
from harness.deadline import Deadline
from harness.errors import HostError
from harness.image import dib, loops
from harness.image.build import Image
from harness.image.contained import contained
from harness.image.mirrors import apt_mirrors
from harness.process import run_logged
from harness.progress import Progress
from harness.resources import Resource
from harness.run import Run, write_whole
from harness.settings import Settings
from harness.stages import FIRST_BOOT, Work

STOCK = ("debian-minimal", "vm", "block-device-gpt", "cloud-init", "cloud-init-datasources", "openssh-server")
_CLOUD_INIT_DONE = re.compile(r"Cloud-init v\. \S+ finished")


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


def bench(settings: Settings, appliance: Appliance, choose: Callable[[Settings], Cloud], progress: Progress, *,
          boots: int, out: Path) -> int:
    """Measure all rows once, boots `boots` times; write `out`.json and `out`.md. Returns the exit code.

    Everything is done in a cache of its own below the cache, removed afterwards. Raises what the stages raise.
    """
    own = replace(settings, cache=settings.cache / "bench")
    rows: list[Row] = []

    def measure(work: Work) -> None:
        work.run.journal.creating(Resource("path", os.fspath(own.cache)))
        work.host()
        rows.extend(_builds(work, own, choose))
        rows.extend(_boots(work, boots))
        rows.extend(_checks(work))
        rows.append(Row("./inv nightly, caches warm", "s", _night(work, own, choose).seconds, None, "", "150 s"))

    code = nightly.conduct(own, appliance, choose(own), progress, measure, keep="never", quiet=True)
    if code == 0:
        where = machine(choose(settings))
        write_whole(out.with_suffix(".json"), json.dumps(
            {"machine": where, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}, indent=1))
        write_whole(out.with_suffix(".md"), table(where, rows))
    return code


@dataclass(frozen=True)
class _Night:
    seconds: float
    build: float


def _night(work: Work, settings: Settings, choose: Callable[[Settings], Cloud]) -> _Night:
    """A whole night as a run of its own. Raises HostError when it is red: its time says nothing then."""
    seconds, code = _timed(lambda: nightly.conduct(settings, work.appliance, choose(settings), work.progress,
                                                   nightly.nightly, keep="never"))
    if code:
        raise HostError(f"the night ended with exit code {code}", hint="see runs/latest/report.html")
    stages = {s.name: s.seconds or 0.0 for s in Run.open(settings.runs / "latest").stages}
    return _Night(seconds, stages["build"])


def machine(cloud: Cloud) -> dict[str, Any]:
    """What the figures depend on besides the code."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return {"processor": model[1] if model else "unknown", "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 1), "cloud": cloud.describe(),
            "date": time.strftime("%Y-%m-%d", time.gmtime())}


def table(where: dict[str, Any], rows: Sequence[Row]) -> str:
    """The figures as Markdown."""
    lines = ["# Performance", "", "Written by `./inv bench`; ours and the peer's were measured in the same run.", "",
             ", ".join(f"{key}: {value}" for key, value in where.items()), "",
             "| what | ours | peer | ratio | to reach |", "| --- | ---: | ---: | ---: | --- |"]
    for row in rows:
        peer = f"{row.peer:.1f} {row.unit} ({row.peer_is})" if row.peer else "-"
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        lines.append(f"| {row.what} | {row.ours:.1f} {row.unit} | {peer} | {ratio} | {row.reach} |")
    return "\n".join(lines) + "\n"


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.monotonic()
    result = action()
    return time.monotonic() - begin, result


def _builds(work: Work, settings: Settings, choose: Callable[[Settings], Cloud]) -> Iterator[Row]:
    with work.progress.stage("stock"):
        stock_cold, stock = _timed(lambda: _stock_build(work, settings, 1))
    cold = _night(work, settings, choose)
    with work.progress.stage("stock"):
        stock_warm, _ = _timed(lambda: _stock_build(work, settings, 2))
    forced, _ = _timed(lambda: work.build(force=True))
    unchanged, image = _timed(work.build)
    peer = "stock diskimage-builder, no RTPEngine"
    yield Row("cold build, all caches empty", "s", cold.build, stock_cold, peer, "75 s; less than stock")
    yield Row("an element changed (everything but the caches anew)", "s", forced, stock_warm, peer,
              "20 s; at most 0.2 x stock")
    yield Row("nothing changed", "s", unchanged, stock_warm, peer, "1 s")
    yield Row(f"qcow2, kind {image.source.get('kind', 'none')}", "MB", image.size / 1e6, stock.stat().st_size / 1e6,
              peer, "200 MB for debian-packages, 140 MB compiled without transcoding")
    yield Row("./inv nightly, all caches empty", "s", cold.seconds, None, "", "240 s")


def _stock_build(work: Work, settings: Settings, number: int) -> Path:
    """Stock diskimage-builder with its own image cache, contained and swept as our builds are."""
    place = settings.cache / "stock"
    temporary = place / "tmp"
    for directory in (place / "cache", place / "locks", temporary, place / f"out{number}"):
        directory.mkdir(parents=True, exist_ok=True)
    mirrors = apt_mirrors(settings)
    environment = {
        "HOME": os.fspath(place), "USER": "root", "LANG": "C.UTF-8",
        "PATH": f"{dib.SHIMS}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DIB_RELEASE": work.appliance.release, "TMP_DIR": os.fspath(temporary),
        "DIB_IMAGE_CACHE": os.fspath(place / "cache"), "DIB_LOCKFILES": os.fspath(place / "locks"),
        "DIB_DISTRIBUTION_MIRROR": mirrors.main, "DIB_DEBIAN_SECURITY_MIRROR": mirrors.security,
        "DIB_CLOUD_INIT_DATASOURCES": "ConfigDrive, OpenStack, NoCloud",
    } | {k: v for k, v in os.environ.items() if k.lower().endswith("_proxy") or k.startswith("SSL_CERT")}
    work.run.journal.creating(Resource("loop", os.fspath(temporary)))
    output = place / f"out{number}" / "stock"
    run_logged(contained(["disk-image-create", "-a", work.appliance.architecture, "-t", "qcow2", "-o",
                          os.fspath(output), *STOCK]), place / f"stock{number}.log", deadline=Deadline(3600),
               env=environment, cwd=place)
    loops.sweep(temporary)
    return output.with_suffix(".qcow2")


def _boots(work: Work, count: int) -> Iterator[Row]:
    image = work.build()
    stock = work.settings.cache / "stock" / "out1" / "stock.qcow2"
    ours: dict[str, list[float]] = {}
    theirs = []
    for number in range(count):
        with work.run.journal.passing(work.cloud.removers):
            work.launch(work.upload(image), f"boot{number}")
            for name, seconds in work.run.facts["server"]["timings"].items():
                ours.setdefault(name, []).append(seconds)
        with work.run.journal.passing(work.cloud.removers), work.progress.stage("stock"):
            theirs.append(_stock_boot(work, stock, f"stock{number}"))
    medians = {name: statistics.median(seconds) for name, seconds in ours.items()}
    stock_done = statistics.median(theirs)
    yield Row("power-on to SSH command, first boot", "s", medians["ssh"], stock_done,
              "stock image until cloud-init is done (it never gets on the network)", "16 s")
    yield Row("power-on to cloud-init done and all units started", "s", medians["ready"], stock_done,
              "stock image until cloud-init is done", "17 s")


def _stock_boot(work: Work, image: Path, name: str) -> float:
    """Seconds until the console of a server from the stock image says that cloud-init is done."""
    begin = time.monotonic()
    server = work.cloud.launch(work.run, [_spec(work, image, name)], Deadline(600))[0]
    deadline = Deadline(600)
    while not _CLOUD_INIT_DONE.search(work.cloud.console(work.run, server)):
        if deadline.expired or not work.cloud.alive(work.run, server):
            raise HostError("the stock image never finished its first boot",
                            excerpt="\n".join(work.cloud.console(work.run, server).splitlines()[-12:]))
        time.sleep(0.1)
    return time.monotonic() - begin


def _spec(work: Work, image: Path, name: str) -> ServerSpec:
    size_ = work.appliance.server
    return ServerSpec(name, os.fspath(image), "debian", "", "#cloud-config\n{}\n", size_.memory, size_.cpus, size_.disk)


def _checks(work: Work) -> Iterator[Row]:
    image: Image = work.build()
    with work.run.journal.passing(work.cloud.removers):
        [server] = work.launch(work.upload(image), "checked")
        ours, results = _timed(lambda: _run_checks(work, server, ()))
        peer, _ = _timed(lambda: _run_checks(work, server, ("--host-backend", "ssh")))
    yield Row(f"all {results} checks of one server", "s", ours, peer, "testinfra's default ssh back end",
              "at most 0.25 x")


def _run_checks(work: Work, server: Server, selection: Sequence[str]) -> int:
    with work.progress.stage("check"):
        results = run_checks(work.run, server, work.appliance, FIRST_BOOT, work.progress.detail, Deadline(1800),
                             selection)
        red = [r.id for r in results if r.red]
        if red:
            raise HostError(f"checks are red, their time says nothing: {', '.join(red)}")
        return len(results)


