"""Servers on this machine: real QEMU, real namespaces, real packets; the guest is a boot sector."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from harness.access.namespace import open_socket
from harness.cloud import Server, accelerator, local
from harness.cloud.local import LocalCloud
from harness.cloud.network import Network, allocate_floating_ip, create, external_network
from harness.cloud.ownership import Mark, owner
from harness.deadline import Deadline
from harness.errors import CloudError, DescriptionError, Fault, HostError
from harness.process import CommandMissing
from harness.resources import processes_with
from harness.run import Run
from harness.settings import Settings
from tests import small_guest
from tests.conftest import lacking

pytestmark = pytest.mark.root


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for program in local.PROGRAMS:
        if shutil.which(program) is None:
            lacking(f"{program} is not installed")
    return Settings.load(tmp_path, {}, accelerator="tcg")


@contextmanager
def a_run(settings: Settings) -> Iterator[Run]:
    """A run; whatever it made is removed at the end, and nothing of it is left."""
    run = Run.create(settings.runs, "x", "local")
    try:
        yield run
    finally:
        left = run.journal.remove_outstanding(LocalCloud(settings).removers)
        run.unlock()
    assert left == []
    assert traces(settings, run) == []


@pytest.fixture
def run(settings: Settings) -> Iterator[Run]:
    with a_run(settings) as made:
        yield made


def traces(settings: Settings, run: Run) -> list[str]:
    """What the host still shows of a run."""
    mark = Mark(owner(settings), run.id)
    network = Network(mark, external_network(settings.floating_cidr))
    links = subprocess.run(["ip", "-json", "link"], capture_output=True, check=True).stdout
    routes = subprocess.run(["ip", "route", "show", "table", "all"], capture_output=True, text=True, check=True).stdout
    found = [f"link {entry['ifname']}" for entry in json.loads(links) if str(mark) in entry.get("ifalias", "")]
    found += [f"route {line}" for line in routes.splitlines() if network.host_link in line]
    found += [f"namespace {p.name}" for p in Path("/run/netns").glob(network.namespace)]
    found += [f"process {pid}" for pid in processes_with(str(mark))]
    files = (p for p in run.directory.rglob("*") if p.suffix in {".sock", ".iso", ".qcow2"})
    return found + [str(p) for p in files]


def until_printed(cloud: LocalCloud, run: Run, server: Server, times: int = 1, seconds: float = 20) -> None:
    deadline = Deadline(seconds)
    while cloud.console(run, server).count(small_guest.GREETING) < times:
        assert not deadline.expired, cloud.console(run, server)
        time.sleep(0.05)


def test_server_boots_prints_is_reset_and_powered_off(settings: Settings, run: Run, tmp_path: Path) -> None:
    cloud = LocalCloud(settings)
    server = cloud.launch(run, [small_guest.spec(small_guest.image(tmp_path / "image.qcow2"))], Deadline(60))[0]
    until_printed(cloud, run, server)
    assert cloud.alive(run, server)
    assert LocalCloud(settings).servers(run) == [server]
    assert traces(settings, run)
    cloud.reset(run, server, Deadline(10))
    until_printed(cloud, run, server, times=2)
    cloud.power_off(run, server, Deadline(10))
    assert not cloud.alive(run, server)


def test_removal_is_quick_complete_and_can_be_repeated(settings: Settings, run: Run, tmp_path: Path) -> None:
    cloud = LocalCloud(settings)
    image = small_guest.image(tmp_path / "image.qcow2")
    before = image.read_bytes()
    server = cloud.launch(run, [small_guest.spec(image)], Deadline(60))[0]
    made = run.journal.outstanding()
    assert run.journal.remove_outstanding(cloud.removers) == []
    assert traces(settings, run) == []
    assert cloud.servers(run) == []
    assert not cloud.alive(run, server)
    assert image.read_bytes() == before
    for resource in made:
        cloud.removers[resource.kind](resource)


def test_servers_and_runs_side_by_side_do_not_clash(settings: Settings, run: Run, tmp_path: Path) -> None:
    image = small_guest.image(tmp_path / "image.qcow2")
    cloud = LocalCloud(settings)
    with a_run(settings) as other, ThreadPoolExecutor(4) as pool:
        wanted = [(r, f"server{n}") for r in (run, other) for n in (1, 2)]
        launched = pool.map(lambda w: cloud.launch(w[0], [small_guest.spec(image, w[1])], Deadline(120)), wanted)
        servers = [server for [server] in launched]
        for (where, _), server in zip(wanted, servers, strict=True):
            until_printed(cloud, where, server, seconds=60)
        assert len({s.floating_ip for s in servers}) == 4
        for where in (run, other):
            assert len({s.internal_ip for s in cloud.servers(where)}) == 2


@contextmanager
def stand_in(server: Server, number: int = 0) -> Iterator[str]:
    """A namespace in the server's place, with its MAC address: a guest that can be made to send and listen."""
    router = server.routes[0].namespace
    name = f"guest-{router[-12:]}"
    uuid = router.removeprefix("qrouter-")
    script = f"""
        ip netns add {name}
        ip -n {router} link set tap{number} nomaster
        ip -n {router} link add port type veth peer name eth0 netns {name}
        ip -n {router} link set port master qr-{uuid[:11]} up
        ip -n {name} link set eth0 address fa:16:3e:{uuid[0:2]}:{uuid[2:4]}:{10 + number:02x} up
        ip -n {name} link set lo up
    """
    try:
        subprocess.run(["sh", "-ec", script], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


def give_address(guest: str, server: Server) -> None:
    subprocess.run(["sh", "-ec", f"ip -n {guest} address add {server.internal_ip}/24 dev eth0; "
                                 f"ip -n {guest} address add {server.internal_ipv6}/64 dev eth0 nodad; "
                                 f"ip -n {guest} route add default via 10.64.0.1"], check=True)


def listening(namespace: str, kind: socket.SocketKind, port: int,
              family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    made = open_socket(namespace, kind, family)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("", port))
    if kind == socket.SOCK_STREAM:
        made.listen()
    made.settimeout(3)
    return made


def connects(namespace: str, address: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with open_socket(namespace, socket.SOCK_STREAM, family) as client:
        client.settimeout(1.5)
        try:
            client.connect((address, port))
        except OSError:
            return False
    return True


def test_packets_reach_what_they_should_and_nothing_else(settings: Settings, run: Run, tmp_path: Path) -> None:
    cloud = LocalCloud(settings)
    image = small_guest.image(tmp_path / "image.qcow2")
    server = cloud.launch(run, [small_guest.spec(image, ports=("5000-5010/udp",))], Deadline(60))[0]
    router = server.routes[0].namespace
    with stand_in(server) as guest:
        give_address(guest, server)
        with listening(guest, socket.SOCK_STREAM, 22), listening(guest, socket.SOCK_STREAM, 80):
            assert connects("", server.floating_ip, 22)
            assert connects(router, server.internal_ip, 22)
            assert not connects("", server.floating_ip, 80)
            assert not connects(router, server.internal_ip, 80)
        with (listening(guest, socket.SOCK_STREAM, 22, socket.AF_INET6),
              listening(guest, socket.SOCK_STREAM, 80, socket.AF_INET6)):
            assert connects(router, server.internal_ipv6, 22)
            assert not connects(router, server.internal_ipv6, 80)
        with listening(guest, socket.SOCK_DGRAM, 5004) as relay, open_socket("", socket.SOCK_DGRAM) as client:
            client.settimeout(3)
            client.sendto(b"ping", (server.floating_ip, 5004))
            data, sender = relay.recvfrom(100)
            relay.sendto(b"pong", sender)
            assert (data, client.recvfrom(100)) == (b"ping", (b"pong", (server.floating_ip, 5004)))
        host = str(external_network(settings.floating_cidr)[1])
        with listening("", socket.SOCK_STREAM, 0) as service:
            port = service.getsockname()[1]
            assert connects("", host, port), "the control: the service answers the host itself"
            assert not connects(guest, host, port)
        with listening(router, socket.SOCK_STREAM, 8080):
            assert connects(router, "10.64.0.1", 8080), "the control"
            assert not connects(guest, "10.64.0.1", 8080)


def dhcp_offer(namespace: str, mac: str) -> tuple[str, dict[int, bytes]]:
    """The address offered to `mac` and the offer's options, by a DHCPDISCOVER (RFC 2131, RFC 2132)."""
    with open_socket(namespace, socket.SOCK_DGRAM) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.bind(("0.0.0.0", 68))
        client.settimeout(5)
        hardware = bytes.fromhex(mac.replace(":", ""))
        fixed = struct.pack("!BBBBIHH16s16s", 1, 1, 6, 0, 0x1234, 0, 0x8000, b"", hardware)
        client.sendto(fixed + bytes(192) + b"\x63\x82\x53\x63" + b"\x35\x01\x01\xff", ("255.255.255.255", 67))
        answer = client.recv(2048)
    options, rest = {}, answer[240:]
    while rest and rest[0] != 255:
        options[rest[0]], rest = rest[2 : 2 + rest[1]], rest[2 + rest[1] :]
    return socket.inet_ntoa(answer[16:20]), options


def test_dhcp_offers_the_address_that_was_promised(settings: Settings, run: Run, tmp_path: Path) -> None:
    cloud = LocalCloud(settings)
    image = small_guest.image(tmp_path / "image.qcow2")
    cloud.launch(run, [small_guest.spec(image, "server1")], Deadline(60))
    server = cloud.launch(run, [small_guest.spec(image, "server2")], Deadline(60))[0]
    with stand_in(server, number=1) as guest:
        listed = json.loads(subprocess.run(["ip", "-n", guest, "-json", "link", "show", "eth0"], capture_output=True,
                                           check=True).stdout)
        address, options = dhcp_offer(guest, listed[0]["address"])
    assert address == server.internal_ip
    assert socket.inet_ntoa(options[3]) == "10.64.0.1"
    assert 6 not in options, "no DNS server where nothing goes out"


def test_server_with_egress_reaches_out(settings: Settings, tmp_path: Path) -> None:
    if shutil.which("slirp4netns") is None:
        pytest.skip("slirp4netns is not installed; only `egress` needs it")
    settings = replace(settings, egress=True)
    with a_run(settings) as run:
        server = LocalCloud(settings).launch(run, [small_guest.spec(small_guest.image(tmp_path / "i.qcow2"))],
                                             Deadline(60))[0]
        listed = json.loads(subprocess.run(["ip", "-4", "-json", "address"], capture_output=True, check=True).stdout)
        outside = [a["local"] for entry in listed for a in entry["addr_info"]
                   if entry["ifname"] != "lo" and not entry["ifname"].startswith("dt-")]
        if not outside:
            lacking("this machine has no address besides loopback")
        with stand_in(server) as guest, listening("", socket.SOCK_STREAM, 0) as service:
            give_address(guest, server)
            assert connects(guest, outside[0], service.getsockname()[1])
            assert not connects(guest, "10.0.2.2", service.getsockname()[1]), "the host's loopback"


def test_floating_addresses_run_out_with_a_clear_error(settings: Settings, run: Run) -> None:
    network = Network(Mark(owner(settings), run.id), external_network("198.19.128.0/29"))
    create(network, run.journal, Deadline(20))
    given = {allocate_floating_ip(network, 0) for _ in range(5)}
    assert len(given) == 5
    with pytest.raises(HostError, match="no floating address is free") as raised:
        allocate_floating_ip(network, 0)
    assert "./inv reap" in str(raised.value)


def test_floating_network_that_the_host_uses_is_refused(settings: Settings, tmp_path: Path) -> None:
    image = small_guest.image(tmp_path / "image.qcow2")
    with a_run(settings) as other:
        LocalCloud(settings).launch(other, [small_guest.spec(image)], Deadline(60))
        taken = replace(settings, floating_cidr="127.0.0.0/24")
        with a_run(taken) as run, pytest.raises(HostError, match="overlap"):
            LocalCloud(taken).launch(run, [small_guest.spec(image)], Deadline(60))


def damaged(path: Path) -> Path:
    small_guest.image(path)
    path.write_bytes(b"not an image" + path.read_bytes()[12:])
    return path


def torn(path: Path) -> Path:
    """Cut short: its header is sound, its data is not there."""
    content = path.with_suffix(".content")
    content.write_bytes(os.urandom(4 << 20))
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", content, path], check=True)
    path.write_bytes(path.read_bytes()[: 2 << 20])
    return path


@pytest.mark.parametrize(("make", "said"), [(damaged, "not in qcow2 format"), (torn, "exceeding the end of the file")])
def test_damaged_image_is_the_image_s_fault(settings: Settings, run: Run, tmp_path: Path,
                                            make: Callable[[Path], Path], said: str) -> None:
    image = make(tmp_path / "image.qcow2")
    with pytest.raises(CloudError, match="can't be read") as raised:
        LocalCloud(settings).launch(run, [small_guest.spec(image)], Deadline(60))
    assert raised.value.fault is Fault.IMAGE
    assert said in (raised.value.excerpt or "")


def test_missing_image_says_what_to_do(settings: Settings, run: Run, tmp_path: Path) -> None:
    with pytest.raises(CloudError, match="No such file") as raised:
        LocalCloud(settings).launch(run, [small_guest.spec(tmp_path / "none.qcow2")], Deadline(60))
    assert "./inv build" in str(raised.value)


def test_disk_smaller_than_the_image_is_refused(settings: Settings, run: Run, tmp_path: Path) -> None:
    image = tmp_path / "large.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "2G"], check=True)
    with pytest.raises(DescriptionError, match=r"2\.0 GiB"):
        LocalCloud(settings).launch(run, [small_guest.spec(image)], Deadline(60))


def test_qemu_that_does_not_start_speaks_for_itself(settings: Settings, run: Run, tmp_path: Path) -> None:
    broken = replace(settings, cpu="no-such-model")
    with pytest.raises(CloudError) as raised:
        LocalCloud(broken).launch(run, [small_guest.spec(small_guest.image(tmp_path / "i.qcow2"))], Deadline(60))
    assert "no-such-model" in (raised.value.excerpt or "")


def test_guest_that_ends_is_not_alive(settings: Settings, run: Run, tmp_path: Path) -> None:
    cloud = LocalCloud(settings)
    server = cloud.launch(run, [small_guest.spec(small_guest.image(tmp_path / "i.qcow2", ends=True))], Deadline(60))[0]
    deadline = Deadline(20)
    while cloud.alive(run, server):
        assert not deadline.expired
        time.sleep(0.05)
    assert small_guest.GREETING in cloud.console(run, server)


def test_missing_program_is_named_and_nothing_is_made(settings: Settings, run: Run, tmp_path: Path,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    image = small_guest.image(tmp_path / "i.qcow2")
    found = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, **kw: None if name == "dnsmasq" else found(name, **kw))
    with pytest.raises(CommandMissing, match="dnsmasq"):
        LocalCloud(settings).launch(run, [small_guest.spec(image)], Deadline(60))
    assert run.journal.outstanding() == []


@pytest.mark.parametrize("name", ["", "Server", "a/b", "../x", "1a"])
def test_name_that_can_not_be_one_is_refused(settings: Settings, run: Run, tmp_path: Path, name: str) -> None:
    with pytest.raises(DescriptionError, match="name"):
        LocalCloud(settings).launch(run, [small_guest.spec(tmp_path / "i.qcow2", name)], Deadline(60))


def test_probe_boots_a_guest_and_sees_one_that_does_not(settings: Settings) -> None:
    assert accelerator.probe("tcg") is None
    chosen = accelerator.choose(replace(settings, accelerator=""))
    assert accelerator.probe(chosen.name) is None


def test_probe_does_not_believe_a_guest_that_only_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = bytes.fromhex("fa f4 eb fd").ljust(510, b"\0") + b"\x55\xaa"
    monkeypatch.setattr(accelerator, "boot_sector", lambda: silent)
    assert accelerator.probe("tcg", 2.0) == "a guest printed nothing within 2.0 s"


def test_qemu_gives_up_root(settings: Settings, run: Run, tmp_path: Path) -> None:
    cloud = LocalCloud(settings)
    server = cloud.launch(run, [small_guest.spec(small_guest.image(tmp_path / "i.qcow2"))], Deadline(60))[0]
    [pid] = processes_with(server.id)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    assert "0" not in status["Uid"].split()
    until_printed(cloud, run, server)
