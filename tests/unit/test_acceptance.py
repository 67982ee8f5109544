"""What is concluded from measured calls, here from calls through a relay that loses what it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness import acceptance
from harness.errors import CloudError, HostError
from harness.voip.call import Call, CallResult
from harness.voip.endpoint import Endpoint
from harness.voip.ng import NgClient
from harness.voip.stats import Received
from harness.voip.traffic import Health, Traffic
from tests.relay_double import Faults, relay_double

LIST = """\
local inet4 10.64.0.10:30000
    expect inet4 10.64.0.1:51330
    src mismatch action: drop
    stats:                12040 bytes,                   70 packets,                    0 errors
        RTP payload type   0:                12040 bytes,                   71 packets
    SSRC in: 5d8c00f1
    output #0
       src inet4 10.64.0.10:30020
       dst inet4 10.64.0.1:40486
local inet6 [fe80::1]:30020
    stats:                    0 bytes,                    0 packets,                    0 errors
"""
WELL = Health(1.0, 100, 0.1, 0, 0.0, 0)


def through(faults: Faults) -> CallResult:
    with relay_double(faults) as relay, NgClient("127.0.0.1", relay.port) as client, Endpoint("127.0.0.1") as caller, \
            Endpoint("127.0.0.1") as callee, Call(client, caller, callee) as call:
        Traffic(call.streams, report_every=0).run(0.5, linger=0.5)
        return call.result()


@pytest.fixture(scope="module")
def whole() -> CallResult:
    return through(Faults())


def test_counters_of_the_kernel_are_read_by_port() -> None:
    assert acceptance.targets(LIST) == {30000: 70, 30020: 0}
    assert acceptance.targets("") == {}


def test_the_rule_that_counts_is_found_by_what_it_is_for() -> None:
    rules = """\
