"""The checks of the acceptance level on one real server: each is green, and red where what it proves is broken."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from functools import partial

import pytest

from harness.access import namespace
from harness.checks import CLEAN_UP
from harness.levels import Level
from harness.voip.ng import NgClient
from tests.controls import (
    CONFIGURATION,
    DELETES_NOTHING,
    MEDIA,
    Control,
    assert_turned,
    broken,
    configured,
    outcomes,
    process_of_checks,
    proxied,
    rule,
    ruled,
)
from tests.real_server import Booted

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]

CONTROLS = [
    Control("no rule to the module", "iptables -w -D INPUT -p udp -j RTPENGINE --id 0",
            "iptables -w -I INPUT -p udp -j RTPENGINE --id 0", "test_forwarded_by_module test_forwarded_by_daemon",
            green="test_ten_calls"),
    rule("test_one_call", "a packet of a hundred lost, one call",
         f"-p {MEDIA} -m statistic --mode nth --every 100 --packet 50 -j DROP"),
    rule("test_ten_calls", "a packet of a hundred lost, ten calls",
         f"-p {MEDIA} -m statistic --mode nth --every 100 --packet 50 -j DROP"),
    rule("test_one_call", "media stopped on the server", f"-p {MEDIA} -j DROP"),
    configured("test_media_address", "another address advertised",
               "echo 203.0.113.7 >/etc/rtpengine/advertised-address"),
    configured("test_media_ports", "ports of another range",
               f"sed -i 's/^port-min.*/port-min = 20000/; s/^port-max.*/port-max = 20999/' {CONFIGURATION}"),
    proxied("test_call_deleted", "a delete that deletes nothing", DELETES_NOTHING),
]

EVERY = ("-m", "level", "-k", "test_media.py or test_kernel_forwarding.py")
"""Selects this level's checks that are turned red here; those of other files have tests of their own."""


def test_every_check_is_green_and_one_of_the_controls_turns_it_red(server: Booted) -> None:
    results = server.results(*EVERY, level=Level.ACCEPTANCE)
    assert [(r.id, r.message) for r in results if r.outcome != "passed"] == []
    measured = {r.id.rsplit("::", 1)[-1]: r.seen for r in results}
    for figure in ("packets sent, 0 lost", "MOS ", "jitter ", "latency "):
        assert figure in measured["test_one_call"] and figure in measured["test_ten_calls"]
    assert set(measured) == {check for control in CONTROLS for check in control.red.split()}


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_control(server: Booted, control: Control) -> None:
    assert_turned(server, control)


def test_a_relay_that_does_not_answer_is_not_the_images_failure(server: Booted) -> None:
    with broken(server, rule("", "", "-p udp --dport 2223 -j DROP")):
        results = server.results(*EVERY, level=Level.ACCEPTANCE)
    assert {result.outcome for result in results} == {"error", "skipped"}
    assert "no call can be placed: the relay at" in next(r.seen for r in results if r.outcome == "error")


@pytest.mark.parametrize("family, verdict, why", [
    ("inet", "drop", "could not be sent (EPERM)"), ("bridge", "drop", "no media reached the server"),
    ("bridge", "numgen inc mod 3 == 0 drop", "packets were lost on the way to the server")])
def test_media_that_never_gets_to_the_server_is_not_the_images_failure(server: Booted, family: str, verdict: str,
                                                                       why: str) -> None:
    """Stopped by this host's own firewall, which the sender is told, and on the way, which it is not."""
    with ruled(server, f"table {family} acceptance {{ chain media {{ type filter hook output priority 0; "
                       f"udp dport 30000-40000 {verdict}; }}; }}", f"{family} acceptance"):
        [result] = server.results("-k", "test_one_call", level=Level.ACCEPTANCE)
    assert (result.outcome, why in result.seen) == ("error", True), result


def test_calls_of_checks_that_are_ended_are_deleted(server: Booted) -> None:
    """As at the deadline of the checks, and on Ctrl-C: pytest gets a SIGTERM in the middle of ten calls."""
    route = server.server.routes[0]
    seen: list[dict[str, str]] = []
    checks = threading.Thread(target=lambda: seen.append(outcomes(server, "-k", "test_ten_calls")))
    with NgClient(route.address, 2223, partial(namespace.open_socket, route.namespace, socket.SOCK_DGRAM)) as relay:
        checks.start()
        limit = time.monotonic() + 60
        while len(relay.calls()) < 10:
            assert time.monotonic() < limit, "no calls were placed"
            time.sleep(0.1)
        os.kill(process_of_checks(server), signal.SIGTERM)
        checks.join(CLEAN_UP + 30)
        assert relay.calls() == []
    assert seen[0] == {"test_ten_calls": "error", "pytest": "error"}, "checks that did not come to their end"


def test_media_goes_to_the_advertised_address(server: Booted) -> None:
    """A server whose metadata advertise its floating address: the media go by that address's route."""
    address, file = server.server.floating_ip, "/run/cloud-init/instance-data.json"
    with broken(server, Control("", f"""\
            sed '1s/{{/&"rtpengine_advertised": "{address}",/' {file} >/run/data; chmod 600 /run/data
            mount --bind /run/data {file}; systemctl restart rtpengine""",
                                f"umount {file}; systemctl restart rtpengine", "")):
        results = server.results(*EVERY, level=Level.ACCEPTANCE)
    assert [(r.id, r.message) for r in results if r.outcome != "passed"] == []


def test_all_is_green_again(server: Booted) -> None:
    results = server.results(level=Level.ACCEPTANCE)
    assert [(r.id, r.message, r.because) for r in results if r.red] == []
