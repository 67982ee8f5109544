"""The program that a gateway runs, run here: datagrams to a real socket and back."""

from __future__ import annotations

import socket
import sys
import threading
from collections.abc import Iterator

import pytest

from harness.access import reach
from harness.access.reach import RelayedDatagrams
from harness.voip.bencode import encode
from harness.voip.ng import NgClient


@pytest.fixture
def echo() -> Iterator[socket.socket]:
    """Answers `x` by `pong x`; an empty datagram ends it."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            data, peer = server.recvfrom(65535)
            if not data:
                return
            server.sendto(b"pong " + data, peer)

    thread = threading.Thread(target=serve)
    thread.start()
    yield server
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
        last.sendto(b"", server.getsockname())
    thread.join()
    server.close()


def relayed(port: int) -> RelayedDatagrams:
    return RelayedDatagrams([sys.executable, "-c", reach._PROGRAM, "127.0.0.1", str(port)])


def test_datagrams_keep_their_bounds(echo: socket.socket) -> None:
    datagrams = relayed(echo.getsockname()[1])
    try:
        datagrams.settimeout(10)
        for data in (b"a", b"b" * 1400, b"c"):
            datagrams.sendto(data, ("127.0.0.1", 1))
        assert sorted(datagrams.recv(65535) for _ in range(3)) == [b"pong a", b"pong " + b"b" * 1400, b"pong c"]
    finally:
        datagrams.close()


def test_nobody_answers(echo: socket.socket) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind(("127.0.0.1", 0))
        datagrams = relayed(silent.getsockname()[1])
        datagrams.settimeout(0.3)
        datagrams.sendto(b"a", ("127.0.0.1", 1))
        with pytest.raises(TimeoutError):
            datagrams.recv(100)
        datagrams.close()


def test_a_gateway_that_ends_is_an_error_and_no_answer() -> None:
    datagrams = RelayedDatagrams([sys.executable, "-c", "pass"])
    datagrams.settimeout(10)
    with pytest.raises(OSError):
        datagrams.recv(100)
    datagrams.close()


def test_the_ng_client_talks_over_it() -> None:
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))

    def serve() -> None:
        data, peer = server.recvfrom(65535)
        server.sendto(data.partition(b" ")[0] + b" " + encode({"result": "pong"}), peer)

    thread = threading.Thread(target=serve)
    thread.start()
    port = server.getsockname()[1]
    with NgClient("127.0.0.1", port, lambda: relayed(port), seconds=10) as client:
        assert client.ping() == "pong"
    thread.join()
    server.close()
