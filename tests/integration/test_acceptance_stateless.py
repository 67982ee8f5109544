"""A relay whose ports are not tracked: an image of its own, and what its table has under calls."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from harness import appliance as appliances_file
from harness import host
from harness.acceptance import directions
from harness.access import namespace
from harness.conntrack import of_sockets, parse_entries
from harness.deadline import Deadline
from harness.image.finding import expectation
from harness.image.inspect import inspect
from harness.levels import Level
from harness.settings import Settings
from harness.voip.call import Call, placed
from harness.voip.endpoint import Endpoint
from harness.voip.ng import NgClient
from harness.voip.traffic import Traffic
from tests.conftest import PROJECT
from tests.controls import Control, broken
from tests.real_server import Booted, work_in

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]

MEDIA_TRACKED = Control("", "systemctl stop conntrack-notrack", "systemctl start conntrack-notrack", "")
RULE = "PREROUTING -t mangle -m conntrack --ctstate INVALID"
TRACKING = Control("", f"iptables -w -I {RULE}", f"iptables -w -D {RULE}; conntrack -F", "")
"""Nothing at all is tracked where no rule asks for it."""
CALLS, SECONDS, PORTS = 40, 6.0, range(30000, 40001)


@pytest.fixture(scope="module")
def stateless(real_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A server of the project's appliance with `stateless: true`."""
    described = yaml.safe_load((PROJECT / "appliances.yaml").read_text())
    described["appliances"]["rtpengine"]["conntrack"]["stateless"] = True
    described["appliances"]["rtpengine"]["checks"] = [str(PROJECT / "tests/appliance")]
    file: Path = tmp_path_factory.mktemp("stateless") / "appliances.yaml"
    file.write_text(yaml.safe_dump(described))
    appliance = appliances_file.load(file)["rtpengine"]
    host.prepare(real_settings, say=lambda text: None)
    with work_in(real_settings, appliance) as work:
        image = work.build()
        findings = inspect(image.path, expectation(appliance, image.kernel, image.loader), lambda text: None,
                           Deadline(300))
        assert [(f.title, f.seen) for f in findings if f.outcome != "passed"] == []
        yield Booted(work, work.launch(work.upload(image))[0])


def test_a_server_is_green(stateless: Booted) -> None:
    assert stateless.red() == []


def test_media_takes_no_entries_until_the_rules_are_gone(stateless: Booted) -> None:
    def entries() -> tuple[str, str]:
        [result] = stateless.results("-k", "test_entries_of_calls", level=Level.ACCEPTANCE)
        return result.outcome, result.seen

    assert entries() == ("passed", "10 calls: 0 entries of RTP and 0 of RTCP, 0 of them assured")
    with broken(stateless, MEDIA_TRACKED):
        outcome, seen = entries()
        assert (outcome, seen.startswith("20 entries of RTP and 20 of RTCP, ")) == ("failed", True), seen
    assert entries()[0] == "passed"
    rules = stateless.root("iptables -w -t raw -S; ip6tables -w -t raw -S")
    assert rules.count("--notrack") == 4, "each rule once, for both families"


def test_load_takes_no_entries(stateless: Booted) -> None:
    """Forty calls at once, with RTCP: 4,000 packets a second, and tracking at work."""
    with broken(stateless, TRACKING):
        received, entries = under_load(stateless)
        print(f"{received:,} packets received, {entries} entries")
        assert (received > 1000, entries) == (True, 0)
        with broken(stateless, MEDIA_TRACKED):
            assert under_load(stateless)[1] == 4 * CALLS


def under_load(stateless: Booted) -> tuple[int, int]:
    """Packets of the media that were received, and entries of the relay's ports while they flowed."""
    route = stateless.server.routes[0]
    open_socket = partial(namespace.open_socket, route.namespace)
    with open_socket(socket.SOCK_DGRAM, socket.AF_INET) as probe:
        probe.connect((route.address, 2223))
        here = probe.getsockname()[0]
    with NgClient(route.address, 2223, partial(open_socket, socket.SOCK_DGRAM), seconds=30) as relay, \
            Endpoint(here, open_socket=open_socket) as caller, Endpoint(here, open_socket=open_socket) as callee, \
            placed([Call(relay, caller, callee) for _ in range(CALLS)]) as calls:
        with Traffic([stream for call in calls for stream in call.streams], report_every=1.0) as traffic:
            traffic.wait(SECONDS)
            tracked = parse_entries(stateless.root("cat /proc/net/nf_conntrack"))
        received = sum(one.received for call in calls for one in directions([call.result()]))
    return received, len(of_sockets(tracked, {(stateless.server.internal_ip, port) for port in PORTS}))


def test_no_client_of_the_servers_own_gets_an_untracked_port(stateless: Booted) -> None:
    assert stateless.root("sysctl -n net.ipv4.ip_local_reserved_ports").strip() == "30000-40000"
