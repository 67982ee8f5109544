"""An HTTP proxy (RFC 9112, absolute form) in front of real APIs that misbehaves as it is told."""

from __future__ import annotations

import http.client
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_PIECE = 1 << 16


@dataclass
class Fault:
    """What is done to the first `times` requests whose method and path match.

    `status`: answered so, with `headers`, without asking the API. `cut`: `before` the request is handed on, `after`
    it was carried out, or after so many octets of its body. `delay`: seconds before it is handed on.
    """

    method: str
    path: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    cut: str | int = ""
    delay: float = 0.0
    times: int = 1

    def matches(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and re.search(self.path, path) is not None


@dataclass
class Proxy:
    """`seen` has every request that came, as `METHOD path`; `faults` may be added to at any time."""

    address: str
    faults: list[Fault] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, method: str, path: str) -> int:
        return sum(re.fullmatch(f"{method} {path}", line) is not None for line in self.seen)

    def took(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.seen.append(f"{method} {path}")
            fault = next((f for f in self.faults if f.matches(method, path)), None)
            if fault:
                fault.times -= 1
            return fault


@contextmanager
def running() -> Iterator[Proxy]:
    """A proxy on the loopback interface, ended at the end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.proxy = Proxy(f"http://127.0.0.1:{server.server_address[1]}")  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.proxy  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        target = urlsplit(self.path)
        path = target.path + (f"?{target.query}" if target.query else "")
        fault = self.server.proxy.took(self.command, target.path)  # type: ignore[attr-defined]
        self.close_connection = True
        if fault and fault.delay:
            time.sleep(fault.delay)
        if fault and fault.cut == "before":
            return self._hang_up()
        if fault and fault.status:
            self._drain()
            return self._answer(fault.status, {"Content-Type": "application/json", **fault.headers},
                                b'{"error": {"message": "injected"}}')
        upstream = http.client.HTTPConnection(target.hostname or "", target.port or 80, timeout=120)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("proxy-connection", "connection")}
            upstream.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {**headers, "Connection": "close"}.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            limit = fault.cut if fault and isinstance(fault.cut, int) else None
            if not self._pass_body(upstream, limit):
                return self._hang_up()
            response = upstream.getresponse()
            body = response.read()
            if fault and fault.cut == "after":
                return self._hang_up()
            self._answer(response.status, dict(response.getheaders()), body)
        except OSError:
            self._hang_up()
        finally:
            upstream.close()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _handle

    def _pass_body(self, upstream: http.client.HTTPConnection, limit: int | None) -> bool:
        """Hand the body on; False where it was to be cut."""
        left = int(self.headers.get("Content-Length", 0))
        passed = 0
        while left:
            piece = self.rfile.read(min(_PIECE, left))
            if not piece:
                return False
            upstream.send(piece)
            left -= len(piece)
            passed += len(piece)
            if limit is not None and passed >= limit:
                return False
        return True

    def _drain(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _hang_up(self) -> None:
        # SO_LINGER with no time: a reset, as a proxy that dies sends it
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass
