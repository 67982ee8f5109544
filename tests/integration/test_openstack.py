"""The cloud `openstack` against a real one, and against its APIs behind a proxy that misbehaves.

The guests are a few bytes: what is looked at here is what the cloud does. Whole nights are in test_cloud_night.py.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from harness import kept, reaper
from harness.cloud import ImageFile, Need, RouteKind, Server, ServerSpec, glance, openstack, removal
from harness.cloud.api import Api, Refused
from harness.cloud.openstack import OpenStackCloud
from harness.cloud.ownership import owner
from harness.deadline import Deadline
from harness.errors import CloudError, DescriptionError
from harness.resources import Resource
from harness.run import Run, State
from harness.settings import Settings
from tests import cloud_inventory, faulty_proxy, ha_router, small_guest
from tests.conftest import PROJECT
from tests.faulty_proxy import Fault, Proxy
from tests.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.guest]

PUBLIC_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGLVdT0WjxV1PKbGmEXbL9RzLcEVJzmm2xfLZbkPVKhU test"


def silent(text: str) -> None:
    pass


@pytest.fixture
def settings(cloudy: Settings, tmp_path: Path) -> Settings:
    """Runs of the test's own, on the test cloud as a user without rights."""
    return replace(cloudy, runs=tmp_path / "runs", cloud="testcloud")


@pytest.fixture
def cloud(settings: Settings, before: None) -> OpenStackCloud:
    return OpenStackCloud(settings, Api("testcloud", settings))


@pytest.fixture
def run(cloud: OpenStackCloud, settings: Settings) -> Iterator[Run]:
    """A run whose resources are removed at the end."""
    with run_on(cloud, settings) as made:
        yield made


@contextmanager
def run_on(cloud: OpenStackCloud, settings: Settings) -> Iterator[Run]:
    """A run whose resources are removed at the end, also when the block fails."""
    run = Run.create(settings.runs, "relay", "testcloud")
    try:
        yield run
    finally:
        left = run.journal.remove_outstanding(cloud.removers)
    assert left == []


@pytest.fixture(scope="session")
def guest(tmp_path_factory: pytest.TempPathFactory) -> ImageFile:
    return image_file(small_guest.image(tmp_path_factory.mktemp("guest") / "image.qcow2"))


@pytest.fixture(scope="session")
def another(tmp_path_factory: pytest.TempPathFactory) -> ImageFile:
    """An image that no other run has in the cloud."""
    return image_file(small_guest.image(tmp_path_factory.mktemp("another") / "image.qcow2", ends=True))


def image_file(path: Path) -> ImageFile:
    return ImageFile(path, "relay", hashlib.sha256(path.read_bytes()).hexdigest(), "0" * 64, 2 << 20, 64)


def spec(image: str, name: str = "server1", **changes: Any) -> ServerSpec:
    plain = ServerSpec(name, image, "debian", PUBLIC_KEY, "#cloud-config\n", memory=64, cpus=1, disk=1)
    return replace(plain, **changes)


def having(cloud: OpenStackCloud, **changes: Any) -> OpenStackCloud:
    """The same cloud with other options."""
    cloud.api.options = replace(cloud.api.options, **changes)
    return cloud


def uploaded(cloud: OpenStackCloud, run: Run, image: ImageFile) -> str:
    return cloud.upload(run, image, Deadline(120), silent)


# -- images ---------------------------------------------------------------------------------------------------------

def test_an_image_arrives_whole_and_says_whose_it_is(cloud: OpenStackCloud, run: Run, guest: ImageFile) -> None:
    identity = uploaded(cloud, run, guest)
    image: Any = cloud.api.sdk.image.get_image(identity)
    assert (image.status, image.hash_value) == ("active", hashlib.sha512(guest.path.read_bytes()).hexdigest())
    assert (image.min_disk, image.min_ram, image.visibility) == (1, 64, "private")
    shown = {**image.properties, "hw_disk_bus": image.hw_disk_bus, "hw_vif_model": image.hw_vif_model,
             "os_distro": image.os_distro}
    wanted = {"dialtone_run": run.id, "dialtone_sha256": guest.sha256, "dialtone_manifest_sha256": "0" * 64,
              "hw_disk_bus": "virtio", "hw_vif_model": "virtio", "os_distro": "debian"}
    assert {name: shown[name] for name in wanted} == wanted
    assert set(image.tags) == {"dialtone", f"run:{owner(cloud._settings)}:{run.id}"}


