import errno

import pytest

from harness import errors
from harness.errors import (
    CheckFailed,
    CloudError,
    DescriptionError,
    DialtoneError,
    ExitCode,
    Fault,
    HostError,
    NotReadyError,
    Unreachable,
    from_os_error,
)


def test_an_error_reads_as_message_excerpt_hint():
    error = HostError("the disk is full", hint="free some room", excerpt="line 1\nline 2\n")
    assert str(error) == "the disk is full\n  | line 1\n  | line 2\n  free some room"
    assert str(HostError("the disk is full")) == "the disk is full"


def test_every_kind_of_failure_has_an_exit_code_of_its_own():
    kinds = [k for k in vars(errors).values() if isinstance(k, type) and DialtoneError in k.__bases__]
    codes = {k.__name__: k.exit_code for k in kinds}
    assert len(set(codes.values())) == len(codes), codes
    assert set(codes.values()) == set(ExitCode) - {ExitCode.PASSED}


def test_a_narrower_kind_keeps_the_exit_code_of_the_wider():
    assert Unreachable.exit_code == CloudError.exit_code
    assert Unreachable("x").fault is Fault.CLOUD


def test_the_fault_can_be_another_than_the_kind_suggests():
    assert CheckFailed("x").fault is Fault.IMAGE
    assert CheckFailed("x", fault=Fault.CLOUD).fault is Fault.CLOUD
    assert CheckFailed("y").fault is Fault.IMAGE
    assert (CloudError("x").fault, DescriptionError("x").fault) == (Fault.CLOUD, Fault.DESCRIPTION)


def test_a_server_that_never_came_up_names_the_last_stage_that_it_reached():
    error = NotReadyError("no answer on port 22", reached="key", excerpt="login:")
    assert error.reached == "key" and "  | login:" in str(error)


@pytest.mark.parametrize(("code", "next_step"), [(errno.ENOSPC, "room"), (errno.EACCES, "root"), (errno.EPERM, "root")])
def test_an_operating_system_error_says_what_to_do(code, next_step):
    error = from_os_error(OSError(code, "text of the system", "/some/file"))
    assert error.message == "text of the system: /some/file" and next_step in (error.hint or "")
    assert from_os_error(OSError(errno.EIO, "bad")).hint is None
