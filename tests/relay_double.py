"""A test double of a media relay, for unit tests of harness.voip only: it proves nothing about RTPEngine.

It speaks the ng protocol over UDP, TCP and WebSocket and really relays datagrams between its own ports, and it loses,
reorders, duplicates, delays and marks packets as it is told.
"""

from __future__ import annotations

import base64
import hashlib
import heapq
import itertools
import re
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harness.voip.bencode import Incomplete, decode, decode_first, encode


def never(number: int) -> bool:
    return False


@dataclass
class Faults:
    """What is done to the RTP packets of every direction, by their number: 0 is the first that comes."""

    lose: Callable[[int], bool] = never
    duplicate: Callable[[int], bool] = never
    swap: Callable[[int], bool] = never
    """Sent after the packet that comes next."""
    delay: Callable[[int], float] = lambda number: 0.0
    """Seconds."""
    rewrite: Callable[[int, bytes], bytes] = lambda number, data: data
    tos: int = 0
    relayed: bool = True
    follow: bool = False
    """An end of a call is where the last packet came from."""


@dataclass
class Leg:
    """A relay's socket; what comes in goes out of `other`, to where that one's `to` is."""

    own: socket.socket
    rtp: bool
    to: tuple[str, int] | None = None
    other: Leg | None = None
    count: int = 0
    held: bytes | None = None

    @property
    def port(self) -> int:
        return int(self.own.getsockname()[1])


@dataclass
class DoubledCall:
    tags: list[str]
    caller: list[Leg]
    callee: list[Leg]


