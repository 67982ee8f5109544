"""A run: its id, its directory, its journal of resources, its timeline.

    runs/<id>/run.json          what it is, its state and its stages
    runs/<id>/journal.jsonl     a line before each resource is made, a line after it is gone
    runs/<id>/lock              held (flock) by the process that works on the run: free means nobody does
    runs/latest                 link to the newest run
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from harness.errors import DescriptionError, DialtoneError, HostError, RemovalError, Unreachable
from harness.resources import Awaited, Remover, Resource


class Journal:
    """An append-only record of resources, on disk before the deed (fsync)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def creating(self, resource: Resource) -> Resource:
        """Record that `resource` is about to be made."""
        self._append({"event": "creating", "kind": resource.kind, "name": resource.name, "data": resource.data})
        return resource

    def gone(self, resource: Resource) -> None:
        """Record that `resource` is no more."""
        self._append({"event": "gone", "kind": resource.kind, "name": resource.name})

    def outstanding(self) -> list[Resource]:
        """Resources that were announced and are not gone, newest first. A torn last line is ignored."""
        alive: dict[tuple[str, str], Resource] = {}
        for entry in self._entries():
            key = (entry["kind"], entry["name"])
            alive.pop(key, None)
            if entry["event"] == "creating":
                alive[key] = Resource(entry["kind"], entry["name"], entry.get("data", {}))
        return list(reversed(alive.values()))

    def announced(self, kind: str, name: str) -> float:
        """When the resource was recorded last, which is just before it was made; seconds since the epoch."""
        return max(float(e["at"]) for e in self._entries() if (e["event"], e["kind"], e["name"]) == (
            "creating", kind, name))

    @contextmanager
    def passing(self, removers: Mapping[str, Remover]) -> Iterator[None]:
        """What is recorded inside is removed at the end; what was there before stays. Raises RemovalError."""
        before = {(r.kind, r.name) for r in self.outstanding()}
        try:
            yield
        finally:
            left = self.remove_outstanding(removers, keep=before)
        if left:
            raise RemovalError("not removed: " + "; ".join(f"{r} ({e.message})" for r, e in left))

    def remove_outstanding(self, removers: Mapping[str, Remover], keep: Collection[tuple[str, str]] = ()
                           ) -> list[tuple[Resource, DialtoneError]]:
        """Remove everything that is outstanding, newest first; go on after an error; return what is left.

        `keep`: kinds and names of what stays.
        """
        left: list[tuple[Resource, DialtoneError]] = []
        silent: dict[str, DialtoneError] = {}
        going = [r for r in self.outstanding() if (r.kind, r.name) not in keep]
        _begin(going, removers)
        for resource in going:
            cloud = str(resource.data.get("cloud", ""))
            if cloud in silent:  # each further question would wait as long for no answer
                left.append((resource, silent[cloud]))
                continue
            try:
                remover = removers.get(resource.kind)
                if remover is None:
                    raise HostError(f"nothing here knows how to remove a {resource.kind}")
                remover(resource)
                # What can't be noted as gone is left: to remove it once more does no harm.
                self.gone(resource)
            except DialtoneError as error:
                left.append((resource, error))
                if cloud and isinstance(error, Unreachable):
                    silent[cloud] = error
            except OSError as error:
                left.append((resource, RemovalError(f"{resource} can't be removed: {error.strerror or error}")))
        return left

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps({"at": time.time(), **entry}, sort_keys=True) + "\n"
        with self.path.open("ab+") as out:
            if out.tell():
                out.seek(-1, os.SEEK_END)
                if out.read(1) != b"\n":
                    line = "\n" + line  # ends the line that a death or a full disk cut off
            out.write(line.encode())
            out.flush()
            os.fsync(out.fileno())

    def _entries(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def _begin(resources: Sequence[Resource], removers: Mapping[str, Remover]) -> None:
    """Ask for what takes a while. An error is met again, and reported, when its turn comes."""
    for resource in resources:
        remover = removers.get(resource.kind)
        if isinstance(remover, Awaited):
            try:
                remover.begin(resource)
            except DialtoneError:
                return


class State(StrEnum):
    """`active`: somebody works on it (or died doing so); `kept`: left running on purpose; `done`: all removed."""

    ACTIVE = "active"
    KEPT = "kept"
    DONE = "done"


@dataclass
class Stage:
    """One entry of the timeline; times in seconds, `started` since the epoch."""

    name: str
    started: float
    seconds: float | None = None
    outcome: str = "running"  # passed, failed, skipped, running
    detail: str = ""


@dataclass
class Run:
    """Made with Run.create() or Run.open(); save() after every change of its fields."""

    directory: Path
    appliance: str
    cloud: str
    started: float
    state: State = State.ACTIVE
    keep: str = "never"
    stages: list[Stage] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    _lock: IO[str] | None = None

    @property
    def id(self) -> str:
        return self.directory.name

    @property
    def journal(self) -> Journal:
        return Journal(self.directory / "journal.jsonl")

    @classmethod
    def create(cls, runs: Path, appliance: str, cloud: str) -> Run:
        """A new run, locked by this process, with `runs/latest` pointing at it."""
        now = time.time()
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%d-%H%M%S")
        directory = runs / f"{stamp}-{appliance}-{secrets.token_hex(2)}"
        directory.mkdir(parents=True, mode=0o750)
        made = cls(directory, appliance, cloud, now)
        made.lock()
        made.save()
        latest = runs / f".latest-{made.id}"
        latest.symlink_to(made.id)
        latest.replace(runs / "latest")
        return made

    @classmethod
    def open(cls, directory: Path) -> Run:
        """The run whose directory is `directory` (or a link to it). Raises DescriptionError where it is none."""
        directory = directory.resolve()
        try:
            data = json.loads((directory / "run.json").read_text(encoding="utf-8"))
            return cls(directory, data["appliance"], data["cloud"], data["started"], State(data["state"]),
                       data.get("keep", "never"), [Stage(**s) for s in data["stages"]], data["facts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DescriptionError(f"{directory} is not a run: {error}",
                                   hint="runs/ holds one directory per run") from error

    @classmethod
    def all(cls, runs: Path) -> list[Run]:
        """Every run below `runs`, oldest first; a directory without a readable run.json is passed over."""
        found = []
        for path in sorted(runs.glob("*/run.json")):
            if path.parent.is_symlink():
                continue
            try:
                found.append(cls.open(path.parent))
            except DescriptionError:
                continue
        return found

    def earlier(self) -> list[Run]:
        """Finished runs of the same appliance and cloud that began before this one, oldest first.

        Those of single stages, which have no report, are left out.
        """
        return [other for other in Run.all(self.directory.parent)
                if other.started < self.started and (other.appliance, other.cloud) == (self.appliance, self.cloud)
                and "exit_code" in other.facts and not other.facts.get("quiet")]

    def save(self) -> None:
        data = {"id": self.id, "appliance": self.appliance, "cloud": self.cloud, "started": self.started,
                "state": self.state, "keep": self.keep, "stages": [asdict(s) for s in self.stages],
                "facts": self.facts}
        write_whole(self.directory / "run.json", json.dumps(data, indent=1, sort_keys=True))

    def lock(self) -> None:
        """Hold the run; the kernel lets go when this process ends, however it ends. Raises HostError where held."""
        handle = (self.directory / "lock").open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise HostError(f"run {self.id} is being worked on by another process",
                            hint="wait for it, or end it, then try again") from None
        self._lock = handle

    def unlock(self) -> None:
        if self._lock:
            self._lock.close()
            self._lock = None

    @property
    def dead(self) -> bool:
        """Known to have died: still `active` on disk, and nobody holds its lock."""
        return self.state is State.ACTIVE and not self._lock and not held(self.directory / "lock")

    @contextmanager
    def stage(self, name: str, save: Callable[[], None] | None = None) -> Iterator[Stage]:
        """Time a stage; an error that leaves it bears its name, and the timeline says `failed`.

        `save` stands in for save(): whose work must go on where that fails brings its own.
        """
        save = save or self.save
        entry = Stage(name, time.time())
        self.stages.append(entry)
        save()
        begin = time.monotonic()
        try:
            yield entry
        except BaseException as error:
            entry.outcome = "failed"
            if isinstance(error, DialtoneError):
                error.stage = error.stage or name
                entry.detail = entry.detail or error.message
            raise
        else:
            if entry.outcome == "running":
                entry.outcome = "passed"
        finally:
            entry.seconds = round(time.monotonic() - begin, 2)
            save()


def held(lock: Path) -> bool:
    """Whether a process holds the lock file (flock); nobody holds one that is not there."""
    try:
        with lock.open("r") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # so that who looks does not see others who look
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def write_whole(path: Path, text: str, mode: int = 0o640) -> None:
    """Write a file so that a reader sees the old text or the new, never a half."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    try:
        part.touch(mode=mode)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


_ID = re.compile(r"^\d{8}-\d{6}-.+-[0-9a-f]{4}$")


def find_run(runs: Path, wanted: str | None) -> Run:
    """The run named `wanted` (id, unique beginning, or path), else the latest. Raises DescriptionError."""
    if wanted is None:
        if not (runs / "latest").exists():
            raise DescriptionError("there is no run yet", hint="./inv nightly or ./inv launch makes one")
        return Run.open(runs / "latest")
    if "/" in wanted or (runs / wanted).exists():
        return Run.open(Path(wanted) if "/" in wanted else runs / wanted)
    matches = [p for p in runs.glob(f"{wanted}*") if _ID.match(p.name)]
    if len(matches) != 1:
        raise DescriptionError(f"{'no run' if not matches else 'more than one run'} begins with {wanted!r} in {runs}",
                               hint="ls " + os.fspath(runs))
    return Run.open(matches[0])
