"""Media on a real OpenStack, by each kind of route: green, and red where what a check proves is broken."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.appliance import Appliance
from harness.cloud import RouteKind
from harness.deadline import Deadline
from harness.image.build import Image
from harness.levels import Level
from harness.resources import REMOVERS, processes_with
from harness.results import CheckResult
from harness.settings import Settings
from harness.stages import Work
from tests import cloud_inventory
from tests.controls import Control, assert_turned, outcomes, process_of_checks
from tests.integration.test_cloud_night import work_on
from tests.real_server import Booted

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]

MEDIA = "test_media.py or test_media_paths.py or test_kernel_forwarding.py or test_strangers.py or test_sip.py"
WITHOUT_RULE = Control("the rule to the module deleted", "iptables -w -D INPUT -p udp -j RTPENGINE --id 0",
                       "iptables -w -I INPUT -p udp -j RTPENGINE --id 0",
                       "test_forwarded_by_module", "test_one_call test_ten_calls")


@contextmanager
def server_on(settings: Settings, appliance: Appliance, image: Image, runs: Path, route: RouteKind
              ) -> Iterator[Booted]:
    """A server that is reached by such a route; the cloud is as it was afterwards."""
    with cloud_inventory.unchanged(settings), \
            work_on(replace(settings, runs=runs, cloud="testcloud"), appliance) as work:
        cloud: Any = work.cloud
        cloud.api.options = replace(cloud.api.options, route=route)
        yield Booted(work, work.launch(work.upload(image))[0])


@pytest.fixture(scope="module")
def behind(cloudy: Settings, real_appliance: Appliance, real_image: Image,
           tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A server behind a router's namespace on a network node."""
    with server_on(cloudy, real_appliance, real_image, tmp_path_factory.mktemp("behind") / "runs",
                   RouteKind.NAMESPACE) as server:
        yield server


def assert_no_agent(work: Work) -> None:
    """The node runs on this kernel: its processes are seen here, too."""
    limit = Deadline(15)
    while agents := processes_with(f"{work.run.directory}/agent-"):
        assert not limit.expired, agents


def test_media_by_endpoints_on_the_network_node(behind: Booted) -> None:
    assert behind.server.routes[0].gateway, "the control: the router's namespace is not on this host"
    seen = outcomes(behind, "-k", f"({MEDIA}) or test_ipv6.py")
    skipped = {check for check, outcome in seen.items() if outcome == "skipped"}
    assert all("ipv6" in check for check in skipped), skipped
    assert {outcome for check, outcome in seen.items() if check not in skipped} == {"passed"}, seen
    assert len(seen) - len(skipped) > 15
    assert_no_agent(behind.work)
    assert not [r for r in behind.work.run.journal.outstanding() if "/agent-" in r.name]


def test_without_the_rule_media_flow_in_user_space(behind: Booted) -> None:
    assert_turned(behind, WITHOUT_RULE)


def until(server: Booted, selection: str, wanted: dict[str, str]) -> dict[str, CheckResult]:
    """The results, once the outcomes are as wanted: the cloud carries out a change of rules some time later."""
    limit = Deadline(60)
    while True:
        found = {result.id.rsplit("::", 1)[-1]: result
                 for result in server.results("-k", selection, level=Level.ACCEPTANCE)}
        if (seen := {name: result.outcome for name, result in found.items()}) == wanted:
            return found
        assert not limit.expired, seen


def test_ports_that_the_cloud_does_not_let_in_are_not_the_images_fault(behind: Booted) -> None:
    cloud: Any = behind.work.cloud
    network = cloud.api.sdk.network
    group = network.find_security_group(behind.work.run.id)
    [rule] = [r for r in group.security_group_rules if r["port_range_min"] == 30000]
    checks = "test_one_call or test_ng_ping or test_media_ports"
    green = dict.fromkeys(checks.split(" or "), "passed")
    network.delete_security_group_rule(rule["id"])
    try:
        closed = until(behind, checks, {**green, "test_one_call": "error"})
    finally:
        network.create_security_group_rule(
            security_group_id=group.id, direction="ingress", ether_type=rule["ethertype"], protocol="udp",
            port_range_min=30000, port_range_max=40000, remote_ip_prefix=rule["remote_ip_prefix"])
    assert "no media reached the server" in closed["test_one_call"].message
    until(behind, checks, green)


def test_checks_that_are_killed_leave_no_endpoint_on_the_node(behind: Booted) -> None:
    checks = threading.Thread(target=outcomes, args=(behind, "-k", "test_one_call"))
    checks.start()
    limit = Deadline(60)
    while not processes_with(f"{behind.work.run.directory}/agent-"):
        assert not limit.expired, "no agent is started"
    os.kill(process_of_checks(behind), signal.SIGKILL)
    checks.join()
    assert_no_agent(behind.work)
    for resource in behind.work.run.journal.outstanding():
        if "/agent-" in resource.name:
            REMOVERS[resource.kind](resource)
            behind.work.run.journal.gone(resource)


def test_media_by_endpoints_here_when_the_floating_address_is_the_way(
        cloudy: Settings, real_appliance: Appliance, real_image: Image, tmp_path: Path) -> None:
    with server_on(cloudy, real_appliance, real_image, tmp_path / "runs", RouteKind.FLOATING_IP) as server:
        seen = outcomes(server, "-k", f"{MEDIA} or test_advertised_address")
        assert set(seen.values()) == {"passed"}, seen
        assert server.server.floating_ip in server.root("cat /run/rtpengine/interfaces")
