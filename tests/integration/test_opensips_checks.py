"""Every check of events is green where all is well, and red where it is not: with a stand-in, which is not OpenSIPS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import PROJECT

pytestmark = pytest.mark.root

DEFECTS = {
    "Deaf": "test_event_by_management",
    "Untyped": "test_event_by_management test_event_of_script test_event_of_core",
    "Sorted": "test_event_by_management test_event_of_script",
    "Immortal": "test_subscription_listed test_not_told_after_expiry",
    "Unrenewed": "test_kept_beyond_expiry",
    "Lenient": "test_management_refuses",
    "Unguarded": "test_event_of_module",
    "Unblocking": "test_event_of_module",
    "Thrifty": "test_event_of_core",
    "Poor": "test_events_listed",
    "Older": "test_management_answers",
    "Silent": "test_event_of_script",
}


def outcomes(directory: Path, defect: str, selection: str) -> dict[str, list[str]]:
    done = subprocess.run(
        ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-m",
         "tests.proxy_here", directory, defect, selection],
        cwd=PROJECT, capture_output=True, text=True, timeout=300, env={**os.environ, "PYTHONPATH": os.fspath(PROJECT)})
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_check_is_green(tmp_path):
    found = outcomes(tmp_path, "", "test_opensips_events")
    print(*(f"{check}: {said}" for check, said in found.items()), sep="\n")
    found.pop("seconds")
    assert {check: said for check, said in found.items() if said[0] != "passed"} == {}
    assert len(found) == 14


@pytest.mark.nightly
@pytest.mark.parametrize(("defect", "check"), [(defect, check) for defect, red in DEFECTS.items()
                                               for check in red.split()])
def test_control(tmp_path, defect, check):
    found = outcomes(tmp_path, defect, check)
    found.pop("seconds")
    assert found and "failed" in {said[0] for said in found.values()}, found
    assert {said[0] for said in found.values()} <= {"failed", "passed"}, found
    print(*(said[1] for said in found.values() if said[0] == "failed"), sep="\n")
