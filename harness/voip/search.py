"""Which load to try next, to find the highest that is held in few trials."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

NEARNESS: Final = 0.15
"""No trial is made where less than this part of the highest load that was held lies between it and the lowest that was
not."""


def following(tried: Mapping[int, bool], first: int, most: int, nearness: float = NEARNESS) -> int | None:
    """The number to try after those `tried` (number: held), None at the end: `first`, doubled up to `most` while it is
    held, then the middle between the highest that was held and the lowest that was not."""
    held = max((number for number, good in tried.items() if good), default=0)
    broken = min((number for number, good in tried.items() if not good and number > held), default=None)
    if broken is None:
        wanted = min(2 * held or first, most)
        return wanted if wanted > held else None
    if broken - held <= max(1.0, nearness * held):
        return None
    return (held + broken) // 2
