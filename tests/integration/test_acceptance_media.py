"""Strangers, TOS, threads, ports and IPv6 on one real server: green, and red where what a check proves is broken."""

from __future__ import annotations

import base64
import gzip
import os
import signal
import socket
import subprocess
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import yaml

from harness import appliance as appliances_file
from harness.access import namespace
from harness.appliance import SourceSpec
from harness.checks import CLEAN_UP
from harness.deadline import Deadline
from harness.image.apt import state_for
from harness.image.mirrors import apt_mirrors
from harness.image.sources import DebianPackages, NotToBeHad
from harness.levels import Level
from harness.settings import Settings
from harness.voip.ng import NgClient
from tests.conftest import PROJECT
from tests.controls import (
    CONFIGURATION,
    DELETES_NOTHING,
    Control,
    assert_turned,
    broken,
    configured,
    outcomes,
    process_of_checks,
    proxied,
    ruled,
)
from tests.real_server import Booted

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]

EVERY = ("-m", "level", "-k", "test_strangers.py or test_media_paths.py or test_ports.py or test_ipv6.py")
NOTHING_INJECTED = "test_nothing_injected[user-space] test_nothing_injected[kernel]"
STRANGERS = f"test_no_media_stolen {NOTHING_INJECTED}"
WAYS = ("IPv6", "IPv4-to-IPv6", "IPv6-to-IPv4")
CALLS6, FORWARDED6 = (" ".join(f"{check}[{way}]" for way in WAYS)
                      for check in ("test_call_over_ipv6", "test_ipv6_forwarded_by_module"))
LOSS6 = "INPUT -p udp --dport 30000:40000 -m statistic --mode nth --every 49 --packet 25 -j DROP"
TO_MODULE = "INPUT -p udp -j RTPENGINE --id 0"
WITHOUT_TOS = "POSTROUTING -t mangle -p udp --sport 30000:40000 -m owner ! --socket-exists -j TOS --set-tos 0"
"""For what no process sent: the kernel module's packets."""
LEARNING = f"sed -i 's/^endpoint-learning.*/endpoint-learning = {{}}/' {CONFIGURATION}"


def commanded(red: str, name: str, option: str) -> Control:
    """The daemon with an option on its command line, which wins over its configuration file."""
    unit, directory = "/etc/systemd/system/rtpengine.service", "/run/systemd/system/rtpengine.service.d"
    again = "systemctl daemon-reload; systemctl restart rtpengine"
    return Control(name, f"""\
mkdir -p {directory}
sed -n 's/^ExecStart=.*/[Service]\\nExecStart=\\n& {option}/p' {unit} >{directory}/option.conf
{again}""", f"rm -r {directory}; {again}", red)


RESTORE = "/usr/sbin/iptables-restore"
KEPT_FROM_MODULE = Control("calls of user space handed to the module", f"""\
rm {RESTORE}
printf '#!/bin/sh\\nsed /ACCEPT/d | xtables-nft-multi iptables-restore "$@"\\n' >{RESTORE}
chmod 755 {RESTORE}""", f"ln -sf /etc/alternatives/iptables-restore {RESTORE}", "test_nothing_injected[user-space]",
                           green="test_nothing_injected[kernel]")


CONTROLS = [
    KEPT_FROM_MODULE,
    proxied(NOTHING_INJECTED, "strict source not asked for",
            'request = request.replace(b"5:flagsl13:strict sourcee", b"")'),
    configured("test_no_media_stolen", "endpoints learned with delay", LEARNING.format("delayed")),
    configured("test_no_media_stolen", "endpoints learned at once", LEARNING.format("immediate")),
    configured("test_tos_in_user_space test_tos_in_kernel", "another TOS",
               f"sed -i 's/^tos.*/tos = 0/' {CONFIGURATION}"),
    Control("another TOS in the kernel alone", f"iptables -w -A {WITHOUT_TOS}", f"iptables -w -D {WITHOUT_TOS}",
            "test_tos_in_kernel", green="test_tos_in_user_space"),
    configured("test_threads_share_work", "one thread", f"echo num-threads = 1 >>{CONFIGURATION}"),
    commanded("test_ports_exhausted_and_released", "more ports than configured", "--port-max=40000"),
    proxied("test_ports_exhausted_and_released", "ports that are not released", DELETES_NOTHING),
    Control("packets lost over IPv6", f"ip6tables -w -I {LOSS6}", f"ip6tables -w -D {LOSS6}", CALLS6),
    Control("no rule to the module for IPv6", f"ip6tables -w -D {TO_MODULE}", f"ip6tables -w -I {TO_MODULE}",
            FORWARDED6, green=CALLS6),
]


def test_every_check_is_green_and_one_of_the_controls_turns_it_red(server: Booted) -> None:
    results = server.results(*EVERY, level=Level.ACCEPTANCE)
    assert [(r.id, r.message) for r in results if r.outcome != "passed"] == []
    measured = {r.id.rsplit("::", 1)[-1]: r.seen for r in results}
    for path in ("user-space", "kernel"):
        assert "0 of " in measured[f"test_nothing_injected[{path}]"] and ", for " in measured[
            f"test_nothing_injected[{path}]"], "how long the relay learned"
    assert set(measured) == {check for control in CONTROLS for check in control.red.split()}


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_control(server: Booted, control: Control) -> None:
    assert_turned(server, control)


