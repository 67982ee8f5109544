"""Keeps subscriptions alive: renews them before they expire, and takes them anew where OpenSIPS has lost them.

OpenSIPS keeps subscriptions in memory only: where it is started anew they are gone, and nobody is told.
"""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass
from typing import Final

from harness.errors import DialtoneError
from harness.opensips.interface import EventInterface
from harness.opensips.mi import MiError, MiRefused

WATCH: Final = 1.0
"""Seconds between two looks whether OpenSIPS is the one that was subscribed to."""


@dataclass(frozen=True)
class Gap:
    """A time in which `socket` may have missed events, in seconds since the epoch: it was subscribed at `since` for the
    last time that is known, and again at `until`."""

    event: str
    socket: str
    since: float
    until: float
    reason: str

    def __str__(self) -> str:
        return f"no subscription to {self.event} for up to {self.until - self.since:.1f} s: {self.reason}"


@dataclass
class _Kept:
    known: float
    """When it was last known to be there."""
    renewed: float
    started: str
    """Which OpenSIPS has it: when that was started."""


class Keeper:
    """Subscribes at `interface` for `expire` seconds (2 or more) at a time, and renews each when half of that is over.

    It looks every `watch` seconds whether OpenSIPS was started anew, and before each renewal whether the subscription
    is still there. close() it or use `with`: it ends all subscriptions. Times in the future are by the monotonic clock.
    """

    def __init__(self, interface: EventInterface, expire: int = 60, watch: float = WATCH) -> None:
        if expire < 2:
            raise ValueError(f"a subscription of {expire} s can't be renewed in time")
        self.interface, self.expire, self.watch = interface, expire, watch
        self._kept: dict[tuple[str, str], _Kept] = {}
        self._gaps: list[Gap] = []
        self._trouble: DialtoneError | None = None
        self._lock = threading.RLock()
        self._stop = threading.Event()
        interface.up_since()
        self._thread = threading.Thread(target=self._work, name="keeper of subscriptions", daemon=True)
        self._thread.start()

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def keep(self, event: str, socket: str) -> None:
        """Subscribe `socket` to `event`, and keep it so. Raises MiRefused where OpenSIPS does not know either."""
        with self._lock:
            up_since = self.interface.up_since()
            self.interface.subscribe(event, socket, self.expire)
            now = time.monotonic()
            self._kept[event, socket] = _Kept(now, now, up_since)

    def drop(self, event: str, socket: str) -> None:
        """End a subscription. What is raised in the same second may still come."""
        with self._lock:
            self._kept.pop((event, socket), None)
            self.interface.unsubscribe(event, socket)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        return tuple(self._gaps)

    @property
    def trouble(self) -> DialtoneError | None:
        """Why subscriptions can't be kept now; None where they are."""
        return self._trouble

    def close(self) -> None:
        """End what is kept. What can't be ended because OpenSIPS does not answer expires."""
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(MiError):
            for event, socket in list(self._kept):
                self.drop(event, socket)

    def _work(self) -> None:
        while not self._stop.wait(self._pause()):
            with self._lock:
                try:
                    self._trouble = self._look()
                except DialtoneError as error:
                    self._trouble = error

    def _pause(self) -> float:
        with self._lock:
            due = min((one.renewed for one in self._kept.values()), default=time.monotonic()) + self.expire / 2
        # Where OpenSIPS does not answer, it is not asked all the time.
        return self.watch if self._trouble else min(self.watch, max(due - time.monotonic(), 0.01))

    def _look(self) -> DialtoneError | None:
        """Look after all subscriptions once; the last refusal, where there was any."""
        refusal = None
        up_since = self.interface.up_since()
        for (event, socket), one in self._kept.items():
            if self._stop.is_set():
                break
            now = time.monotonic()
            try:
                if one.started != up_since:
                    self._anew(event, socket, one, up_since, f"OpenSIPS was started anew ({up_since})")
                elif now < one.renewed + self.expire / 2:
                    one.known = now
                elif self.interface.subscribed(event, socket):
                    self.interface.subscribe(event, socket, self.expire)
                    one.known = one.renewed = now
                else:
                    self._anew(event, socket, one, up_since, "OpenSIPS had it no longer")
            except MiRefused as error:
                refusal = error
        return refusal

    def _anew(self, event: str, socket: str, one: _Kept, up_since: str, reason: str) -> None:
        self.interface.subscribe(event, socket, self.expire)
        now = time.monotonic()
        ahead = time.time() - now
        self._gaps.append(Gap(event, socket, one.known + ahead, now + ahead, reason))
        one.known, one.renewed, one.started = now, now, up_since
