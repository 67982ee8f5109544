"""The checks of calls kept in Redis, without a server."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from harness.plugin import Mismatch


@pytest.fixture
def checks(project: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Their module, without its marks: those are known to the checks' own pytest only."""
    spec = importlib.util.spec_from_file_location("checks", project / "tests" / "appliance" / "test_redis.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as during:
        during.setattr(pytest, "mark", MagicMock())
        spec.loader.exec_module(module)
    return module


def down(checks: ModuleType, monkeypatch: pytest.MonkeyPatch, state: str) -> list[tuple[Any, ...]]:
    """Check a relay whose calls are whole, on a server where systemd says that Redis is in `state` after the call;
    what put_back was told."""
    promised = []

    @contextmanager
    def put_back(*told: Any) -> Iterator[None]:
        promised.append(told)
        yield

    def call(*args: Any) -> AbstractContextManager[Any]:
        return nullcontext(SimpleNamespace(streams=(), result=lambda: None))

    def run(command: str, *args: str) -> Any:
        return SimpleNamespace(rc=0, stdout=f"{state}\n" if "is-active" in command else "", stderr="")

    monkeypatch.setattr(checks, "Call", call)
    monkeypatch.setattr(checks, "Traffic", lambda *args, **options: SimpleNamespace(run=lambda *times: None))
    monkeypatch.setattr(checks, "acceptance", SimpleNamespace(
        LINGER=0.0, fit=lambda *args: None, directions=lambda results: [], missing=lambda one: 0,
        in_words=lambda results: "a call"))
    checks.test_redis_down(SimpleNamespace(run=run, check_output=run), put_back, lambda: 1.0, None, lambda: None,
                           lambda: 0, lambda text: None)
    return promised


@pytest.mark.parametrize("state", ["active", "activating"])
def test_a_redis_that_is_back_before_the_call_ends_turns_it_red(
        checks: ModuleType, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    with pytest.raises(Mismatch, match=f"seen redis-server.service {state}"):
        down(checks, monkeypatch, state)


@pytest.mark.parametrize("state", ["inactive", "failed"])
def test_a_redis_that_stays_down_is_left_to_the_usual_longest(
        checks: ModuleType, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
    [told] = down(checks, monkeypatch, state)
    assert len(told) == 1, "its start comes no earlier than other changes are put back"
