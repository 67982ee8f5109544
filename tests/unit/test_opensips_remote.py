"""The programs that run on a server, here without one: `ssh` is a script that runs its last argument on this host."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.access.shell import ConnectionLost
from harness.deadline import Deadline
from harness.errors import HostError
from harness.opensips import remote
from harness.opensips.expectation import Events
from harness.opensips.interface import EventInterface
from harness.opensips.keeper import Keeper
from harness.opensips.mi import MiClient, MiMalformed, MiNoAnswer
from harness.opensips.subscriber import Losses, Subscriber
from tests.opensips_double import OpenSipsDouble, opensips_double

CONFIG = Path("ssh_config")
SCRIPT = "E_CALL_REFUSED"


@pytest.fixture(autouse=True)
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("ssh", '[ "$3" = server1 ] || exit 255; echo "Welcome."; eval "exec $4"'),
                       ("sudo", 'shift; exec "$@"')):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenSipsDouble]:
    with opensips_double("4.0.1", tmp_path) as running:
        yield running


@pytest.fixture
def interface(double: OpenSipsDouble) -> Iterator[EventInterface]:
    with MiClient(remote.Interface(CONFIG, "server1", double.places[0])) as client:
        yield EventInterface(client)


def test_each_interface_of_a_server_answers(double):
    for place in double.places:
        with MiClient(remote.Interface(CONFIG, "server1", place)) as client:
            assert EventInterface(client).version == "4.0.1" and client.place == f"{place} of server1"


def test_what_the_interface_does_there_is_told_here(double, interface):
    client = interface.client
    double.silent = True
    with pytest.raises(MiNoAnswer, match="of server1 did not answer uptime: no answer within"):
        client.request("uptime", deadline=Deadline(0.3))
    double.silent, double.answer = False, lambda method: b"rubbish"
    with pytest.raises(MiMalformed):
        client.request("uptime")
    double.answer = lambda method: None
    assert interface.up_since()
    with MiClient(remote.Interface(CONFIG, "server1", double.places[3] + "/x")) as other, \
            pytest.raises(MiMalformed, match="HTTP status 404"):
        other.request("uptime")
    with MiClient(remote.Interface(CONFIG, "server1", "fifo:/no/such/fifo")) as other, \
            pytest.raises(MiNoAnswer, match="No such file or directory"):
        other.request("uptime")


@pytest.mark.parametrize("transport", ["udp", "unix", "tcp"])
def test_events_come_from_a_server(double, interface, tmp_path, transport):
    place = os.fspath(tmp_path / "events.sock") if transport == "unix" else "127.0.0.1:0"
    with Keeper(interface) as keeper, \
            Subscriber(keeper, remote.Socket(CONFIG, "server1", transport, place), SCRIPT) as one:
        with Events(one).expect(SCRIPT, n=7) as expected:
            interface.raise_event(SCRIPT, {"n": 7})
        assert expected.event.transport == transport
        with one.reader() as reader:
            for number in range(2000):
                double.happened(SCRIPT, {"n": number})
                if transport == "unix":  # a sender that does not wait finds its queue full
                    time.sleep(0.0005)
            numbers = [reader.next(Deadline(5)).params["n"] for _ in range(2000 - double.unsent)]
            assert numbers == sorted(numbers) and reader.losses == Losses()
        name = one.listener.name
    assert not interface.subscribed(SCRIPT, name) or interface.subscriptions(SCRIPT)[0].ttl == 0
    limit = Deadline(5)
    while transport == "unix" and Path(place).exists():
        assert not limit.expired


def test_a_place_that_is_taken_there_is_told(double):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{own.getsockname()[1]}"
        with pytest.raises(HostError, match=f"udp:{place} of server1: it is taken"):
            remote.Socket(CONFIG, "server1", "udp", place)


def test_a_server_that_is_not_there_is_told(double):
    for opening in (lambda: remote.Socket(CONFIG, "server2", "udp", "127.0.0.1:0"),
                    lambda: remote.Interface(CONFIG, "server2", double.places[0])):
        with pytest.raises(ConnectionLost, match="the connection to server2 is lost: the session ended"):
            opening()


def test_a_connection_that_is_lost_is_told_to_who_waits_for_events(interface):
    with Keeper(interface) as keeper, Subscriber(keeper, remote.Socket(CONFIG, "server1", "udp", "127.0.0.1:0")) as one:
        with one.reader() as reader:
            one.listener._program.process.kill()
            with pytest.raises(ConnectionLost, match="the connection to server1 is lost"):
                reader.next(Deadline(5))
        with pytest.raises(ConnectionLost), Events(one).expect(SCRIPT):
            pass


def test_a_connection_that_is_lost_is_told_to_who_asks(interface):
    interface.client._way._program.process.kill()
    with pytest.raises(ConnectionLost, match="the connection to server1 is lost"):
        interface.up_since()
