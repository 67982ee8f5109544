"""The test cloud itself: real, from packages to a running server, and what its end leaves behind."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import reaper
from harness.errors import HostError
from harness.progress import Progress
from harness.settings import Settings
from harness.testcloud import status, up
from harness.testcloud.catalog import connect
from harness.testcloud.config import addresses_of
from harness.testcloud.place import Place, place_of
from tests import small_guest
from tests.waiting import until

pytestmark = [pytest.mark.root]


def _connection(place: Place, name: str, settings: Settings) -> Any:
    auth = yaml.safe_load(place.clouds.read_text())["clouds"][name]["auth"]
    return connect(addresses_of(settings), auth["project_name"], auth["username"], auth["password"])


def test_a_user_without_rights_launches_a_server(testcloud: Place, real_settings: Settings, tmp_path: Path):
    cloud = _connection(testcloud, "testcloud", real_settings)
    network = server = router = image = subnet = None
    try:
        image = cloud.create_image("greeting", filename=os.fspath(small_guest.image(tmp_path / "guest.qcow2")),
                                   disk_format="qcow2", wait=True)
        network = cloud.network.create_network(name="private")
        subnet = cloud.network.create_subnet(network_id=network.id, ip_version=4, cidr="10.5.0.0/24")
        router = cloud.network.create_router(
            external_gateway_info={"network_id": cloud.network.find_network("public").id})
        cloud.network.add_interface_to_router(router, subnet_id=subnet.id)
        flavor = cloud.compute.find_flavor("m1.tiny")
        server = cloud.compute.create_server(name="greeter", image_id=image.id, flavor_id=flavor.id,
                                             networks=[{"uuid": network.id}], config_drive=True)
        server = cloud.compute.wait_for_server(server, wait=180)
        assert server.status == "ACTIVE"
        until(lambda: small_guest.GREETING in (cloud.compute.get_server_console_output(server)["output"] or ""),
              "it boots")
        assert "10.5.0.1" in _on_node(testcloud, "sudo", "ip", "netns", "exec", f"qrouter-{router.id}",
                                      "ip", "-brief", "-4", "address")
    finally:
        if server:
            cloud.compute.delete_server(server, force=False)
            cloud.compute.wait_for_delete(server, wait=120)
        if router:
            if subnet:
                cloud.network.remove_interface_from_router(router, subnet_id=subnet.id)
            cloud.network.delete_router(router)
        if network:
            cloud.network.delete_network(network)
        if image:
            cloud.image.delete_image(image)


def _on_node(place: Place, *command: str, check: bool = True) -> str:
    node = yaml.safe_load(place.clouds.read_text())["clouds"]["testcloud"]["dialtone"]["network_nodes"][0]
    done = subprocess.run(
        ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes",
         "-o", f"UserKnownHostsFile={node['known_hosts']}", "-i", node["identity_file"],
         f"{node['user']}@{node['host']}", *command], capture_output=True, text=True, timeout=60)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_the_node_s_user_enters_namespaces_and_does_nothing_else_as_root(testcloud: Place, real_settings: Settings):
    outside = str(addresses_of(real_settings).outside)
    assert outside in _on_node(testcloud, "sudo", "ip", "netns", "exec", "outside", "ip", "-4", "address")
    assert "password is required" in _on_node(testcloud, "sudo", "-n", "cat", "/etc/shadow", check=False)


def test_projects_see_nothing_of_each_other(testcloud: Place, real_settings: Settings):
    mine = _connection(testcloud, "testcloud", real_settings)
    other = _connection(testcloud, "testcloud-other", real_settings)
    network = mine.network.create_network(name="mine")
    try:
        assert network.id in {n.id for n in mine.network.networks()}
        assert network.id not in {n.id for n in other.network.networks()}
    finally:
        mine.network.delete_network(network)


def test_secrets_are_for_root_alone(testcloud: Place):
    files = [testcloud.clouds, testcloud.run / "plan.json", testcloud.state / "stack_key"]
    assert [file for file in files if file.stat().st_mode & 0o077] == []
    words = [entry["auth"]["password"] for entry in yaml.safe_load(testcloud.clouds.read_text())["clouds"].values()]
    for source in (*Path("/proc").glob("[0-9]*/cmdline"), *testcloud.logs.glob("*.log")):
        try:
            text = source.read_bytes()
        except OSError:
            continue
        assert not any(word.encode() in text for word in words), source


def test_the_apis_answer_no_other_address_than_the_host_s(testcloud: Place, real_settings: Settings):
    """What a forwarding host brings from elsewhere comes with a foreign source address."""
    node, foreign = str(addresses_of(real_settings).node), "198.19.77.77"
    inside = ["nsenter", "--target", str(testcloud.noted("node")["pid"]), "--net"]

    def answered(*source: str) -> bool:
        return subprocess.run(["nc", "-z", "-w", "2", *source, node, "5000"]).returncode == 0

    def on_host(what: str) -> None:
        subprocess.run(["ip", "address", what, f"{foreign}/32", "dev", testcloud.link], check=True)

    subprocess.run([*inside, "ip", "route", "add", foreign, "dev", "uplink"], check=True)
    on_host("add")
    try:
        assert answered() and not answered("-s", foreign)
        rule = subprocess.run([*inside, "nft", "--echo", "--handle", "insert", "rule", "inet", "testcloud", "input",
                               "ip", "saddr", foreign, "accept"], check=True, capture_output=True, text=True).stdout
        try:
            assert answered("-s", foreign), "it is the filter that keeps it out"
        finally:
            subprocess.run([*inside, "nft", "delete", "rule", "inet", "testcloud", "input", "handle",
                            rule.rsplit("handle ", 1)[1].split()[0]], check=True)
    finally:
        on_host("delete")
        subprocess.run([*inside, "ip", "route", "delete", foreign], check=True)


# What follows is done to a cloud of its own, beside the shared one: with other addresses, in another cache, from the
# shared one's packages.

@pytest.fixture(scope="module")
def second(testcloud: Place, real_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    cache = tmp_path_factory.mktemp("second")
    (cache / "testcloud").mkdir()
    (cache / "apt").symlink_to(real_settings.cache / "apt")
    for made in testcloud.directory.glob("root-*"):
        if ".part-" not in made.name:
            (cache / "testcloud" / made.name).symlink_to(made)
    return Settings.load(real_settings.project, cache=os.fspath(cache), runs=os.fspath(real_settings.runs),
                         testcloud_link="198.19.254.0/30", testcloud_external="198.19.128.0/24")


def _left(place: Place) -> list[str]:
    """What this host shows of a cloud, asked of the host itself and not of the journal."""
    found = [f"process {p.parent.name}" for p in Path("/proc").glob("[0-9]*/cmdline") if _mentions(p, place)]
    found += [f"link {p.name}" for p in Path("/sys/class/net").glob(place.link)]
    routes = subprocess.run(["ip", "route", "show", "table", "all"], capture_output=True, text=True).stdout
    found += [line for line in routes.splitlines() if place.link in line]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if os.fspath(place.directory) in line]
    found += [f"cgroup {p}" for p, _, _ in os.walk("/sys/fs/cgroup") if Path(p).name.startswith("machine")]
    return found + [f"file {p}" for p in (place.run, place.journal.path) if p.exists()]


def _mentions(cmdline: Path, place: Place) -> bool:
    try:
        return place.token.encode() in cmdline.read_bytes()
    except OSError:
        return False


@contextmanager
def _down_at_the_end(settings: Settings) -> Iterator[Place]:
    try:
        yield place_of(settings)
    finally:
        up.down(settings, io.StringIO())


@pytest.mark.nightly
def test_a_dead_service_is_seen_and_down_leaves_nothing(second: Settings):
    with _down_at_the_end(second) as place:
        up.up(second, Progress(io.StringIO()))
        said = io.StringIO()
        assert up.report(second, said) == 0, said.getvalue()
        services = place.noted("services")
        first = place.noted("node")["pid"]
        subprocess.run(["nsenter", "--target", str(first), "--pid", "--mount", "kill", "-9",
                        str(services["nova-scheduler"]["pid"])], check=True)
        until(lambda: place.noted("services")["nova-scheduler"]["ended"], "its end is noted", 10)
        said = io.StringIO()
        assert up.report(second, said) == 7
        assert "nova-scheduler" in said.getvalue().splitlines()[-1] and "signal 9" in said.getvalue()
        assert sum(status.memory_of(first).values()) > 1 << 30
        assert len(_left(place)) > 3, "the look for leftovers sees a cloud that runs"
    assert _left(place) == []


@pytest.mark.nightly
def test_what_was_made_is_there_after_down_and_up_and_gone_after_fresh(second: Settings):
    with _down_at_the_end(second) as place:
        up.up(second, Progress(io.StringIO()))
        _connection(place, "testcloud", second).network.create_network(name="kept")
        up.down(second, io.StringIO())
        up.up(second, Progress(io.StringIO()))
        assert _connection(place, "testcloud", second).network.find_network("kept")
        up.up(second, Progress(io.StringIO()), fresh=True)
        assert not _connection(place, "testcloud", second).network.find_network("kept")


_UP = """
import sys
from harness.progress import Progress
from harness.settings import Settings
from harness.testcloud import up
from pathlib import Path
up.up(Settings.load(Path(sys.argv[1]), cache=sys.argv[2], runs=sys.argv[3], testcloud_link=sys.argv[4],
                    testcloud_external=sys.argv[5]), Progress())
"""


@pytest.mark.parametrize("moment", [0.5, 4.0])
def test_what_a_killed_up_leaves_is_reaped(second: Settings, moment: float):
    place = place_of(second)
    process = subprocess.Popen([sys.executable, "-c", _UP, second.project, second.cache, second.runs,
                                second.testcloud_link, second.testcloud_external], start_new_session=True)
    with _down_at_the_end(second):
        until(lambda: place.alive, "the test cloud has begun", 120)
        time.sleep(moment)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        until(lambda: not place.busy, "nobody is at work on it", 5)
        assert _left(place) != []
        assert {entry.outcome for entry in reaper.sweep(second) if entry.run_id == place.id} == {"removed"}
        assert _left(place) == []


def test_addresses_that_this_host_uses_are_refused(second: Settings, testcloud: Place, real_settings: Settings):
    taken = replace(second, testcloud_external=real_settings.testcloud_external)
    external = re.escape(real_settings.testcloud_external)
    with pytest.raises(HostError, match=f"overlap with what this host has: route {external} dev"):
        up.up(taken, Progress(io.StringIO()), fresh=True)
    assert _left(place_of(taken)) == []
