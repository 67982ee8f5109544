"""What modprobe says where a kernel takes signed modules only."""

from __future__ import annotations

import pytest

from harness.access.secure_boot import refused

MODULE = "modprobe: ERROR: could not insert 'xt_RTPENGINE': "


@pytest.mark.parametrize("said", ["Key was rejected by service", "Required key not available",
                                  "Operation not permitted"])
def test_a_signature_is_what_is_missing(said: str) -> None:
    assert refused(f"{MODULE}{said}\n[   12.3] Loading of unsigned module is rejected\n")


@pytest.mark.parametrize("said", ["", f"{MODULE}Exec format error\n",
                                  "modprobe: FATAL: Module xt_RTPENGINE not found in directory /lib/modules/6.1\n"])
def test_something_else_is(said: str) -> None:
    assert not refused(said)
