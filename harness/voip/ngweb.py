"""The ng control protocol over WebSocket (RFC 6455): each of its messages is a message of ng, cookie included.

Source: the README of RTPEngine, "HTTP/WebSocket support". Needs the package websocket-client.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from websocket import ABNF, WebSocket, WebSocketException, WebSocketTimeoutException

from harness.deadline import Deadline

_SUBPROTOCOL = "ng.rtpengine.com"


class WebSocketWay:
    """How messages get to the relay and back; connects with the first one."""

    option = "listen-http"

    def __init__(self, address: str, port: int, open_socket: Callable[[], socket.socket]) -> None:
        self._to, self._open = (address, port), open_socket
        self._opened: Any = None

    def send(self, message: bytes, attempt: Deadline) -> None:
        """Raises OSError where that is broken."""
        with self._broken_as_oserror():
            if self._opened is None:
                self._opened = self._connected(attempt)
            self._opened.settimeout(max(attempt.remaining, 0.001))
            self._opened.send_bytes(message)

    def receive(self, cookie: bytes, attempt: Deadline) -> bytes | None:
        """What follows `cookie` and the space; other cookies' answers are passed over. None at the deadline, after
        which the connection is another. Raises OSError where it is broken."""
        while self._opened is not None and not attempt.expired:
            self._opened.settimeout(max(attempt.remaining, 0.001))
            try:
                with self._broken_as_oserror():
                    kind, data = self._opened.recv_data()
            except TimeoutError:
                return None
            if kind == ABNF.OPCODE_CLOSE:
                self.close()
                raise ConnectionResetError(104, "the relay closed the connection")
            found, _, body = data.partition(b" ")
            if found == cookie:
                return bytes(body)
        self.close()
        return None

    def close(self) -> None:
        if self._opened is not None:
            self._opened.shutdown()
        self._opened = None

    def _connected(self, attempt: Deadline) -> Any:
        own, (address, port) = self._open(), self._to
        try:
            own.settimeout(max(attempt.remaining, 0.001))
            own.connect(self._to)
            opened: Any = WebSocket()
            opened.connect(f"ws://{f'[{address}]' if ':' in address else address}:{port}/", socket=own,
                           timeout=max(attempt.remaining, 0.001), subprotocols=[_SUBPROTOCOL], suppress_origin=True)
        except BaseException:
            own.close()
            raise
        return opened

    @contextmanager
    def _broken_as_oserror(self) -> Iterator[None]:
        """A connection on which anything fails is given up."""
        try:
            yield
        except (OSError, WebSocketException) as error:
            self.close()
            if isinstance(error, OSError):
                raise
            kind = TimeoutError if isinstance(error, WebSocketTimeoutException) else ConnectionError
            raise kind(0, str(error)) from error
