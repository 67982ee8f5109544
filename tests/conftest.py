"""What a test needs and this machine lacks is a skip with the reason; in CI it is a failure."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import hypothesis
import pytest

PROJECT = Path(__file__).resolve().parent.parent

pytest.register_assert_rewrite("tests.controls")

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("unhurried", deadline=None)
hypothesis.settings.load_profile("unhurried")


def pytest_configure() -> None:
    # Started as a shell's background job it would ignore SIGINT, and so would every process that a test interrupts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Stopped by SIGTERM the tests take away what they made, too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's directory."""
    return PROJECT


def lacking(reason: str) -> None:
    """Skip with `reason`; where CI is set, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"this machine lacks something that CI must have: {reason}", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(autouse=True)
def _needs_root(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("root") and os.geteuid() != 0:
        lacking("needs root")
