"""What this host's kernel prints is read, and its table filled, in a network namespace of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import conntrack
from harness.conntrack_full import FILLER, Filled
from tests.conftest import lacking

pytestmark = pytest.mark.root

# A flow both ways, assured after two seconds; a flow one way; a TCP connection; then what the kernel says.
PROGRAM = """
import json, pathlib, socket, time
def udp(address, port):
    s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    s.bind((address, port))
    s.settimeout(5)
    return s
relay, phone = udp("127.0.0.1", 30000), udp("127.0.0.1", 40000)
for _ in range(6):
    phone.sendto(b"x" * 172, ("127.0.0.1", 30000)); relay.recv(200)
    relay.sendto(b"x" * 172, ("127.0.0.1", 40000)); phone.recv(200)
    time.sleep(0.5)
udp("::1", 40001).sendto(b"x", ("::1", 30001))
listener = socket.create_server(("127.0.0.1", 2225))
client = socket.create_connection(("127.0.0.1", 2225))
read = lambda path: pathlib.Path(path).read_text()
print(json.dumps([read("/proc/net/nf_conntrack"), read("/proc/net/stat/nf_conntrack")]))
"""
SETUP = ("ip link set lo up && nft add table inet t && "
         "nft 'add chain inet t c { type filter hook output priority 0; }' && "
         "nft add rule inet t c ct state new $RULE && exec \"$0\" -c \"$@\"")


def in_namespace(rule: str, program: str, *arguments: str | os.PathLike[str]) -> str:
    """What `program` prints where `rule` is what becomes of a new flow."""
    for needed in ("nft", "unshare", "ip"):
        if not shutil.which(needed):
            lacking(f"the program {needed}")
    done = subprocess.run(["unshare", "--net", "sh", "-c", SETUP, sys.executable, program, *arguments],
                          capture_output=True, text=True, env={**os.environ, "RULE": rule})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def seen() -> list[Any]:
    found: list[Any] = json.loads(in_namespace("accept", PROGRAM))
    return found


def test_entries_of_this_kernel(seen: list[Any]) -> None:
    entries = conntrack.parse_entries(seen[0])
    by_port = {entry.original.destination_port: entry for entry in entries}
    media, one_way, tcp = by_port[30000], by_port[30001], by_port[2225]
    assert media.assured and media.state == "" and media.family == "ipv4"
    assert (media.original.source_port, media.reply.destination_port) == (40000, 40000)
    assert media.timeout is not None and media.timeout > 30
    assert one_way.family == "ipv6" and one_way.flags == {"UNREPLIED"} and not one_way.assured
    assert tcp.protocol == "tcp" and tcp.state == "ESTABLISHED" and tcp.assured
    assert conntrack.by_protocol(entries)["udp"] == 2


def test_statistics_of_this_kernel(seen: list[Any]) -> None:
    totals = conntrack.parse_proc_statistics(seen[1])
    assert totals["entries"] == len(conntrack.parse_entries(seen[0]))
    assert totals["drop"] == totals["early_drop"] == 0


def test_the_filler_fills_what_room_there_is_with_assured_flows(tmp_path: Path) -> None:
    """It is told that the table holds 100 entries: the limit itself is no namespace's own."""
    state, most = tmp_path / "state", tmp_path / "nf_conntrack_max"
    most.write_text("100")
    (tmp_path / "nf_conntrack_count").symlink_to("/proc/sys/net/netfilter/nf_conntrack_count")
    program = FILLER.read_text().replace('Path("/proc/sys/net/netfilter")', f"Path({os.fspath(tmp_path)!r})")
    program += "    print(ENTRIES.read_text())\n"
    entries = conntrack.parse_entries(in_namespace("accept", program, "6", state))
    filled = Filled.from_json(state.read_text())
    assert (filled.flows, filled.full) == (100, True) and filled.rounds > 5
    assert len(entries) == 100 and all(entry.assured for entry in entries)
