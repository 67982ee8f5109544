"""Commands as root on a server over one SSH session that stays open.

A session of its own, with sudo, costs an emulated server 0.3 to 0.5 s for every command. So a small program runs
there for the whole time: it reads requests (one JSON object a line) from its standard input, runs each by /bin/sh,
and answers with a line of JSON that gives exit code and lengths, then with what the command printed, octet by octet.
Requests are numbered: what an interrupted one would have got is no other's answer, and they are carried out in order.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shlex
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult

from harness.access import ssh_config
from harness.deadline import Deadline
from harness.errors import CloudError
from harness.process import end_group
from harness.process import run as run_command
from harness.run import Run

_GREETING = b"dialtone shell 1\n"
_GRACE = 10.0
"""Seconds beyond a command's own limit until the connection counts as lost."""

_PROGRAM = """\
import base64, glob, json, os, re, shutil, signal, subprocess, sys

def run(request):
    # An emulated processor takes 0.1 s to start /bin/sh: not where the words alone are a whole command.
    words = request["command"].split()
    plain = words and re.fullmatch("[A-Za-z0-9_./:,+@^ -]+", request["command"]) and shutil.which(words[0])
    child = subprocess.Popen(words if plain else ["/bin/sh", "-c", request["command"]], stdin=-1, stdout=-1,
                             stderr=-1, start_new_session=True)
    late = False
    try:
        printed = child.communicate(base64.b64decode(request["stdin"]), request["seconds"])
    except subprocess.TimeoutExpired:
        late = True
        os.killpg(child.pid, signal.SIGKILL)
        printed = child.communicate()
    code = child.returncode if child.returncode >= 0 else 128 - child.returncode
    return {"code": code, "late": late}, printed

def files(request):
    paths = [path for pattern in request["patterns"] for path in sorted(glob.glob(pattern))]
    content = []
    for path in paths if request["read"] else ():
        try:
            with open(path, "rb") as file:
                content.append(file.read())
        except OSError:
            content.append(b"")
    return {"paths": paths, "lengths": [len(c) for c in content]}, (b"".join(content), b"")

out = sys.stdout.buffer
out.write(b"dialtone shell 1\\n")
out.flush()
for line in sys.stdin.buffer:
    request = json.loads(line)
    head, printed = run(request) if "command" in request else files(request)
    head.update(number=request["number"], out=len(printed[0]), err=len(printed[1]))
    out.write(json.dumps(head).encode() + b"\\n" + printed[0] + printed[1])
    out.flush()
"""


class ConnectionLost(CloudError):
    """The server can't be reached any more, or stopped answering: nothing is known about the image by that."""


class CommandStuck(CloudError):
    """A command on the server did not end in time and was ended."""


@dataclass(frozen=True)
class Answer:
    """What a command on the server did; `code` is 128 + N after signal N."""

    code: int
    stdout: bytes
    stderr: bytes


