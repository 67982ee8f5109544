"""The ng control protocol of RTPEngine: a cookie, a space, a bencoded dictionary; over UDP, TCP or WebSocket.

Sources: docs/ng_control_protocol.md and docs/tcpng_control_protocol.md of RTPEngine, and its daemon/control_ng.c.
"""

from __future__ import annotations

import secrets
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from harness.deadline import Deadline
from harness.errors import CheckFailed
from harness.voip.bencode import BencodeError, Incomplete, Value, decode, decode_first, encode

_LARGEST_DATAGRAM = 65535
_LARGEST_ANSWER = 1 << 20
_LONGEST_COOKIE = 256
_FIRST_RETRY = 0.5


class NgError(CheckFailed):
    """The relay can't be controlled."""


class NgNoAnswer(NgError):
    """The relay did not answer before the deadline."""


class NgMalformed(NgError):
    """What the relay sent is no answer of the ng protocol."""


class NgRefused(NgError):
    """The relay carried out nothing; `reason` is what it says."""

    def __init__(self, command: str, reason: str) -> None:
        super().__init__(f"the relay refused {command}: {reason}")
        self.reason = reason


class NgUnknownCall(NgRefused):
    """The relay has no call of that Call-ID, or none with those tags."""


class NgOutOfPorts(NgRefused):
    """Every media port of the relay's range is taken."""


class NgLoadLimit(NgRefused):
    """The relay takes no further call: sessions, processor, load or bandwidth are at the limit that was set for it."""


_REFUSALS: dict[str, type[NgRefused]] = {
    "unknown call-id": NgUnknownCall,
    "call-id not found or tags didn't match": NgUnknownCall,
    "ran out of ports": NgOutOfPorts,
    "parallel session limit reached": NgLoadLimit,
}


class Datagrams(Protocol):
    """What is used of a UDP socket (socket(7))."""

    def sendto(self, data: bytes, address: tuple[str, int], /) -> int: ...

    def recv(self, size: int, /) -> bytes: ...

    def settimeout(self, seconds: float | None, /) -> None: ...

    def close(self) -> None: ...


