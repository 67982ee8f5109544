"""A stand-in for OpenSIPS, for tests of harness.opensips only. It is not OpenSIPS, and proves nothing about it.

Written from what OpenSIPS 3.6.8 and 4.0.1 put on the wire: its Management Interface over UDP, unix datagrams, a FIFO
and HTTP, and events over UDP, unix datagrams and TCP, with what is odd about them. SIP requests to its UDP port are
counted by source, as the module pike does; calls are answered with 404, which the script tells by an event.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import queue
import re
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVENTS = ("E_CORE_SR_STATUS_CHANGED", "E_CORE_THRESHOLD", "E_CORE_SHM_THRESHOLD", "E_CORE_PKG_THRESHOLD",
          "E_CORE_PROC_AUTO_SCALE", "E_CORE_TCP_DISCONNECT", "E_CORE_LOG", "E_PIKE_BLOCKED", "E_CALL_REFUSED")
DENSITY = 16
"""SIP requests in a unit of 2 s from which on a source is blocked."""
DEFAULT_EXPIRE = 3600
LARGE = 20_000

NAMES_3 = {"version": ("version",), "uptime": ("uptime",), "subscribe": ("event_subscribe",),
           "list": ("events_list",), "subscribers": ("subscribers_list",), "raise": ("raise_event",),
           "pike_list": ("pike_list",), "pike_rm": ("pike_rm",)}
NAMES_4 = {"version": ("version",), "uptime": ("uptime",), "subscribe": ("evi:subscribe", "event_subscribe"),
           "list": ("evi:list", "events_list"), "subscribers": ("evi:subscribers", "subscribers_list"),
           "raise": ("evi:raise", "raise_event"), "pike_list": ("pike:list",), "pike_rm": ("pike:rm",)}


class Refused(Exception):
    def __init__(self, code: int, message: str, data: str = "") -> None:
        super().__init__(message)
        self.error: dict[str, Any] = {"code": code, "message": message, **({"data": data} if data else {})}


@dataclass
class Subscriber:
    socket: str
    expire: int
    since: int
    """By whole seconds, as everything about expiry."""

    def over(self, now: int) -> bool:
        return self.since + self.expire < now

    def listed(self, now: int) -> dict[str, Any]:
        left = self.expire - (now - self.since)
        return {"socket": self.socket, "expire": self.expire, "ttl": left if left > 0 else "expired"}


def same(asked: str, known: str) -> bool:
    """Whether a place is taken for one that is known: of datagrams where that begins with it and has the same port."""
    transport, _, place = asked.partition(":")
    if transport == "tcp":
        return asked == known
    host, port = (place, "") if transport == "unix" else place.rsplit(":", 1)
    return known.startswith(f"{transport}:{host}") and (not port or known.endswith(f":{port}"))


@dataclass
class OpenSipsDouble:
    """`directory` is where its FIFO, unix socket and FIFOs of replies are."""

    version: str
    directory: Path
    answer: Callable[[str], bytes | None] = lambda method: None
    """Octets that are sent for a method, whatever it asks for."""
    silent: bool = False
    cut: int = 0
    """Where it isn't 0, events over TCP leave in pieces of so many octets."""
    unsent: int = 0
    threshold: int = 1
    """Percent of private memory; a large request is what takes more. 0: no event about it."""
    density: int = DENSITY
    commands: list[str] = field(default_factory=list)
    started: int = field(default_factory=lambda: int(time.time()))
    subscribers: dict[str, list[Subscriber]] = field(default_factory=lambda: {name: [] for name in EVENTS})
    red: dict[str, int] = field(default_factory=dict)
    _counted: dict[str, tuple[int, int]] = field(default_factory=dict)
    _unnamed: int = 0
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _streams: queue.SimpleQueue[tuple[tuple[str, int], bytes] | None] = field(default_factory=queue.SimpleQueue)
    ports: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._unix = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for own in (self._udp, self._unix):
            own.setblocking(False)

    @property
    def places(self) -> list[str]:
        return [f"udp:127.0.0.1:{self.ports['mi']}", f"unix:{self.directory / 'mi.sock'}",
                f"fifo:{self.directory / 'opensips_fifo'},{self.directory}", f"http://127.0.0.1:{self.ports['http']}/mi"]

    @property
    def sip(self) -> tuple[str, int]:
        return "127.0.0.1", self.ports["sip"]

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        return NAMES_3 if self.version.startswith("3.") else NAMES_4

    # The Management Interface

    def answered(self, octets: bytes) -> bytes | None:
        """What a request is answered with; None is no answer, b"" the answer of who can't read it."""
        try:
            asked = json.loads(octets)
        except ValueError:
            return b""
        method = asked.get("method")
        if self.silent:
            return None
        if (told := self.answer(method)) is not None:
            return told
        if asked.get("jsonrpc") != "2.0" or not isinstance(method, str):
            return self._reply(asked, error=Refused(-32600, "Invalid Request").error)
        try:
            with self._lock:
                self.commands.append(method)
                result = self._carried_out(method, asked.get("params") or None)
        except Refused as error:
            return self._reply(asked, error=error.error)
        return self._reply(asked, result=result)

    @staticmethod
    def _reply(asked: Mapping[str, Any], **what: Any) -> bytes | None:
        if "id" not in asked:
            return None
        return json.dumps({"jsonrpc": "2.0", **what, "id": asked["id"]}, separators=(",", ":")).encode()

    def _carried_out(self, method: str, params: Any) -> Any:
        known = next((name for name, spelt in self.names.items() if method in spelt), None)
        if known is None:
            if method == "list" and self.names is NAMES_4:
                raise Refused(-32001, "Method ambiguous", "supported names: evi:list, pike:list")
            raise Refused(-32601, "Method not found")
        recipes: dict[str, tuple[tuple[str, ...], ...]] = {
            "subscribe": (("event", "socket"), ("event", "socket", "expire")),
            "raise": (("event",), ("event", "params")),
            "subscribers": ((), ("event",), ("event", "socket")), "pike_rm": (("ip",),)}
        given = self._given(recipes.get(known, ((),)), params)
        return getattr(self, f"_{known}")(**given)

    @staticmethod
    def _given(recipes: Sequence[tuple[str, ...]], params: Any) -> dict[str, Any]:
        count = len(params or ())
        fitting = [recipe for recipe in recipes if len(recipe) == count]
        if not fitting:
            raise Refused(-32602, "Invalid params", "Too few or too many parameters")
        if isinstance(params, dict):
            if set(params) != set(fitting[0]):
                raise Refused(-32602, "Invalid params", "Named parameters do not match")
            return params
        return dict(zip(fitting[0], params or (), strict=True))

    def _version(self) -> Any:
        return {"Server": f"OpenSIPS ({self.version} (x86_64/linux))"}

    def _uptime(self) -> Any:
        now = int(time.time())
        return {"Now": time.ctime(now), "Up since": time.ctime(self.started), "Up time": f"{now - self.started} [sec]"}

    def _list(self) -> Any:
        return {"Events": [{"name": name, "id": number} for number, name in enumerate(self.subscribers)]}

    def _subscribe(self, event: str, socket: str, expire: int = DEFAULT_EXPIRE) -> str:
        if not isinstance(expire, int) or expire < 0:
            raise Refused(-32602, "Invalid params", "Negative expire value")
        transport, _, place = socket.partition(":")
        host, _, port = place.rpartition(":")
        fits = bool(place) if transport == "unix" else transport in ("udp", "tcp") and host and port.isdecimal()
        if event not in self.subscribers or not fits:
            raise Refused(400, "Bad parameter value")
        known = next((one for one in self.subscribers[event] if same(socket, one.socket)), None)
        if known:
            known.expire, known.since = expire, int(time.time())
        else:
            self.subscribers[event].insert(0, Subscriber(socket, expire, int(time.time())))
        return "OK"

    def _subscribers(self, event: str | None = None, socket: str | None = None) -> Any:
        now = int(time.time())
        for name in [event] if event in self.subscribers else self.subscribers:
            self._purge(str(name), now)
        if event is None:
            return {"Events": [self._event(name, now) for name, found in self.subscribers.items() if found]}
        if event not in self.subscribers:
            raise Refused(404, "Event not published")
        if socket is None:
            return {"Event": self._event(event, now)}
        found = next((one for one in self.subscribers[event] if same(socket, one.socket)), None)
        if not found:
            raise Refused(404, "Subscriber does not exist")
        return {"Event": {"name": event, "id": list(self.subscribers).index(event), "Subscriber": found.listed(now)}}

    def _event(self, name: str, now: int) -> dict[str, Any]:
        found = self.subscribers[name]
        return {"name": name, "id": list(self.subscribers).index(name),
                "Subscribers": [one.listed(now) for one in found]} if found else {}

    def _purge(self, name: str, now: int) -> None:
        self.subscribers[name][:] = [one for one in self.subscribers[name] if not one.over(now)]

    def _raise(self, event: str, params: Any = None) -> str:
        if event not in self.subscribers:
            raise Refused(404, "Event not registered")
        if not self.subscribers[event]:
            raise Refused(480, "Temporarily Unavailable")
        if isinstance(params, dict):
            raise Refused(400, "No Params")
        if isinstance(params, str):
            try:
                named = json.loads(params)
            except ValueError:
                named = None
            if not isinstance(named, dict):
                raise Refused(400, "Bad Params")
            params = {name: value if isinstance(value, str | int) and not isinstance(value, bool)
                      else json.dumps(value, separators=(",", ":")) for name, value in named.items()}
        elif params is not None and not all(isinstance(value, str) for value in params):
            raise Refused(400, "Bad Params")
        self.happened(event, params)
        return "OK"

    def _pike_list(self) -> Any:
        now = int(time.time())
        return {"IPs": [ip for ip, until in self.red.items() if now < until]}

    def _pike_rm(self, ip: str) -> str:
        if ip not in self.red:
            raise Refused(404, "Match not found")
        del self.red[ip]
        self._counted.pop(ip, None)
        return "OK"

    # Events

    def happened(self, event: str, params: Mapping[str, Any] | Sequence[Any] | None) -> None:
        """Raise an event: to each subscriber that has not expired."""
        given = json.dumps(params, separators=(",", ":"), ensure_ascii=False)
        if isinstance(params, list):
            # As it happens: what its memory held before decides whether values without names are an array.
            self._unnamed += 1
            if self._unnamed % 2 == 0:
                given = "{" + ",".join(f'"":{json.dumps(value, ensure_ascii=False)}' for value in params) + "}"
        payload = (f'{{"jsonrpc":"2.0","method":"{event}"' + (f',"params":{given}' if params else "") + "}").encode()
        with self._lock:
            self._purge(event, int(time.time()))
            told = [one.socket for one in self.subscribers[event]]
        for place in told:
            self._send(place, payload)

    def script(self, event: str, names: Sequence[str], values: Sequence[Any]) -> None:
        """As raise_event() of a script does: AVPs are a stack, so that what was assigned last comes first."""
        self.happened(event, dict(zip(names[::-1], values[::-1], strict=True)) if names else list(values[::-1]))

    def _send(self, place: str, payload: bytes) -> None:
        transport, _, where = place.partition(":")
        host, _, port = where.rpartition(":")
        if transport == "tcp":
            self._streams.put(((host, int(port)), payload))
            return
        try:
            if transport == "udp":
                self._udp.sendto(payload, (host, int(port)))
            else:
                self._unix.sendto(payload, where)
        except OSError:
            self.unsent += 1

    def _write_streams(self) -> None:
        connections: dict[tuple[str, int], socket.socket] = {}
        while (first := self._streams.get()) is not None:
            waiting = [first]
            while not self._streams.empty() and len(waiting) < 100:
                if (one := self._streams.get()) is None:
                    self._streams.put(None)
                    break
                waiting.append(one)
            for address in dict.fromkeys(address for address, _ in waiting):
                mine = [payload for to, payload in waiting if to == address]
                try:
                    if address in connections and select.select([connections[address]], [], [], 0)[0]:
                        connections.pop(address).close()
                    if address not in connections:
                        connections[address] = socket.create_connection(address, timeout=5)
                        connections[address].setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    data = b"".join(mine)
                    for begin in range(0, len(data), self.cut or len(data)):
                        connections[address].sendall(data[begin:begin + (self.cut or len(data))])
                except OSError:
                    self.unsent += len(mine)
                    if address in connections:
                        connections.pop(address).close()
        for connection in connections.values():
            connection.close()

    def restart(self) -> None:
        """Everything is forgotten, but what is configured."""
        with self._lock:
            self.started = max(int(time.time()), self.started + 1)
            for known in self.subscribers.values():
                known.clear()
            self.red.clear()

    # SIP

    def request(self, data: bytes, source: str) -> bytes | None:
        """As pike and a script do with a request; None where it is not answered."""
        now = int(time.time())
        lines = data.decode(errors="replace").split("\r\n")
        method, _, rest = lines[0].partition(" ")
        if "SIP/2.0" not in rest or method == "ACK":
            return None
        begun, count = self._counted.get(source, (now, 0))
        self._counted[source] = (begun, count + 1) if now - begun < 2 else (now, 1)
        if now < self.red.get(source, 0):
            return None
        if self._counted[source][1] > self.density:
            self.red[source] = now + 120
            self.happened("E_PIKE_BLOCKED", {"ip": source})
            return None
        if len(data) > LARGE and self.threshold:
            self.memory(26)
        status = {"INVITE": "404 Not Found", "OPTIONS": "200 OK"}.get(method, "405 Method Not Allowed")
        if method == "INVITE":
            caller = next(line.split("<")[1].split(">")[0] for line in lines if line.startswith("From:"))
            self.script("E_CALL_REFUSED", ("callee", "caller", "reason", "code"),
                        (rest.split()[0], caller, "Not Found", 404))
        kept = [line for line in lines if line.split(":")[0] in ("Via", "From", "To", "Call-ID", "CSeq")]
        return "\r\n".join([f"SIP/2.0 {status}", *kept, "Content-Length: 0", "", ""]).encode()

    def memory(self, usage: int) -> None:
        """The core's event about private memory; it comes with every percent that changes."""
        self.happened("E_CORE_PKG_THRESHOLD", {"usage": usage, "threshold": self.threshold, "used": 545344,
                                               "size": 2097152, "pid": os.getpid()})


