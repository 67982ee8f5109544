import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.access import ssh_config
from harness.cloud import Route, RouteKind, Server
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
    assert option(run, "server1", "proxycommand").endswith("ip netns exec qrouter-1 nc %h %p")


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
