"""Commands on this host: logged, bounded in time, and ended as a whole group."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import HostError

PATIENCE = 5.0
"""Seconds between SIGTERM and SIGKILL, for what has nothing to put back."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks a program to stop: Ctrl-C, a service manager, a terminal that closes."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # not in the child: loading after a fork can deadlock


class CommandFailed(HostError):
    """A command ended with a code other than 0; `returncode` and `output` (its last lines) tell more."""

    def __init__(self, argv: Sequence[str], returncode: int, output: str) -> None:
        super().__init__(f"{Path(argv[0]).name} ended with exit code {returncode}: {' '.join(argv)[:300]}",
                         excerpt="\n".join(output.rstrip().splitlines()[-12:]) or None)
        self.returncode = returncode
        self.output = output


class CommandTimedOut(HostError):
    """A command did not end before its deadline and was ended with all its children."""


class CommandMissing(HostError):
    """A program is not installed on this host."""

    def __init__(self, program: str) -> None:
        super().__init__(f"the program {program} is not on this host",
                         hint="`./inv host` names the packages that are missing; `./inv host --install` installs them")


@dataclass(frozen=True)
class Completed:
    """What a command printed: standard output and standard error together."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str


def _die_with(parent: int, last: signal.Signals = signal.SIGKILL) -> None:
    """Runs in the child: the signal `last` when the parent dies (prctl(2), PR_SET_PDEATHSIG)."""
    _libc.prctl(_PR_SET_PDEATHSIG, last)
    if os.getppid() != parent:  # it died before the kernel was asked, and no signal will come
        os.kill(os.getpid(), last)


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    deadline: Deadline | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str | None = None,
    check: bool = True,
) -> Completed:
    """Run a short command and return its output.

    Ends the command's process group at the deadline (default 120 s) and on any exception, Ctrl-C included.

    Raises CommandMissing, CommandTimedOut, and CommandFailed where `check`.
    """
    args = tuple(os.fspath(a) for a in argv)
    limit = deadline or Deadline(120)
    process = _spawn(args, env=env, cwd=cwd, stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                     stdout=subprocess.PIPE)
    try:
        out, _ = process.communicate(stdin.encode() if stdin is not None else None, timeout=limit.remaining)
    except subprocess.TimeoutExpired:
        raise CommandTimedOut(f"{args[0]} did not end within {limit.seconds:.0f} s: {' '.join(args)[:300]}") from None
    finally:
        end_group(process)
    text = out.decode(errors="replace")
    if check and process.returncode != 0:
        raise CommandFailed(args, process.returncode, text)
    return Completed(args, process.returncode, text)


def run_logged(
    argv: Sequence[str | os.PathLike[str]],
    log: Path,
    *,
    deadline: Deadline,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    check: bool = True,
    patience: float | None = None,
) -> Completed:
    """Run a long command; every line goes to `log` (appended) and to `on_line` as it comes.

    The log ends with `exit code: N`, or with why the command was ended. `stdout` of the result holds
    the last 200 lines. Raises as run(). At the deadline and on any exception it has `patience` seconds to end by itself
    (as end_group()); a further Ctrl-C kills it at once.
    """
    args = tuple(os.fspath(a) for a in argv)
    log.parent.mkdir(parents=True, exist_ok=True)
    tail: list[str] = []
    with log.open("a", encoding="utf-8") as out:
        process = _spawn(args, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        try:
            assert process.stdout is not None
            fd = process.stdout.fileno()
            for line in _lines(fd, process, deadline):
                out.write(line + "\n")
                out.flush()
                tail = [*tail[-199:], line]
                if on_line:
                    on_line(line)
            timed_out = process.poll() is None and deadline.expired
        except BaseException as error:
            out.write(f"ended: {type(error).__name__}\n")
            raise
        finally:
            end_group(process, patience)
        if timed_out:
            out.write(f"ended: no result within {deadline.seconds:.0f} s\n")
            raise CommandTimedOut(f"{Path(args[0]).name} did not end within {deadline.seconds:.0f} s",
                                  excerpt="\n".join(tail[-12:]), hint=f"the whole log: {log}")
        out.write(f"exit code: {process.returncode}\n")
    if check and process.returncode != 0:
        raise CommandFailed(args, process.returncode, "\n".join(tail))
    return Completed(args, process.returncode, "\n".join(tail))


def follow(argv: Sequence[str | os.PathLike[str]], log: Path, *, deadline: Deadline,
           on_line: Callable[[str], None]) -> int:
    """Run a command that removes what it made when it is asked to stop, and return its exit code.

    At the deadline, on any exception and when this process dies it is asked to (SIGTERM), never killed: its end is
    waited for. Every line that it prints goes to `log` (appended) and to `on_line` as it comes. Raises CommandMissing.
    """
    with log.open("a", encoding="utf-8") as out:
        process = _spawn(tuple(os.fspath(a) for a in argv), env=None, cwd=None, stdin=subprocess.DEVNULL,
                         stdout=subprocess.PIPE, last=signal.SIGTERM)
        try:
            assert process.stdout is not None
            for line in _lines(process.stdout.fileno(), process, deadline):
                out.write(line + "\n")
                out.flush()
                on_line(line)
        finally:
            if process.poll() is None:
                process.terminate()
            rest, _ = process.communicate()
            out.write(rest.decode(errors="replace"))
    return process.returncode


@contextlib.contextmanager
def running(argv: Sequence[str | os.PathLike[str]], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs beside the block and is ended with it, as a whole group; what it prints is added to `log`.

    Raises CommandMissing.
    """
    with log.open("ab") as out:
        process = _spawn(tuple(os.fspath(a) for a in argv), env=None, cwd=None, stdin=subprocess.DEVNULL,
                         stdout=out.fileno())
    try:
        yield process
    finally:
        end_group(process)


