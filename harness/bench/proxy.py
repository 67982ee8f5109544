"""An HTTP proxy (RFC 9112, absolute form) in front of real APIs: it hands every request on, and has seen it."""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

_PIECE = 1 << 16


@dataclass
class Proxy:
    """`seen` has every request that came, as `METHOD path`."""

    address: str
    seen: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, method: str, path: str) -> int:
        """Requests whose path is matched whole by the expression `path`."""
        return sum(re.fullmatch(f"{method} {path}", line) is not None for line in self.seen)

    def saw(self, method: str, path: str) -> None:
        with self.lock:
            self.seen.append(f"{method} {path}")


P = TypeVar("P", bound=Proxy)


@contextmanager
def serving(make: Callable[[str], P], handler: type[Handler]) -> Iterator[P]:
    """A proxy on the loopback interface, made of its address; ended at the end."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    proxy = make(f"http://127.0.0.1:{server.server_address[1]}")
    server.proxy = proxy  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    """One connection, of one request."""

    protocol_version = "HTTP/1.1"

    @property
    def proxy(self) -> Any:
        return self.server.proxy  # type: ignore[attr-defined]

    def handle_request(self) -> None:
        target = urlsplit(self.path)
        self.proxy.saw(self.command, target.path)
        self.hand_on(target)

    def _do(self) -> None:
        self.close_connection = True
        self.handle_request()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _do

    def hand_on(self, target: SplitResult) -> None:
        path = target.path + (f"?{target.query}" if target.query else "")
        upstream = http.client.HTTPConnection(target.hostname or "", target.port or 80, timeout=120)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in ("proxy-connection", "connection")}
            upstream.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {**headers, "Connection": "close"}.items():
                upstream.putheader(name, value)
            upstream.endheaders()
            if not self.pass_body(upstream):
                return self.hang_up()
            response = upstream.getresponse()
            self.answer(response.status, dict(response.getheaders()), response.read())
        except OSError:
            self.hang_up()
        finally:
            upstream.close()

    def pass_body(self, upstream: http.client.HTTPConnection) -> bool:
        """Hand the body on; False where it did not come whole."""
        left = int(self.headers.get("Content-Length", 0))
        while left:
            piece = self.rfile.read(min(_PIECE, left))
            if not piece:
                return False
            upstream.send(piece)
            left -= len(piece)
        return True

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def hang_up(self) -> None:
        # SO_LINGER with no time: a reset, as a proxy that dies sends it
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass
