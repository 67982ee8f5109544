"""Removes what dead runs left on this host and in a cloud.

From two sides. A run that is known to have died is removed by its journal, at once. What bears this checkout's mark
while its run is done, or gone (somebody deleted runs/), and the directory of a build that nobody holds, is removed
when a second sweep finds it too. Runs that are
being worked on, runs that were kept, and whatever lacks our mark are left alone.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from harness.cloud import Cloud
from harness.cloud.choose import choose
from harness.cloud.ownership import Mark, find, owner
from harness.errors import DescriptionError, DialtoneError, HostError, from_os_error
from harness.image import loops
from harness.process import CommandFailed
from harness.process import run as run_command
from harness.resources import REMOVERS, Remover, Resource
from harness.run import Run, State, write_whole
from harness.settings import Settings
from harness.testcloud import node
from harness.testcloud.place import place_of

NAMESPACES = Path("/run/netns")
_YOUNG = 60.0
_HERE = "local"
"""The cloud of what is on this host, which every sweep looks at."""


@dataclass(frozen=True)
class Reaped:
    """What was found, and its `outcome`: removed, failed, would remove (a dry run), or seen (for the first time)."""

    run_id: str
    resource: Resource
    outcome: str
    why: str


def sweep(settings: Settings, *, older_than: float | None = None, dry_run: bool = False) -> list[Reaped]:
    """Remove what dead runs left; `older_than` (seconds) leaves younger runs alone. What fails is in the result."""
    # Loop devices first: a build's directory says that it is dead, and goes with the rest.
    found = [] if dry_run else _sweep_loops(settings)
    before = time.time() - (older_than or 0.0)
    for run in Run.all(settings.runs):
        if run.started <= before:
            found += _sweep_run(settings, run, dry_run)
    return found + _sweep_test_cloud(settings, dry_run) + _sweep_strays(settings, before, dry_run)


def _sweep_run(settings: Settings, run: Run, dry_run: bool) -> list[Reaped]:
    """A run that died; or one that is done, but could not remove everything then."""
    # A run that is just being created isn't locked yet, and owns nothing.
    if run.state is State.KEPT or (not run.journal.outstanding() and (
            run.state is State.DONE or time.time() - run.started < _YOUNG)):
        return []
    try:
        run.lock()
    except HostError:
        return []
    try:
        # Only now nobody writes it: what was read before may be of the time when the run was worked on.
        now = Run.open(run.directory)
        if now.state is State.KEPT:
            return []
        made = now.journal.outstanding()
        why = "its run died" if now.state is State.ACTIVE else "its run could not remove it"
        if dry_run:
            return [Reaped(run.id, resource, "would remove", why) for resource in made]
        left = now.journal.remove_outstanding(_removers(settings, now))
        if not left:
            now.state = State.DONE
            now.save()
    finally:
        run.unlock()
    stuck = {(r.kind, r.name): error.message for r, error in left}
    return [Reaped(run.id, r, "failed", stuck[r.kind, r.name]) if (r.kind, r.name) in stuck
            else Reaped(run.id, r, "removed", why) for r in made]


def _sweep_test_cloud(settings: Settings, dry_run: bool) -> list[Reaped]:
    """A test cloud that was left half up; it belongs to the cache and not to a run."""
    place = place_of(settings)
    if not node.dead(place):
        return []
    made, why = place.journal.outstanding(), "the test cloud was left half up"
    if dry_run:
        return [Reaped(place.id, resource, "would remove", why) for resource in made]
    try:
        with place.working():
            node.clean(place)
    except DialtoneError as error:
        return [Reaped(place.id, resource, "failed", error.message) for resource in place.journal.outstanding()]
    return [Reaped(place.id, resource, "removed", why) for resource in made]


def _removers(settings: Settings, run: Run) -> Mapping[str, Remover]:
    try:
        return {**REMOVERS, **choose(replace(settings, cloud=run.cloud)).removers}
    except DescriptionError:
        return REMOVERS


def _sweep_strays(settings: Settings, before: float, dry_run: bool) -> list[Reaped]:
    sightings = settings.cache / "sightings.json"
    known = _recall(sightings)
    found: list[Reaped] = []
    cloud = choose(settings)
    # What other clouds showed waits for a sweep that looks there again.
    seen = {name: dict(at) for name, at in known.items() if name not in (cloud.name, _HERE)}
    removers = {**REMOVERS, **cloud.removers}
    for run_id, resource, why in _strays(settings, cloud):
        if began(run_id) > before:
            continue
        where = str(resource.data.get("cloud", _HERE))
        first = known.get(where, {}).get(str(resource))
        if first is None:
            seen.setdefault(where, {})[str(resource)] = time.time()
            found.append(Reaped(run_id, resource, "seen", f"{why}; the next sweep removes it"))
        elif dry_run:
            found.append(Reaped(run_id, resource, "would remove", why))
        else:
            try:
                removers[resource.kind](resource)
                found.append(Reaped(run_id, resource, "removed", why))
            except (DialtoneError, OSError) as error:
                seen.setdefault(where, {})[str(resource)] = first
                said = error.message if isinstance(error, DialtoneError) else from_os_error(error).message
                found.append(Reaped(run_id, resource, "failed", said))
    if not dry_run and seen != known:
        sightings.parent.mkdir(parents=True, exist_ok=True)
        write_whole(sightings, json.dumps(seen, indent=1))
    return found


def _strays(settings: Settings, cloud: Cloud) -> Iterator[tuple[str, Resource, str]]:
    """What is ours and can't be in use, in the order in which it is to be removed: run, resource, why."""
    mine, cloud_place = owner(settings), place_of(settings)
    for mark, resource in itertools.chain(cloud.marked(), _marked()):
        why = _over(settings.runs / mark.run_id) if mark.owner == mine else None
        if mark == cloud_place.mark and not cloud_place.alive and not cloud_place.busy:
            why = "the test cloud's directory is gone"
        if why:
            yield mark.run_id, resource, why
    for directory in sorted((settings.cache / "work").glob("*/")):
        # Its run may have been of another directory of runs: who builds holds a lock, wherever the run is.
        if not loops.alive(directory):
            yield directory.name, Resource("path", str(directory)), "its build died"


