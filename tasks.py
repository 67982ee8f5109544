"""The tasks behind `./inv`: they parse arguments and hand over to the harness."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from invoke.collection import Collection
from invoke.context import Context
from invoke.exceptions import Exit
from invoke.tasks import Task, task

from harness import appliance as appliances_file
from harness.appliance import Appliance
from harness.errors import DescriptionError
from harness.levels import Level
from harness.process import CommandMissing
from harness.progress import Progress
from harness.settings import Settings

PROJECT = Path(__file__).resolve().parent
DEFAULT = "rtpengine"
_LEVEL = "which checks: basic, acceptance: with calls, too, or load: how many calls, too"


def _settings(cloud: str | None = None, keep: str | None = None) -> Settings:
    return Settings.load(PROJECT, cloud=cloud, keep=keep)


def _appliance(settings: Settings, name: str) -> Appliance:
    return appliances_file.select(appliances_file.load(settings.appliances), name)


def _leave(code: int) -> None:
    if code:
        raise Exit(code=code)


@task(help={"install": "install what is missing (root, or by sudo)"})
def host(c: Context, install: bool = False) -> None:
    """Say what this machine has and lacks for building and booting."""
    from harness import host as this_host

    _leave(this_host.report(_settings(), install=install, out=sys.stdout))


@task
def appliances(c: Context) -> None:
    """List the appliances of appliances.yaml."""
    for name, entry in appliances_file.load(_settings().appliances).items():
        print(f"{name:<16} {entry.version:<12} {entry.release:<10} {entry.description}")


@task(help={"appliance": "name in appliances.yaml", "cloud": "local, or a name in clouds.yaml",
            "keep": "keep servers: never, failed, always", "level": _LEVEL,
            "force": "build although nothing changed", "json": "print one JSON object a line",
            "all": "of all appliances, or of several that --appliance names (a,b), on one or more clouds (a,b)"})
def nightly(c: Context, appliance: str | None = None, cloud: str | None = None, keep: str | None = None,
            level: str = "basic", force: bool = False, json: bool = False, all: bool = False) -> None:
    """Build, inspect, boot, check, reboot, check, report, remove."""
    from harness import every
    from harness import nightly as night
    from harness.cloud.choose import choose

    checked = Level.named(level)
    if all:
        settings = _settings(keep=keep)
        names, clouds = (tuple(text.split(",")) if text else () for text in (appliance, cloud))
        _leave(every.conduct(settings, every.Wanted(names, clouds or (settings.cloud,), checked, settings.keep, force),
                             Progress(as_json=json)))
        return
    settings = _settings(cloud=cloud, keep=keep)
    chosen = _appliance(settings, appliance or DEFAULT)
    _leave(night.conduct(settings, chosen, choose(settings), Progress(as_json=json),
                         lambda work: night.nightly(work, force=force, level=checked), keep=settings.keep))


@task(help={"appliance": "name in appliances.yaml", "force": "build although nothing changed"})
def build(c: Context, appliance: str = DEFAULT, force: bool = False, json: bool = False) -> None:
    """Build the image of an appliance."""
    _stages(appliance, json, lambda work: (work.host(), work.build(force=force)))


@task(help={"appliance": "name in appliances.yaml", "kernel": "its package, where it is not the appliance's"})
def module(c: Context, appliance: str = DEFAULT, kernel: str | None = None, json: bool = False) -> None:
    """Compile the relay's module for the kernel of the day, and lay it into a package repository for servers."""
    def deliver(work: Any) -> None:
        if kernel:
            work.appliance = replace(work.appliance, kernel=kernel)
        work.host()
        delivered = work.module()
        print(f"{os.path.relpath(delivered.directory)}: {', '.join(delivered.packages)}")

    _stages(appliance, json, deliver)


@task(help={"appliance": "name in appliances.yaml"})
def inspect(c: Context, appliance: str = DEFAULT, json: bool = False) -> None:
    """Look into the built image without booting it."""
    _stages(appliance, json, lambda work: work.inspect(_built(work)))


@task(help={"appliance": "name in appliances.yaml", "cloud": "local, or a name in clouds.yaml",
            "count": "how many servers"})
