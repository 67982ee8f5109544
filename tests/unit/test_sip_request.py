"""Single SIP requests and their answers."""

from collections.abc import Iterator

import pytest

from harness.deadline import Deadline
from harness.sip import request as sip
from harness.sip.request import Request, SipNoAnswer, by_datagrams, by_stream, parsed

ASKED = Request("OPTIONS", "sip:192.0.2.1", "sip:me@192.0.2.1", token="t0ken", headers=("Expires: 60",))


def response(status: str, call_id: str = "t0ken@dialtone") -> bytes:
    return f"SIP/2.0 {status}\r\nTo: <sip:you>;tag=x\r\nCall-ID: {call_id}\r\nContent-Length: 0\r\n\r\n".encode()


class Link:
    """A socket by which `answers` come in order; an exception among them is raised."""

    def __init__(self, *answers: bytes | Exception) -> None:
        self.sent: list[bytes] = []
        self._answers: Iterator[bytes | Exception] = iter(answers)

    def sendto(self, data: bytes, address: tuple[str, int], /) -> int:
        self.sent.append(data)
        return len(data)

    def sendall(self, data: bytes, /) -> None:
        self.sent.append(data)

    def settimeout(self, seconds: float | None, /) -> None:
        assert seconds

    def recv(self, size: int, /) -> bytes:
        answer = next(self._answers, TimeoutError())
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_request_has_what_every_request_must_have() -> None:
    lines = bytes(ASKED).decode().split("\r\n")
    assert lines[0] == "OPTIONS sip:192.0.2.1 SIP/2.0"
    assert {line.split(":")[0] for line in lines[1:-2]} == {
        "Via", "From", "To", "Call-ID", "CSeq", "Max-Forwards", "Expires", "Content-Length"}
    assert ";rport" in lines[1] and lines[-2:] == ["", ""]


@pytest.mark.parametrize("data", [b"", b"\0", b"OPTIONS sip:x SIP/2.0\r\n\r\n", b"SIP/2.0 99 No\r\n\r\n"])
def test_what_is_no_response(data: bytes) -> None:
    assert parsed(data) is None


def test_the_headers_of_a_response() -> None:
    answer = parsed(b"SIP/2.0 200 OK\r\nContact: <sip:a>\r\ncontact:<sip:b>\r\n\r\nbody")
    assert answer and str(answer) == "200 OK"
    assert (answer.header("contact"), answer.header("via")) == ("<sip:a>, <sip:b>", "")


def test_only_the_final_answer_to_this_request_counts() -> None:
    link = Link(b"junk", response("100 Trying"), response("200 OK", "another"), ConnectionRefusedError(),
                response("404 Not Found"))
    assert by_datagrams(link, ("192.0.2.1", 5060), ASKED, Deadline(5)).status == 404
    assert link.sent == [bytes(ASKED)]


def test_a_refused_call_is_acknowledged() -> None:
    link = Link(response("404 Not Found"))
    call = Request("INVITE", "sip:x", "sip:y", token="t0ken")
    by_datagrams(link, ("192.0.2.1", 5060), call, Deadline(5))
    acknowledged = link.sent[1].decode()
    assert acknowledged.startswith("ACK sip:x SIP/2.0\r\n") and "To: <sip:you>;tag=x\r\n" in acknowledged
    assert "branch=z9hG4bKt0ken;" in acknowledged


def test_a_request_without_answer_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sip, "T1", 0.01)
    link = Link(TimeoutError(), TimeoutError(), response("200 OK"))
    assert by_datagrams(link, ("192.0.2.1", 5060), ASKED, Deadline(5)).status == 200
    assert link.sent == [bytes(ASKED)] * 3


def test_no_answer_is_told() -> None:
    with pytest.raises(SipNoAnswer, match=r"no answer of 192.0.2.1:5060 \(UDP\) to OPTIONS"):
        by_datagrams(Link(), ("192.0.2.1", 5060), ASKED, Deadline(0.01))
    for link in (Link(), Link(b"SIP/2.0 200 OK\r\n", b"")):
        with pytest.raises(SipNoAnswer, match="no answer to OPTIONS"):
            by_stream(link, ASKED, Deadline(0.05))


def test_answers_come_in_pieces_over_a_connection() -> None:
    both = response("100 Trying") + response("200 OK")
    assert by_stream(Link(both[:9], both[9:90], both[90:]), ASKED, Deadline(5)).status == 200
