"""Builds, boots and checks: the figures of docs/performance.md.

The peer of a build is stock diskimage-builder (no RTPEngine in it) with an image cache of its own; the peer of the
checks is testinfra's own ssh back end.
"""

from __future__ import annotations

import os
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.appliance import Appliance
from harness.bench import figures
from harness.bench.figures import Row, Table, timed
from harness.checks import run_checks
from harness.cloud import Server, ServerSpec
from harness.cloud.local import LocalCloud
from harness.deadline import Deadline
from harness.errors import HostError
from harness.image import dib, loops
from harness.image.build import Image
from harness.image.contained import contained
from harness.image.mirrors import apt_mirrors
from harness.process import run_logged
from harness.progress import Progress
from harness.resources import Resource
from harness.settings import Settings
from harness.stages import FIRST_BOOT, Work

STOCK = ("debian-minimal", "vm", "block-device-gpt", "cloud-init", "cloud-init-datasources", "openssh-server")
_CLOUD_INIT_DONE = re.compile(r"Cloud-init v\. \S+ finished")


def bench(settings: Settings, appliance: Appliance, progress: Progress, *, boots: int, out: Path) -> int:
    """Take all figures, those of boots `boots` times; write `out`.json and `out`.md. Returns the exit code."""
    return figures.measure(settings, appliance, progress, lambda work: _rows(work, boots),
                           Table("Performance", "./inv bench", LocalCloud(settings).describe()), out)


def _rows(work: Work, boots: int) -> Iterator[Row]:
    yield from _builds(work)
    yield from _boots(work, boots)
    yield from _checks(work)
    yield Row("./inv nightly, caches warm", "s", _night(work).seconds, None, "", "150 s")


def _night(work: Work) -> figures.Night:
    return figures.night(work, work.settings, LocalCloud(work.settings))


def _builds(work: Work) -> Iterator[Row]:
    with work.progress.stage("stock"):
        stock_cold, stock = timed(lambda: _stock_build(work, 1))
    cold = _night(work)
    with work.progress.stage("stock"):
        stock_warm, _ = timed(lambda: _stock_build(work, 2))
    forced, _ = timed(lambda: work.build(force=True))
    unchanged, image = timed(work.build)
    peer = "stock diskimage-builder, no RTPEngine"
    yield Row("cold build, all caches empty", "s", cold.build, stock_cold, peer, "75 s; less than stock")
    yield Row("an element changed (everything but the caches anew)", "s", forced, stock_warm, peer,
              "20 s; at most 0.2 x stock")
    yield Row("nothing changed", "s", unchanged, stock_warm, peer, "1 s")
    yield Row(f"qcow2, kind {image.source.get('kind', 'none')}", "MB", image.size / 1e6, stock.stat().st_size / 1e6,
              peer, "200 MB for debian-packages, 140 MB compiled without transcoding")
    yield Row("./inv nightly, all caches empty", "s", cold.seconds, None, "", "240 s")


def _stock_build(work: Work, number: int) -> Path:
    """Stock diskimage-builder with its own image cache, contained and swept as our builds are."""
    place = work.settings.cache / "stock"
    temporary = place / "tmp"
    for directory in (place / "cache", place / "locks", temporary, place / f"out{number}"):
        directory.mkdir(parents=True, exist_ok=True)
    mirrors = apt_mirrors(work.settings)
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
        ours, results = timed(lambda: _run_checks(work, server, ()))
        peer, _ = timed(lambda: _run_checks(work, server, ("--host-backend", "ssh")))
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
