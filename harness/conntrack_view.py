"""The planned connection tracking table beside the one that a server has now. Nothing here does I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.conntrack import (
    NODES_PER_ENTRY,
    ConntrackPlan,
    by_protocol,
    longest_chain,
    parse_entries,
    parse_proc_statistics,
)
from harness.units import many

PREFIX = "net.netfilter.nf_conntrack_"
FILES = ("/proc/sys/net/netfilter/nf_conntrack_*", "/proc/net/nf_conntrack", "/proc/net/stat/nf_conntrack")
"""What State.of() takes."""
_SHOWN = ("max", "buckets", "expect_max", "udp_timeout", "udp_timeout_stream")


@dataclass(frozen=True)
class State:
    """A table as it is now. `settings` by full name, `protocols` entries by protocol, `assured` those of them that are
    never evicted; counters are of the time since boot."""

    settings: Mapping[str, str]
    protocols: Mapping[str, int]
    assured: int
    drop: int
    early_drop: int
    insert_failed: int

    @classmethod
    def of(cls, files: Mapping[str, bytes]) -> State:
        """From what the FILES hold, by path; without settings where connection tracking is not loaded."""
        text = {path: content.decode(errors="replace") for path, content in files.items()}
        entries = parse_entries(text.get("/proc/net/nf_conntrack", ""))
        counters = parse_proc_statistics(text.get("/proc/net/stat/nf_conntrack", "drop early_drop insert_failed"))
        return cls({f"net.netfilter.{path.rsplit('/', 1)[1]}": value.strip() for path, value in text.items()
                    if path.startswith("/proc/sys/")},
                   dict(by_protocol(entries).most_common()), sum(entry.assured for entry in entries),
                   counters["drop"], counters["early_drop"], counters["insert_failed"])

    @property
    def entries(self) -> int:
        return sum(self.protocols.values())


@dataclass(frozen=True)
class Line:
    """A line for people; `wrong` where it is about something that is not as planned."""

    text: str
    wrong: bool = False


def differing(plan: ConntrackPlan, state: State) -> list[str]:
    """The settings, by full name, that are not as planned."""
    return [name for name, value in plan.sysctls.items() if state.settings.get(name) != value]


def lines(plan: ConntrackPlan, state: State) -> list[Line]:
    """Plan and state side by side: what a table's size hangs on, and whatever differs."""
    wrong = differing(plan, state)
    names = [f"{PREFIX}{key}" for key in _SHOWN]
    shown = [*names, *(name for name in wrong if name not in names)]
    rest = len(plan.sysctls) - len(shown)
    table = [Line(f"  {'':<24} {'plan':>12} {'live':>12}")]
    for name in shown:
        live = state.settings.get(name, "")
        row = f"  {name.removeprefix(PREFIX):<24} {_grouped(plan.sysctls[name]):>12} {_grouped(live) or 'none':>12}"
        table.append(Line(row + ("  differs" if name in wrong else ""), name in wrong))
    table.append(Line(f"  {f'{rest} others':<24} {'as planned':>25}"))
    split = ", ".join(f"{count:,} {protocol}" for protocol, count in state.protocols.items())
    most, buckets = (int(state.settings.get(f"{PREFIX}{key}", 0)) for key in ("max", "buckets"))
    told = [("entries", f"{state.entries:,} of {most:,}" + (f": {split}; {state.assured:,} assured" if split else ""))]
    if buckets:
        now, full, average = (longest_chain(state.entries, buckets), longest_chain(most, buckets),
                              NODES_PER_ENTRY * most / buckets)
        told.append(("longest chain", f"{now} now, {full} when full, {average:.1f} on average then"))
    losses = (f"{many(state.drop, 'packet')} dropped, {many(state.early_drop, 'early drop')}, "
              f"{many(state.insert_failed, 'insert')} failed")
    return [*table, *(Line(f"  {name:<24} {text}") for name, text in told),
            Line(f"  {'since boot':<24} {losses}", bool(state.drop))]


def as_json(plan: ConntrackPlan, state: State) -> dict[str, Any]:
    """The same for programs."""
    return {"plan": dict(plan.sysctls), "live": dict(state.settings), "differing": differing(plan, state),
            "entries": state.entries, "protocols": dict(state.protocols), "assured": state.assured,
            "drop": state.drop, "early_drop": state.early_drop, "insert_failed": state.insert_failed}


def _grouped(value: str) -> str:
    return f"{int(value):,}" if value.isdigit() else value