-P INPUT ACCEPT -c 5 500
-A INPUT -s 198.18.0.1/32 -p udp -m udp --sport 41000 -c 655 112660
-A INPUT -p udp -m udp --dport 30000 -c 7 70 -j ACCEPT
"""
    assert acceptance.counted(rules, "198.18.0.1", 41000) == 655
    assert acceptance.counted(rules, "198.18.0.1", 41001) == acceptance.counted(rules, "198.18.0.10", 41000) == 0
    assert (acceptance.past(rules, 30000), acceptance.past(rules, 3000), acceptance.past(rules, 41000)) == (7, 0, 0)


def test_only_worker_threads_count_and_only_their_running() -> None:
    names = {"/proc/7/task/7/comm": "rtpengine\n", "/proc/7/task/8/comm": "poller timer\n",
             "/proc/7/task/9/comm": "poller\n", "/proc/7/task/10/comm": "poller\n"}
    times = {path.replace("comm", "schedstat"): "14500000 99 3\n" for path in names}
    assert acceptance.work(names, times) == {"9": 14.5, "10": 14.5}
    assert acceptance.work(names, {**times, "/proc/7/task/10/schedstat": ""}) == {"9": 14.5}, "ended meanwhile"


def test_growth_of_a_port_that_is_not_counted_is_none() -> None:
    assert acceptance.grown({30000: 70}, {30000: 170, 30002: 5}, [30000, 30002, 30004]) == {
        30000: 100, 30002: 5, 30004: 0}


@pytest.mark.parametrize("lost, missing", [((), 0), ((0,), 0), ((0, 1), 1), ((7,), 1), ((0, 7), 1), ((7, 8, 12), 3)])
def test_only_the_very_first_packet_may_be_missing(lost: tuple[int, ...], missing: int) -> None:
    result = through(Faults(lose=lambda number: number in lost))
    assert [acceptance.missing(one) for one in acceptance.directions([result])] == [missing, missing]


def test_what_came_seconds_late_is_not_missing(whole: CallResult) -> None:
    received = Received()
    for number in (*range(200), *range(400, 500), *range(200, 400), *range(500, 600)):
        received.packet(number, 160 * number, 0, 0, b"", 0)
    assert received.restarts and received.expected > received.packets == 600
    late = replace(whole.to_callee, sent=600, received=600, lost=0, expected=received.expected)
    assert acceptance.missing(late) == 0


def test_a_duplicate_makes_up_for_no_loss() -> None:
    result = through(Faults(lose=lambda number: number == 7, duplicate=lambda number: number == 9))
    assert acceptance.missing(result.to_callee) == 1


def test_figures_in_a_line(whole: CallResult) -> None:
    said = acceptance.in_words([whole, whole])
    assert said.startswith("2 calls, ") and " packets sent, 0 lost, MOS 4." in said
    assert "jitter " in said and "latency " in said and "99th percentile " in said
    silent = CallResult(*(replace(one, latency=None) for one in acceptance.directions([whole])))
    assert "latency" not in acceptance.in_words([silent])
    first = through(Faults(lose=lambda number: number == 0))
    assert " packets sent, 0 lost besides 2 first or last ones, MOS" in acceptance.in_words([first])


def test_figures_of_a_host_that_lost_them_itself_are_not_judged(whole: CallResult) -> None:
    acceptance.fit([whole], [WELL], 1000)
    for bad in (replace(WELL, dropped=1), replace(WELL, failed={"EPERM": 3})):
        with pytest.raises(HostError, match="the media can't be judged"):
            acceptance.fit([whole], [WELL, bad], 1000)


def test_late_packets_are_judged_all_the_same(whole: CallResult) -> None:
    acceptance.fit([whole], [replace(WELL, late=50, latest=0.1)], 1000)


def test_media_that_never_reached_the_server_are_not_its_loss(whole: CallResult) -> None:
    nothing = through(Faults(lose=lambda number: True))
    with pytest.raises(CloudError, match="no media reached the server"):
        acceptance.fit([nothing], [WELL], 5)
    acceptance.fit([nothing], [WELL], 1000)
    some = through(Faults(lose=lambda number: number % 2 == 0))
    acceptance.fit([some], [WELL], 5)
    with pytest.raises(CloudError, match=r"lost on the way to the server: .* received 5 of any kind"):
        acceptance.reached([some], 5)
    acceptance.reached([some], 1000)
    acceptance.reached([whole], 5)
    sent = some.to_callee.sent + some.to_caller.sent
    lost = some.to_callee.lost + some.to_caller.lost
    assert acceptance.cause([some], 1000, sent - 1) == (
        f"the relay counted {sent - 1:,} of {sent:,} packets: 1 were lost before it; {lost - 1:,} were lost behind it; "
        "the server's network interface received 1,000 of any kind")
    assert f"packets: {lost:,} were lost before it; the server" in acceptance.cause([some], 1000, sent - lost)
    assert f"packets: {lost:,} were lost behind it; the server" in acceptance.cause([some], 1000, sent)


def test_media_run_until_the_module_has_every_port(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "LEARNING", 1.2)
    with relay_double() as relay, NgClient("127.0.0.1", relay.port) as client, Endpoint("127.0.0.1") as caller, \
            Endpoint("127.0.0.1") as callee, Call(client, caller, callee) as call, Traffic(call.streams) as traffic:
        ports = [stream.target[1] for stream in call.streams]
        lines = [f"local inet4 127.0.0.1:{port}\n  stats: 1 bytes, 1 packets, 0 errors\n" for port in ports]
        tables = iter(["", lines[0], "".join(lines)])
        seconds = acceptance.learned(traffic, call.streams, lambda: next(tables))
        assert seconds is not None and 1.4 < seconds < 3
        assert acceptance.learned(traffic, call.streams, lambda: lines[1]) is None


@pytest.mark.parametrize("times, ptime, fewest, most", [
    ("100.00\n100.02\n101.02\n101.04\n", 20, 25, 78),
    ("100.0 100.5 101.5 102.5", 10, 50, 301),
    ("100.0 100.1 100.2 100.4", 20, 0, 46),
])
def test_what_a_cut_may_cost(times: str, ptime: int, fewest: int, most: int) -> None:
    packets = acceptance.Cut.between(times).packets(ptime)
    assert (packets.start, packets.stop - 1) == (fewest, most)
