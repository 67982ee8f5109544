"""The Management Interface when it does not do what it should."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import DescriptionError
from harness.opensips.exchange import FIFO_REQUEST
from harness.opensips.interface import EventInterface
from harness.opensips.mi import MEANINGS, MiClient, MiMalformed, MiNoAnswer, MiRefused
from harness.opensips.profile import PROFILES, of_version
from tests.opensips_double import OpenSipsDouble, opensips_double

WAYS = ("udp", "unix", "fifo", "http")


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenSipsDouble]:
    with opensips_double("4.0.1", tmp_path) as running:
        yield running


@pytest.fixture(params=WAYS)
def client(request: pytest.FixtureRequest, double: OpenSipsDouble) -> Iterator[MiClient]:
    with MiClient(next(place for place in double.places if place.startswith(request.param)), seconds=1) as one:
        yield one


def test_a_silent_interface_is_no_answer_at_the_deadline(double, client):
    double.silent = True
    if client.place.startswith("http"):
        with pytest.raises(MiMalformed, match="HTTP status 202"):
            client.request("version")
        return
    begin = time.monotonic()
    with pytest.raises(MiNoAnswer, match=r"did not answer version: no answer within 0\.3 s"):
        client.request("version", deadline=Deadline(0.3))
    assert 0.25 < time.monotonic() - begin < 2
    double.silent = False
    assert client.request("version")


@pytest.mark.parametrize("rubbish", [
    b"400 Parse_error", b"\xff\xfe", b"[1]", b'{"jsonrpc":"2.0","id":1}', b'{"jsonrpc":"2.0","id":7,"result":1}',
    b'{"result":1,"id":1}', b'{"jsonrpc":"2.0","id":1,"error":5}', b'{"jsonrpc":"2.0","id":1,"error":{"code":"x"}}'])
def test_rubbish_is_told(double, client, rubbish):
    double.answer = lambda method: rubbish
    with pytest.raises(MiMalformed, match="version"):
        client.request("version")


def test_a_refusal_is_a_sentence(client):
    with pytest.raises(MiRefused) as refused:
        client.request("pike_list")
    assert refused.value.code == -32601
    assert str(refused.value) == f"OpenSIPS refused pike_list: -32601 Method not found: {MEANINGS[-32601]}"
    with pytest.raises(MiRefused, match=r"-32001 Method ambiguous \(supported names: evi:list, pike:list\)"):
        client.request("list")


def test_threads_may_share_a_client(client):
    answers: list[object] = []
    threads = [threading.Thread(target=lambda: answers.extend(client.request("uptime") for _ in range(10)))
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 40


def test_a_request_too_long_for_a_fifo_is_told(double):
    with MiClient(double.places[2]) as client, pytest.raises(MiMalformed, match="too long for a FIFO"):
        client.request("evi:raise", ["E_CALL_REFUSED", "x" * FIFO_REQUEST])
    assert [path for path in double.directory.iterdir() if path.name.startswith("dialtone")] == []


def test_a_fifo_without_reader_is_told_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    begin = time.monotonic()
    with MiClient(f"fifo:{tmp_path / 'fifo'},{tmp_path}") as client, pytest.raises(MiNoAnswer, match="No such device"):
        client.request("version")
    assert time.monotonic() - begin < 2 and [path.name for path in tmp_path.iterdir()] == ["fifo"]


def test_a_web_server_that_is_something_else_is_told(double):
    with MiClient(double.places[3][:-3] + "/other") as client, pytest.raises(MiMalformed, match="HTTP status 404"):
        client.request("version")


def test_what_speaks_no_http_is_told():
    with socket.create_server(("127.0.0.1", 0)) as own:
        def serve() -> None:
            stream, _ = own.accept()
            with stream:
                stream.recv(65535)
                stream.sendall(b"SSH-2.0-OpenSSH\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        with MiClient(f"http://127.0.0.1:{own.getsockname()[1]}/mi", seconds=2) as client, \
                pytest.raises(MiMalformed, match="no answer of HTTP"):
            client.request("version")
        thread.join()


@pytest.mark.parametrize("place", ["", "udp", "udp:", "udp:localhost", "tcp:127.0.0.1:8080", "/run/fifo", "http://",
                                   "https://127.0.0.1/mi", "fifo:"])
def test_a_place_that_is_none_is_told(place):
    with pytest.raises(DescriptionError, match="is no place of a Management Interface"):
        MiClient(place)


@pytest.mark.parametrize("said", [{"Server": "Kamailio (5.6.3)"}, {"Server": "OpenSIPS (2.4.11 (x86_64/linux))"}, 5,
                                  {}])
def test_another_version_is_told(double, said):
    double.answer = lambda method: json.dumps({"jsonrpc": "2.0", "id": 1, "result": said}).encode()
    with MiClient(double.places[0]) as client, pytest.raises(MiMalformed, match="calls itself"):
        EventInterface(client)


@pytest.mark.parametrize("answer", [[], {}, {"Events": 3}, {"Events": [{"id": 1}]}, {"Event": {"name": "E"}}, "OK",
                                    None, {"Event": {"name": "E", "Subscribers": [{"socket": "udp:x:1"}]}}])
def test_lists_that_are_none_are_told(double, answer):
    with MiClient(double.places[0]) as client:
        interface = EventInterface(client)
        double.answer = lambda method: None if method == "version" else \
            json.dumps({"jsonrpc": "2.0", "id": len(asked), "result": answer}).encode()
        asked = [0]
        for ask in (interface.events, lambda: interface.subscriptions("E"), interface.blocked, interface.up_since):
            asked.append(1)
            with pytest.raises(MiMalformed):
                ask()


def test_a_subscription_for_ever_is_understood(double):
    with MiClient(double.places[0]) as client:
        interface = EventInterface(client)
        double.answer = lambda method: (
            b'{"jsonrpc":"2.0","id":2,"result":{"Event":{"name":"E","id":1,"Subscribers":'
            b'[{"socket":"route:E","expire":"never"}]}}}')
        [one] = interface.subscriptions("E")
        assert (one.socket, one.expire, one.ttl) == ("route:E", None, None)


def test_versions_have_profiles():
    assert of_version("3.6.8") is PROFILES[0] and of_version("4.0.1") is PROFILES[1] and of_version("5.0") is None


@pytest.mark.parametrize("value", [1.5, True, None, [1], 2**31])
def test_what_can_not_be_a_value_is_told(double, value):
    with MiClient(double.places[0]) as client:
        interface = EventInterface(client)
        for params in ({"a": value}, [value]):
            with pytest.raises(DescriptionError, match="can't be a value of an event"):
                interface.raise_event("E_CALL_REFUSED", params)