class _Http(http.server.BaseHTTPRequestHandler):
    double: OpenSipsDouble

    def do_POST(self) -> None:
        octets = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer = self.double.answered(octets) if self.path == "/mi" and octets else None
        status = 404 if self.path != "/mi" else 400 if not octets else 202 if answer is None else 200
        self._say(status, answer if answer != b"" else
                  b'{"jsonrpc":"2.0","error":{"code":-32700,"message":"Parse error"},"id":null}')

    def do_GET(self) -> None:
        self._say(405, None)

    def _say(self, status: int, body: bytes | None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        return


@contextmanager
def opensips_double(version: str, directory: Path, ports: Mapping[str, int] | None = None,
                    address: str = "127.0.0.1") -> Iterator[OpenSipsDouble]:
    """A stand-in that ends with the block; `ports` of mi, http and sip (at `address`) are free ones unless given."""
    double = OpenSipsDouble(version, directory)
    wanted = ports or {}
    unix, fifo = directory / "mi.sock", directory / "opensips_fifo"
    os.mkfifo(fifo)
    # Open for writing, too: else it would be at its end with each client.
    commands = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    handler = type("Handler", (_Http,), {"double": double})
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mi, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as \
            sip, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local, \
            http.server.ThreadingHTTPServer(("127.0.0.1", wanted.get("http", 0)), handler) as web:
        mi.bind(("127.0.0.1", wanted.get("mi", 0)))
        sip.bind((address, wanted.get("sip", 0)))
        local.bind(os.fspath(unix))
        double.ports = {"mi": mi.getsockname()[1], "sip": sip.getsockname()[1], "http": web.server_port}
        stop = threading.Event()
        threads = [threading.Thread(target=work, daemon=True) for work in (
            lambda: _serve(double, stop, mi, local, sip, commands), lambda: web.serve_forever(0.02),
            double._write_streams)]
        for thread in threads:
            thread.start()
        try:
            yield double
        finally:
            stop.set()
            web.shutdown()
            double._streams.put(None)
            for thread in threads:
                thread.join()
            os.close(commands)
            for path in (unix, fifo):
                path.unlink()
            double._udp.close()
            double._unix.close()


def _serve(double: OpenSipsDouble, stop: threading.Event, mi: socket.socket, local: socket.socket, sip: socket.socket,
           commands: int) -> None:
    while not stop.is_set():
        for ready in select.select([mi, local, sip, commands], [], [], 0.02)[0]:
            if ready is sip:
                data, peer = sip.recvfrom(65535)
                if (reply := double.request(data, peer[0])) is not None:
                    sip.sendto(reply, peer)
            elif ready is commands:
                _, name, octets = os.read(commands, 4096).split(b":", 2)
                if (answer := double.answered(octets)) is not None:
                    _reply_by_fifo(double.directory / name.decode(), answer)
            else:
                own: socket.socket = ready
                octets, peer = own.recvfrom(65535)
                if (answer := double.answered(octets)) is not None:
                    with contextlib.suppress(OSError):
                        own.sendto(answer or b"400 Parse_error", peer)


def _reply_by_fifo(path: Path, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        number = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(number, answer)
        finally:
            os.close(number)


def main(version: str, directory: str, configuration: str, sip: str) -> None:
    """Runs until SIGTERM, with the ports of our appliance but SIP's; its threshold is what `configuration` says."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    found = re.search(r"^event_pkg_threshold=(\d+)", Path(configuration).read_text(), re.MULTILINE)
    assert found
    with opensips_double(version, Path(directory), {"mi": 8080, "http": 8888, "sip": int(sip)}, "0.0.0.0") as double:
        double.threshold = int(found[1])
        ended.wait()


if __name__ == "__main__":
    main(*sys.argv[1:])
