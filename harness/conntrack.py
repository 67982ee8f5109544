"""Connection tracking: the table sized from a goal, and what a running kernel says about it. Nothing here does I/O.

Sizes are those of Linux 6.1 and later: an entry is one struct nf_conn of 256 octets that bears both directions, so
it hangs in two hash chains; a bucket is one pointer. Sources: Documentation/networking/nf_conntrack-sysctl.rst,
net/netfilter/nf_conntrack_core.c and nf_conntrack_standalone.c.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from harness.appliance import ConntrackGoal
from harness.errors import DescriptionError

ENTRY_BYTES = 256
BUCKET_BYTES = 8
NODES_PER_ENTRY = 2
MEMORY_SHARE = Fraction(1, 4)
SMALL_MEMORY_MIB = 1024
# The kernel rounds the number of buckets up to whole pages (nf_ct_alloc_hashtable), and never has fewer than 1024.
_BUCKETS_PER_PAGE = 512
_LEAST_ENTRIES = 1024

_GONE = {
    "net.netfilter.nf_conntrack_helper":
        "removed in Linux 6.0: helpers are assigned by explicit rules only (the CT target, ct helper of nftables)",
}
_NOT_SET = {
    "net.netfilter.nf_conntrack_count": "read-only: the number of entries there are now",
    "net.nf_conntrack_max": "another name of net.netfilter.nf_conntrack_max",
}
# What a relay needs beyond its own media: few TCP connections (ng over TCP, Redis, SSH), no helpers, no logging of
# stray packets. Counting and time stamps cost a further allocation for each entry.
_FIXED = {
    "acct": 0,
    "checksum": 1,
    "events": 2,
    "generic_timeout": 600,
    "icmp_timeout": 30,
    "log_invalid": 0,
    "tcp_be_liberal": 0,
    "tcp_loose": 1,
    "tcp_max_retrans": 3,
    "tcp_timeout_close": 10,
    "tcp_timeout_close_wait": 60,
    # RFC 5382, REQ-5: at least 2 h 4 min; the kernel's five days keep entries of dead peers.
    "tcp_timeout_established": 7440,
    "tcp_timeout_fin_wait": 120,
    "tcp_timeout_last_ack": 30,
    "tcp_timeout_max_retrans": 300,
    "tcp_timeout_syn_recv": 60,
    "tcp_timeout_syn_sent": 120,
    "tcp_timeout_time_wait": 120,
    "tcp_timeout_unacknowledged": 300,
    "timestamp": 0,
}


@dataclass(frozen=True)
class ConntrackPlan:
    """The table that reaches a goal.

    `max` entries and `buckets` (module parameter hashsize); `chain_length` is the average number of nodes in a
    bucket when the table is full, `memory_bytes` what the full table takes. `sysctls` are full names and values as
    the kernel prints them; `gone` names settings that older kernels had, `not_set` those that need no value, each
    with the reason.
    """

    max: int
    buckets: int
    expect_max: int
    chain_length: float
    memory_bytes: int
    sysctls: Mapping[str, str]
    gone: Mapping[str, str]
    not_set: Mapping[str, str]
    warnings: tuple[str, ...]


def entries_per_call(goal: ConntrackGoal) -> int:
    """One ASSURED entry for each leg, and another where RTCP has a port of its own; none where media is not tracked."""
    return 0 if goal.stateless else goal.legs * (2 if goal.rtcp else 1)


def most_calls(goal: ConntrackGoal, memory_mib: int) -> int:
    """The largest number of calls, everything else as in `goal`, whose table fits into its share of `memory_mib`."""
    room = math.floor(memory_mib * 2**20 * MEMORY_SHARE) // (ENTRY_BYTES + BUCKET_BYTES)
    whole_pages = room // _BUCKETS_PER_PAGE * _BUCKETS_PER_PAGE
    for_calls = whole_pages / Fraction(str(goal.headroom)) - goal.clients
    return max(0, math.floor(for_calls / max(1, entries_per_call(goal))))


def plan(goal: ConntrackGoal, memory_mib: int) -> ConntrackPlan:
    """Size the table for `goal` on a server with `memory_mib` MiB of memory.

    As many buckets as entries, which is what the kernel chooses by itself: chains of two nodes on average when full.
    Raises DescriptionError where the full table would take more than a quarter of the memory.
    """
    wanted = math.ceil((goal.calls * entries_per_call(goal) + goal.clients) * Fraction(str(goal.headroom)))
    entries = math.ceil(max(wanted, _LEAST_ENTRIES) / _BUCKETS_PER_PAGE) * _BUCKETS_PER_PAGE
    buckets = entries
    memory = entries * ENTRY_BYTES + buckets * BUCKET_BYTES
    if memory > memory_mib * 2**20 * MEMORY_SHARE:
        raise DescriptionError(
            f"conntrack.calls: {goal.calls} calls{f' and {goal.clients} clients' if goal.clients else ''} need "
            f"{wanted} entries, {memory / 2**20:.0f} MiB: "
            f"more than a quarter of the server's {memory_mib} MiB",
            hint=f"at most {most_calls(goal, memory_mib)} calls fit; or give the server more memory (server.memory)")
    warnings = []
    if memory_mib < SMALL_MEMORY_MIB:
        warnings.append(f"the server has {memory_mib} MiB of memory; a tracking table of "
                        f"{memory / 2**20:.1f} MiB is not recommended below {SMALL_MEMORY_MIB} MiB")
    if goal.udp_timeout_stream < goal.udp_timeout:
        warnings.append(f"udp_timeout_stream ({goal.udp_timeout_stream} s) is below udp_timeout "
                        f"({goal.udp_timeout} s): two-way media would be forgotten sooner than one-way media")
    # As nf_conntrack_expect_init() does: 4 for each of buckets / 256 (the kernel's document says buckets / 256).
    expectations = max(1, buckets // 256) * 4
    values = {
        **_FIXED,
        "buckets": buckets,
        "expect_max": expectations,
        "max": entries,
        "udp_timeout": goal.udp_timeout,
        "udp_timeout_stream": goal.udp_timeout_stream,
    }
    return ConntrackPlan(
        max=entries,
        buckets=buckets,
        expect_max=expectations,
        chain_length=NODES_PER_ENTRY * entries / buckets,
        memory_bytes=memory,
        sysctls={f"net.netfilter.nf_conntrack_{key}": str(values[key]) for key in sorted(values)},
        gone=_GONE,
        not_set=_NOT_SET,
        warnings=tuple(warnings),
    )


@dataclass(frozen=True)
class Direction:
    """One direction of an entry; ports are None where the protocol has none, counters where acct is off."""

    source: str
    destination: str
    source_port: int | None = None
    destination_port: int | None = None
    packets: int | None = None
    octets: int | None = None


@dataclass(frozen=True)
class Entry:
    """A tracked connection. `timeout` in seconds, None where offloaded; `state` is empty except for TCP, SCTP, DCCP."""

    family: str
    protocol: str
    timeout: int | None
    state: str
    original: Direction
    reply: Direction
    flags: frozenset[str]

    @property
    def assured(self) -> bool:
        """Seen both ways for long enough: never evicted to make room."""
        return "ASSURED" in self.flags


_HEAD = re.compile(
    r"^(?:(?P<family>ipv4|ipv6|unknown)\s+\d+\s+)?(?P<protocol>[a-z0-9-]+)\s+\d+\s+"
    r"(?:(?P<timeout>\d+)\s+)?(?:(?P<state>[A-Z][A-Z0-9_]+)\s+)?(?=\[|src=)")
_IDENTITY = frozenset({"src", "dst", "sport", "dport", "type", "code", "id", "srckey", "dstkey", "zone", "zone-orig",
                       "zone-reply"})


def parse_entries(text: str) -> list[Entry]:
    """Entries of /proc/net/nf_conntrack or of `conntrack -L`, whose other lines are passed over.

    The kernel finds its place in the file again by counting entries (ct_get_idx() in nf_conntrack_standalone.c): one
    that comes to the table between two reads lets another be listed twice. Each is returned once, as it was last.
    Raises ValueError for a line that begins like an entry and isn't one.
    """
    found = {}
    for line in text.splitlines():
        if "src=" in line:
            entry = _entry(line)
            found[entry.protocol, *(word for word in line.split() if word.partition("=")[0] in _IDENTITY)] = entry
    return list(found.values())


def _entry(line: str) -> Entry:
    head = _HEAD.match(line)
    if not head:
        raise ValueError(f"not a connection tracking entry: {line!r}")
    # Keys come once for each direction; what follows the second direction (mark, use, zone) is told apart by name.
    directions: list[dict[str, str]] = []
    flags = set()
    for word in line[head.end():].split():
        key, separator, value = word.partition("=")
        if key == "src":
            directions.append({})
        if separator and directions:
            directions[-1].setdefault(key, value)
        elif word.startswith("["):
            flags.add(word.strip("[]"))
    if len(directions) != 2 or any("dst" not in d for d in directions):
        raise ValueError(f"not two directions: {line!r}")
    original, reply = (_direction(d) for d in directions)
    return Entry(
        family=head["family"] or ("ipv6" if ":" in original.source else "ipv4"),
        protocol=head["protocol"],
        timeout=None if head["timeout"] is None else int(head["timeout"]),
        state=head["state"] or "",
        original=original,
        reply=reply,
        flags=frozenset(flags),
    )


def _direction(words: Mapping[str, str]) -> Direction:
    def number(key: str) -> int | None:
        return int(words[key]) if key in words else None

    return Direction(words["src"], words["dst"], number("sport"), number("dport"), number("packets"), number("bytes"))


def of_sockets(entries: Iterable[Entry], sockets: Collection[tuple[str, int]]) -> list[Entry]:
    """The UDP entries of which one of `sockets` (address, port) is an end."""
    return [entry for entry in entries if entry.protocol == "udp" and (
        (entry.original.source, entry.original.source_port) in sockets
        or (entry.original.destination, entry.original.destination_port) in sockets)]


def by_protocol(entries: Iterable[Entry]) -> Counter[str]:
    """How many entries each protocol has."""
    return Counter(entry.protocol for entry in entries)


def longest_chain(entries: int, buckets: int) -> int:
    """The longest chain to expect of `entries` in `buckets`.

    Two nodes for each entry, hashed at random, fill the buckets by the Poisson distribution; the estimate is the
    largest length that at least one bucket is expected to have.
    """
    if entries == 0:
        return 0
    mean = NODES_PER_ENTRY * entries / buckets
    length = 0
    log_probability = -mean
    # Beyond the mean the probabilities fall for good, so the first rare one ends the search.
    while length <= mean or buckets * math.exp(log_probability) >= 1:
        length += 1
        log_probability += math.log(mean) - math.log(length)
    return max(1, length - 1)


_STATISTIC = re.compile(r"(\w+)=(\d+)")


def parse_statistics(text: str) -> dict[str, int]:
    """`conntrack -S`, added up over the processors (drop, early_drop, insert_failed, found, invalid ...)."""
    totals: Counter[str] = Counter()
    for line in text.splitlines():
        if line.startswith("cpu="):
            totals.update({key: int(value) for key, value in _STATISTIC.findall(line) if key != "cpu"})
    return dict(totals)


def parse_proc_statistics(text: str) -> dict[str, int]:
    """/proc/net/stat/nf_conntrack (a row of hexadecimal numbers for each processor), added up.

    `entries` is the number in the whole table and the same in each row. Needs no program on the server.
    """
    header, *rows = [line.split() for line in text.splitlines() if line.strip()]
    totals = {key: sum(int(row[column], 16) for row in rows) for column, key in enumerate(header)}
    return totals | ({"entries": int(rows[0][header.index("entries")], 16)} if rows and "entries" in header else {})


_TABLE_FULL = re.compile(r"nf_conntrack: table full(?: in netns (?P<netns>\d+))?, dropping packet")


def table_full(log: str) -> list[int | None]:
    """The network namespace (its inode, None where the kernel names none) of every "table full" line of a kernel log.

    The kernel limits the rate of these lines: they tell that packets were dropped, `conntrack -S` tells how many.
    """
    return [int(m["netns"]) if m["netns"] else None for m in _TABLE_FULL.finditer(log)]
