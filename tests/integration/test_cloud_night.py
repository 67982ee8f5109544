"""Whole nights on a real OpenStack, with the image that the local stages build."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.access import keys, reach, readiness, ssh_config
from harness.appliance import Appliance
from harness.cloud import Gateway, Route, RouteKind, Server
from harness.cloud.api import Api
from harness.cloud.openstack import OpenStackCloud
from harness.deadline import Deadline
from harness.image.build import Image
from harness.levels import Level
from harness.progress import Progress
from harness.run import Run
from harness.settings import Settings
from harness.stages import Work
from tests import ha_router, leftovers
from tests.command_line import Inv
from tests.real_server import Booted
from tests.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.guest]

NIGHT = 1500.0
"""Seconds."""


@pytest.fixture
def clouds(cloudy: Settings, tmp_path: Path) -> Callable[..., Path]:
    """clouds(**options): a clouds.yaml with the test cloud under the name `lab`, with these options besides."""
    def write(**options: Any) -> Path:
        data = yaml.safe_load((cloudy.cache / "testcloud" / "clouds.yaml").read_text())
        entry = data["clouds"]["testcloud"]
        entry["dialtone"] |= options
        path = tmp_path / "clouds.yaml"
        path.write_text(yaml.safe_dump({"clouds": {"lab": entry}}))
        path.chmod(0o600)
        return path

    return write


@pytest.mark.parametrize(("config_drive", "source"), [(True, "ConfigDrive"), (False, "OpenStackLocal")])
def test_a_night_passes_and_leaves_nothing(before: None, clouds: Callable[..., Path], real_image: Image, tmp_path: Path,
                                           config_drive: bool, source: str) -> None:
    file = clouds(config_drive=config_drive)
    inv = replace(Inv(tmp_path), environment={"OS_CLIENT_CONFIG_FILE": str(file)})
    # As loud as it gets: Invoke's --debug logs what openstacksdk and keystoneauth have to say, too.
    ended = inv("--debug", "nightly", "--cloud", "lab", seconds=NIGHT)
    assert ended.code == 0, ended.out[-4000:]
    assert "X-Auth-Token" in ended.out, "the control: requests are logged"
    assert leftovers.of(inv.settings) == []
    run = Run.open(inv.settings.runs / "latest")
    assert [s.name for s in run.stages if s.name != "boot"] == [
        "host", "build", "inspect", "upload", "launch", "check", "reboot", "remove"]
    assert run.journal.outstanding() == []
    facts = run.facts["cloud"]
    assert facts["name"] == "lab"
    assert re.fullmatch(r"qrouter-[0-9a-f-]{36}", facts["namespace"])
    assert {"region", "image_id", "server_id", "hypervisor", "network_host", "api_calls"} <= set(facts)
    assert _datasource(run).split()[0] == f"DataSource{source}", "which source cloud-init used"
    page = (run.directory / "report.html").read_text()
    assert all(str(facts[key]) in page for key in ("server_id", "image_id", "namespace"))
    _no_secret(file, run.directory, ended.out)


@pytest.mark.nightly
def test_a_server_from_a_volume_behind_a_router_of_high_availability(
        before: None, cloudy: Settings, clouds: Callable[..., Path], real_image: Image, tmp_path: Path) -> None:
    """Launched, checked and destroyed by the commands; the network is one that is there."""
    if not cloudy.testcloud_volumes:
        pytest.skip("the test cloud has no volumes: testcloud_volumes")
    file = clouds(volume=True, network=ha_router.NAME)
    inv = replace(Inv(tmp_path), environment={"OS_CLIENT_CONFIG_FILE": str(file)})
    with ha_router.network(Api("testcloud", cloudy), cloudy, dhcp=True) as made:
        launched = inv("launch", "--cloud", "lab", seconds=NIGHT)
        assert launched.code == 0, launched.out[-4000:]
        facts = Run.open(inv.settings.runs / "latest").facts["cloud"]
        assert facts["namespace"] == made.namespace
        [volume] = made.admin.block_storage.volumes(all_projects=True)
        assert [a["server_id"] for a in volume.attachments] == [facts["server_id"]]
        checked = inv("check", seconds=NIGHT)
        assert checked.code == 0, checked.out[-4000:]
        destroyed = inv("destroy", seconds=NIGHT)
        assert destroyed.code == 0, destroyed.out[-4000:]
        until(lambda: not list(made.admin.block_storage.volumes(all_projects=True)), "its volume is gone")
        assert leftovers.of(inv.settings) == []


def _datasource(run: Run) -> str:
    """What cloud-init says that it used; the check of it was green in both boots."""
    for phase in ("first-boot", "after-reboot"):
        entries = map(json.loads, (run.directory / f"checks-{phase}.jsonl").read_text().splitlines())
        [outcome] = [e["outcome"] for e in entries if e["id"].endswith("::test_datasource_as_described")]
        assert outcome == "passed", phase
    return str(run.facts["server"]["datasource"])


def _no_secret(clouds_file: Path, directory: Path, said: str) -> None:
    """Neither password nor private key is in what was said or written; the key's own file is for its owner only."""
    password = yaml.safe_load(clouds_file.read_text())["clouds"]["lab"]["auth"]["password"]
    key = (directory / "ssh_key").read_text().splitlines()[1]
    assert (directory / "ssh_key").stat().st_mode & 0o77 == 0
    assert password not in said
    assert "gAAAAAB" not in said, "a token of Keystone's (Fernet) begins so"
    for path in directory.rglob("*"):
        if path.is_file():
            text = path.read_text(errors="replace")
            assert password not in text and "gAAAAAB" not in text, path
            assert path.name == "ssh_key" or key not in text, path


