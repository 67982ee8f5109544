"""A proxy in front of real APIs that misbehaves as it is told."""

from __future__ import annotations

import http.client
import re
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from harness.bench import proxy


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
class Proxy(proxy.Proxy):
    """`faults` may be added to at any time."""

    faults: list[Fault] = field(default_factory=list)

    def took(self, method: str, path: str) -> Fault | None:
        self.saw(method, path)
        with self.lock:
            fault = next((f for f in self.faults if f.matches(method, path)), None)
            if fault:
                fault.times -= 1
            return fault


def running() -> AbstractContextManager[Proxy]:
    """A proxy on the loopback interface, ended at the end."""
    return proxy.serving(Proxy, _Handler)


class _Handler(proxy.Handler):
    fault: Fault | None = None

    def handle_request(self) -> None:
        target = urlsplit(self.path)
        self.fault = fault = self.proxy.took(self.command, target.path)
        if fault and fault.delay:
            time.sleep(fault.delay)
        if fault and fault.cut == "before":
            self.hang_up()
        elif fault and fault.status:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.answer(fault.status, {"Content-Type": "application/json", **fault.headers},
                        b'{"error": {"message": "injected"}}')
        else:
            self.hand_on(target)

    def pass_body(self, upstream: http.client.HTTPConnection) -> bool:
        if not self.fault or not isinstance(self.fault.cut, int):
            return super().pass_body(upstream)
        length = int(self.headers.get("Content-Length", 0))
        upstream.send(self.rfile.read(min(self.fault.cut, length)))
        return length < self.fault.cut

    def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        if self.fault and self.fault.cut == "after":
            self.hang_up()
        else:
            super().answer(status, headers, body)