def test_the_same_image_is_sent_once_and_removed_by_its_last_user(cloud: OpenStackCloud, run: Run, guest: ImageFile,
                                                                  settings: Settings) -> None:
    first = uploaded(cloud, run, guest)
    other = Run.create(settings.runs, "relay", "testcloud")
    puts = cloud.calls["PUT"]
    assert uploaded(cloud, other, guest) == first
    assert cloud.calls["PUT"] == puts + 1, "only the claim"
    assert run.journal.remove_outstanding(cloud.removers) == []
    assert [i.id for i in glance.listed(cloud.api, f"relay-{guest.sha256[:12]}")] == [first]
    assert other.journal.remove_outstanding(cloud.removers) == []
    assert glance.listed(cloud.api, f"relay-{guest.sha256[:12]}") == []


def test_another_image_of_that_name_is_not_taken_for_it(cloud: OpenStackCloud, run: Run, guest: ImageFile,
                                                        tmp_path: Path) -> None:
    first = uploaded(cloud, run, guest)
    changed = small_guest.image(tmp_path / "image.qcow2", ends=True)
    assert uploaded(cloud, run, replace(guest, path=changed)) != first


def test_a_cut_upload_is_repeated_and_leaves_no_half(settings: Settings, before: None, guest: ImageFile,
                                                     proxied: Proxy, tmp_path: Path) -> None:
    path = tmp_path / "image.qcow2"
    path.write_bytes(guest.path.read_bytes() + os.urandom(1 << 20))
    large = image_file(path)
    cloud = OpenStackCloud(settings, Api("testcloud", settings))
    with run_on(cloud, settings) as run:
        proxied.faults.append(Fault("PUT", "/file$", cut=1 << 19))
        said: list[str] = []
        cloud.upload(run, large, Deadline(120), said.append)
        assert any("cut" in line for line in said), said
        assert [i.status for i in glance.listed(cloud.api, f"relay-{large.sha256[:12]}")] == ["active"]


