"""What a server's journal says (journalctl(1), --output=json), and at which times it was checks that made it say so."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

CHECKED = "/run/dialtone-checked"
"""On the server: a line `begin SECONDS` or `end SECONDS` (since boot) for every time that checks ran; gone at the next
boot, as the journal's counting of seconds is."""

WARNINGS = ("journalctl --boot --priority=warning --quiet --all --output=json "
            "--output-fields=MESSAGE,SYSLOG_IDENTIFIER,_COMM")
"""Prints what read() takes: kernel log and journal since boot, of priority warning and worse."""


@dataclass(frozen=True)
class Entry:
    """One message; `seconds` since boot, `source` is the program's name, or kernel."""

    seconds: float
    source: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


def note(word: str) -> str:
    """The command of sh that notes `begin` or `end` now."""
    return f"read -r seconds rest </proc/uptime; echo {word} $seconds >>{CHECKED}"


def read(printed: str) -> list[Entry]:
    """The entries that journalctl printed, in its order. Raises ValueError where that is no JSON."""
    found = []
    for line in printed.splitlines():
        fields = json.loads(line)
        found.append(Entry(int(fields["__MONOTONIC_TIMESTAMP"]) / 1e6,
                           _text(fields.get("SYSLOG_IDENTIFIER") or fields.get("_COMM") or "?"),
                           _text(fields.get("MESSAGE") or "")))
    return found


def _text(value: Any) -> str:
    """A field that is no UTF-8 comes as octets, one that is there several times as a list of texts."""
    if isinstance(value, str):
        return value
    return " ".join(value) if isinstance(value[0], str) else bytes(value).decode(errors="replace")


def windows(checked: str) -> list[tuple[float, float]]:
    """When checks ran, from the content of CHECKED: a time without an end lasts until the next begins, the last for
    good."""
    found: list[tuple[float, float]] = []
    begun: float | None = None
    for line in checked.splitlines():
        word, seconds = line.split()[:2]
        if begun is not None:
            found.append((begun, float(seconds)))
        begun = float(seconds) if word == "begin" else None
    return found if begun is None else [*found, (begun, float("inf"))]


def apart(entries: Iterable[Entry], checked: Sequence[tuple[float, float]]) -> list[Entry]:
    """The entries that are of none of these times."""
    return [entry for entry in entries if not any(begin <= entry.seconds <= end for begin, end in checked)]
