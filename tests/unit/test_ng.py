import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.deadline import Deadline
from harness.voip.ng import NgClient, NgMalformed, NgNoAnswer, NgRefused, decode, encode

VALUES = st.recursive(st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
                      max_leaves=20)


@given(VALUES)
def test_what_is_encoded_is_decoded(value: object) -> None:
    assert decode(encode(value)) == value


@given(st.binary())
def test_any_octets_are_a_value_or_malformed(data: bytes) -> None:
    with suppress(NgMalformed):
        decode(data)


def test_bencode_is_that_of_bep_3() -> None:
    assert encode({"spam": ["a", 42], "b": -1}) == b"d1:bi-1e4:spaml1:ai42eee"


@pytest.mark.parametrize("data", [b"", b"i5", b"ie", b"i--1e", b"5:abc", b"-1:a", b"d1:a", b"di1ei2ee", b"d1:ae",
                                  b"i1eX", b"l" * 100, b"i1_0e", b"i 1e"])
def test_malformed_is_told(data: bytes) -> None:
    with pytest.raises(NgMalformed):
        decode(data)


@pytest.mark.parametrize("value", [True, 1.5, None])
def test_bencode_has_no_such_values(value: object) -> None:
    with pytest.raises(TypeError):
        encode(value)  # type: ignore[arg-type]


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
