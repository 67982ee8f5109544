"""Reports of stalls in a kernel's log, and which of them an emulator brought about (Linux,
Documentation/RCU/stallwarn.rst)."""

from __future__ import annotations

import re
from collections.abc import Sequence

STALL = re.compile(r"\w+ (?:detected (?:expedited )?stalls|self-detected stall)\b")
"""Found in the line that a report begins with."""
_TIME = re.compile(r"^(?:\[[ \d.]+\])? ?")
_PART = re.compile(r"^(?:rcu:|\s|Sending NMI|NMI backtrace|CPU: |Hardware name:|RIP: |Code: |R[A-Z0-9]{2}: |[FCG]S: |"
                   r"CR2: |DR\d: |PKRU|Call Trace:|task:|Workqueue:)")
_TICKS = re.compile(r"\((\d+) ticks this GP\)")
_JIFFIES = re.compile(r"\(.*\bt=(\d+) jiffies")
_RAN = 0.25
"""Part of a stall's ticks that a processor which loops has counted at the least. One that was not run counted none."""


def without_waits(log: Sequence[str]) -> tuple[list[str], list[str]]:
    """The lines of `log` without reports of processors that were not run meanwhile, and the first lines of those.

    A processor counts its own ticks; when most of them are missing, either nothing ran it or it had its interrupts off.
    On an emulated processor, which is a thread among others of its host, it is the first.
    """
    rest: list[str] = []
    waits: list[str] = []
    report: list[str] = []

    def close() -> None:
        if report:
            if _waited(report):
                waits.append(report[0])
            else:
                rest.extend(report)
            report.clear()

    for line in log:
        text = _TIME.sub("", line, count=1)
        if STALL.search(text):
            close()
            report.append(line)
        elif report and _PART.match(text):
            report.append(line)
        else:
            close()
            rest.append(line)
    close()
    return rest, waits


def _waited(report: Sequence[str]) -> bool:
    text = "\n".join(report)
    ticks, jiffies = [int(found) for found in _TICKS.findall(text)], _JIFFIES.search(text)
    return bool(ticks) and jiffies is not None and max(ticks) < _RAN * int(jiffies[1])