@pytest.fixture
def served(cloudy: Settings, guest: ImageFile, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """An HTTP server that the cloud reaches, with a directory of images like the cache's; its URL and directory."""
    from harness.testcloud.config import addresses_of

    place = tmp_path / "images" / "relay-1"
    place.mkdir(parents=True)
    (place / "image.qcow2").write_bytes(guest.path.read_bytes())
    handler = partial(_Quiet, directory=os.fspath(tmp_path / "images"))
    address = str(addresses_of(cloudy).host)
    server = http.server.ThreadingHTTPServer((address, 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"http://{address}:{server.server_address[1]}", place / "image.qcow2"
    server.shutdown()
    server.server_close()
    thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_the_cloud_fetches_an_image_itself(cloud: OpenStackCloud, run: Run, guest: ImageFile,
                                           served: tuple[str, Path]) -> None:
    url, path = served
    identity = uploaded(having(cloud, image_url=url), run, replace(guest, path=path))
    image: Any = cloud.api.sdk.image.get_image(identity)
    assert image.hash_value == hashlib.sha512(path.read_bytes()).hexdigest()


def test_what_is_served_there_is_another_file(cloud: OpenStackCloud, run: Run, guest: ImageFile,
                                              served: tuple[str, Path], tmp_path: Path) -> None:
    url, path = served
    mine = tmp_path / "relay-1" / "image.qcow2"
    mine.parent.mkdir()
    mine.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(CloudError, match="arrived changed"):
        uploaded(having(cloud, image_url=url), run, replace(guest, path=mine))
    assert glance.listed(cloud.api, f"relay-{guest.sha256[:12]}") == []


def test_a_url_that_serves_nothing(cloud: OpenStackCloud, run: Run, guest: ImageFile,
                                   served: tuple[str, Path]) -> None:
    url, path = served
    with pytest.raises(CloudError, match="the import failed"):
        uploaded(having(cloud, image_url=url + "/nothing"), run, replace(guest, path=path))


# -- servers --------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class Launched:
    """Two servers of one run."""

    cloud: OpenStackCloud
    run: Run
    one: Server
    two: Server


@pytest.fixture(scope="module")
def launched(cloudy: Settings, guest: ImageFile, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """Removed after the last test; then the whole cloud is as it was."""
    settings = replace(cloudy, runs=tmp_path_factory.mktemp("launched") / "runs", cloud="testcloud")
    with cloud_inventory.unchanged(cloudy):
        cloud = OpenStackCloud(settings, Api("testcloud", settings))
        with run_on(cloud, settings) as run:
            image = uploaded(cloud, run, guest)
            one, two = cloud.launch(run, [spec(image, name, ports=("5060/udp",)) for name in ("one", "two")],
                                    Deadline(300))
            yield Launched(cloud, run, one, two)


def test_a_server_with_all_that_belongs_to_it(launched: Launched) -> None:
    """Names, tags, descriptions, rules and nothing wider."""
    cloud, run, server = launched.cloud, launched.run, launched.one
    mine = owner(cloud._settings)
    sdk: Any = cloud.api.sdk
    shown = sdk.compute.get_server(server.id)
    assert (shown.name, shown.status) == (f"{run.id}-one", "ACTIVE")
    assert shown.metadata == {"dialtone_owner": mine, "dialtone_run": run.id}
    assert shown.key_name == f"{run.id}-{mine}"
    mark = f"dialtone:{mine}:{run.id}:"
    for kind in ("networks", "subnets", "routers", "security_groups"):
        [made] = getattr(sdk.network, kind)(name=run.id)
        assert (made.description, sorted(made.tags)) == (mark, sorted(["dialtone", run.id])), kind
    [address] = sdk.network.ips(floating_ip_address=server.floating_ip)
    assert address.fixed_ip_address == server.internal_ip
    [group] = sdk.network.security_groups(name=run.id)
    rules = sorted((r["protocol"], r["port_range_min"], r["port_range_max"], r["remote_ip_prefix"])
                   for r in group.security_group_rules if r["direction"] == "ingress")
    assert rules == [("icmp", None, None, "0.0.0.0/0"), ("tcp", 22, 22, "0.0.0.0/0"),
                     ("udp", 5060, 5060, "0.0.0.0/0")]
    [route, by_floating] = server.routes
    [router] = sdk.network.routers(name=run.id)
    assert (route.kind, route.namespace, route.address) == (
        RouteKind.NAMESPACE, f"qrouter-{router.id}", server.internal_ip)
    assert (by_floating.kind, by_floating.address) == (RouteKind.FLOATING_IP, server.floating_ip)
    assert launched.two.routes[0].namespace == route.namespace
    assert cloud.servers(run) == [launched.one, launched.two]
    assert cloud.alive(run, server)


def test_the_console_is_fetched_and_kept(launched: Launched) -> None:
    deadline = Deadline(60)
    while small_guest.GREETING not in launched.cloud.console(launched.run, launched.one):
        assert not deadline.expired
    assert small_guest.GREETING in launched.one.console_log.read_text()


def test_looking_at_servers_asks_for_all_of_them_together(launched: Launched) -> None:
    begin = sum(launched.cloud.calls.values())
    for _ in range(50):
        for server in (launched.one, launched.two):
            assert launched.cloud.alive(launched.run, server)
            launched.cloud.console(launched.run, server)
    assert sum(launched.cloud.calls.values()) - begin <= 6


def test_an_address_moves_to_another_server(launched: Launched) -> None:
    launched.cloud.move_floating_ip(launched.run, launched.one, launched.two)
    [address] = launched.cloud.api.sdk.network.ips(floating_ip_address=launched.one.floating_ip)
    assert address.fixed_ip_address == launched.two.internal_ip


def test_a_run_that_lives_is_left_alone(launched: Launched) -> None:
    for _ in range(2):
        assert [r for r in reaper.sweep(launched.cloud._settings) if r.run_id == launched.run.id] == []
    assert launched.cloud.alive(launched.run, launched.one)


@pytest.mark.nightly
def test_a_network_and_a_flavor_that_are_there(launched: Launched, settings: Settings, guest: ImageFile) -> None:
    """Another run uses the network of the first: it makes neither network nor router."""
    cloud = having(OpenStackCloud(settings, Api("testcloud", settings)), network=launched.run.id, flavor="m1.tiny",
                   config_drive=False)
    with run_on(cloud, settings) as other:
        [server] = cloud.launch(other, [spec(uploaded(cloud, other, guest))], Deadline(300))
        assert server.routes[0].namespace == launched.one.routes[0].namespace
        made = {r.kind for r in other.journal.outstanding()}
        assert made.isdisjoint({"os-network", "os-subnet", "os-router"})
        shown: Any = cloud.api.sdk.compute.get_server(server.id)
        assert not shown.has_config_drive


@pytest.mark.nightly
def test_a_named_group_gets_what_it_lacks_and_loses_only_that(cloud: OpenStackCloud, run: Run, guest: ImageFile,
                                                              request: pytest.FixtureRequest) -> None:
    network: Any = cloud.api.sdk.network
    group = network.create_security_group(name="shared-by-people")
    request.addfinalizer(lambda: network.delete_security_group(group))
    network.create_security_group_rule(security_group_id=group.id, direction="ingress", ethertype="IPv4",
                                       protocol="tcp", port_range_min=1, port_range_max=100)

    def ingress() -> list[tuple[str, int | None]]:
        return sorted((r.protocol, r.port_range_min) for r in network.security_group_rules(
            security_group_id=group.id, direction="ingress"))

    having(cloud, security_group="shared-by-people", remote_prefix="203.0.113.0/24")
    cloud.launch(run, [spec(uploaded(cloud, run, guest), ports=("5060/udp",))], Deadline(300))
    assert ingress() == [("icmp", None), ("tcp", 1), ("udp", 5060)]
    assert {r.remote_ip_prefix for r in network.security_group_rules(security_group_id=group.id, protocol="udp")} == {
        "203.0.113.0/24"}
    assert run.journal.remove_outstanding(cloud.removers) == []
    assert ingress() == [("tcp", 1)]


# -- volumes --------------------------------------------------------------------------------------------------------

@pytest.fixture
def volumes(cloud: OpenStackCloud, cloudy: Settings) -> Any:
    """The volumes of the test cloud (openstacksdk's block storage), where it has any; the cloud boots from them."""
    if not cloudy.testcloud_volumes:
        pytest.skip("the test cloud has no volumes: testcloud_volumes")
    return having(cloud, volume=True).api.sdk.block_storage


@pytest.mark.nightly
def test_a_server_boots_from_a_volume_that_goes_with_it(cloud: OpenStackCloud, volumes: Any, run: Run,
                                                        guest: ImageFile) -> None:
    image = uploaded(cloud, run, guest)
    _, plain = cloud.launch(run, [spec(image, name) for name in ("one", "two")], Deadline(300))
    servers: Any = cloud.api.sdk.compute
    made = {v.id: v for v in volumes.volumes()}
    for server in cloud.servers(run):
        shown = servers.get_server(server.id)
        [attached] = shown.attached_volumes
        assert attached["delete_on_termination"]
        volume = made.pop(attached["id"])
        assert (volume.status, volume.size, volume.is_bootable) == ("in-use", 1, True)
        assert not shown.image, "Nova names an image for what has its disk from one"
    assert made == {}
    until(lambda: small_guest.GREETING in cloud.console(run, plain), "it boots")
    # Nova unmounts the share with the last volume on it: another server has to find it again.
    assert run.journal.remove_outstanding(cloud.removers) == []
    until(lambda: not list(volumes.volumes()), "nothing is left of them")
    [third] = cloud.launch(run, [spec(uploaded(cloud, run, guest), "three")], Deadline(300))
    until(lambda: small_guest.GREETING in cloud.console(run, third), "it boots")


@pytest.mark.nightly
def test_a_server_of_an_image_has_no_volume(cloud: OpenStackCloud, volumes: Any, run: Run, guest: ImageFile) -> None:
    [server] = having(cloud, volume=False).launch(run, [spec(uploaded(cloud, run, guest))], Deadline(300))
    shown: Any = cloud.api.sdk.compute.get_server(server.id)
    assert (shown.attached_volumes, bool(shown.image), list(volumes.volumes())) == ([], True, [])


@pytest.mark.nightly
def test_a_volume_that_stays_is_seen(volumes: Any, cloudy: Settings) -> None:
    with pytest.raises(AssertionError, match="left: volumes forgotten"), cloud_inventory.unchanged(cloudy):
        volume = volumes.create_volume(name="forgotten", size=1)
        volumes.wait_for_status(volume, "available", failures=["error"], wait=60)
    volumes.delete_volume(volume)


@pytest.mark.nightly
def test_a_quota_of_volumes_is_seen_before_anything_is_made(cloud: OpenStackCloud, volumes: Any,
                                                            cloudy: Settings) -> None:
    admin: Any = Api("testcloud-admin", cloudy).sdk.block_storage
    project = cloud.api.sdk.current_project_id
    admin.update_quota_set(project, gigabytes=3)
    try:
        assert "flavor" in cloud.look(Need(64, 1, 1, 3), Deadline(30))
        with pytest.raises(CloudError, match="GiB of volumes: 0 of 3 used, 4 more wanted"):
            cloud.look(Need(64, 1, 1, 4), Deadline(30))
    finally:
        admin.revert_quota_set(project)


@pytest.mark.nightly
@pytest.mark.parametrize("where", ["server", "active", "removal"])
def test_a_volume_of_a_killed_run_is_reaped(volumes: Any, settings: Settings, another: ImageFile, where: str) -> None:
    run = killed(settings, another, where, "volume")
    if where == "active":
        assert [v.status for v in volumes.volumes()] == ["in-use"]
    assert kept.reap(settings, sys.stdout, dry_run=False, older_than=None) == 0
    assert Run.open(run.directory).state is State.DONE
    until(lambda: not list(volumes.volumes()), "its volume is gone")


def test_a_cloud_without_volumes_is_said(cloud: OpenStackCloud, cloudy: Settings) -> None:
    if cloudy.testcloud_volumes:
        pytest.skip("this test cloud has volumes")
    with pytest.raises(DescriptionError, match="testcloud has no volumes"):
        having(cloud, volume=True).look(Need(64, 1, 1), Deadline(30))


# -- routers of high availability -----------------------------------------------------------------------------------

@pytest.mark.nightly
def test_the_active_host_of_a_router_is_taken_and_a_standby_refused(
        cloud: OpenStackCloud, settings: Settings, cloudy: Settings, guest: ImageFile,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openstack, "_NAMESPACE", 5.0)

    def namespace() -> str:
        with run_on(cloud, settings) as run:
            [server] = cloud.launch(run, [spec(uploaded(cloud, run, guest))], Deadline(300))
        return server.routes[0].namespace

    with ha_router.network(cloud.api, cloudy, dhcp=False) as made:
        having(cloud, network=made.name)
        refused = f"{made.router} is on standby on .*: its active host is none of"
        with made.on_standby(), pytest.raises(CloudError, match=refused):
            namespace()
        assert namespace() == made.namespace


# -- what a cloud refuses -------------------------------------------------------------------------------------------

def test_a_quota_is_seen_before_anything_is_made(cloud: OpenStackCloud, cloudy: Settings,
                                                 request: pytest.FixtureRequest) -> None:
    admin: Any = Api("testcloud-admin", cloudy).sdk
    project = cloud.api.sdk.current_project_id
    was = admin.network.get_quota(project).floating_ips
    admin.network.update_quota(project, floatingip=0)
    request.addfinalizer(lambda: admin.network.update_quota(project, floatingip=was))
    used = len(list(cloud.api.sdk.network.ips()))
    with pytest.raises(CloudError, match=f"floating IPs: {used} of 0 used, 1 more wanted") as caught:
        cloud.look(Need(64, 1, 1), Deadline(60))
    assert caught.value.exit_code == 7


def test_a_cloud_that_takes_it_says_how(cloud: OpenStackCloud) -> None:
    assert cloud.look(Need(1024, 2, 4), Deadline(60)) == "flavor voip.small"


@pytest.mark.nightly
def test_no_host_has_room(cloud: OpenStackCloud, run: Run, guest: ImageFile, cloudy: Settings,
                          request: pytest.FixtureRequest) -> None:
    admin: Any = Api("testcloud-admin", cloudy).sdk
    huge = admin.compute.create_flavor(name="huge", ram=64, vcpus=1, disk=50_000)
    request.addfinalizer(lambda: admin.compute.delete_flavor(huge))
    having(cloud, flavor="huge")
    with pytest.raises(CloudError, match="no host has room") as caught:
        cloud.launch(run, [spec(uploaded(cloud, run, guest))], Deadline(300))
    assert "No valid host was found" in str(caught.value)


@pytest.mark.nightly
@pytest.mark.parametrize(("changes", "said"), [
    ({"external_network": "nowhere"}, "no external network 'nowhere'"),
    ({"network": "nowhere"}, "no network 'nowhere'"),
    ({"security_group": "nobody"}, "no security group 'nobody'"),
    ({"flavor": "gigantic"}, "no flavor 'gigantic'"),
])
def test_a_name_that_is_not_there(cloud: OpenStackCloud, run: Run, guest: ImageFile, changes: dict[str, Any],
                                  said: str) -> None:
    with pytest.raises(DescriptionError, match=said):
        having(cloud, **changes).launch(run, [spec("no-image")], Deadline(60))


def test_a_wrong_password_is_the_descriptions_fault_and_not_said(settings: Settings, tmp_path: Path,
                                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    text = (settings.cache / "testcloud" / "clouds.yaml").read_text()
    import yaml

    data = yaml.safe_load(text)
    data["clouds"] = {"wrong": {**data["clouds"]["testcloud"]}}
    data["clouds"]["wrong"]["auth"]["password"] = "hunter2-is-wrong"
    (tmp_path / "clouds.yaml").write_text(yaml.safe_dump(data))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    with pytest.raises(Refused) as caught:
        OpenStackCloud(settings, Api("wrong", settings)).look(Need(64, 1, 1), Deadline(60))
    assert caught.value.status == 401
    assert caught.value.fault == "description"
    assert "hunter2" not in str(caught.value)


@pytest.mark.nightly
def test_a_network_node_without_the_namespace(cloud: OpenStackCloud, run: Run, guest: ImageFile,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openstack, "_NAMESPACE", 3.0)
    having(cloud, network_nodes=())
    with pytest.raises(CloudError, match=r"none of qrouter-\S+, snat-\S+, qdhcp-\S+, ovnmeta-\S+ is on"):
        cloud.launch(run, [spec(uploaded(cloud, run, guest))], Deadline(300))


# -- APIs that misbehave --------------------------------------------------------------------------------------------

@pytest.fixture
def proxied(cloudy: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """All requests of a cloud that is opened from now on go through it."""
    with faulty_proxy.running() as proxy:
        monkeypatch.setenv("http_proxy", proxy.address)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        yield proxy


FAULTS = [Fault("POST", "/servers$", cut="after"), Fault("POST", "/floatingips$", cut="after"),
          Fault("POST", "/ports$", cut="after"), Fault("POST", "/networks$", status=503),
          Fault("POST", "/security-groups$", status=429, headers={"Retry-After": "1"}),
          Fault("POST", "/os-keypairs$", cut="before"), Fault("PUT", "/add_router_interface$", cut="after"),
          Fault("GET", "/servers/detail$", status=503, headers={"Retry-After": "1"}, times=2),
          Fault("GET", "/flavors", cut="before"), Fault("DELETE", "/servers/", cut="after"),
          Fault("DELETE", "/networks/", status=409), Fault("GET", "/routers$", status=401)]


def test_every_fault_on_the_way_to_a_server_is_survived(proxied: Proxy, settings: Settings, before: None,
                                                        guest: ImageFile) -> None:
    """Requests that were carried out though the answer never came, refused ones, cut ones: one of everything."""
    cloud = OpenStackCloud(settings, Api("testcloud", settings))
    with run_on(cloud, settings) as run:
        proxied.faults.extend(replace(f) for f in FAULTS)
        [server] = cloud.launch(run, [spec(uploaded(cloud, run, guest))], Deadline(300))
        sdk: Any = cloud.api.sdk
        assert [s.id for s in sdk.compute.servers(name=f"^{run.id}")] == [server.id]
        assert len(list(sdk.network.ips(description=f"dialtone:{owner(settings)}:{run.id}: server1"))) == 1
        assert len(list(sdk.network.ports(name=f"{run.id}-server1"))) == 1
        assert run.journal.remove_outstanding(cloud.removers) == []
        unused = [f for f in proxied.faults if f.times]
        assert unused == [], "these faults never came to pass"


@pytest.mark.nightly
def test_a_server_that_is_refused_for_good_is_not_tried_again(proxied: Proxy, settings: Settings, before: None,
                                                              guest: ImageFile) -> None:
    cloud = OpenStackCloud(settings, Api("testcloud", settings))
    with run_on(cloud, settings) as run:
        image = uploaded(cloud, run, guest)
        proxied.faults.append(Fault("POST", "/servers$", status=400))
        with pytest.raises(CloudError, match="injected"):
            cloud.launch(run, [spec(image)], Deadline(120))
        assert proxied.count("POST", r".*/servers") == 1


# -- runs that die --------------------------------------------------------------------------------------------------

DYING = """
import os, signal, sys
from pathlib import Path
from harness.cloud import neutron, nova, glance
from harness.cloud.api import Api
from harness.cloud.openstack import OpenStackCloud
from harness.deadline import Deadline
from harness.run import Run
from harness.settings import Settings
from tests.integration import test_openstack as tests

project, runs, image, where = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4]
volume = sys.argv[5:] == ["volume"]

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def dying_after(module, name):
    real = getattr(module, name)
    def replaced(*args, **kwargs):
        real(*args, **kwargs)
        die()
    setattr(module, name, replaced)

settings = Settings.load(project, {}, runs=runs, cloud="testcloud")
cloud = tests.having(OpenStackCloud(settings, Api("testcloud", settings)), volume=volume)
run = Run.create(settings.runs, "relay", "testcloud")
{"image": lambda: setattr(glance, "_send", die),
 "network": lambda: dying_after(neutron.Neutron, "own_network"),
 "floating IP": lambda: dying_after(neutron.Neutron, "floating_ip"),
 "server": lambda: dying_after(nova, "create_server"),
 "active": lambda: dying_after(nova, "wait_active"),
 "removal": lambda: None}[where]()
cloud.launch(run, [tests.spec(cloud.upload(run, tests.image_file(image), Deadline(120), print))], Deadline(300))
if where == "removal":
    dying_after(nova, "delete_server")
    run.journal.remove_outstanding(cloud.removers)
"""


@pytest.mark.parametrize("where", ["image", "network", "floating IP", "server", "active", "removal"])
def test_what_a_killed_run_left_is_reaped(settings: Settings, before: None, another: ImageFile, where: str,
                                          capsys: pytest.CaptureFixture[str]) -> None:
    run = killed(settings, another, where)
    assert kept.reap(settings, sys.stdout, dry_run=True, older_than=None) == 0
    assert "would remove" in capsys.readouterr().out
    assert kept.reap(settings, sys.stdout, dry_run=False, older_than=None) == 0
    assert Run.open(run.directory).state is State.DONE


def killed(settings: Settings, image: ImageFile, *arguments: str) -> Run:
    """The run of a process that was killed, and that left something."""
    died = subprocess.run([sys.executable, "-c", DYING, PROJECT, settings.runs, image.path, *arguments], cwd=PROJECT,
                          capture_output=True, text=True, timeout=400, env={**os.environ, "PYTHONPATH": str(PROJECT)})
    assert died.returncode == -signal.SIGKILL, died.stderr
    [run] = Run.all(settings.runs)
    assert run.dead
    assert run.journal.outstanding()
    return run


@pytest.mark.nightly
def test_what_a_run_without_directory_left_goes_at_the_second_sighting(
        cloud: OpenStackCloud, settings: Settings, another: ImageFile, tmp_path: Path) -> None:
    """Its journal is gone: the marks in the cloud are all there is. Others' things are left alone."""
    elsewhere = replace(settings, cache=tmp_path / "cache")
    run = Run.create(settings.runs, "relay", "testcloud")
    cloud.launch(run, [spec(uploaded(cloud, run, another))], Deadline(300))
    run.unlock()
    for path in sorted(run.directory.rglob("*"), reverse=True):
        path.unlink() if not path.is_dir() else path.rmdir()
    run.directory.rmdir()
    elsewhere.cache.mkdir()
    (elsewhere.cache / "testcloud").symlink_to(settings.cache / "testcloud")
    kinds = {"os-server", "os-floating-ip", "os-port", "os-security-group", "os-router", "os-subnet", "os-network",
             "os-key-pair", "os-image"}
    first = [r for r in reaper.sweep(elsewhere) if r.resource.kind in kinds]
    assert {r.outcome for r in first} == {"seen"}
    assert {r.resource.kind for r in first} == kinds
    second = [r for r in reaper.sweep(elsewhere) if r.resource.kind in kinds]
    assert {r.outcome for r in second} == {"removed"}


def test_another_projects_things_are_left_alone(cloud: OpenStackCloud, settings: Settings, cloudy: Settings,
                                                 guest: ImageFile, tmp_path: Path) -> None:
    """What a second project's user has, made and marked as ours are, is there after a run of ours, and two sweeps."""
    others = OpenStackCloud(settings, Api("testcloud-other", settings))
    theirs = Run.create(tmp_path / "theirs", "relay", "testcloud-other")
    try:
        [server] = others.launch(theirs, [spec(uploaded(others, theirs, guest))], Deadline(300))
        there = cloud_inventory.of(cloudy)
        with run_on(cloud, settings) as run:
            cloud.launch(run, [spec(uploaded(cloud, run, guest))], Deadline(300))
        theirs.unlock()
        for _ in range(2):
            assert kept.reap(settings, sys.stdout, dry_run=False, older_than=None) == 0
        assert cloud_inventory.more(there, cloud_inventory.of(cloudy)) == []
        assert others.alive(theirs, server)
    finally:
        left = theirs.journal.remove_outstanding(others.removers)
    assert left == []


def test_a_deletion_that_the_cloud_refuses_is_said(settings: Settings, before: None, guest: ImageFile,
                                                   proxied: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "_IN_USE", 1.0)
    cloud = OpenStackCloud(settings, Api("testcloud", settings))
    run = Run.create(settings.runs, "relay", "testcloud")
    run.journal.creating(Resource("os-security-group", run.id, {
        "cloud": "testcloud", "mark": f"dialtone:{owner(settings)}:{run.id}:"}))
    cloud.api.sdk.network.create_security_group(name=run.id,
                                                description=f"dialtone:{owner(settings)}:{run.id}:")
    fault = Fault("DELETE", "/security-groups/", status=409, times=50)
    proxied.faults.append(fault)
    [(resource, error)] = run.journal.remove_outstanding(cloud.removers)
    assert (resource.kind, resource.name) == ("os-security-group", run.id)
    assert "injected" in error.message
    fault.times = 0
    assert run.journal.remove_outstanding(cloud.removers) == []