class NgClient:
    """Talks to the relay at `address` (IPv4 or IPv6 in text form) and `port`; close() it or use `with`.

    Over UDP (listen-ng of the relay); over_tcp() and over_websocket() make others. `open_socket` makes the socket: one
    of another network namespace, say. For one thread at a time.
    """

    def __init__(self, address: str, port: int, open_socket: Callable[[], Datagrams] | None = None,
                 seconds: float = 5.0) -> None:
        opened = open_socket() if open_socket else socket.socket(_family(address), socket.SOCK_DGRAM)
        self._start(_Udp(address, port, opened), address, port, seconds)

    @classmethod
    def over_tcp(cls, address: str, port: int, open_socket: Callable[[], socket.socket] | None = None,
                 seconds: float = 5.0) -> NgClient:
        """A client of a relay that has listen-tcp-ng (mr9.3 and later); it connects with the first request.

        Up to 12.5 at least, the relay hangs up when it has read more than 1024 octets of a request but not all.
        """
        client = cls.__new__(cls)
        client._start(_Tcp(address, port, open_socket or _stream_socket(address)), address, port, seconds)
        return client

    @classmethod
    def over_websocket(cls, address: str, port: int, open_socket: Callable[[], socket.socket] | None = None,
                       seconds: float = 5.0) -> NgClient:
        """A client of a relay that has listen-http (mr9.1 and later); it connects with the first request.

        Needs the package websocket-client.
        """
        from harness.voip.ngweb import WebSocketWay

        client = cls.__new__(cls)
        client._start(WebSocketWay(address, port, open_socket or _stream_socket(address)), address, port, seconds)
        return client

    def _start(self, way: _Way, address: str, port: int, seconds: float) -> None:
        self.address, self.port, self.seconds = address, port, seconds
        self._way = way

    def __enter__(self) -> NgClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._way.close()

    def request(self, command: str, arguments: Mapping[str, Value] | None = None,
                deadline: Deadline | None = None) -> dict[str, Any]:
        """Send `command` and return the answer; sent again with the same cookie until one comes.

        The relay answers a cookie that it knows from its cache (for 30 to 60 s), whoever sends it: so a command is
        carried out once however often it is sent, and each request has a cookie that nobody used before.
        Raises NgNoAnswer at the deadline (`seconds` of the client unless given), NgRefused, NgMalformed.
        """
        limit = deadline or Deadline(self.seconds)
        cookie = secrets.token_hex(8).encode()
        message = cookie + b" " + encode({**(arguments or {}), "command": command})
        sent, patience, last_error = 0, _FIRST_RETRY, ""
        while not limit.expired:
            attempt = limit.within(patience)
            try:
                self._way.send(message, attempt)
                sent += 1
                answer = self._way.receive(cookie, attempt)
            except OSError as error:
                answer, last_error = None, error.strerror or str(error)
                time.sleep(attempt.remaining)
            if answer is not None:
                return _checked(command, answer)
            patience *= 2
        raise NgNoAnswer(f"the relay at {self.address} port {self.port} did not answer {command} "
                         f"(sent {sent} times in {limit.seconds:.0f} s){f': {last_error}' if last_error else ''}",
                         hint="is it running, and does it listen there? "
                              f"{self._way.option} in /etc/rtpengine/rtpengine.conf")

    def ping(self) -> str:
        """`pong` from a relay that lives."""
        return str(self.request("ping").get("result", ""))

    def offer(self, call_id: str, from_tag: str, sdp: str, options: Mapping[str, Value] | None = None,
              deadline: Deadline | None = None) -> str:
        """Tell the relay what the caller offers; returns the SDP that the callee is to get.

        `options` are further keys of the protocol, as `{"flags": ["strict source"], "address-family": "IP6"}`.
        Raises NgOutOfPorts, NgLoadLimit and what request() raises.
        """
        return self._described("offer", {"call-id": call_id, "from-tag": from_tag, "sdp": sdp}, options, deadline)

    def answer(self, call_id: str, from_tag: str, to_tag: str, sdp: str, options: Mapping[str, Value] | None = None,
               deadline: Deadline | None = None) -> str:
        """Tell the relay what the callee answers; returns the SDP that the caller is to get.

        Both tags are those of the offer's direction. Raises NgUnknownCall and what offer() raises.
        """
        return self._described("answer", {"call-id": call_id, "from-tag": from_tag, "to-tag": to_tag, "sdp": sdp},
                               options, deadline)

    def delete(self, call_id: str, from_tag: str, delay: int = 0, deadline: Deadline | None = None) -> dict[str, Any]:
        """End a call; its ports are free after `delay` seconds. Returns its final counters, as query() does.

        Raises NgUnknownCall where the relay has no such call, and what request() raises.
        """
        return self.request("delete", {"call-id": call_id, "from-tag": from_tag, "delete-delay": delay,
                                       "flags": ["fatal"]}, deadline)

    def query(self, call_id: str) -> dict[str, Any]:
        """What the relay knows of a call: `tags` with their medias and streams, `totals` of packets and octets.

        Raises NgUnknownCall.
        """
        answer = self.request("query", {"call-id": call_id})
        if not isinstance(answer.get("tags"), dict) or not isinstance(answer.get("totals"), dict):
            raise NgMalformed("the relay's answer to query has no tags and totals")
        return answer

    def statistics(self) -> dict[str, Any]:
        """The relay's counters: currentstatistics, totalstatistics, ... Raises NgMalformed where there are none."""
        answer = self.request("statistics").get("statistics")
        if not isinstance(answer, dict):
            raise NgMalformed("the relay's answer to statistics has no statistics")
        return answer

    def calls(self, limit: int = 32) -> list[str]:
        """Call-IDs of up to `limit` calls that the relay has now (its command `list`)."""
        calls = self.request("list", {"limit": limit}).get("calls")
        if not isinstance(calls, list) or not all(isinstance(call, str) for call in calls):
            raise NgMalformed("the relay's answer to list has no calls")
        return calls

    def _described(self, command: str, arguments: Mapping[str, Value], options: Mapping[str, Value] | None,
                   deadline: Deadline | None) -> str:
        sdp = self.request(command, {**(options or {}), **arguments}, deadline).get("sdp")
        if not isinstance(sdp, str):
            raise NgMalformed(f"the relay's answer to {command} has no SDP")
        return sdp


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _stream_socket(address: str) -> Callable[[], socket.socket]:
    return lambda: socket.socket(_family(address), socket.SOCK_STREAM)


