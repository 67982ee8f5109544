"""A full connection tracking table: what the kernel counts and says of it, and the program that fills one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from harness.conntrack import parse_proc_statistics, table_full

PROVOKED = "/run/dialtone-conntrack-provoked.json"
"""Where a check that fills the table on purpose notes what that did: gone at the next boot, as the counters are."""
FILLER = Path(__file__).with_name("conntrack_filler.py")
"""Runs on the server, see there."""


@dataclass(frozen=True)
class Losses:
    """What a table lost since boot: packets dropped because it was full, entries evicted to make room (never an ASSURED
    one), and how often the kernel said so; it limits the rate of these lines, and drops many packets a line."""

    drop: int = 0
    early_drop: int = 0
    told: int = 0

    @classmethod
    def of(cls, statistics: str, log: str) -> Losses:
        """`statistics` is what /proc/net/stat/nf_conntrack holds, `log` the kernel log."""
        counters = parse_proc_statistics(statistics)
        return cls(counters["drop"], counters["early_drop"], len(table_full(log)))

    @classmethod
    def from_json(cls, text: str) -> Losses:
        """None at all for an empty text."""
        return cls(**json.loads(text or "{}"))

    def __add__(self, other: Losses) -> Losses:
        return Losses(self.drop + other.drop, self.early_drop + other.early_drop, self.told + other.told)

    def __sub__(self, other: Losses) -> Losses:
        return Losses(self.drop - other.drop, self.early_drop - other.early_drop, self.told - other.told)


@dataclass(frozen=True)
class Filled:
    """How far the filler is: how often it has looked at the table (`rounds`), the `flows` of its own that it keeps
    there, how many of these are not assured yet (`young`), for how many there is room (`free`), how many entries of
    `others` are not assured, and one of those as the kernel lists it (`other`)."""

    rounds: int = 0
    flows: int = 0
    free: int = 0
    young: int = 0
    others: int = 0
    other: str = ""

    @property
    def full(self) -> bool:
        """No room, and every entry assured."""
        return self.rounds > 0 and not (self.free or self.young or self.others)

    def __str__(self) -> str:
        return (f"{self.flows} flows, {self.young} of them not assured, {self.others} other entries that are not, and "
                f"room for {self.free}, at the filler's look number {self.rounds}"
                + (f"; one of the others: {self.other}" if self.other else ""))

    @classmethod
    def from_json(cls, text: str) -> Filled:
        return cls(**json.loads(text or "{}"))
