"""What the runs of one directory left on this host: asked of the host itself, not of their journals."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

from harness.cloud.network import Network, external_network
from harness.cloud.ownership import Mark, owner
from harness.settings import Settings


def of(settings: Settings) -> list[str]:
    """Links, routes, namespaces, processes, mounts, loop devices and files; one line each, none where all is well."""
    runs = sorted(p.parent for p in settings.runs.glob("*/run.json") if not p.parent.is_symlink())
    return [line for run in runs for line in _of_run(settings, run)] + _mounts(settings) + _processes(settings)


def _of_run(settings: Settings, run: Path) -> list[str]:
    mark = Mark(owner(settings), run.name)
    network = Network(mark, external_network(settings.floating_cidr))
    links = json.loads(_output("ip", "-json", "link"))
    found = [f"link {entry['ifname']}" for entry in links if str(mark) in entry.get("ifalias", "")]
    found += [f"route {line}" for line in _output("ip", "route", "show", "table", "all").splitlines()
              if network.host_link in line]
    found += [f"namespace {p.name}" for p in Path("/run/netns").glob(network.namespace)]
    found += [f"loop device {line}" for line in _output("losetup", "--list", "--noheadings").splitlines()
              if run.name in line]
    control = Path("/tmp", f"dialtone-{hashlib.sha256(os.fspath(run).encode()).hexdigest()[:16]}")
    files = [control, *(p for p in run.rglob("*") if p.suffix in {".sock", ".iso", ".qcow2"})]
    if settings.cache.exists():
        files += [p for p in (*settings.cache.glob("*/*"), *settings.cache.glob("*/.*")) if run.name in p.name]
    return found + [f"file {p}" for p in files if p.exists()]


def _mounts(settings: Settings) -> list[str]:
    points = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    ours = (settings.runs, settings.cache / "work")
    return [f"mount {point}" for point in points if any(tree in Path(point).parents for tree in ours)]


def _processes(settings: Settings) -> list[str]:
    """Processes, of this one's children too, that name the runs' directory or a run's mark."""
    words = (os.fspath(settings.runs) + "/", f"dialtone:{owner(settings)}:")
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if any(word in command for word in words):
            found.append(f"process {entry.parent.name}: {command[:120]}")
    return found


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
