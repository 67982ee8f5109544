import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from harness.deadline import Deadline
from harness.voip.bencode import decode, encode
from harness.voip.ng import (
    NgClient,
    NgLoadLimit,
    NgMalformed,
    NgNoAnswer,
    NgOutOfPorts,
    NgRefused,
    NgUnknownCall,
)
from tests.relay_double import relay_double

SDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=audio 40000 RTP/AVP 0\r\n"


@contextmanager
def relay(answer: Callable[[bytes, bytes, int], bytes | None]) -> Iterator[tuple[int, list[bytes]]]:
    """A relay on loopback; `answer(cookie, body, how many times seen)`."""
    seen: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.bind(("127.0.0.1", 0))
        own.settimeout(5)

        def serve() -> None:
            while True:
                data, peer = own.recvfrom(65535)
                cookie, _, body = data.partition(b" ")
                if body == b"stop":
                    return
                seen.append(cookie)
                reply = answer(cookie, body, seen.count(cookie))
                if reply is not None:
                    own.sendto(reply, peer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield own.getsockname()[1], seen
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
            out.sendto(b"x stop", own.getsockname())
        thread.join()


def pong(cookie: bytes, body: bytes, times: int) -> bytes:
    assert decode(body) == {"command": "ping"}
    return cookie + b" d6:result4:ponge"


def test_a_ping_is_answered() -> None:
    with relay(pong) as (port, _), NgClient("127.0.0.1", port) as client:
        assert client.ping() == "pong"


def test_no_cookie_is_used_twice_by_anybody() -> None:
    with relay(pong) as (port, seen):
        for _ in range(3):
            with NgClient("127.0.0.1", port) as client:
                client.ping()
                client.ping()
        assert len(seen) == len(set(seen)) == 6


def test_a_lost_request_is_sent_again_with_the_same_cookie() -> None:
    with relay(lambda c, b, n: None if n == 1 else pong(c, b, n)) as (port, seen), \
            NgClient("127.0.0.1", port) as client:
        assert client.ping() == "pong"
        assert len(seen) == 2 and len(set(seen)) == 1


def test_answers_to_other_cookies_are_passed_over() -> None:
    with relay(lambda c, b, n: b"stale d6:result4:ponge" if n == 1 else pong(c, b, n)) as (port, _), \
            NgClient("127.0.0.1", port) as client:
        assert client.ping() == "pong"


def test_no_answer_is_an_error_at_the_deadline() -> None:
    with relay(lambda c, b, n: None) as (port, _), NgClient("127.0.0.1", port) as client:
        deadline = Deadline(0.7)
        with pytest.raises(NgNoAnswer, match="did not answer ping"):
            client.request("ping", deadline=deadline)
        assert deadline.expired


def test_a_refusal_bears_its_reason() -> None:
    refusal = encode({"result": "error", "error-reason": "Ran out of ports"})
    with relay(lambda c, b, n: c + b" " + refusal) as (port, _), NgClient("127.0.0.1", port) as client:
        with pytest.raises(NgRefused) as refused:
            client.request("offer", {"call-id": "1"})
        assert refused.value.reason == "Ran out of ports"


@pytest.mark.parametrize("body", [b"garbage", b"i1e", b"d6:result2:ok"])
def test_a_garbled_answer_is_told(body: bytes) -> None:
    with relay(lambda c, b, n: c + b" " + body) as (port, _), NgClient("127.0.0.1", port) as client, \
            pytest.raises(NgMalformed):
        client.statistics()


def client_of(kind: str, port: int, address: str = "127.0.0.1", seconds: float = 5.0) -> NgClient:
    made = {"udp": NgClient, "tcp": NgClient.over_tcp, "websocket": NgClient.over_websocket}
    return made[kind](address, port, seconds=seconds)


every_way = pytest.mark.parametrize("kind", ["udp", "tcp", "websocket"])


@every_way
def test_a_call_from_offer_to_delete(kind):
    with relay_double() as relay, client_of(kind, relay.port) as client:
        assert client.ping() == "pong"
        offered = client.offer("c1", "A", SDP, {"flags": ["strict source"], "address-family": "IP4"})
        answered = client.answer("c1", "A", "B", SDP)
        assert "m=audio 40000" not in offered and "m=audio 40000" not in answered and offered != answered
        assert relay.arguments[1] == {"command": "offer", "call-id": "c1", "from-tag": "A", "sdp": SDP,
                                      "flags": ["strict source"], "address-family": "IP4"}
        assert client.calls() == ["c1"]
        assert client.query("c1")["totals"] == {"RTP": {"packets": 0}}
        assert client.statistics()["currentstatistics"] == {"sessionstotal": 1}
        assert client.delete("c1", "A")["totals"]["RTP"]["packets"] == 0
        assert relay.arguments[-1]["delete-delay"] == 0
        assert client.calls() == []


@every_way
@pytest.mark.parametrize(("reason", "kind_of_error"), [
    ("Ran out of ports", NgOutOfPorts), ("Unknown call-ID", NgUnknownCall), ("Unknown call-id", NgUnknownCall),
    ("Call-ID not found or tags didn't match", NgUnknownCall), ("Parallel session limit reached", NgLoadLimit),
    ("Failed to parse SDP", NgRefused)])
def test_each_refusal_has_its_type(kind, reason, kind_of_error):
    with relay_double() as relay, client_of(kind, relay.port) as client:
        relay.refuse["offer"] = reason
        with pytest.raises(NgRefused, match=reason) as refused:
            client.offer("c1", "A", SDP)
        assert type(refused.value) is kind_of_error and refused.value.reason == reason


def test_a_load_limit_that_is_no_error_is_a_refusal():
    with relay_double() as relay, client_of("udp", relay.port) as client:
        relay.answers["offer"] = encode({"result": "load limit", "message": "Load limit exceeded"})
        with pytest.raises(NgLoadLimit) as refused:
            client.offer("c1", "A", SDP)
        assert refused.value.reason == "Load limit exceeded"


def test_what_is_unknown_can_be_neither_answered_nor_deleted():
    with relay_double() as relay, client_of("udp", relay.port) as client:
        with pytest.raises(NgUnknownCall):
            client.answer("c1", "A", "B", SDP)
        with pytest.raises(NgUnknownCall):
            client.delete("c1", "A")


@every_way
def test_a_command_whose_answer_got_lost_is_carried_out_once(kind):
    with relay_double() as relay, client_of(kind, relay.port) as client:
        relay.lose_answers = 1
        client.offer("c1", "A", SDP)
        assert relay.commands == {"offer": 1}


def test_over_ipv6():
    with relay_double(address="::1") as relay:
        for kind in ("udp", "tcp", "websocket"):
            with client_of(kind, relay.port, "::1") as client:
                assert client.ping() == "pong"


@pytest.mark.parametrize("answer", [{}, {"result": "maybe"}, {"result": "ok"}, {"result": "ok", "sdp": 5}, [], 3])
@every_way
def test_an_answer_without_what_was_asked_for_is_told(kind, answer):
    with relay_double() as relay, client_of(kind, relay.port) as client:
        for command, ask in (("offer", lambda: client.offer("c", "A", SDP)), ("query", lambda: client.query("c")),
                             ("list", client.calls), ("statistics", client.statistics)):
            relay.answers[command] = encode(answer)
            with pytest.raises(NgMalformed, match=command):
                ask()


@contextmanager
def listener(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A TCP server on loopback; `serve` has the first connection."""
    with socket.create_server(("127.0.0.1", 0)) as own:
        def accept() -> None:
            stream, _ = own.accept()
            with stream:
                stream.recv(65535)
                serve(stream)

        thread = threading.Thread(target=accept)
        thread.start()
        yield own.getsockname()[1]
        thread.join()


@pytest.mark.parametrize("text", [b"x" * 1000, b"cookie garbage", b"cookie i--1e"])
def test_a_tcp_peer_that_speaks_something_else_is_told_at_once(text):
    with listener(lambda stream: stream.sendall(text)) as port, client_of("tcp", port) as client:
        begin = time.monotonic()
        with pytest.raises(NgMalformed, match=str(port)):
            client.ping()
        assert time.monotonic() - begin < 3


def test_a_tcp_peer_that_never_ends_its_answer_is_told():
    def serve(stream: socket.socket) -> None:
        try:
            stream.sendall(b"cookie 2000000:" + b"x" * 1_900_000)
        except OSError:
            return

    with listener(serve) as port, client_of("tcp", port) as client, pytest.raises(NgMalformed):
        client.ping()


@pytest.mark.parametrize(("kind", "option"), [("tcp", "listen-tcp-ng"), ("websocket", "listen-http")])
def test_nobody_listening_is_no_answer(kind, option):
    with socket.create_server(("127.0.0.1", 0)) as own:
        port = own.getsockname()[1]
    with client_of(kind, port, seconds=0.7) as client, pytest.raises(NgNoAnswer, match="refused") as error:
        client.ping()
    assert option in str(error.value)


@pytest.mark.parametrize("kind", ["tcp", "websocket"])
def test_a_silent_peer_is_no_answer_at_the_deadline(kind):
    with listener(lambda stream: time.sleep(1.5)) as port, client_of(kind, port) as client:
        begin = time.monotonic()
        with pytest.raises(NgNoAnswer):
            client.request("ping", deadline=Deadline(1))
        assert 0.9 < time.monotonic() - begin < 3


@pytest.mark.parametrize("text", [b"HTTP/1.1 404 Not Found\r\n\r\n", b"x" * 1000])
def test_a_peer_that_speaks_no_websocket_is_told_at_the_deadline(text):
    with listener(lambda stream: stream.sendall(text)) as port, client_of("websocket", port, seconds=0.7) as client, \
            pytest.raises(NgNoAnswer, match="listen-http"):
        client.ping()


@every_way
def test_a_connection_is_used_again(kind):
    with relay_double() as relay, client_of(kind, relay.port) as client:
        assert [client.ping() for _ in range(50)] == ["pong"] * 50
        assert relay.commands["ping"] == 50
