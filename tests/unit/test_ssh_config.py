import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.access import ssh_config
from harness.cloud import Gateway, Route, RouteKind, Server
from harness.errors import HostError
from harness.resources import REMOVERS, Resource
from harness.run import Run

SERVER = Server("server1", "id", "debian", "10.64.0.10", "198.18.0.7",
                (Route(RouteKind.NAMESPACE, "10.64.0.10", "qrouter-1"), Route(RouteKind.FLOATING_IP, "198.18.0.7")),
                Path("console.log"))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run.create(tmp_path / "a deep directory", "relay", "local")
    yield made
    assert made.journal.remove_outstanding(REMOVERS) == []


def option(run: Run, alias: str, name: str) -> str:
    """What ssh itself makes of the file."""
    shown = subprocess.run(["ssh", "-G", "-F", ssh_config.path(run), alias], capture_output=True, text=True, check=True)
    return next(line.partition(" ")[2] for line in shown.stdout.splitlines() if line.startswith(name + " "))


def test_ssh_reads_it_as_meant(run: Run) -> None:
    ssh_config.write(run, [SERVER])
    wanted = {"hostname": "10.64.0.10", "user": "debian", "batchmode": "yes", "stricthostkeychecking": "true",
              "identitiesonly": "yes", "hostkeyalgorithms": "ssh-ed25519", "controlmaster": "auto",
              "hostkeyalias": "server1", "userknownhostsfile": str(run.directory / "known_hosts"),
              "globalknownhostsfile": "/dev/null", "passwordauthentication": "yes",
              "preferredauthentications": "publickey", "identityfile": str(run.directory / "ssh_key")}
    seen = {name: option(run, "server1", name) for name in wanted}
    assert seen == wanted
    assert option(run, "server1", "kexalgorithms").startswith("curve25519-sha256,")


def test_the_default_way_goes_through_the_namespace(run: Run) -> None:
    ssh_config.write(run, [SERVER])
    assert option(run, "server1", "proxycommand") == "setsid ip netns exec qrouter-1 nc %h %p"


def test_the_floating_address_is_reached_from_outside(run: Run) -> None:
    ssh_config.write(run, [SERVER])
    assert option(run, "server1-floating", "hostname") == "198.18.0.7"
    with pytest.raises(StopIteration):
        option(run, "server1-floating", "proxycommand")


def test_a_server_without_a_floating_address_has_one_alias(run: Run) -> None:
    ssh_config.write(run, [replace(SERVER, floating_ip="", routes=SERVER.routes[:1]), replace(SERVER, name="server2")])
    assert ssh_config.aliases(run) == ["server1", "server2", "server2-floating"]


def test_the_key_is_pinned_for_every_name(run: Run) -> None:
    assert ssh_config.names_of(SERVER) == ["server1", "server1-floating", "10.64.0.10", "198.18.0.7"]


def test_control_sockets_are_short_private_and_journaled(run: Run) -> None:
    ssh_config.write(run, [replace(SERVER, name="s" * 90)])
    socket = Path(option(run, "s" * 90, "controlpath"))
    assert len(str(socket)) < 90
    assert socket.parent.stat().st_mode & 0o777 == 0o700
    ssh_config.write(run, [SERVER])
    directory = str(socket.parent)
    assert run.journal.outstanding() == [Resource("process", directory), Resource("path", directory)]


def test_a_directory_that_others_can_enter_is_refused(run: Run) -> None:
    ssh_config.write(run, [SERVER])
    directory = Path(option(run, "server1", "controlpath")).parent
    directory.chmod(0o755)
    with pytest.raises(HostError, match="not this run's"):
        ssh_config.write(run, [SERVER])
    directory.chmod(0o700)


def test_no_file_no_aliases(run: Run) -> None:
    assert ssh_config.aliases(run) == []


NODE = Gateway("node1.example", "stack", 2022, "/keys/node key", "/keys/known")
REMOTE = replace(SERVER, routes=(replace(SERVER.routes[0], gateway=NODE), SERVER.routes[1]))


def test_a_namespace_on_a_network_node_is_reached_through_it(run: Run) -> None:
    config = ssh_config.write(run, [REMOTE])
    assert option(run, "server1", "proxycommand") == (
        f"setsid ssh -F '{config}' gateway-node1.example sudo -n ip netns exec qrouter-1 nc %h %p")
    with pytest.raises(StopIteration):
        option(run, "server1-floating", "proxycommand")


def test_a_jump_host_opens_the_connection_itself(run: Run) -> None:
    config = ssh_config.write(run, [replace(SERVER, routes=(Route(RouteKind.JUMP, "10.64.0.10", gateway=NODE),))])
    assert option(run, "server1", "proxycommand") == f"setsid ssh -F '{config}' gateway-node1.example -W [%h]:%p"


def test_a_gateway_has_its_own_key_and_pins(run: Run) -> None:
    ssh_config.write(run, [REMOTE])
    alias = ssh_config.gateway_alias(NODE)
    seen = {name: option(run, alias, name) for name in (
        "hostname", "user", "port", "identityfile", "userknownhostsfile", "stricthostkeychecking", "controlmaster")}
    assert seen == {"hostname": "node1.example", "user": "stack", "port": "2022", "identityfile": "/keys/node key",
                    "userknownhostsfile": "/keys/known", "stricthostkeychecking": "true", "controlmaster": "auto"}
    assert alias in ssh_config.aliases(run)
    assert "ssh_key" not in option(run, alias, "identityfile")
