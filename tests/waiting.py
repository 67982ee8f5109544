"""Waiting for what comes by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from harness.deadline import Deadline


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Returns when `condition` holds; fails, naming `what`, where it does not within `seconds`."""
    deadline = Deadline(seconds)
    while not condition():
        assert not deadline.expired, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)
