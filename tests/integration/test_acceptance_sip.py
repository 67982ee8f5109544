"""The checks of calls by SIP on one real server: each is green, and red where what it proves is broken."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import pytest

from harness.access import namespace
from harness.checks import CLEAN_UP
from harness.deadline import Deadline
from harness.levels import Level
from harness.resources import processes_with
from harness.settings import Settings
from harness.sip import calls as sip
from harness.sip import programs
from harness.sip.calls import SipCalls
from harness.voip.endpoint import Endpoint
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
    rule("test_sip_media", "a packet of a hundred lost", f"-p {MEDIA} -m statistic --mode nth --every 100 --packet 50 "
         "-j DROP"),
    rule("test_sip_media", "media stopped on the server", f"-p {MEDIA} -j DROP"),
    configured("test_sip_answered", "no port for media is free",
               f"sed -i 's/^port-min.*/port-min = 30000/; s/^port-max.*/port-max = 30001/' {CONFIGURATION}"),
    configured("test_sip_answered", "another address advertised",
               "echo 203.0.113.7 >/etc/rtpengine/advertised-address"),
    proxied("test_sip_hang_up", "a delete that deletes nothing", DELETES_NOTHING),
]
Place = Callable[[], AbstractContextManager[SipCalls]]
CHECKS = ("test_sip_answered", "test_sip_media", "test_sip_hang_up", "test_sip_without_relay")


def test_every_check_is_green_and_one_of_the_controls_turns_it_red(server: Booted) -> None:
    results = server.results("-k", "test_sip", level=Level.ACCEPTANCE)
    assert [(r.id, r.message) for r in results if r.outcome != "passed"] == []
    measured = {r.id.rsplit("::", 1)[-1]: r.seen for r in results}
    assert tuple(measured) == CHECKS
    assert "3 calls, " in measured["test_sip_media"] and "packets sent, 0 lost" in measured["test_sip_media"]
    assert measured["test_sip_without_relay"] == "503 Media Relay Unavailable"
    assert {control.red for control in CONTROLS} | {"test_sip_without_relay"} == set(CHECKS)


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_control(server: Booted, control: Control) -> None:
    assert_turned(server, control)


def test_out_of_ports_is_named_as_the_cause(server: Booted) -> None:
    [control] = [control for control in CONTROLS if "port" in control.name]
    with broken(server, control):
        [result] = server.results("-k", "test_sip_answered", level=Level.ACCEPTANCE)
    assert result.seen == ", ".join(["503 Media Relay Unavailable"] * 3)
    assert "Ran out of ports\n" in result.because


def test_a_call_that_is_taken_up_without_a_relay_is_red(server: Booted) -> None:
    """Somebody answers where nobody should: the relay itself, by a rule in the router's namespace."""
    with ruled(server, "table ip acceptance { chain out { type nat hook output priority -100; udp dport 9 "
                       "dnat to :2223; }; }", "ip acceptance"):
        [result] = server.results("-k", "test_sip_without_relay", level=Level.ACCEPTANCE)
    assert (result.outcome, result.seen) == ("failed", "200 OK"), result


def test_a_relay_that_does_not_answer_is_not_the_images_failure(server: Booted) -> None:
    with broken(server, rule("", "", "-p udp --dport 2223 -j DROP")):
        results = server.results("-k", "test_sip", level=Level.ACCEPTANCE)
    assert {result.outcome for result in results} == {"error", "skipped"}
    assert "no call can be placed: the relay at" in next(r.seen for r in results if r.outcome == "error")


@pytest.fixture
def place(server: Booted, real_settings: Settings) -> Iterator[Place]:
    """place(): a call through the server's relay."""
    route, run = server.server.routes[0], server.work.run
    open_socket = partial(namespace.open_socket, route.namespace)
    with open_socket(socket.SOCK_DGRAM, socket.AF_INET) as probe:
        probe.connect((route.address, 2223))
        here = probe.getsockname()[0]
    proxy = programs.proxy_of(real_settings)
    root = programs.prepare(real_settings, run, proxy, Deadline(600))
    site = sip.Site(root, route.namespace, here, run.directory / "sip", run.journal)
    with Endpoint(here, open_socket=open_socket) as caller, Endpoint(here, open_socket=open_socket) as callee:
        yield partial(sip.placed, site, proxy, (route.address, 2223), [caller], [callee])


def test_a_call_is_refused_while_the_relay_is_stopped_and_taken_up_afterwards(server: Booted, place: Place) -> None:
    with broken(server, Control("", "systemctl stop rtpengine", "systemctl start rtpengine", "")), place() as calls:
        assert [str(dialog) for dialog in calls.settle()] == ["503 Media Relay Unavailable"]
    with place() as calls:
        assert [dialog.up for dialog in calls.settle()] == [True]
        assert [dialog.over for dialog in calls.hang_up()] == [True]


def test_checks_that_are_ended_leave_no_call_and_no_program(server: Booted) -> None:
    """As at the deadline of the checks, and on Ctrl-C: pytest gets a SIGTERM in the middle of the calls."""
    route, directory = server.server.routes[0], os.fspath(server.work.run.directory / "sip")
    seen: list[dict[str, str]] = []
    checks = threading.Thread(target=lambda: seen.append(outcomes(server, "-k", "test_sip_media")))
    with NgClient(route.address, 2223, partial(namespace.open_socket, route.namespace, socket.SOCK_DGRAM)) as relay:
        checks.start()
        limit = Deadline(60)
        while len(relay.calls()) < 3:
            assert not limit.expired, "no calls were placed"
            time.sleep(0.1)
        assert processes_with(directory)
        os.kill(process_of_checks(server), signal.SIGTERM)
        checks.join(CLEAN_UP + 30)
        assert relay.calls() == [] and processes_with(directory) == []
    assert seen[0] == {"test_sip_media": "error", "pytest": "error"}, "checks that did not come to their end"


def test_all_is_green_again(server: Booted) -> None:
    assert outcomes(server, "-k", "test_sip") == dict.fromkeys(CHECKS, "passed")
