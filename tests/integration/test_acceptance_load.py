"""The checks of the load level on one real server: each measures, and is red where what it proves is broken."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from harness.access import namespace
from harness.levels import Level
from harness.report.measured import figures, plots
from harness.results import CheckResult
from harness.voip.ng import NgClient
from tests.controls import DELETES_NOTHING, MEDIA, Control, assert_turned, proxied, rule
from tests.real_server import Booted

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]

EVERY = ("-k", "test_load")
HALF = f"-p {MEDIA} -m statistic --mode nth --every 2 --packet 0 -j DROP"
SEVENTH = f"-p {MEDIA} -m statistic --mode nth --every 7 --packet 0 -j ACCEPT"
MODULE = "INPUT -p udp -j RTPENGINE --id 0"

CONTROLS = [
    rule("test_calls_held_in_kernel", "half of the media lost, in the kernel", HALF),
    rule("test_calls_held_in_user_space", "half of the media lost, in user space", HALF),
    Control("no rule to the module", f"iptables -w -D {MODULE}", f"iptables -w -I {MODULE}",
            "test_calls_held_in_kernel"),
    Control("every seventh packet past the module", f"iptables -w -I INPUT {SEVENTH}",
            f"iptables -w -D INPUT {SEVENTH}", "test_kernel_is_cheaper",
            green="test_calls_held_in_kernel test_calls_held_in_user_space"),
    Control("a tracking table for 40 entries", """\
            iptables -w -A INPUT -m conntrack --ctstate INVALID
            cd /proc/sys/net/netfilter; cat nf_conntrack_max >/run/max; echo 40 >nf_conntrack_max
            cat nf_conntrack_udp_timeout >/run/timeout; cat nf_conntrack_udp_timeout_stream >/run/stream
            echo 3 >nf_conntrack_udp_timeout; echo 3 >nf_conntrack_udp_timeout_stream""", """\
            iptables -w -D INPUT -m conntrack --ctstate INVALID
            cd /proc/sys/net/netfilter; cat /run/max >nf_conntrack_max
            cat /run/timeout >nf_conntrack_udp_timeout; cat /run/stream >nf_conntrack_udp_timeout_stream""",
            "test_entries_below_limit", green="test_calls_held_in_user_space"),
    Control("memory taken by something else", """\
            mount -t tmpfs -o size=95% fill /mnt
            fallocate -l $(($(sed -n 's/^MemAvailable: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo) - 110000))K /mnt/fill""",
            "umount /mnt", "test_memory_per_call"),
    proxied("test_set_up_rate", "a delete that deletes nothing", DELETES_NOTHING),
]


def test_every_check_is_green_and_measures(server: Booted) -> None:
    results = server.results(*EVERY, level=Level.LOAD)
    assert [(r.id, r.message) for r in results if r.outcome != "passed"] == []
    assert {name(r) for r in results} == {check for control in CONTROLS for check in control.red.split()}
    found = figures(results)
    for figure in ("calls held, in the kernel", "calls held, in user space", "set-up rate", "memory a call, daemon",
                   "daemon's processor time a packet, user space : kernel"):
        assert found[figure].value > 0, figure
    drawn = {one.title: one for one in plots(results)}
    for title, curves in (("Loss over calls", 2), ("Jitter over calls", 2), ("Latency over calls", 4),
                          ("Processor time over packets", 4), ("Connection tracking over time", 2),
                          ("Memory over idle calls", 1), ("Set-up rate over clients", 1)):
        assert len(drawn[title].series) == curves, title
        assert all(len(series.points) >= 2 for series in drawn[title].series), title
    assert "TCG" in {name(r): r for r in results}["test_kernel_is_cheaper"].seen
    assert left(server) == []


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_control(server: Booted, control: Control) -> None:
    assert_turned(server, control, Level.LOAD)
    assert server.root(f"iptables -w -C {MODULE} && echo there") == "there\n"


def test_a_relay_that_dies_in_the_middle_is_told_and_what_was_measured_stays(server: Booted) -> None:
    seen: list[CheckResult] = []
    checks = threading.Thread(target=lambda: seen.extend(
        server.results("-k", "test_calls_held_in_user_space", level=Level.LOAD)))
    with relay(server) as client:
        checks.start()
        limit = time.monotonic() + 120
        for wanted in (True, False, True):  # the first step, its end, the second step
            while bool(client.calls(limit=100)) is not wanted:
                assert time.monotonic() < limit, "no second step was made"
                time.sleep(0.2)
    server.root("systemctl kill --signal=KILL rtpengine")
    checks.join()
    [result] = seen
    assert result.outcome == "failed" and " calls in user space: the relay" in result.message
    assert {one.plot for one in result.series} >= {"Loss over calls", "Processor time over packets"}
    assert [point[0] for point in result.series[0].points][:1] == [10]
    assert server.root(f"iptables -w -C {MODULE} && echo there") == "there\n"
    assert left(server) == []


def relay(server: Booted) -> NgClient:
    route = server.server.routes[0]
    return NgClient(route.address, 2223, lambda: namespace.open_socket(route.namespace, socket.SOCK_DGRAM),
                    seconds=30)


def left(server: Booted) -> list[str]:
    with relay(server) as client:
        return client.calls(limit=100)


def name(result: CheckResult) -> str:
    return result.id.rsplit("::", 1)[-1]
