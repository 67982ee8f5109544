"""A point in time that is handed down, so that timeouts never nest."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Deadline:
    """`seconds` from its creation, by the monotonic clock."""

    seconds: float
    _end: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_end", time.monotonic() + self.seconds)

    @property
    def remaining(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self._end - time.monotonic())

    @property
    def expired(self) -> bool:
        return self.remaining == 0.0

    def within(self, seconds: float) -> Deadline:
        """A deadline `seconds` from now, but never later than this one."""
        return Deadline(min(seconds, self.remaining))


@dataclass(frozen=True)
class Cancellable(Deadline):
    """A deadline that is over as soon as `cancelled` is set: commands that run under it are ended then."""

    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def remaining(self) -> float:
        return 0.0 if self.cancelled.is_set() else super().remaining
