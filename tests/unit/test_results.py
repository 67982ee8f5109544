from __future__ import annotations

import pytest

from harness.results import CheckResult


@pytest.mark.parametrize(("identity", "level", "command"), [
    ("test_a.py::test_one", "basic", "./inv check -- -k test_one"),
    ("test_a.py::test_one[ip6]", "basic", "./inv check -- -k test_one"),
    ("test_a.py::test_one", "acceptance", "./inv check --level acceptance -- -k test_one")])
def test_how_a_check_is_repeated(identity: str, level: str, command: str) -> None:
    assert CheckResult(identity, "", "", "", "", "failed", 0.0).again(level) == command