@contextmanager
def work_on(settings: Settings, appliance: Appliance) -> Iterator[Work]:
    """A run on the test cloud and its stages; what it made is removed at the end."""
    run = Run.create(settings.runs, appliance.name, "testcloud")
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        work = Work(settings, appliance, OpenStackCloud(settings, Api("testcloud", settings)), run, Progress(nowhere))
        try:
            yield work
        finally:
            work.remove()
            run.unlock()


@pytest.fixture
def work(cloudy: Settings, before: None, real_appliance: Appliance, tmp_path: Path) -> Iterator[Work]:
    with work_on(replace(cloudy, runs=tmp_path / "runs", cloud="testcloud"), real_appliance) as made:
        yield made


def test_two_servers_an_address_that_moves_and_a_port_that_closes(work: Work, real_image: Image) -> None:
    """By SSH: who answers at a floating IP before and after it moved. Then port 22 is closed and checks see it."""
    image = work.upload(real_image)
    cloud: Any = work.cloud
    one, two = work.launch(image, "one", "two")
    assert _host_at(work, one) != _host_at(work, two)
    name_of_two = _host_at(work, two)
    _checks_by_jump_host(work, one, two)
    cloud.move_floating_ip(work.run, one, two)
    assert _host_at(work, two, "-o", f"HostName={one.floating_ip}") == name_of_two
    # The pinned host keys tell as well: the address answers with the other server's key from now on.
    refused = _ssh(work, f"{one.name}-floating")
    assert refused.returncode == 255
    assert "Host key verification failed" in refused.stderr

    network: Any = cloud.api.sdk.network
    group = network.find_security_group(work.run.id)
    [rule] = [r for r in group.security_group_rules if r["port_range_min"] == 22]
    booted = Booted(work, two)
    assert booted.red("-k", "test_ng") == []
    network.delete_security_group_rule(rule["id"])
    readiness.disconnect(work.run, two)
    deadline = Deadline(60)
    while reach.port_open(ssh_config.path(work.run), two.routes[0], 22, 2):
        assert not deadline.expired, "the rule is gone, and port 22 still answers"
    closed = work.check(two, ("-k", "test_machine_id"))
    assert closed, "the checks reach a server whose port 22 is closed"
    assert closed.exit_code == 7, "and that is not the image's fault"


def _checks_by_jump_host(work: Work, jump: Server, server: Server) -> None:
    """SSH, the relay's control protocol and a call by way of another server, whose host key has to be a known one."""
    gateway = Gateway(jump.floating_ip, jump.user, identity_file=str(work.run.directory / "ssh_key"),
                      known_hosts=str(keys.known_hosts(work.run)))
    for known in (True, False):
        through = gateway if known else replace(gateway, known_hosts=os.devnull)
        by_jump = replace(server, routes=(Route(RouteKind.JUMP, server.internal_ip, gateway=through),))
        readiness.disconnect(work.run, server)
        ssh_config.write(work.run, [jump, by_jump])
        red = Booted(work, by_jump).red("-k", "test_ng_ping or test_machine_id or test_one_call",
                                        level=Level.ACCEPTANCE)
        assert (red == []) is known, red
        subprocess.run(["ssh", "-F", ssh_config.path(work.run), "-O", "exit", ssh_config.gateway_alias(through)],
                       capture_output=True)
    readiness.disconnect(work.run, server)
    ssh_config.write(work.run, [jump, server])


def _ssh(work: Work, alias: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ssh", "-F", ssh_config.path(work.run), "-o", "ControlPath=none", *options, alias,
                           "hostname"], capture_output=True, text=True, timeout=60)


def _host_at(work: Work, server: Server, *options: str) -> str:
    """The name of the server that answers at its floating IP, or where the options of ssh say; waits for an answer."""
    deadline = Deadline(60)
    while True:
        done = _ssh(work, f"{server.name}-floating", *options)
        if done.returncode == 0:
            return done.stdout.strip()
        assert not deadline.expired, done.stderr
