"""The mark that everything bears which this checkout makes on the host.

Two checkouts may share a kernel without sharing a file system (containers, a chroot), so a mark names more than a
path: a link or a process with the mark of another checkout is not ours, even where its path reads the same.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from harness.settings import Settings

MACHINE_ID = Path("/etc/machine-id")
_MARK = re.compile(r"dialtone:([0-9a-f]{12}):([A-Za-z0-9._-]+):")


@dataclass(frozen=True)
class Mark:
    """`owner` stands for the checkout and its directory of runs. Its text ends so that no mark begins another."""

    owner: str
    run_id: str

    def __str__(self) -> str:
        return f"dialtone:{self.owner}:{self.run_id}:"


def owner(settings: Settings) -> str:
    """12 hexadecimal digits, the same as long as machine and project's directory live and `runs` is set as it is."""
    project = settings.project.stat()
    identity = f"{_machine()}:{project.st_dev}:{project.st_ino}:{settings.runs.absolute()}"
    return hashlib.sha256(identity.encode()).hexdigest()[:12]


def _machine() -> str:
    """machine-id(5), an empty text where there is none: clones of one disk have the same inodes, and share a cloud."""
    try:
        return MACHINE_ID.read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def find(text: str) -> Mark | None:
    """The first mark in a command line or an interface's alias."""
    match = _MARK.search(text)
    return Mark(match[1], match[2]) if match else None
