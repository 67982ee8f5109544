"""The checks of outages and of forwarding in user space on one real server: green, and red where it should be."""

from __future__ import annotations

import socket
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from harness import appliance as appliances_file
from harness.access import namespace, readiness
from harness.deadline import Deadline
from harness.levels import Level
from harness.voip.call import Call
from harness.voip.endpoint import Endpoint
from harness.voip.ng import NgClient
from tests.conftest import PROJECT
from tests.controls import CONFIGURATION, Control, assert_turned, broken, configured, outcomes, rule
from tests.real_server import Booted

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]

OURS = ("-k", "test_outages or test_fallback")
MEDIA = "udp --dport 30000:40000"
TO_MODULE = "-p udp -j RTPENGINE --id 0"
DROP_IN = "/run/systemd/system/rtpengine.service.d"
AS_USUAL = f"rm -rf {DROP_IN}; systemctl daemon-reload; systemctl restart rtpengine; systemctl reset-failed rtpengine"


def dropped_in(name: str, lines: str, red: str, then: str = "") -> Control:
    """Further lines of the daemon's unit, as a user's drop-in has them."""
    return Control(name, f"mkdir -p {DROP_IN}; printf '[Service]\\n{lines}\\n' >{DROP_IN}/user.conf; "
                         f"systemctl daemon-reload; {then}", AS_USUAL, red)


def without_fallback(red: str, name: str, value: str) -> Control:
    return configured(red, name, f"sed -i 's/^no-fallback.*/no-fallback = {value}/' {CONFIGURATION}")


CONTROLS = [
    rule("test_network_cut", "a packet of a hundred lost",
         f"-p {MEDIA} -m statistic --mode nth --every 100 --packet 50 -j DROP"),
    dropped_in("not started again after it was stopped", "ExecStartPre=/bin/false", "test_daemon_stopped"),
    dropped_in("not started again after it was killed", "Restart=no", "test_daemon_killed"),
    rule("test_without_rule", "a second rule to the module", TO_MODULE),
    Control("media that end in user space",
            "systemd-run --quiet --unit=spoiler sh -c 'while iptables -w -C INPUT "
            f"{TO_MODULE}; do sleep 0.2; done; iptables -w -I INPUT -p {MEDIA} -j DROP'",
            "systemctl stop spoiler 2>/dev/null || true; "
            f"while iptables -w -D INPUT -p {MEDIA} -j DROP 2>/dev/null; do :; done",
            "test_without_rule"),
    without_fallback("test_without_module", "a daemon that may fall back", "false"),
]


def test_every_check_is_green_and_one_of_the_controls_turns_it_red(server: Booted) -> None:
    results = server.results(*OURS, level=Level.ACCEPTANCE)
    assert [(r.id, r.message) for r in results if r.outcome != "passed"] == []
    seen = {r.id.rsplit("::", 1)[-1]: r.seen for r in results}
    print(*(f"{check}: {text}" for check, text in seen.items()), sep="\n")
    assert "without network" in seen["test_network_cut"]
    assert "0 of 5 calls kept" in seen["test_daemon_stopped"] and "0 of 5 calls kept" in seen["test_daemon_killed"]
    assert "exit status 255" in seen["test_without_module"]
    assert set(seen) == {check for control in CONTROLS for check in control.red.split()}
    assert server.red("-k", "test_service") == [], "no trace of it is left"


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_control(server: Booted, control: Control) -> None:
    assert_turned(server, control)


def test_a_relay_that_may_fall_back_relays_without_its_module(server: Booted, tmp_path: Path) -> None:
    """Described so, and the daemon configured so; it is red where the daemon then refuses to start."""
    described = yaml.safe_load((PROJECT / "appliances.yaml").read_text())
    relay = described["appliances"]["rtpengine"]
    relay["rtpengine"]["no_fallback"], relay["checks"] = False, [str(PROJECT / "tests/appliance")]
    (tmp_path / "appliances.yaml").write_text(yaml.safe_dump(described))
    appliance = appliances_file.load(tmp_path / "appliances.yaml")["rtpengine"]
    falling_back = replace(server, work=replace(server.work, appliance=appliance))
    with broken(server, without_fallback("", "", "false")):
        [result] = falling_back.results("-k", "test_without_module", level=Level.ACCEPTANCE)
    print(result.seen)
    assert (result.outcome, ", 0 in the kernel" in result.seen) == ("passed", True), result
    assert outcomes(falling_back, "-k", "test_without_module") == {"test_without_module": "failed"}


@pytest.mark.parametrize("control", [
    configured("", "in the configuration file", f"echo 'redis-db = 1' >>{CONFIGURATION}"),
    dropped_in("on the command line", "ExecStart=\\nExecStart=/usr/sbin/rtpengine -f --config-file "
               f"{CONFIGURATION} --redis-db=1", "", "systemctl restart rtpengine || true"),
], ids=lambda control: control.name)
def test_options_of_old_manuals_are_named_with_what_to_write(server: Booted, control: Control) -> None:
    """In the file the daemon passes over it, on the command line it ends by it without a word."""
    with broken(server, control):
        results = server.results("-k", "test_no_outdated_options or test_service_active")
    [red] = [result for result in results if result.outcome != "skipped"]
    assert (red.outcome, red.seen, red.because) == ("failed", "redis-db = 1", "write redis = HOST:PORT/1")


def test_calls_after_a_reboot_in_mid_call(server: Booted) -> None:
    """What is lost are the calls; new ones are relayed as before."""
    work = server.work
    route = server.server.routes[0]
    opened = partial(namespace.open_socket, route.namespace, socket.SOCK_DGRAM)
    with NgClient(route.address, 2223, opened) as relay, Endpoint("127.0.0.1") as caller, \
            Endpoint("127.0.0.1") as callee, Call(relay, caller, callee) as call:
        assert relay.calls() == [call.id]
        readiness.reboot(work.cloud, work.run, server.server, Deadline(600), lambda text: None)
        assert relay.calls() == []
    assert server.red("-k", "test_ten_calls or test_kernel_forwarding", level=Level.ACCEPTANCE) == []