def launch(c: Context, appliance: str = DEFAULT, cloud: str | None = None, count: int = 1, json: bool = False) -> None:
    """Start servers from the built image and leave them running."""
    if count < 1:
        raise DescriptionError(f"--count is {count}", hint="1 or more")
    names = [f"server{number}" for number in range(1, count + 1)]
    keep = "passed" if _settings().keep == "never" else "always"
    _stages(appliance, json, lambda work: work.launch(work.upload(_built(work)), *names), cloud=cloud, keep=keep)


@task(help={"run": "run id; without it the run whose server is running", "level": _LEVEL,
            "reboot": "reboot the server first"})
def check(c: Context, run: str | None = None, level: str = "basic", reboot: bool = False, json: bool = False) -> None:
    """Run the checks on a running server; after `--` come pytest's own options."""
    from harness import kept

    settings, checked = _settings(), Level.named(level)
    _leave(kept.check_again(settings, kept.find(settings, run), Progress(as_json=json),
                            selection=shlex.split(c.remainder), level=checked, reboot=reboot))


@task(help={"run": "run id; without it the run whose server is running"})
def upstream(c: Context, run: str | None = None, json: bool = False) -> None:
    """Let RTPEngine's own test scripts call through the relay of a running server."""
    from harness import upstream as scripts
    from harness.nightly import stoppable

    _, chosen, server = _only_server(run)
    settings = _settings()
    chosen.lock()
    with stoppable():
        scripts.judge(settings, chosen, server, _appliance(settings, chosen.appliance), Progress(as_json=json))


@task(name="show", default=True, help={"run": "run id; without it the latest"})
def report(c: Context, run: str | None = None) -> None:
    """Write the report of a run again and say where it is."""
    from harness.report import write
    from harness.run import find_run

    print(os.path.relpath(write(find_run(_settings().runs, run))))


@task(help={"first": "run id, or a run's directory", "second": "what it is compared with"})
def compare(c: Context, first: str, second: str) -> None:
    """Lay two runs side by side: checks that differ, times, sizes, what was measured."""
    from harness.report import write_comparison
    from harness.run import find_run

    runs = _settings().runs
    text, page = write_comparison(find_run(runs, first), find_run(runs, second))
    print(f"{text}\n{os.path.relpath(page)}")


@task(help={"run": "run id; without it the run whose server is running"})
def ssh(c: Context, run: str | None = None) -> None:
    """Log in to the running server; a command may follow after `--`."""
    _, chosen, server = _only_server(run)
    command = ["ssh", "-F", os.fspath(chosen.directory / "ssh_config"), server.name, *shlex.split(c.remainder)]
    if shutil.which("ssh") is None:
        raise CommandMissing("ssh")
    sys.stdout.flush()
    os.execvp("ssh", command)


@task(help={"run": "run id; without it the run whose server is running", "follow": "go on until Ctrl-C"})
def console(c: Context, run: str | None = None, follow: bool = False) -> None:
    """Print what the server wrote on its serial console, and where a browser shows it."""
    from harness.access.console import show

    cloud, chosen, server = _only_server(run)
    show(lambda: cloud.console(chosen, server), sys.stdout, follow=follow)
    if url := cloud.console_url(server):
        print(url, file=sys.stderr)


@task(help={"run": "run id; without it every run that keeps a server"})
def destroy(c: Context, run: str | None = None) -> None:
    """Remove kept servers and all that belongs to them."""
    from harness import kept

    _leave(kept.destroy(_settings(), run, sys.stdout))


@task(help={"dry_run": "only say what would be removed", "older_than": "like 6h: only runs that began before",
            "cloud": "look there, too: a name in clouds.yaml"})
def reap(c: Context, dry_run: bool = False, older_than: str | None = None, cloud: str | None = None) -> None:
    """Remove what dead runs left behind."""
    from harness import kept

    _leave(kept.reap(_settings(cloud=cloud), sys.stdout, dry_run=dry_run, older_than=older_than))


@task(help={"unit": "only the tests that need neither root nor guests", "nightly": "also the long ones"})
def test(c: Context, unit: bool = False, nightly: bool = False) -> None:
    """Lint, check types and run the project's own tests; after `--` come pytest's own options."""
    from harness.owntests import run_tests

    _leave(run_tests(_settings(), unit=unit, nightly=nightly, options=shlex.split(c.remainder)))


@task(help={"appliance": "name in appliances.yaml", "cloud": "local: builds, boots, checks; testcloud: the test cloud; "
            "generator: none, media over loopback", "boots": "how often boots, uploads and rates are measured",
            "out": "where the table goes, without suffix"})
