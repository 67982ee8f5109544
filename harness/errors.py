"""One root error: what went wrong, whose fault it is, what to do next, and the exit code."""

from __future__ import annotations

import errno
from enum import IntEnum, StrEnum


class Fault(StrEnum):
    """Whose fault a failure is; exit code, JUnit, report and retry rule follow from it."""

    IMAGE = "image"
    DESCRIPTION = "description"
    HOST = "host"
    CLOUD = "cloud"
    USER = "user"


class ExitCode(IntEnum):
    """Exit codes of every command, by kind of the first cause."""

    PASSED = 0
    CHECK = 1
    DESCRIPTION = 2
    HOST = 3
    BUILD = 4
    INSPECT = 5
    NOT_READY = 6
    CLOUD = 7
    NOT_REMOVED = 8
    INTERRUPTED = 130


class DialtoneError(Exception):
    """Root of all errors that a user is to see; never raised itself.

    `message` says what is wrong and where in one sentence, `hint` what to do next, `excerpt` holds the
    lines (log, console) that show it.
    """

    exit_code = ExitCode.HOST
    fault = Fault.HOST

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        excerpt: str | None = None,
        fault: Fault | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.excerpt = excerpt
        self.stage: str | None = None
        if fault is not None:
            self.fault = fault

    def __str__(self) -> str:
        lines = [self.message]
        if self.excerpt:
            lines += [f"  | {line}" for line in self.excerpt.rstrip().splitlines()]
        if self.hint:
            lines.append(f"  {self.hint}")
        return "\n".join(lines)


class CheckFailed(DialtoneError):
    """A check found the appliance at fault."""

    exit_code = ExitCode.CHECK
    fault = Fault.IMAGE


class DescriptionError(DialtoneError):
    """appliances.yaml or the command line is wrong."""

    exit_code = ExitCode.DESCRIPTION
    fault = Fault.DESCRIPTION


class HostError(DialtoneError):
    """This machine lacks something: a package, root, disk, a free port."""


class BuildError(DialtoneError):
    """The image could not be built."""

    exit_code = ExitCode.BUILD
    fault = Fault.IMAGE


class InspectError(DialtoneError):
    """The image on disk is not as it should be."""

    exit_code = ExitCode.INSPECT
    fault = Fault.IMAGE


class NotReadyError(DialtoneError):
    """The server never became ready; `reached` names the last readiness stage that it passed."""

    exit_code = ExitCode.NOT_READY
    fault = Fault.IMAGE

    def __init__(self, message: str, *, reached: str | None = None, hint: str | None = None,
                 excerpt: str | None = None, fault: Fault | None = None) -> None:
        super().__init__(message, hint=hint, excerpt=excerpt, fault=fault)
        self.reached = reached


class CloudError(DialtoneError):
    """The cloud failed: its API, a quota, its network."""

    exit_code = ExitCode.CLOUD
    fault = Fault.CLOUD


class Unreachable(CloudError):
    """An API can't be reached, or its answer never came: what was asked may have been done or not."""


class RemovalError(DialtoneError):
    """Something that a run made could not be removed."""

    exit_code = ExitCode.NOT_REMOVED


class Interrupted(DialtoneError):
    """The user (or the system) asked to stop."""

    exit_code = ExitCode.INTERRUPTED
    fault = Fault.USER


def from_os_error(error: OSError) -> HostError:
    """An operating system error as one of ours: a full disk and a refused permission are this host's."""
    hint = {errno.ENOSPC: "free some room, or set `cache` and `runs` to another disk",
            errno.EACCES: "run it as root (sudo)", errno.EPERM: "run it as root (sudo)"}.get(error.errno or 0)
    return HostError(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), hint=hint)
