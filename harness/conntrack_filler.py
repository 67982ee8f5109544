"""Fills the connection tracking table with assured entries and keeps it full; runs on the server, by itself.

    python3 conntrack_filler.py SECONDS FILE

A flow is a pair of UDP sockets on loopback that send to each other. An entry seen both ways for more than two seconds
is ASSURED (nf_conntrack_udp_packet of the kernel), and never evicted to make room; others are. So as many flows begin
as there is room for, and only when they are assured further ones are tried: those that get in have evicted something,
and are kept alive, too. Ends by itself after SECONDS; FILE has its state meanwhile, as harness.conntrack_full.Filled.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from itertools import product
from pathlib import Path

ENDS = 32
"""Sockets on each side, so that 1024 flows can be had."""
ROUND = 0.8
"""Seconds from one refresh of the flows to the next."""
ASSURED = 2.2
TRIES = 200
"""New flows a round that must be refused before the table counts as full."""
SETTINGS = Path("/proc/sys/net/netfilter")

Flow = tuple[socket.socket, socket.socket]


def ends() -> list[socket.socket]:
    found = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(ENDS)]
    for one in found:
        one.bind(("127.0.0.1", 0))
        one.setblocking(False)
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


def fill(seconds: float, file: Path) -> None:
    end = time.monotonic() + seconds
    flows = list(product(ends(), ends()))
    alive: dict[Flow, float] = {}
    refused = 0
    while time.monotonic() < end:
        begin = time.monotonic()
        alive = {flow: since for flow, since in alive.items() if talk(flow)}
        assured = bool(alive) and all(begin - since > ASSURED for since in alive.values())
        tried = [flow for flow in flows if flow not in alive][:TRIES if assured else max(0, room())]
        let_in = {flow: begin for flow in tried if talk(flow)}
        alive |= let_in
        refused += len(tried) - len(let_in)
        state = {"flows": len(alive), "refused": refused, "full": assured and not let_in}
        whole = file.with_suffix(".new")
        whole.write_text(json.dumps(state))
        whole.rename(file)
        time.sleep(max(0.0, begin + ROUND - time.monotonic()))


if __name__ == "__main__":
    fill(float(sys.argv[1]), Path(sys.argv[2]))