def _lines(fd: int, process: subprocess.Popen[bytes], deadline: Deadline) -> Iterator[str]:
    rest = b""
    while not deadline.expired:
        ended = process.poll() is not None  # asked first: what it wrote before its end is in the pipe by now
        ready, _, _ = select.select([fd], [], [], min(1.0, deadline.remaining))
        if not ready:
            if ended:
                break
            continue
        chunk = os.read(fd, 65536)
        if not chunk:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=deadline.remaining)
            break
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace").rstrip("\r")
    if rest:
        yield rest.decode(errors="replace")


def _spawn(args: tuple[str, ...], *, env: Mapping[str, str] | None, cwd: Path | None, stdin: int,
           stdout: int, last: signal.Signals = signal.SIGKILL) -> subprocess.Popen[bytes]:
    path = (env or os.environ).get("PATH", os.defpath)
    if shutil.which(args[0], path=path) is None:
        raise CommandMissing(args[0])
    return subprocess.Popen(args, env=None if env is None else dict(env), cwd=cwd, stdin=stdin, stdout=stdout,
                            stderr=subprocess.STDOUT, start_new_session=True,
                            preexec_fn=partial(_die_with, os.getpid(), last))


def end_group(process: subprocess.Popen[bytes], patience: float | None = None) -> None:
    """End what is left of the process group that `process` leads: SIGTERM, then SIGKILL after `patience` seconds
    (PATIENCE where None), or at once on an exception meanwhile, Ctrl-C say, which goes on."""
    try:
        if process.poll() is None:
            for number, most in ((signal.SIGTERM, PATIENCE if patience is None else patience),
                                 (signal.SIGKILL, PATIENCE)):
                try:
                    os.killpg(process.pid, number)
                    process.wait(timeout=most)
                    break
                except ProcessLookupError:
                    break
                except subprocess.TimeoutExpired:
                    continue
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        if process.stdout:
            process.stdout.close()
