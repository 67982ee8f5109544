import contextlib
import io
import json
import os
import pty
import re

import pytest

from harness.progress import Progress


def test_without_a_terminal_a_stage_is_a_line_at_its_start_and_one_at_its_end():
    out = io.StringIO()
    progress = Progress(out, previous={"build": 48.0})
    with progress.stage("build"):
        progress.detail("half of it")
        progress.detail("rtpengine.qcow2, 168 MB")
    start, end = out.getvalue().splitlines()
    assert start == "  build     ... (last time 48 s)"
    assert re.fullmatch(r"  build     rtpengine\.qcow2, 168 MB +0 s", end)
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()


def test_a_stage_that_fails_says_so_and_lets_the_error_through():
    out = io.StringIO()
    progress = Progress(out)
    with pytest.raises(KeyboardInterrupt), progress.stage("launch"):
        progress.detail("address 0.4")
        raise KeyboardInterrupt
    assert "FAILED: address 0.4" in out.getvalue().splitlines()[-1]


def test_json_is_one_object_a_line():
    out = io.StringIO()
    progress = Progress(out, as_json=True)
    progress.line("hello")
    progress.run("relay, run 7", "7")
    with pytest.raises(ValueError, match="broken"), progress.stage("build"):
        progress.detail("now")
        raise ValueError("broken")
    note, begun, start, end = (json.loads(line) for line in out.getvalue().splitlines())
    assert (note["event"], note["text"]) == ("note", "hello")
    assert (begun["event"], begun["run"], begun["text"]) == ("run", "7", "relay, run 7")
    assert (start["event"], start["stage"]) == ("start", "build")
    assert (end["event"], end["failed"], end["detail"]) == ("end", True, "now") and end["seconds"] >= 0


def _on_a_terminal(monkeypatch, **environment: str) -> str:
    """What a failing and a passing stage write to a terminal."""
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outer, inner = pty.openpty()
    with os.fdopen(inner, "w") as out:
        progress = Progress(out)
        with progress.stage("build"):
            progress.detail("compiling")
        with pytest.raises(ValueError), progress.stage("check"):
            raise ValueError
    text = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed and all is read
        while chunk := os.read(outer, 65536):
            text += chunk
    os.close(outer)
    return text.decode()


def test_on_a_terminal_the_line_lives_and_columns_align(monkeypatch):
    text = _on_a_terminal(monkeypatch, TERM="xterm")
    assert "\r\x1b[K  build     compiling" in text and "\x1b[31;1mFAILED" in text
    shown = [line.rpartition("\r")[2] for line in re.sub(r"\x1b\[[0-9;]*[mK]", "", text).split("\r\n")]
    assert len({len(line) for line in shown if line}) == 1


def test_no_color_is_respected(monkeypatch):
    text = _on_a_terminal(monkeypatch, TERM="xterm", NO_COLOR="1")
    assert "\x1b[31" not in text and "FAILED" in text


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    assert "\x1b" not in _on_a_terminal(monkeypatch, TERM="dumb")


def test_a_signal_in_the_middle_of_a_write_hinders_no_removal():
    class Busy(io.StringIO):
        def write(self, text):
            raise RuntimeError("reentrant call inside <_io.BufferedWriter>")

    progress = Progress(Busy())
    with pytest.raises(RuntimeError):
        progress.line("a moment")
    progress.unheard = True
    progress.line("a moment")