def _checked(command: str, body: bytes) -> dict[str, Any]:
    try:
        answer = decode(body)
    except BencodeError as error:
        raise NgMalformed(f"the relay's answer to {command} is {error}") from error
    if not isinstance(answer, dict):
        raise NgMalformed(f"the relay's answer to {command} is no dictionary")
    if (result := answer.get("result")) == "error":
        reason = str(answer.get("error-reason", "no reason given"))
        raise _REFUSALS.get(reason.lower(), NgRefused)(command, reason)
    if result == "load limit":
        raise NgLoadLimit(command, str(answer.get("message", "load limit")))
    if result not in ("ok", "pong"):
        raise NgMalformed(f"the relay's answer to {command} has the result {result!r}")
    return answer


class _Way(Protocol):
    """How messages get to the relay and back. Raises OSError where it is broken."""

    option: str

    def send(self, message: bytes, attempt: Deadline) -> None: ...

    def receive(self, cookie: bytes, attempt: Deadline) -> bytes | None:
        """What follows `cookie` and the space; other cookies' answers are passed over. None at the deadline."""

    def close(self) -> None: ...


class _Udp:
    option = "listen-ng"

    def __init__(self, address: str, port: int, datagrams: Datagrams) -> None:
        self._to, self._socket = (address, port), datagrams

    def send(self, message: bytes, attempt: Deadline) -> None:
        self._socket.sendto(message, self._to)

    def receive(self, cookie: bytes, attempt: Deadline) -> bytes | None:
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

    def close(self) -> None:
        self._socket.close()


class _Tcp:
    """A message has no length before it and nothing after it: it ends where its bencoded value does."""

    option = "listen-tcp-ng"

    def __init__(self, address: str, port: int, open_socket: Callable[[], socket.socket]) -> None:
        self._to, self._open = (address, port), open_socket
        self._socket: socket.socket | None = None
        self._rest = b""

    def send(self, message: bytes, attempt: Deadline) -> None:
        new = self._socket is None
        if self._socket is None:
            self._socket = self._open()
        self._socket.settimeout(max(attempt.remaining, 0.001))
        if new:
            self._connected(lambda s: s.connect(self._to))
        self._connected(lambda s: s.sendall(message))

    def receive(self, cookie: bytes, attempt: Deadline) -> bytes | None:
        while (message := self._next()) is None or message[0] != cookie:
            if message is not None:
                continue  # what the relay tells everybody, DTMF say, or the answer to a request that was given up
            if self._socket is None or attempt.expired:
                self.close()
                return None
            self._socket.settimeout(max(attempt.remaining, 0.001))
            try:
                data = self._connected(lambda s: s.recv(_LARGEST_DATAGRAM))
            except TimeoutError:
                # A peer that vanished sends no reset: the next attempt is over a new connection.
                return None
            if not data:
                self.close()
                raise ConnectionResetError(104, "the relay closed the connection")
            self._rest += data
        return message[1]

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._rest = None, b""

    def _connected(self, action: Callable[[socket.socket], Any]) -> Any:
        assert self._socket is not None
        try:
            return action(self._socket)
        except OSError:
            self.close()
            raise

    def _next(self) -> tuple[bytes, bytes] | None:
        """Cookie and body of the first whole message that was received. Raises NgMalformed."""
        cookie, found, _ = self._rest.partition(b" ")
        begin = len(cookie) + 1
        try:
            if len(cookie) > _LONGEST_COOKIE or len(self._rest) > _LARGEST_ANSWER:
                raise BencodeError(f"no message of the ng protocol: {self._rest[:80]!r}")
            if not found:
                return None
            _, end = decode_first(self._rest, begin)
        except Incomplete:
            return None
        except BencodeError as error:
            self.close()
            raise NgMalformed(f"the relay at {self._to[0]} port {self._to[1]} sent {error}") from error
        body, self._rest = self._rest[begin:end], self._rest[end:]
        return cookie, body
