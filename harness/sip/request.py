"""Single SIP requests and their answers (RFC 3261): enough to ask a proxy whether it is there and who is registered."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness.deadline import Deadline
from harness.errors import CheckFailed

T1 = 0.5
"""Seconds after which a request that got no answer is sent again over UDP, then twice as many (17.1.1.2)."""
NOBODY = "dialtone.invalid"
"""Who asks, where its address is not known: answers go to where the request came from (RFC 3581)."""


class SipNoAnswer(CheckFailed):
    """No final answer came before the deadline."""


@dataclass(frozen=True)
class Request:
    """A request outside any dialog. `aor` is the address of record (a URI) in From and To, `here` the sender's address
    and port; `headers` are further ones, whole lines."""

    method: str
    uri: str
    aor: str
    here: str = NOBODY
    transport: str = "UDP"
    headers: tuple[str, ...] = ()
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def __bytes__(self) -> bytes:
        return self._text(self.method, f"To: <{self.aor}>", self.headers)

    def acknowledged(self, answer: Answer) -> bytes:
        """The ACK for a final answer that is no success; it belongs to the same transaction (17.1.1.3)."""
        return self._text("ACK", f"To: {answer.header('to')}", ())

    def _text(self, method: str, to: str, headers: Sequence[str]) -> bytes:
        lines = (f"{method} {self.uri} SIP/2.0",
                 f"Via: SIP/2.0/{self.transport} {self.here};branch=z9hG4bK{self.token};rport",
                 f"From: <{self.aor}>;tag={self.token}", to, f"Call-ID: {self.token}@dialtone",
                 f"CSeq: 1 {method}", "Max-Forwards: 70", *headers, "Content-Length: 0", "", "")
        return "\r\n".join(lines).encode()


@dataclass(frozen=True)
class Answer:
    """A response; `headers` by name in small letters, each with all its values in order."""

    status: int
    reason: str
    headers: Mapping[str, tuple[str, ...]]

    def header(self, name: str) -> str:
        return ", ".join(self.headers.get(name, ()))

    def __str__(self) -> str:
        return f"{self.status} {self.reason}"


def parsed(data: bytes) -> Answer | None:
    """The response that `data` is; None where it is none."""
    head, *lines = data.partition(b"\r\n\r\n")[0].decode(errors="replace").split("\r\n")
    begun = re.fullmatch(r"SIP/2\.0 ([1-6]\d\d) ?(.*)", head)
    if begun is None:
        return None
    headers: dict[str, tuple[str, ...]] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name = name.strip().lower()
        headers[name] = (*headers.get(name, ()), value.strip())
    return Answer(int(begun[1]), begun[2], headers)


class Datagrams(Protocol):
    """What is used of a UDP socket."""

    def sendto(self, data: bytes, address: tuple[str, int], /) -> int: ...
    def recv(self, size: int, /) -> bytes: ...
    def settimeout(self, seconds: float | None, /) -> None: ...


class Stream(Protocol):
    """What is used of a connected TCP socket."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def settimeout(self, seconds: float | None, /) -> None: ...


def by_datagrams(link: Datagrams, to: tuple[str, int], request: Request, deadline: Deadline) -> Answer:
    """The final answer of `to` (address, port) to `request`. Raises SipNoAnswer where none comes."""
    wait, text = T1, bytes(request)
    while not deadline.expired:
        link.sendto(text, to)
        answer = _final(link, lambda: link.recv(65535), request, deadline.within(wait))
        if answer is not None:
            if request.method == "INVITE" and answer.status >= 300:
                link.sendto(request.acknowledged(answer), to)
            return answer
        wait = min(2 * wait, 4.0)
    raise SipNoAnswer(f"no answer of {to[0]}:{to[1]} (UDP) to {request.method}")


def by_stream(link: Stream, request: Request, deadline: Deadline) -> Answer:
    """The final answer to `request` over a connection. Raises SipNoAnswer where none comes."""
    link.sendall(bytes(request))
    rest = b""

    def message() -> bytes:
        nonlocal rest
        while b"\r\n\r\n" not in rest:
            chunk = link.recv(65535)
            if not chunk:
                raise ConnectionResetError(104, "the connection was closed")
            rest += chunk
        one, _, rest = rest.partition(b"\r\n\r\n")
        return one + b"\r\n\r\n"

    try:
        answer = _final(link, message, request, deadline)
    except ConnectionResetError as error:
        raise SipNoAnswer(f"no answer to {request.method} (TCP): {error.strerror}") from error
    if answer is None:
        raise SipNoAnswer(f"no answer to {request.method} (TCP)")
    if request.method == "INVITE" and answer.status >= 300:
        link.sendall(request.acknowledged(answer))
    return answer


def _final(link: Datagrams | Stream, message: Callable[[], bytes], request: Request, deadline: Deadline
           ) -> Answer | None:
    """The next final answer to `request` (by its Call-ID) until the deadline."""
    while not deadline.expired:
        link.settimeout(max(deadline.remaining, 0.001))
        try:
            answer = parsed(message())
        except TimeoutError:
            return None
        except ConnectionRefusedError:
            # The answer to a datagram before: nothing listens there (yet).
            continue
        if answer and answer.status >= 200 and answer.header("call-id").startswith(request.token):
            return answer
    return None