def _over(directory: Path) -> str | None:
    """Why nothing of the run with this directory can be in use, None where something may be."""
    if not directory.exists():
        return "the directory of its run is gone"
    try:
        return "its run is done" if Run.open(directory).state is State.DONE else None
    except DescriptionError:
        return None


def _recall(sightings: Path) -> dict[str, dict[str, float]]:
    """When strays were seen first (seconds since the epoch), by cloud and resource; nothing where it can't be read."""
    try:
        return {name: dict(at) for name, at in json.loads(sightings.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _marked() -> Iterator[tuple[Mark, Resource]]:
    """Everything on this host that bears a mark of Dialtone's, in the order in which it is to be removed."""
    for token in sorted(_process_tokens()):
        mark = find(token)
        if mark:
            yield mark, Resource("process", token)
    for name, mark in _links().items():
        yield mark, Resource("link", name)
    for path in sorted(NAMESPACES.glob("qrouter-*")):
        marks = _links(path.name)
        for mark in set(marks.values()):
            yield mark, Resource("namespace", path.name)


_TOKEN = re.compile(rb"dialtone:[0-9a-f]{12}:[A-Za-z0-9._-]+:[a-z0-9-]+:")


def _process_tokens() -> set[str]:
    tokens: set[str] = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            tokens |= {t.decode() for t in _TOKEN.findall(entry.read_bytes())}
        except OSError:
            continue
    return tokens


def _links(namespace: str = "") -> dict[str, Mark]:
    """Marked interfaces by name, in the namespace or in the host's own; none where it can't be looked into."""
    try:
        listed = run_command(["ip", *(["-netns", namespace] if namespace else []), "-json", "link", "show"]).stdout
        entries = json.loads(listed or "[]")
    # Where links came or went meanwhile it says so in the middle of its JSON; the next sweep looks again.
    except (CommandFailed, ValueError):
        return {}
    marks = ((entry["ifname"], find(entry.get("ifalias", ""))) for entry in entries if entry)
    return {name: mark for name, mark in marks if mark}


def began(run_id: str) -> float:
    """When a run began, in seconds since the epoch, by its id; 0 for an id without a time."""
    try:
        return datetime.strptime(run_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def _sweep_loops(settings: Settings) -> list[Reaped]:
    try:
        removed = loops.sweep(settings.cache / "work")
    except HostError as error:
        return [Reaped("-", Resource("loop", "-"), "failed", error.message)]
    return [Reaped("-", Resource("loop", name), "removed", "its build died") for name in removed]
