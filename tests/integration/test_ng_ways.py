"""The ng protocol over UDP, TCP and WebSocket, spoken to Debian's own rtpengine, in user space and on loopback."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.image.contained import contained_in
from harness.process import running
from harness.voip.call import Call
from harness.voip.endpoint import Endpoint
from harness.voip.ng import NgClient, NgError, NgNoAnswer, NgRefused, NgUnknownCall
from harness.voip.traffic import Traffic

pytestmark = [pytest.mark.root, pytest.mark.nightly]

HERE = "127.0.0.1"


@dataclass(frozen=True)
class Relay:
    """Ports by the option of the daemon that listens there."""

    ports: dict[str, int]

    def client(self, way: str, seconds: float = 5.0) -> NgClient:
        made, option = WAYS[way]
        return made(HERE, self.ports[option], seconds=seconds)


WAYS: dict[str, tuple[Callable[..., NgClient], str]] = {
    "udp": (NgClient, "listen-ng"), "tcp": (NgClient.over_tcp, "listen-tcp-ng"),
    "websocket": (NgClient.over_websocket, "listen-http")}
each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture(scope="module")
def root(debian_root: Callable[[Sequence[str]], Path]) -> Path:
    return debian_root(["rtpengine-daemon"])


def some_ports() -> dict[str, int]:
    first = random.randrange(10_000, 29_000)
    return {option: first + number for number, (_, option) in enumerate(WAYS.values())}


@contextmanager
def daemon(root: Path, log: Path, ports: dict[str, int]) -> Iterator[Relay]:
    """The relay, until the block ends."""
    argv = ["rtpengine", f"--interface={HERE}", "--table=-1", "--foreground", "--log-stderr", "--log-level=6",
            "--port-min=30000", "--port-max=31000", "--pidfile=/tmp/pid",
            *(f"--{option}={HERE}:{port}" for option, port in ports.items())]
    with running(contained_in(root, argv), log) as process:
        relay = Relay(ports)
        with relay.client("udp", 20) as client:
            assert client.ping() == "pong"
        assert process.poll() is None, log.read_text()
        yield relay


@pytest.fixture
def relay(root: Path, tmp_path: Path) -> Iterator[Relay]:
    with daemon(root, tmp_path / "log", some_ports()) as started:
        yield started


@each_way
def test_a_call_carries_media_both_ways_and_is_gone_afterwards(relay: Relay, way: str) -> None:
    with relay.client(way) as client, Endpoint(HERE) as caller, Endpoint(HERE) as callee:
        with Call(client, caller, callee) as call:
            assert client.calls() == [call.id]
            Traffic(call.streams).run(1.0)
            assert client.query(call.id)["totals"]["RTP"]["packets"] > 80
            assert client.statistics()["currentstatistics"]["sessionstotal"] == 1
            result = call.result()
        for direction in (result.to_callee, result.to_caller):
            assert direction.sent > 40 and direction.lost == 0
        assert client.calls() == []


@each_way
def test_refusals_and_a_hundred_requests(relay: Relay, way: str) -> None:
    with relay.client(way) as client:
        with pytest.raises(NgUnknownCall):
            client.query("nobody")
        with pytest.raises(NgRefused, match="nrecognized command"):
            client.request("nonsense")
        assert [client.ping() for _ in range(100)] == ["pong"] * 100


@each_way
def test_a_relay_that_is_gone_is_told_and_one_that_is_back_is_found(root: Path, tmp_path: Path, way: str) -> None:
    ports = some_ports()
    with daemon(root, tmp_path / "log", ports) as first:
        client = first.client(way, seconds=2)
        assert client.ping() == "pong"
    with client:
        with pytest.raises(NgNoAnswer, match=WAYS[way][1]):
            client.ping()
        with daemon(root, tmp_path / "log", ports):
            assert client.ping() == "pong"


@pytest.mark.parametrize(("way", "other"), [("tcp", "listen-http"), ("websocket", "listen-tcp-ng")])
def test_a_port_of_another_protocol_is_told(relay: Relay, way: str, other: str) -> None:
    with WAYS[way][0](HERE, relay.ports[other], seconds=2) as client, \
            pytest.raises(NgError, match=r"did not answer|sent"):
        client.ping()