@dataclass
class RelayDouble:
    """`port` takes ng over UDP, TCP and WebSocket; `commands` counts what was carried out, `refuse` maps commands to
    reasons."""

    faults: Faults = field(default_factory=Faults)
    refuse: dict[str, str] = field(default_factory=dict)
    answers: dict[str, bytes] = field(default_factory=dict)
    """The body that is sent for a command, whatever it asks for."""
    lose_answers: int = 0
    """So many of the next commands are carried out, but their answers get lost."""
    most_calls: int = 1000
    port: int = 0
    calls: dict[str, DoubledCall] = field(default_factory=dict)
    commands: Counter[str] = field(default_factory=Counter)
    arguments: list[dict[str, Any]] = field(default_factory=list)
    _cache: dict[bytes, bytes] = field(default_factory=dict)
    _due: list[tuple[float, int, Leg, bytes]] = field(default_factory=list)
    _order: Iterator[int] = field(default_factory=itertools.count)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _stop: bool = False

    def carried_out(self, cookie: bytes, body: bytes) -> bytes:
        if cookie not in self._cache:
            arguments = decode(body)
            self.commands[arguments["command"]] += 1
            self.arguments.append(arguments)
            self._cache[cookie] = self.answers.get(arguments["command"]) or encode(self._answer(arguments))
        return self._cache[cookie]

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        command, call_id = asked["command"], asked.get("call-id", "")
        if command in self.refuse:
            return {"result": "error", "error-reason": self.refuse[command]}
        if command == "ping":
            return {"result": "pong"}
        if command == "list":
            return {"result": "ok", "calls": list(self.calls)[:asked["limit"]]}
        if command == "statistics":
            return {"result": "ok", "statistics": {"currentstatistics": {"sessionstotal": len(self.calls)}}}
        if command == "offer":
            if len(self.calls) >= self.most_calls:
                return {"result": "error", "error-reason": "Ran out of ports"}
            call = self.calls[call_id] = DoubledCall([asked["from-tag"]], self._legs(asked["sdp"]), [])
            call.callee = self._legs(asked["sdp"], asked.get("address-family"))
            for one, other in zip(call.caller, call.callee, strict=True):
                one.other, other.other = other, one
            self._heard_of(call.caller, asked["sdp"])
            return {"result": "ok", "sdp": self._rewritten(asked["sdp"], call.callee)}
        if call_id not in self.calls:
            return {"result": "error", "error-reason": "Unknown call-id"}
        call = self.calls[call_id]
        if command == "answer":
            self._heard_of(call.callee, asked["sdp"])
            return {"result": "ok", "sdp": self._rewritten(asked["sdp"], call.caller)}
        packets = sum(leg.count for leg in call.caller + call.callee if leg.rtp)
        counters = {"result": "ok", "tags": {tag: {} for tag in call.tags}, "totals": {"RTP": {"packets": packets}}}
        if command == "delete":
            for leg in call.caller + call.callee:
                self._selector.unregister(leg.own)
                leg.own.close()
            del self.calls[call_id]
        if command in ("query", "delete"):
            return counters
        return {"result": "error", "error-reason": "Unrecognized command"}

    def _legs(self, sdp: str, family: str | None = None) -> list[Leg]:
        version6 = "IP6" in (family or sdp)
        while True:
            rtp, rtcp = (socket.socket(socket.AF_INET6 if version6 else socket.AF_INET, socket.SOCK_DGRAM)
                         for _ in range(2))
            rtp.bind(("::1" if version6 else "127.0.0.1", 0))
            try:
                rtcp.bind((rtp.getsockname()[0], rtp.getsockname()[1] + 1))
                break
            except (OSError, OverflowError):
                rtp.close()
                rtcp.close()
        legs = [Leg(rtp, True), Leg(rtcp, False)]
        for leg in legs:
            leg.own.setblocking(False)
            if leg.rtp and self.faults.tos:
                level, option = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS) if version6 else (
                    socket.IPPROTO_IP, socket.IP_TOS)
                leg.own.setsockopt(level, option, self.faults.tos)
            self._selector.register(leg.own, selectors.EVENT_READ, leg)
        return legs

    @staticmethod
    def _heard_of(legs: list[Leg], sdp: str) -> None:
        address = re.search(r"^c=IN IP\d (\S+)", sdp, re.MULTILINE)
        port = re.search(r"^m=audio (\d+)", sdp, re.MULTILINE)
        assert address and port
        for number, leg in enumerate(legs):
            leg.to = (address[1], int(port[1]) + number)

    @staticmethod
    def _rewritten(sdp: str, legs: list[Leg]) -> str:
        address, port = legs[0].own.getsockname()[:2]
        family = "IP6" if ":" in address else "IP4"
        sdp = re.sub(r"IN IP\d \S+", f"IN {family} {address}", sdp)
        sdp = re.sub(r"^(a=rtcp:)\d+", rf"\g<1>{port + 1}", sdp, flags=re.MULTILINE)
        return re.sub(r"^m=audio \d+", f"m=audio {port}", sdp, flags=re.MULTILINE)

    def _relay(self, leg: Leg, data: bytes) -> None:
        number, leg.count = leg.count, leg.count + 1
        out = leg.other
        if out is None or not self.faults.relayed:
            return
        if not leg.rtp:
            self._send(out, data, 0.0)
            return
        if self.faults.lose(number):
            return
        data = self.faults.rewrite(number, data)
        if self.faults.swap(number):
            leg.held = data
            return
        for _ in range(2 if self.faults.duplicate(number) else 1):
            self._send(out, data, self.faults.delay(number))
        if leg.held is not None:
            held, leg.held = leg.held, None
            self._send(out, held, 0.0)

    def _send(self, leg: Leg, data: bytes, delay: float) -> None:
        heapq.heappush(self._due, (time.monotonic() + delay, next(self._order), leg, data))

    def _serve(self, datagrams: socket.socket, listener: socket.socket) -> None:
        self._selector.register(datagrams, selectors.EVENT_READ, "udp")
        self._selector.register(listener, selectors.EVENT_READ, "listen")
        streams: dict[socket.socket, bytes] = {}
        while not self._stop:
            wait = max(self._due[0][0] - time.monotonic(), 0.0) if self._due else 0.02
            for key, _ in self._selector.select(min(wait, 0.02)):
                own: Any = key.fileobj
                if key.data == "udp":
                    data, peer = datagrams.recvfrom(65535)
                    cookie, _, body = data.partition(b" ")
                    self._reply(cookie, body, lambda reply, peer=peer: datagrams.sendto(reply, peer))
                elif key.data == "listen":
                    stream, _ = listener.accept()
                    streams[stream] = b""
                    self._selector.register(stream, selectors.EVENT_READ, "tcp")
                elif key.data == "tcp":
                    self._read(own, streams)
                elif key.data == "websocket":
                    self._read_messages(own, streams)
                else:
                    try:
                        while own.fileno() >= 0:
                            data, source = own.recvfrom(2048)
                            if self.faults.follow:
                                key.data.to = source
                            self._relay(key.data, data)
                    except BlockingIOError:
                        pass
            while self._due and self._due[0][0] <= time.monotonic():
                _, _, leg, data = heapq.heappop(self._due)
                if leg.to is not None and leg.own.fileno() >= 0:
                    leg.own.sendto(data, leg.to)
        for own in streams:
            own.close()

    def _read(self, own: socket.socket, streams: dict[socket.socket, bytes]) -> None:
        data = own.recv(65536)
        streams[own] += data
        if streams[own].startswith(b"GET "):
            self._shake_hands(own, streams)
            return
        cookie, _, body = streams[own].partition(b" ")
        try:
            _, end = decode_first(body)
        except Incomplete:
            end = 0
        if end:
            streams[own] = body[end:]
            # In two pieces, after what RTPEngine sends to everybody.
            def reply(text: bytes) -> None:
                own.sendall(b"notice d4:tone1:5e" + text[:9])
                time.sleep(0.01)
                own.sendall(text[9:])

            if not self._reply(cookie, body[:end], reply):
                data = b""
        if not data:
            self._selector.unregister(own)
            streams.pop(own)
            own.close()

    def _shake_hands(self, own: socket.socket, streams: dict[socket.socket, bytes]) -> None:
        """RFC 6455, 4.2.2."""
        if not streams[own].endswith(b"\r\n\r\n"):
            return
        key = re.search(rb"Sec-WebSocket-Key: (\S+)", streams[own])
        assert key and b"Sec-WebSocket-Protocol: ng.rtpengine.com\r\n" in streams[own]
        accept = base64.b64encode(hashlib.sha1(key[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        own.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Protocol: ng.rtpengine.com\r\nSec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        streams[own] = b""
        self._selector.modify(own, selectors.EVENT_READ, "websocket")

    def _read_messages(self, own: socket.socket, streams: dict[socket.socket, bytes]) -> None:
        """RFC 6455, 5.2: messages of one frame, below 64 KiB."""
        data = own.recv(65536)
        seen = streams[own] = streams[own] + data
        open_still = bool(data)
        while open_still and len(seen) > 6:
            long = seen[1] & 0x7F == 126
            length, begin = (int.from_bytes(seen[2:4], "big"), 8) if long else (seen[1] & 0x7F, 6)
            if len(seen) < begin + length:
                break
            mask = seen[begin - 4:begin]
            text = bytes(octet ^ mask[n % 4] for n, octet in enumerate(seen[begin:begin + length]))
            opcode, seen = seen[0] & 0x0F, seen[begin + length:]
            cookie, _, body = text.partition(b" ")
            open_still = opcode in (1, 2) and self._reply(
                cookie, body, lambda reply: own.sendall(b"".join(map(framed, (b"notice d4:tone1:5e", reply)))))
        streams[own] = seen
        if not open_still:
            self._selector.unregister(own)
            streams.pop(own)
            own.close()

    def _reply(self, cookie: bytes, body: bytes, send: Callable[[bytes], object]) -> bool:
        answer = self.carried_out(cookie, body)
        if self.lose_answers:
            self.lose_answers -= 1
            return False
        send(cookie + b" " + answer)
        return True


def framed(message: bytes) -> bytes:
    """A binary message of a server as one frame (RFC 6455, 5.2)."""
    length = len(message)
    return b"\x82" + (bytes([length]) if length < 126 else b"\x7e" + length.to_bytes(2, "big")) + message


@contextmanager
def relay_double(faults: Faults | None = None, address: str = "127.0.0.1") -> Iterator[RelayDouble]:
    """A relay double on a port of `address` that ends with the block."""
    double = RelayDouble(faults or Faults())
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as datagrams, socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        listener.listen()
        double.port = listener.getsockname()[1]
        datagrams.bind((address, double.port))
        thread = threading.Thread(target=double._serve, args=(datagrams, listener))
        thread.start()
        try:
            yield double
        finally:
            double._stop = True
            thread.join()
            for call in double.calls.values():
                for leg in call.caller + call.callee:
                    leg.own.close()
            double._selector.close()
