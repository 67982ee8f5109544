"""What a full table counts and says."""

from __future__ import annotations

import ast
import sys

import pytest

from harness.conntrack_full import FILLER, Filled, Losses

STATISTICS = "entries drop early_drop\n00000100 00000010 00000001\n00000100 00000001 00000000\n"
LOG = "[1.0] nf_conntrack: nf_conntrack: table full, dropping packet\n[2.0] net_ratelimit: 9 callbacks suppressed\n"


def test_losses() -> None:
    lost = Losses.of(STATISTICS, LOG)
    assert lost == Losses(drop=17, early_drop=1, told=1)
    assert lost + Losses(drop=1) - lost == Losses(drop=1)
    assert Losses.from_json("") == Losses()
    assert Losses.from_json('{"drop": 17, "early_drop": 1, "told": 1}') == lost


def test_state_of_the_filler() -> None:
    assert Filled.from_json("") == Filled() and not Filled().full
    filled = Filled.from_json('{"rounds": 3, "flows": 240, "free": 0, "young": 0, "others": 0}')
    assert filled == Filled(3, 240) and filled.full


@pytest.mark.parametrize("lacking", [{"free": 1}, {"young": 1}, {"others": 1}])
def test_a_table_with_room_or_with_an_entry_that_may_go_is_not_full(lacking: dict[str, int]) -> None:
    assert not Filled(3, 240, **lacking).full


def test_the_filler_needs_nothing_but_python() -> None:
    imported = {(node.module if isinstance(node, ast.ImportFrom) else node.names[0].name)
                for node in ast.walk(ast.parse(FILLER.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)}
    assert {str(name).split(".")[0] for name in imported} <= sys.stdlib_module_names