@pytest.fixture(scope="module")
def known(server: Booted, tmp_path_factory: pytest.TempPathFactory) -> Booted:
    """The same server by a description whose endpoints are known."""
    file = tmp_path_factory.mktemp("known") / "appliances.yaml"
    content = yaml.safe_load((PROJECT / "appliances.yaml").read_text(encoding="utf-8"))
    entry = content["appliances"][server.work.appliance.name]
    entry["checks"], entry["rtpengine"]["learning"] = [f"{PROJECT}/tests/appliance"], "known"
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    described = appliances_file.load(file)[server.work.appliance.name]
    return replace(server, work=replace(server.work, appliance=described))


def test_nobody_gets_into_calls_of_known_endpoints(known: Booted) -> None:
    checks = STRANGERS.split()
    with broken(known, configured("", "", LEARNING.format("off"))):
        results = known.results("-k", " or ".join(["test_option_in_force", *checks]), level=Level.ACCEPTANCE)
    assert [(r.id, r.message) for r in results if r.outcome != "passed"] == []
    assert outcomes(known, "-k", " or ".join(checks)) == dict.fromkeys(checks, "failed"), "heuristic learning"


UNPATCHED = SourceSpec("debian-packages", "10.5.3.5-1", packages={
    "rtpengine-daemon": "d8524ef21ca2985dbb85010682bce4123b10e9dd8d6bc012502991fee937b787"})
"""Debian's package before its fix of CVE-2025-53399."""


def test_media_are_stolen_from_an_unpatched_relay(server: Booted, real_settings: Settings, tmp_path: Path) -> None:
    state = state_for(real_settings.cache, apt_mirrors(real_settings), "bookworm", "amd64")
    try:
        DebianPackages(lambda: state).fetch(UNPATCHED, tmp_path, Deadline(120))
    except NotToBeHad as error:
        pytest.skip(f"the unpatched relay can't be had: {error}")
    [package] = tmp_path.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", package, tmp_path], check=True)
    program = base64.b64encode(gzip.compress((tmp_path / "usr/bin/rtpengine").read_bytes())).decode("ascii")
    missing = server.root(f"base64 -d <<'END' | gunzip >/var/lib/unpatched\n{program}\nEND\n"
                          "chmod 755 /var/lib/unpatched; ldd /var/lib/unpatched | grep 'not found' || true")
    if missing:
        pytest.skip(f"the image lacks libraries of Debian's own relay: {missing}")
    with broken(server, Control("", "mount --bind /var/lib/unpatched /usr/sbin/rtpengine; systemctl restart rtpengine",
                                "systemctl stop rtpengine; umount /usr/sbin/rtpengine; rm /var/lib/unpatched; "
                                "systemctl start rtpengine", "")):
        assert outcomes(server, "-k", "test_no_media_stolen") == {"test_no_media_stolen": "failed"}


def test_packets_that_never_get_to_the_server_do_not_prove_that_strangers_are_kept_out(server: Booted) -> None:
    with ruled(server, "table inet acceptance { chain strangers { type filter hook forward priority -10; "
                       "udp dport 30000-40000 drop; }; }", "inet acceptance"):
        results = server.results("-k", " or ".join(STRANGERS.split()), level=Level.ACCEPTANCE)
    assert {r.outcome for r in results} == {"error"}
    assert results[0].seen.startswith("strangers can't be judged: of their "), results[0].seen


def test_checks_that_are_ended_leave_no_rule_and_no_call(server: Booted) -> None:
    route = server.server.routes[0]
    checks = threading.Thread(target=lambda: outcomes(server, "-k", "test_no_media_stolen"))
    with NgClient(route.address, 2223, partial(namespace.open_socket, route.namespace, socket.SOCK_DGRAM)) as relay:
        before = server.root("iptables -w -S INPUT")
        checks.start()
        limit = time.monotonic() + 60
        while "ACCEPT" not in (rules := server.root("iptables -w -S INPUT")).partition("\n")[2]:
            assert time.monotonic() < limit, f"no rules were made: {rules}"
        os.kill(process_of_checks(server), signal.SIGTERM)
        checks.join(CLEAN_UP + 30)
        assert relay.calls() == []
    assert server.root("iptables -w -S INPUT") == before


def test_strangers_by_the_other_route(server: Booted) -> None:
    """A server whose metadata advertise its floating address: media go by that route, strangers by the other one."""
    address, file = server.server.floating_ip, "/run/cloud-init/instance-data.json"
    checks = STRANGERS.split()
    with broken(server, Control("", f"""\
            sed '1s/{{/&"rtpengine_advertised": "{address}",/' {file} >/run/data; chmod 600 /run/data
            mount --bind /run/data {file}; systemctl restart rtpengine""",
                                f"umount {file}; systemctl restart rtpengine", "")):
        assert outcomes(server, "-k", " or ".join(checks)) == dict.fromkeys(checks, "passed")


def test_all_is_green_again(server: Booted) -> None:
    results = server.results(level=Level.ACCEPTANCE)
    assert [(r.id, r.message, r.because) for r in results if r.red] == []
    assert {r.reason for r in results if r.outcome == "skipped"} == {"no Redis on the appliance keeps calls"}
