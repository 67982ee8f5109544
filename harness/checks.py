"""Runs an appliance's checks (pytest) against a server and reads the results back."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.access import ssh_config
from harness.access.shell import ConnectionLost
from harness.appliance import Appliance
from harness.cloud import Server
from harness.deadline import Deadline
from harness.errors import CheckFailed, CloudError, DescriptionError, DialtoneError, Fault, HostError
from harness.levels import Level
from harness.process import CommandTimedOut, run_logged
from harness.process import run as run_command
from harness.results import CheckResult, Figure, Series
from harness.run import Run, write_whole
from harness.units import many

_PROJECT = Path(__file__).resolve().parent.parent
_WITHOUT = ("-p", "no:pytest11.testinfra", "-p", "no:hypothesispytest", "-p", "no:cacheprovider")
"""Plugins that are in the way: the first brings a `host` of its own, the second takes 0.8 s of CPU time to load."""

CLEAN_UP = 60.0
"""Seconds that pytest has, once it is asked to end, to hang up calls and to put back over SSH what checks changed: a
command takes many of them on a busy emulated server."""

_PASSED, _FAILED, _NO_CHECKS = 0, 1, 5
"""pytest's exit codes; all others mean that it did not come to its end."""


def run_checks(run: Run, server: Server, appliance: Appliance, phase: str, say: Callable[[str], None],
               deadline: Deadline, selection: Sequence[str] = (), level: Level = Level.BASIC) -> list[CheckResult]:
    """Run the checks of `level` that `appliance` names on `server`; `selection` are further arguments for pytest.

    Writes checks-<phase>.jsonl, junit-<phase>.xml and checks-<phase>.log below the run's directory. A pytest that
    does not come to its end adds a result with outcome error. Raises DescriptionError where there is no such check.
    """
    results, junit, log, context = _files(run, phase)
    for path in (results, junit):
        path.unlink(missing_ok=True)
    write_whole(context, json.dumps({
        "ssh_config": os.fspath(ssh_config.path(run)), "appliances": os.fspath(appliance.file),
        "appliance": appliance.name, "server": asdict(server), "phase": phase,
        "results": os.fspath(results)}, default=os.fspath))
    base = appliance.file.parent
    argv: list[str | os.PathLike[str]] = [
        sys.executable, "-m", "pytest", "-p", "harness.plugin", *_WITHOUT,
        "-c", _PROJECT / "pyproject.toml", "--rootdir", base, "-o", "addopts=", "--strict-markers", "-v", "--tb=short",
        "--color=no", f"--junitxml={junit}", "-o", f"junit_suite_name={phase}",
        "--appliance-context", context, "--level", level, *places(appliance), *selection]
    ended = ""
    code = None
    try:
        done = run_logged(argv, log, deadline=deadline, cwd=base, check=False,
                          patience=CLEAN_UP,
                          env={**os.environ, "PYTHONPATH": os.fspath(_PROJECT)},
                          on_line=lambda line: say(_progress(read(results))))
        code = done.returncode
        if code == _NO_CHECKS:
            raise DescriptionError(f"no check of {appliance.name} at level {level} is selected by: "
                                   f"{' '.join(selection)}" if selection else
                                   f"{appliance.name} has no checks of level {level} below "
                                   f"{', '.join(appliance.checks)}",
                                   hint="appliances.yaml, checks; "
                                        f"./inv check --level {list(Level)[-1]} -- --collect-only")
        # pytest writes its JUnit file last; without it, it was ended in the middle, whatever its exit code.
        if code not in (_PASSED, _FAILED) or not junit.exists():
            ended = f"pytest ended with exit code {code}:\n" + "\n".join(done.stdout.splitlines()[-12:])
    except CommandTimedOut as error:
        ended = str(error)
    found = read(results)
    if code == _FAILED and not any(r.red for r in found):
        ended = "pytest says that a check failed, and the results don't show it"
    if ended or not found:
        found.append(CheckResult("pytest", "the checks come to their end", "harness", phase, server.name, "error", 0.0,
                                 message=ended or "pytest left no results"))
    return found


def places(appliance: Appliance) -> list[Path]:
    """Where the appliance's checks are. Raises DescriptionError where one is not there."""
    paths = [appliance.file.parent / path for path in appliance.checks]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise DescriptionError(f"{appliance.file.name}:{appliance.line}: checks of {appliance.name}: "
                               f"{missing[0]} is not there")
    return paths


def discard(run: Run, phase: str) -> None:
    """Remove what run_checks() left of `phase` below the run's directory, if there is anything."""
    for path in _files(run, phase):
        path.unlink(missing_ok=True)


def found_red(run: Run, phase: str) -> bool:
    """Whether run_checks() left a red result of `phase`."""
    return any(result.red for result in read(_files(run, phase)[0]))


def verdict(results: Sequence[CheckResult], phase: str) -> DialtoneError | None:
    """What red results come to: the image's fault as soon as one of them is, else the description's likewise, this
    host's where all are, else the cloud's; None where none is red."""
    red = [result for result in results if result.red]
    if any(result.fault is Fault.IMAGE for result in red):
        return CheckFailed(f"checks failed: {phase}")
    said = f"{many(len(red), 'check')} could not be carried out: {phase}"
    if any(result.fault is Fault.DESCRIPTION for result in red):
        return DescriptionError(said)
    kind = HostError if all(result.fault is Fault.HOST for result in red) else CloudError
    return kind(said) if red else None


def read(results: Path) -> list[CheckResult]:
    """The results of a checks-<phase>.jsonl; a line that is not whole yet is left out."""
    if not results.exists():
        return []
    found = []
    for line in results.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            entry: dict[str, Any] = json.loads(line)
            found.append(CheckResult(**{
                **entry, "console": tuple(entry["console"]),
                "figures": tuple(Figure(**figure) for figure in entry["figures"]),
                "series": tuple(Series(**{**one, "points": tuple((x, y) for x, y in one["points"])})
                                for one in entry["series"])}))
    return found


def live_conntrack(run: Run, server: Server) -> dict[str, str]:
    """The values of net.netfilter.nf_conntrack_* on the server now; empty where the module is not loaded.

    Raises ConnectionLost.
    """
    done = run_command(["ssh", "-F", ssh_config.path(run), server.name,
                        "sudo -n grep -s . /proc/sys/net/netfilter/nf_conntrack_*; exit 0"], check=False)
    if done.returncode != 0:
        raise ConnectionLost(f"the live values of {server.name} can't be read", excerpt=done.stdout.strip() or None)
    return {f"net.netfilter.{name}": value for name, value
            in re.findall(r"^/proc/sys/net/netfilter/(nf_conntrack_\w+):(.*)$", done.stdout, re.MULTILINE)}


def _files(run: Run, phase: str) -> tuple[Path, Path, Path, Path]:
    """Results, JUnit file, log, and what pytest is told of the server."""
    slug = phase.replace(" ", "-")
    names = (f"checks-{slug}.jsonl", f"junit-{slug}.xml", f"checks-{slug}.log", f"checks-{slug}.context.json")
    results, junit, log, context = (run.directory / name for name in names)
    return results, junit, log, context


def _progress(results: Sequence[CheckResult]) -> str:
    red = sum(r.red for r in results)
    return f"{len(results)} done" + (f", {red} FAILED" if red else "")
