"""A server's serial console."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TextIO

from harness.errors import HostError


def show(read: Callable[[], str], out: TextIO, *, follow: bool = False) -> None:
    """Copy what `read` says the console has shown to `out`; with `follow` go on with what comes, until interrupted.

    Control sequences are left to the terminal as the server sent them. Raises HostError where there is nothing yet.
    """
    shown = 0
    while True:
        text = read()
        if not text and not follow:
            raise HostError("the console is empty", hint="the server has not started yet, or was removed")
        out.write(text[shown:])
        out.flush()
        shown = len(text)
        if not follow:
            return
        time.sleep(0.2)
