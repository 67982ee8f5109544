"""What a run makes on this host, and how each kind of it is removed.

A resource is named by what can be known before it exists (a process by a token in its command line, a loop
device by its backing file), so that the journal has it before the deed and a later run can remove it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.errors import HostError
from harness.process import CommandFailed, run


@dataclass(frozen=True)
class Resource:
    """`kind` selects the remover, `name` is unique within the kind, `data` is what the remover needs besides."""

    kind: str
    name: str
    data: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


Remover = Callable[[Resource], None]
"""Removes a resource; returns silently where it is already gone, raises HostError or CloudError where it can't."""


@dataclass(frozen=True)
class Awaited:
    """A remover of what takes a while to go: `begin` asks for it, so that many can go at once; `end` waits for it,
    and does not depend on `begin`."""

    begin: Remover
    end: Remover

    def __call__(self, resource: Resource) -> None:
        self.end(resource)


MOUNTS = Path("/proc/self/mounts")
PATIENCE = 5.0
"""Seconds between SIGTERM and SIGKILL, and at most until an ended process or a detached device is gone."""
_LOOK = 0.05
"""Seconds between two looks for processes."""


def processes_with(token: str) -> list[int]:
    """Process ids whose command line has `token` as an argument or inside one (proc(5), /proc/PID/cmdline).

    This process and those that started it (a shell or sudo whose arguments name the token) don't count.
    """
    found = []
    ours = _ancestors()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in ours:
            continue
        try:
            if token.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _ancestors() -> set[int]:
    found: set[int] = set()
    pid = os.getpid()
    while pid and pid not in found:
        found.add(pid)
        try:
            # proc(5): the parent is the second field after the command's name, which is in parentheses
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _running(token: str) -> list[int]:
    """processes_with(token), by two looks: in the middle of execve(2) a process has no command line."""
    found = processes_with(token)
    if not found:
        time.sleep(_LOOK)
        found = processes_with(token)
    return found


def remove_process(resource: Resource) -> None:
    """`name` is a token of the command line that no other process has. SIGTERM, after PATIENCE SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        pids = _running(resource.name)
        for pid in pids:
            _signal(pid, number)
        deadline = Deadline(PATIENCE)
        while pids and not deadline.expired:
            time.sleep(_LOOK)
            pids = _running(resource.name)
        if not pids:
            return
    raise HostError(f"process with {resource.name!r} in its command line does not end", hint="look: ps aux")


def remove_namespace(resource: Resource) -> None:
    """A network namespace made with `ip netns add`; links inside it go with it."""
    if Path("/run/netns", resource.name).exists():
        run(["ip", "netns", "delete", resource.name])


def remove_link(resource: Resource) -> None:
    """A network interface in the host's own namespace."""
    if Path("/sys/class/net", resource.name).exists():
        run(["ip", "link", "delete", resource.name])


def remove_path(resource: Resource) -> None:
    """A file or a directory tree. Refuses a tree in which something is still mounted."""
    path = Path(resource.name)
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        mounted = list(mounts_below(path))
        if mounted:
            raise HostError(f"{path} is not removed: {mounted[0]} is still mounted", hint=f"umount {mounted[0]}")
        # Two may remove it at once: what one takes from under the other is gone all the same.
        while path.exists():
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(path)


def mounts_below(path: Path) -> Iterator[Path]:
    """Mount points at or below `path`, the innermost first (proc(5), /proc/self/mounts)."""
    points = []
    for line in MOUNTS.read_text().splitlines():
        point = Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), line.split()[1]))
        if point == path or path in point.parents:
            points.append(point)
    return iter(sorted(points, key=lambda p: len(p.parts), reverse=True))


def remove_mount(resource: Resource) -> None:
    """Everything mounted at or below the path `name`."""
    for point in mounts_below(Path(resource.name)):
        run(["umount", os.fspath(point)])


def remove_loop(resource: Resource) -> None:
    """Loop devices whose backing file is `name` or lies below it: partitions first, then the device.

    The order matters: a partition that outlives its device poisons the next build on that device. When the mount
    with the file is gone, the kernel shows the path inside that mount only: the last part of `name` must be unique.
    """
    listed = json.loads(run(["losetup", "--json", "--list", "--output", "NAME,BACK-FILE"]).stdout or "{}")
    for device in listed.get("loopdevices", []):
        backing = Path(str(device["back-file"] or "").removesuffix(" (deleted)"))
        wanted = Path(resource.name)
        if backing != wanted and wanted.name not in backing.parent.parts:
            continue
        name = str(device["name"])
        run(["partx", "--delete", name], check=False)
        for link in Path("/dev/mapper").glob(f"{Path(name).name}p*"):
            if link.is_symlink():
                link.unlink()
        try:
            run(["losetup", "--detach", name])
        except CommandFailed as error:
            raise HostError(f"loop device {name} of {backing} can't be detached: {error.output.strip()}") from error
        # losetup answers 0 for a device in use as well, and the kernel then lets go of it whenever its user does.
        deadline = Deadline(PATIENCE)
        while Path("/sys/block", Path(name).name, "loop").exists():
            if deadline.expired:
                raise HostError(f"loop device {name} of {backing} is still in use",
                                hint=f"look: grep {Path(name).name} /proc/*/mounts")
            time.sleep(0.05)


REMOVERS: dict[str, Remover] = {
    "process": remove_process,
    "namespace": remove_namespace,
    "link": remove_link,
    "path": remove_path,
    "mount": remove_mount,
    "loop": remove_loop,
}
