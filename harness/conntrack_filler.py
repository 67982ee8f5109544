"""Fills the connection tracking table with assured entries and keeps it full; runs on the server, by itself.

    python3 conntrack_filler.py SECONDS FILE

A flow is a pair of UDP sockets on loopback that send to each other. An entry seen both ways for more than two seconds
is ASSURED (nf_conntrack_udp_packet of the kernel), and never evicted to make room; others are. So as many flows begin
as there is room for. What else is in the table and not assured is evicted by further ones; not while own flows are
young, for they would evict each other. Ends by itself after SECONDS; FILE has its state meanwhile, as
harness.conntrack_full.Filled.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

ENDS = 32
"""Sockets on each side, so that 1024 flows can be had."""
PORTS = range(61000, 65536)
"""Above those that Linux gives by itself (ip_local_port_range), and above the media ports of a relay."""
ROUND = 0.7
"""Seconds from one look at the table to the next."""
TRIES = 200
"""New flows in a round, each of which may find an entry to evict or not: the kernel looks into eight buckets only."""
SETTINGS = Path("/proc/sys/net/netfilter")
ENTRIES = Path("/proc/net/nf_conntrack")
_OWN = re.compile(r" udp .*? src=127\.0\.0\.1 dst=127\.0\.0\.1 sport=(\d+) dport=(\d+) ")
"""The direction that is first in a line is that of the first packet."""

Ports = tuple[int, int]
Flow = tuple[socket.socket, socket.socket]


def ends(ports: Iterator[int]) -> list[socket.socket]:
    """Sockets on the next of `ports` that are free."""
    found: list[socket.socket] = []
    while len(found) < ENDS:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.setblocking(False)
        with suppress(OSError):
            one.bind(("127.0.0.1", next(ports)))
            found.append(one)
    return found


def talk(flow: Flow) -> bool:
    """A datagram each way; False where the table has no room for the flow (the sender gets EPERM)."""
    one, other = flow
    try:
        one.sendto(b"x", other.getsockname())
        other.sendto(b"x", one.getsockname())
    except PermissionError:
        return False
    return True


def room() -> int:
    return int((SETTINGS / "nf_conntrack_max").read_text()) - int((SETTINGS / "nf_conntrack_count").read_text())


def listed(flows: dict[Ports, Flow]) -> tuple[dict[Ports, bool], list[str]]:
    """Which of `flows` are in the table, and whether they are assured; the others that are not, as they are listed."""
    own: dict[Ports, bool] = {}
    evictable = []
    for line in ENTRIES.read_text().splitlines():
        match, assured = _OWN.search(line), "[ASSURED]" in line
        ports = (int(match[1]), int(match[2])) if match else (0, 0)
        if ports in flows:
            own[ports] = assured
        elif not assured:
            evictable.append(" ".join(line.split()))
    return own, evictable


def fill(seconds: float, file: Path) -> None:
    end, numbers, rounds = time.monotonic() + seconds, iter(PORTS), 0
    flows = {(one.getsockname()[1], other.getsockname()[1]): (one, other)
             for one, other in product(ends(numbers), ends(numbers))}
    while time.monotonic() < end:
        begin = time.monotonic()
        own, evictable = listed(flows)
        for ports in own:
            talk(flows[ports])
        free, young = max(0, room()), sum(not assured for assured in own.values())
        waiting = [flow for ports, flow in flows.items() if ports not in own]
        # From another one on each time: a flow that has found nothing to evict looks into the same buckets again.
        first = rounds * TRIES % max(1, len(waiting))
        further = iter([*waiting[first:], *waiting[:first]][:free or TRIES])
        if free or (evictable and not young):
            begun = 0
            while begun < (free or len(evictable)) and (flow := next(further, None)):
                begun += talk(flow)
        rounds += 1
        state = {"rounds": rounds, "flows": len(own), "free": free, "young": young, "others": len(evictable),
                 "other": evictable[0] if evictable else ""}
        whole = file.with_suffix(".new")
        whole.write_text(json.dumps(state))
        whole.rename(file)
        time.sleep(max(0.0, begin + ROUND - time.monotonic()))


if __name__ == "__main__":
    fill(float(sys.argv[1]), Path(sys.argv[2]))
