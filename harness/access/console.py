"""A server's serial console, as it was written to its log."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TextIO

from harness.errors import HostError


def show(log: Path, out: TextIO, *, follow: bool = False) -> None:
    """Copy the console log to `out`; with `follow` go on with what comes, until interrupted.

    Control sequences are left to the terminal as the server sent them. Raises HostError where there is no log.
    """
    try:
        source = log.open(encoding="utf-8", errors="replace", newline="")
    except OSError as error:
        raise HostError(f"{log}: {error.strerror}", hint="the server has not started yet, or was removed") from error
    with source:
        while True:
            while chunk := source.read(65536):
                out.write(chunk)
            out.flush()
            if not follow:
                return
            time.sleep(0.2)
