"""Whose a mark is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.cloud import ownership
from harness.cloud.ownership import owner
from harness.settings import Settings


def test_two_machines_and_two_directories_of_runs_are_not_the_same_owner(tmp_path: Path,
                                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.load(tmp_path, {})
    machine = tmp_path / "machine-id"
    monkeypatch.setattr(ownership, "MACHINE_ID", machine)
    without = owner(settings)
    machine.write_text("0123456789abcdef0123456789abcdef\n")
    first = owner(settings)
    assert first == owner(settings)
    machine.write_text("fedcba9876543210fedcba9876543210\n")
    owners = {without, first, owner(settings), owner(replace(settings, runs=tmp_path / "elsewhere"))}
    assert len(owners) == 4
    assert all(len(one) == 12 for one in owners)
