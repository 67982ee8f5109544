"""What a run says while it works: a live line on a terminal, plain lines elsewhere, JSON lines on request."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from harness.units import seconds


class Progress:
    """One line per stage. `previous` maps stage names to the seconds they took last time."""

    def __init__(self, out: TextIO | None = None, *, as_json: bool = False,
                 previous: dict[str, float] | None = None) -> None:
        self.out = out or sys.stdout
        self.as_json = as_json
        self.previous = previous or {}
        self.live = not as_json and self.out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self.colour = self.live and "NO_COLOR" not in os.environ
        self.unheard = False
        """Whether it does not matter that nobody reads any more: things are being removed."""
        self._stage = ""
        self._begin = 0.0
        self._detail = ""

    def line(self, text: str) -> None:
        """A line of its own, outside any stage."""
        if self.as_json:
            self._json(event="note", text=text)
        else:
            self._clear()
            self._write(f"{text}\n")

    def run(self, text: str, run: str) -> None:
        """The line that a run begins with; `run` is its id."""
        if self.as_json:
            self._json(event="run", run=run, text=text)
        else:
            self.line(text)

    def error(self, text: str) -> None:
        self.line(self._paint("31;1", text))

    @contextmanager
    def stage(self, name: str) -> Iterator[Progress]:
        """Shows the stage while it runs and its last detail() when it ends, also when it fails."""
        self._stage, self._begin, self._detail = name, time.monotonic(), ""
        if self.as_json:
            self._json(event="start", stage=name)
        elif self.live:
            self._draw()
        else:
            before = self.previous.get(name)
            last = f" (last time {seconds(before)})" if before else ""
            self._write(f"  {name:<9} ...{last}\n")
        failed = True
        try:
            yield self
            failed = False
        finally:
            spent = time.monotonic() - self._begin
            if self.as_json:
                self._json(event="end", stage=name, seconds=round(spent, 2), failed=failed, detail=self._detail)
            else:
                self._clear()
                detail = self._detail or ("FAILED" if failed else "done")
                if failed and "FAILED" not in detail:
                    detail = f"FAILED: {detail}"
                text = f"{detail:<56}"
                self._write(f"  {name:<9} {self._paint('31;1', text) if failed else text} {seconds(spent):>10}\n")
            self._stage = ""

    def detail(self, text: str) -> None:
        """What the running stage does now; the last one stands when it ends."""
        self._detail = text
        if self.live and self._stage:
            self._draw()

    def _draw(self) -> None:
        spent = seconds(time.monotonic() - self._begin)
        before = self.previous.get(self._stage)
        last = f" of {seconds(before)} last time" if before else ""
        text = f"  {self._stage:<9} {self._detail}  {spent}{last}"
        with self._maybe_unheard():
            width = os.get_terminal_size(self.out.fileno()).columns
            self._write("\r\x1b[K" + text[: width - 1])

    def _clear(self) -> None:
        if self.live:
            self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        with self._maybe_unheard():
            self.out.write(text)
            self.out.flush()

    @contextmanager
    def _maybe_unheard(self) -> Iterator[None]:
        try:
            yield
        except OSError:  # closed, or read by nobody
            if not self.unheard:
                raise
            # What is left in the buffer would fail again when this process ends, and change its exit code.
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self.out.fileno())
        except RuntimeError:  # a signal came in the middle of a write
            if not self.unheard:
                raise

    def _paint(self, code: str, text: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour else text

    def _json(self, **fields: Any) -> None:
        self._write(json.dumps({"at": round(time.time(), 3), **fields}) + "\n")
