"""Sizing of the connection tracking table, and what the kernel prints about it."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import conntrack
from harness.appliance import ConntrackGoal
from harness.errors import DescriptionError

# As `sysctl -a | grep nf_conntrack` printed them on a kernel of 2015.
OLD_KEYS = [
    "acct", "buckets", "checksum", "count", "events", "expect_max", "generic_timeout", "helper", "icmp_timeout",
    "log_invalid", "max", "tcp_be_liberal", "tcp_loose", "tcp_max_retrans", "tcp_timeout_close",
    "tcp_timeout_close_wait", "tcp_timeout_established", "tcp_timeout_fin_wait", "tcp_timeout_last_ack",
    "tcp_timeout_max_retrans", "tcp_timeout_syn_recv", "tcp_timeout_syn_sent", "tcp_timeout_time_wait",
    "tcp_timeout_unacknowledged", "timestamp", "udp_timeout", "udp_timeout_stream",
]

goals = st.builds(ConntrackGoal, calls=st.integers(1, 10**7), legs=st.integers(1, 16), rtcp=st.booleans(),
                  headroom=st.floats(1, 10).map(lambda x: round(x, 2)))
memories = st.integers(256, 65536)


def test_five_thousand_calls() -> None:
    plan = conntrack.plan(ConntrackGoal(calls=5000), 1024)
    assert plan.max == plan.buckets == 40448
    assert plan.max >= 8 * 5000
    assert plan.expect_max == 632
    assert plan.chain_length == 2.0
    assert plan.memory_bytes == 40448 * 264
    assert plan.sysctls["net.netfilter.nf_conntrack_max"] == "40448"
    assert plan.sysctls["net.netfilter.nf_conntrack_udp_timeout_stream"] == "120"
    assert plan.warnings == ()


@pytest.mark.parametrize(("legs", "rtcp", "entries"), [(2, True, 4), (2, False, 2), (1, False, 1), (3, True, 6)])
def test_entries_per_call(legs: int, rtcp: bool, entries: int) -> None:
    assert conntrack.entries_per_call(ConntrackGoal(calls=1, legs=legs, rtcp=rtcp)) == entries


def test_clients_take_an_entry_each() -> None:
    signalling = ConntrackGoal(calls=5000, clients=10_000, rtcp=False)
    assert conntrack.plan(signalling, 1024).max == 40_448 >= 2 * (2 * 5000 + 10_000)
    most = conntrack.most_calls(signalling, 1024)
    assert conntrack.plan(ConntrackGoal(calls=most, clients=10_000, rtcp=False), 1024)
    with pytest.raises(DescriptionError, match="and 10000 clients need"):
        conntrack.plan(ConntrackGoal(calls=most + 1, clients=10_000, rtcp=False), 1024)
    assert conntrack.most_calls(ConntrackGoal(calls=1, clients=10**9), 1024) == 0


def test_a_stateless_goal_is_sized_without_its_calls() -> None:
    goal = ConntrackGoal(calls=10**7, stateless=True)
    assert conntrack.entries_per_call(goal) == 0
    assert conntrack.plan(goal, 256).max == conntrack.plan(ConntrackGoal(calls=1), 256).max == 1024


def test_every_key_is_set_or_explained_once() -> None:
    plan = conntrack.plan(ConntrackGoal(calls=1), 1024)
    old = {f"net.netfilter.nf_conntrack_{key}" for key in OLD_KEYS} | {"net.nf_conntrack_max"}
    places = Counter([*plan.sysctls, *plan.gone, *plan.not_set])
    assert set(places) == old
    assert max(places.values()) == 1
    assert list(plan.gone) == ["net.netfilter.nf_conntrack_helper"]


def test_this_kernel_has_every_key_of_the_plan() -> None:
    here = Path("/proc/sys/net/netfilter")
    if not (here / "nf_conntrack_max").exists():
        pytest.skip("connection tracking is not loaded on this host")
    plan = conntrack.plan(ConntrackGoal(calls=1), 1024)
    assert [key for key in plan.sysctls if not Path("/proc/sys", key.replace(".", "/")).exists()] == []
    assert [key for key in plan.gone if Path("/proc/sys", key.replace(".", "/")).exists()] == []


@given(goals, memories)
def test_a_plan_holds_the_calls_and_fits_or_says_how_many_fit(goal: ConntrackGoal, memory: int) -> None:
    limit = conntrack.most_calls(goal, memory)
    if goal.calls > limit:
        with pytest.raises(DescriptionError) as error:
            conntrack.plan(goal, memory)
        assert f"at most {limit} calls fit" in str(error.value)
        return
    plan = conntrack.plan(goal, memory)
    assert plan.max >= goal.calls * conntrack.entries_per_call(goal) * goal.headroom * (1 - 1e-9)
    assert plan.max % 512 == plan.buckets % 512 == 0
    assert plan.memory_bytes * 4 <= memory * 2**20
    assert plan.expect_max == plan.buckets // 64


def test_the_named_number_of_calls_fits_and_one_more_does_not() -> None:
    for memory in (256, 1000, 4096):
        goal = ConntrackGoal(calls=10**9, headroom=2.2)
        limit = conntrack.most_calls(goal, memory)
        assert conntrack.plan(ConntrackGoal(calls=limit, headroom=2.2), memory).max > 0
        with pytest.raises(DescriptionError):
            conntrack.plan(ConntrackGoal(calls=limit + 1, headroom=2.2), memory)


def test_warnings() -> None:
    small = conntrack.plan(ConntrackGoal(calls=100), 512)
    assert len(small.warnings) == 1 and "512 MiB" in small.warnings[0]
    odd = conntrack.plan(ConntrackGoal(calls=100, udp_timeout=60, udp_timeout_stream=30), 1024)
    assert len(odd.warnings) == 1 and "udp_timeout_stream" in odd.warnings[0]


PROC = """\
ipv4     2 udp      17 119 src=10.0.0.5 dst=10.0.0.9 sport=40000 dport=30000 packets=250 bytes=43000 \
src=10.0.0.9 dst=10.0.0.5 sport=30000 dport=40000 packets=249 bytes=42828 [ASSURED] mark=0 zone=0 use=2
ipv6     10 udp      17 29 src=fd00::1 dst=fd00::2 sport=5060 dport=5061 [UNREPLIED] \
src=fd00::2 dst=fd00::1 sport=5061 dport=5060 mark=0 zone=0 use=2
ipv4     2 tcp      6 7439 ESTABLISHED src=10.0.0.5 dst=10.0.0.9 sport=50000 dport=22 \
src=10.0.0.9 dst=10.0.0.5 sport=22 dport=50000 [ASSURED] mark=0 zone=0 use=2
ipv4     2 tcp      6 src=10.0.0.5 dst=10.0.0.9 sport=50001 dport=22 \
src=10.0.0.9 dst=10.0.0.5 sport=22 dport=50001 [OFFLOAD] mark=0 zone=0 use=3
ipv4     2 icmp     1 29 src=10.0.0.5 dst=10.0.0.9 type=8 code=0 id=77 \
src=10.0.0.9 dst=10.0.0.5 type=0 code=0 id=77 mark=0 zone=0 use=2
"""


def test_proc_entries() -> None:
    media, unreplied, ssh, offloaded, ping = conntrack.parse_entries(PROC)
    assert media.original == conntrack.Direction("10.0.0.5", "10.0.0.9", 40000, 30000, 250, 43000)
    assert media.reply == conntrack.Direction("10.0.0.9", "10.0.0.5", 30000, 40000, 249, 42828)
    assert (media.family, media.protocol, media.timeout, media.state) == ("ipv4", "udp", 119, "")
    assert media.assured and not unreplied.assured
    assert unreplied.family == "ipv6" and unreplied.flags == {"UNREPLIED"}
    assert unreplied.reply.source_port == 5061
    assert (ssh.state, ssh.timeout) == ("ESTABLISHED", 7439)
    assert offloaded.timeout is None and "OFFLOAD" in offloaded.flags
    assert ping.original.source_port is None
    assert conntrack.by_protocol([media, unreplied, ssh, offloaded, ping]) == {"udp": 2, "tcp": 2, "icmp": 1}


def test_an_entry_that_is_listed_twice_is_one() -> None:
    media = PROC.splitlines()[0]
    again = re.sub(r"(udp\s+\d+\s+)\d+", r"\g<1>7", media)
    assert again != media
    [entry] = conntrack.parse_entries(f"{media}\n{again}\n")
    assert entry.timeout == 7
    assert len(conntrack.parse_entries(f"{media}\n{media.replace('zone=0', 'zone=1')}\n")) == 2


def test_entries_of_sockets() -> None:
    media, unreplied, _, _, _ = entries = conntrack.parse_entries(PROC)
    assert conntrack.of_sockets(entries, {("10.0.0.9", 30000)}) == [media], "by its destination"
    assert conntrack.of_sockets(entries, {("fd00::1", 5060)}) == [unreplied], "by its source"
    assert conntrack.of_sockets(entries, {("10.0.0.9", 40000), ("10.0.0.9", 22)}) == [], "a stranger, and TCP"


def test_entries_of_the_conntrack_program() -> None:
    text = ("udp      17 29 src=fd00::1 dst=fd00::2 sport=1 dport=2 [UNREPLIED] src=fd00::2 dst=fd00::1 "
            "sport=2 dport=1 mark=0 use=1\n"
            "tcp      6 119 SYN_SENT src=10.0.0.1 dst=10.0.0.2 sport=3 dport=4 [UNREPLIED] src=10.0.0.2 "
            "dst=10.0.0.1 sport=4 dport=3 mark=0 use=1\n"
            "conntrack v1.4.7 (conntrack-tools): 2 flow entries have been shown.\n")
    udp, tcp = conntrack.parse_entries(text)
    assert (udp.family, udp.timeout) == ("ipv6", 29)
    assert (tcp.family, tcp.state) == ("ipv4", "SYN_SENT")


@pytest.mark.parametrize("line", ["src=1.2.3.4", "udp 17 30 src=10.0.0.1 dst=10.0.0.2 sport=1 dport=2 mark=0"])
def test_half_an_entry_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="not"):
        conntrack.parse_entries(line)


def test_statistics() -> None:
    text = ("cpu=0   \tfound=1 invalid=12 insert=0 insert_failed=0 drop=1500 early_drop=7 error=0 search_restart=0 \n"
            "cpu=1   \tfound=2 invalid=0 insert=0 insert_failed=0 drop=500 early_drop=0 error=0 search_restart=3 \n")
    totals = conntrack.parse_statistics(text)
    assert (totals["drop"], totals["early_drop"], totals["found"], totals["search_restart"]) == (2000, 7, 3, 3)
    assert "cpu" not in totals


def test_proc_statistics() -> None:
    text = ("entries  clashres found new invalid drop early_drop\n"
            "00000020  00000000 0000000a 00000000 00000001 000007d0 00000000 \n"
            "00000020  00000000 00000001 00000000 00000001 00000001 00000010 \n")
    totals = conntrack.parse_proc_statistics(text)
    assert totals["entries"] == 32
    assert (totals["found"], totals["drop"], totals["early_drop"]) == (11, 2001, 16)


def test_table_full() -> None:
    log = ("[   12.5] nf_conntrack: nf_conntrack: table full, dropping packet\n"
           "[   13.5] nf_conntrack: nf_conntrack: table full in netns 4026532186, dropping packet\n"
           "[   14.5] nf_conntrack: table is fine\n")
    assert conntrack.table_full(log) == [None, 4026532186]


def test_longest_chain_agrees_with_throwing_dice() -> None:
    rng = random.Random(7)
    for entries, buckets in ((1, 1024), (500, 1024), (4096, 4096), (16384, 4096)):
        longest = [max(Counter(rng.randrange(buckets) for _ in range(2 * entries)).values()) for _ in range(5)]
        estimate = conntrack.longest_chain(entries, buckets)
        assert min(longest) - 2 <= estimate <= max(longest) + 2
    assert conntrack.longest_chain(0, 1024) == 0