def bench(c: Context, appliance: str = DEFAULT, cloud: str = "local", boots: int = 3, out: str | None = None) -> None:
    """Measure Dialtone beside stock tools: builds and boots, the test cloud, the traffic generator, or events."""
    from harness.bench import events, generator, local, testcloud

    measured = {"local": (local.bench, "docs/performance"), "testcloud": (testcloud.bench, "docs/performance-cloud"),
                "generator": (generator.bench, "docs/performance-generator"),
                "events": (events.bench, "docs/performance-events")}
    if cloud not in measured:
        raise DescriptionError(f"--cloud is {cloud!r}", hint=f"it can be {' or '.join(measured)}")
    measure, table = measured[cloud]
    settings = _settings(cloud="local")
    _leave(measure(settings, _appliance(settings, appliance), Progress(), boots=boots, out=PROJECT / (out or table)))


@task
def lint(c: Context) -> None:
    """Run ruff, mypy and shellcheck."""
    from harness.owntests import run_lint

    _leave(run_lint(_settings()))


def _stages(name: str, json: bool, stages: Any, cloud: str | None = None, keep: str = "never") -> None:
    from harness import nightly as night
    from harness.cloud.choose import choose

    settings = _settings(cloud=cloud)
    _leave(night.conduct(settings, _appliance(settings, name), choose(settings), Progress(as_json=json), stages,
                         keep=keep, quiet=True))


def _built(work: Any) -> Any:
    from harness.image.build import built

    image = built(work.appliance, work.settings)
    if image is None:
        raise DescriptionError(f"there is no image of {work.appliance.name} as it is described now",
                               hint=f"./inv build --appliance {work.appliance.name}")
    return image


def _only_server(wanted: str | None) -> tuple[Any, Any, Any]:
    from harness import kept
    from harness.cloud.choose import choose

    settings = _settings()
    run = kept.find(settings, wanted)
    cloud = choose(_settings(cloud=run.cloud))
    servers = cloud.servers(run)
    if not servers:
        raise DescriptionError(f"run {run.id} has no server", hint="./inv launch starts one")
    return cloud, run, servers[0]


@task(help={"fresh": "throw away what the test cloud held before"})
def up(c: Context, fresh: bool = False) -> None:
    """Bring up a real single-node OpenStack on this machine."""
    from harness.nightly import stoppable
    from harness.testcloud import up as testcloud

    with stoppable():
        testcloud.up(_settings(), Progress(), fresh=fresh)


@task
def down(c: Context) -> None:
    """Take the test cloud down; what it holds is kept for the next start."""
    from harness.testcloud import up as testcloud

    testcloud.down(_settings(), sys.stdout)


@task
def status(c: Context) -> None:
    """Say of every service and agent of the test cloud whether it is well."""
    from harness.testcloud import up as testcloud

    _leave(testcloud.report(_settings(), sys.stdout))


@task(default=True, help={"run": "run id; without it the run whose server is running",
                          "json": "print one JSON object"})
def show(c: Context, run: str | None = None, json: bool = False) -> None:
    """Compare the running server's connection tracking table with its plan."""
    from harness import conntrack_server

    _, chosen, server = _only_server(run)
    conntrack_server.show(chosen, server, _appliance(_settings(), chosen.appliance), Progress(as_json=json))


@task(name="set", help={"setting": "KEY=VALUE, as max=65536", "live": "until the next boot; the default",
                        "bake": "now and at every boot", "run": "run id; without it the run whose server is running"})
def change(c: Context, setting: str, live: bool = False, bake: bool = False, run: str | None = None) -> None:
    """Change a connection tracking setting of the running server, and say how to take it back."""
    from harness import conntrack_server

    if live and bake:
        raise DescriptionError("--live and --bake exclude each other", hint="--bake changes it now, too")
    _, chosen, server = _only_server(run)
    conntrack_server.change(chosen, server, _appliance(_settings(), chosen.appliance), setting, Progress(), bake=bake)


_COLLECTIONS = (Collection("testcloud", up, down, status), Collection("conntrack", show, change),
                Collection("report", report, compare))
_COLLECTED = [each for collection in _COLLECTIONS for each in collection.tasks.values()]
namespace = Collection(*(value for value in list(globals().values())
                         if isinstance(value, Task) and value not in _COLLECTED), *_COLLECTIONS)