class Shell:
    """A root shell on the server `alias` of `config` (an ssh_config). Opened by the first command, or by open().

    After ConnectionLost the next command opens a new session. One command at a time: threads wait for each other.
    """

    def __init__(self, config: Path, alias: str, seconds: float = 60.0) -> None:
        self.config, self.alias, self.seconds = config, alias, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._number = 0
        self._lock = threading.Lock()

    def open(self) -> None:
        """Raises ConnectionLost where no session can be had."""
        if self._process:
            return
        remote = f"sudo -n env LC_ALL=C.UTF-8 python3 -I -S -c {shlex.quote(_PROGRAM)}"
        self._rest = b""
        self._process = subprocess.Popen(["ssh", "-F", self.config, self.alias, remote], stdin=subprocess.PIPE,
                                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        # A login may print a greeting of its own first.
        deadline = Deadline(self.seconds)
        while self._line(deadline) != _GREETING:
            pass

    def run(self, command: str, stdin: bytes = b"", seconds: float | None = None) -> Answer:
        """Run `command` by /bin/sh as root. Raises ConnectionLost, CommandStuck (after `seconds`)."""
        limit = self.seconds if seconds is None else seconds
        head, stdout, stderr = self._ask({"command": command, "stdin": base64.b64encode(stdin).decode("ascii"),
                                          "seconds": limit}, Deadline(limit + _GRACE))
        if head["late"]:
            raise CommandStuck(f"on {self.alias} a command did not end within {limit:.0f} s: {command[:200]}",
                               excerpt=(stdout + stderr).decode(errors="replace")[-1000:])
        return Answer(head["code"], stdout, stderr)

    def find(self, *patterns: str) -> list[str]:
        """Paths on the server that match one of the glob(7) `patterns`. Raises ConnectionLost."""
        head, _, _ = self._ask({"patterns": patterns, "read": False}, Deadline(self.seconds))
        return list(head["paths"])

    def read(self, *patterns: str) -> dict[str, bytes]:
        """What the files that match `patterns` hold, by path; nothing in one that can't be read.

        No process is started for it. Raises ConnectionLost.
        """
        head, content, _ = self._ask({"patterns": patterns, "read": True}, Deadline(self.seconds))
        ends = list(itertools.accumulate(head["lengths"]))
        return {path: content[end - length:end] for path, length, end
                in zip(head["paths"], head["lengths"], ends, strict=True)}

    def _ask(self, request: dict[str, Any], deadline: Deadline) -> tuple[dict[str, Any], bytes, bytes]:
        with self._lock:
            self.open()
            assert self._process is not None and self._process.stdin is not None
            self._number += 1
            try:
                self._process.stdin.write(json.dumps({"number": self._number, **request}).encode() + b"\n")
                self._process.stdin.flush()
            except OSError as error:
                raise self._lost(error.strerror or str(error)) from error
            answer = self._answer(deadline)
            while answer[0]["number"] != self._number:
                answer = self._answer(deadline)
            return answer

    def close(self) -> None:
        self._end()

    def _end(self) -> str:
        """End the session; what ssh had to say about it."""
        process, self._process = self._process, None
        if process is None:
            return ""
        try:
            _, said = process.communicate(timeout=2)
        except subprocess.TimeoutExpired:
            end_group(process)
            _, said = process.communicate()
        return said.decode(errors="replace").strip()

    def _line(self, deadline: Deadline) -> bytes:
        while b"\n" not in self._rest:
            self._more(deadline)
        line, self._rest = self._rest.split(b"\n", 1)
        return line + b"\n"

    def _answer(self, deadline: Deadline) -> tuple[dict[str, Any], bytes, bytes]:
        """The next answer, taken off the stream when it is whole: whoever is interrupted leaves it to the next."""
        while (begin := self._rest.find(b"\n") + 1) == 0:
            self._more(deadline)
        try:
            head: dict[str, Any] = json.loads(self._rest[:begin])
        except ValueError as error:
            raise self._lost("its answer is not understood") from error
        middle = begin + head["out"]
        end = middle + head["err"]
        while len(self._rest) < end:
            self._more(deadline)
        stdout, stderr, self._rest = self._rest[begin:middle], self._rest[middle:end], self._rest[end:]
        return head, stdout, stderr

    def _more(self, deadline: Deadline) -> None:
        assert self._process is not None and self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], deadline.remaining)
        if not readable:
            raise self._lost(f"no answer within {deadline.seconds:.0f} s")
        chunk = os.read(self._process.stdout.fileno(), 1 << 20)
        if not chunk:
            raise self._lost("the session ended")
        self._rest += chunk

    def _lost(self, why: str) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self.alias} is lost: {why}", excerpt=self._end() or None,
                              hint=f"try it: ssh -F {os.path.relpath(self.config)} {self.alias}")


class ShellBackend(BaseBackend):  # type: ignore[misc]
    """Lets testinfra run its commands by a Shell."""

    NAME = "dialtone"

    def __init__(self, shell: Shell) -> None:
        super().__init__(shell.alias)
        self.shell = shell

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        text = self.get_command(command, *args)
        answer = self.shell.run(text)
        return self.result(answer.code, text.encode(), answer.stdout, answer.stderr)

    def get_encoding(self) -> str:
        return "UTF-8"


def close_all(run: Run) -> None:
    """End all shared SSH connections of a run: the masters that its ssh_config lets stay in the background."""
    for alias in ssh_config.aliases(run):
        run_command(["ssh", "-F", ssh_config.path(run), "-O", "exit", alias], check=False)
