"""The ng control protocol of RTPEngine over UDP: a cookie, a space, a bencoded dictionary.

Sources: docs/ng_control_protocol.md of RTPEngine; BEP 3 for bencode.
"""

from __future__ import annotations

import itertools
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from harness.deadline import Deadline
from harness.errors import CheckFailed

Value = int | str | bytes | Sequence[Any] | Mapping[str, Any]
_LARGEST_DATAGRAM = 65535
_FIRST_RETRY = 0.5
_DEEPEST = 32


class NgError(CheckFailed):
    """The relay can't be controlled."""


class NgNoAnswer(NgError):
    """The relay did not answer before the deadline."""


class NgRefused(NgError):
    """The relay answered `result: error`; `reason` is its error-reason."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"the relay refused {command}: {reason}")
        self.reason = reason


class NgMalformed(NgError):
    """What the relay sent is not bencode."""


def encode(value: Value) -> bytes:
    """Bencode `value`; dictionary keys are sorted as BEP 3 wants. Raises TypeError for what bencode has no form of."""
    if isinstance(value, bool):
        raise TypeError("bencode has no booleans: write 1, 0 or a flag's name")
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return b"%d:%b" % (len(value), value)
    if isinstance(value, Mapping):
        pairs = sorted((key.encode(), item) for key, item in value.items())
        return b"d" + b"".join(encode(key) + encode(item) for key, item in pairs) + b"e"
    if isinstance(value, Sequence):
        return b"l" + b"".join(encode(item) for item in value) + b"e"
    raise TypeError(f"bencode has no {type(value).__name__}")


def decode(data: bytes) -> Any:
    """The value of the bencoded `data`: int, str (UTF-8, other octets by surrogateescape), list, dict.

    Raises NgMalformed, also for what is left over after the value.
    """
    try:
        value, end = _decode(data, 0, 0)
    except (ValueError, IndexError) as error:
        raise NgMalformed(f"not bencode: {data[:80]!r}") from error
    if end != len(data):
        raise NgMalformed(f"{len(data) - end} octets are left over after a bencoded value: {data[end:][:80]!r}")
    return value


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    head = data[at:at + 1]
    if head == b"i":
        end = data.index(b"e", at)
        return _number(data[at + 1:end]), end + 1
    if head in (b"l", b"d"):
        at += 1
        items = []
        while data[at:at + 1] != b"e":
            item, at = _decode(data, at, depth + 1)
            items.append(item)
        if head == b"l":
            return items, at + 1
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values) or not all(isinstance(key, str) for key in keys):
            raise ValueError("not a dictionary")
        return dict(zip(keys, values, strict=True)), at + 1
    colon = data.index(b":", at)
    length = _number(data[at:colon])
    end = colon + 1 + length
    if length < 0 or end > len(data):
        raise ValueError("a string ends before its length")
    return data[colon + 1:end].decode("utf-8", "surrogateescape"), end


def _number(digits: bytes) -> int:
    if not digits.removeprefix(b"-").isdigit():
        raise ValueError(f"not a number: {digits!r}")
    return int(digits)


class Datagrams(Protocol):
    """What is used of a UDP socket (socket(7))."""

    def sendto(self, data: bytes, address: tuple[str, int], /) -> int: ...

    def recv(self, size: int, /) -> bytes: ...

    def settimeout(self, seconds: float | None, /) -> None: ...

    def close(self) -> None: ...


class NgClient:
    """Talks to the relay at `address` (IPv4 or IPv6 in text form) and UDP `port`; close() it or use `with`.

    `open_socket` makes the UDP socket: one of another network namespace, say.
    """

    def __init__(self, address: str, port: int, open_socket: Callable[[], Datagrams] | None = None,
                 seconds: float = 5.0) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.address, self.port, self.seconds = address, port, seconds
        self._socket: Datagrams = open_socket() if open_socket else socket.socket(family, socket.SOCK_DGRAM)
        # The relay answers a cookie that it knows from its cache, whoever sends it: no two clients may share one.
        self._cookies = (f"{unique}-{n}".encode() for unique in [secrets.token_hex(8)] for n in itertools.count())

    def __enter__(self) -> NgClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def request(self, command: str, arguments: Mapping[str, Value] | None = None,
                deadline: Deadline | None = None) -> dict[str, Any]:
        """Send `command` and return the answer; sent again with the same cookie until one comes.

        Raises NgNoAnswer at the deadline (`seconds` of the client unless given), NgRefused, NgMalformed.
        """
        limit = deadline or Deadline(self.seconds)
        cookie = next(self._cookies)
        datagram = cookie + b" " + encode({**(arguments or {}), "command": command})
        sent, patience, last_error = 0, _FIRST_RETRY, ""
        while not limit.expired:
            attempt = limit.within(patience)
            try:
                self._socket.sendto(datagram, (self.address, self.port))
                sent += 1
                answer = self._receive(cookie, attempt)
            except OSError as error:
                answer, last_error = None, error.strerror or str(error)
                time.sleep(attempt.remaining)
            if answer is not None:
                return self._checked(command, answer)
            patience *= 2
        raise NgNoAnswer(f"the relay at {self.address} port {self.port} did not answer {command} "
                         f"(sent {sent} times in {limit.seconds:.0f} s){f': {last_error}' if last_error else ''}",
                         hint="is it running, and does it listen there? listen-ng in /etc/rtpengine/rtpengine.conf")

    def ping(self) -> str:
        """`pong` from a relay that lives."""
        return str(self.request("ping").get("result", ""))

    def statistics(self) -> dict[str, Any]:
        """The relay's counters: currentstatistics, totalstatistics, ... Raises NgMalformed where there are none."""
        answer = self.request("statistics").get("statistics")
        if not isinstance(answer, dict):
            raise NgMalformed("the relay's answer to statistics has no statistics")
        return answer

    def calls(self, limit: int = 32) -> list[str]:
        """Call-IDs of up to `limit` calls that the relay has now."""
        return list(self.request("list", {"limit": limit}).get("calls", []))

    def _receive(self, cookie: bytes, attempt: Deadline) -> bytes | None:
        while not attempt.expired:
            self._socket.settimeout(max(attempt.remaining, 0.001))
            try:
                data = self._socket.recv(_LARGEST_DATAGRAM)
            except TimeoutError:
                return None
            found, _, body = data.partition(b" ")
            if found == cookie:
                return body
        return None

    @staticmethod
    def _checked(command: str, body: bytes) -> dict[str, Any]:
        answer = decode(body)
        if not isinstance(answer, dict):
            raise NgMalformed(f"the relay's answer to {command} is no dictionary")
        if answer.get("result") == "error":
            raise NgRefused(command, str(answer.get("error-reason", "no reason given")))
        return answer
