"""An RTP endpoint: an address with a socket for RTP and one for RTCP, what it sends and what it receives."""

from __future__ import annotations

import secrets
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from harness.errors import HostError
from harness.voip import batch, rtcp, rtp
from harness.voip.rtp import CLOCK, PCMU, Codec
from harness.voip.sdp import Media
from harness.voip.stats import Received

if TYPE_CHECKING:
    from harness.voip.traffic import Flow

OpenSocket = Callable[[socket.SocketKind, socket.AddressFamily], socket.socket]
_ATTEMPTS: Final = 50
_BUFFER: Final = 8 << 20
_DISCARD: Final = 9


class Stream:
    """One RTP stream that `endpoint` sends to `target`, its reports to `rtcp_target`; `ptime` is ms between packets.

    `peer` is the stream of the other direction: its reception is what this one's reports tell. A stream that does not
    `send` only reports. SSRC, first sequence number and timestamp are random (RFC 3550, 5.1), as is `sender`, the
    number in the mark by which a receiver knows whose packets it got.
    """

    def __init__(self, endpoint: Endpoint, codec: Codec, ptime: int, sends: bool) -> None:
        self.endpoint, self.codec, self.ptime, self.sends = endpoint, codec, ptime, sends
        self.samples = CLOCK * ptime // 1000
        """Timestamp units, and octets of G.711, in a packet."""
        self.target = self.rtcp_target = ("", 0)
        self.peer: Stream | None = None
        self.ssrc, self.sender = secrets.randbits(32), secrets.randbits(31) + 1
        self.sequence, self.timestamp = secrets.randbits(16), secrets.randbits(32)
        """Of the packet that is sent next."""
        self.packets = self.sent_at = 0
        """Packets whose time to be sent has come, and when the last one was sent (ns since 1970)."""
        self.failed: Counter[str] = Counter()
        """Packets of these that the system refused to send, by error (`ENETUNREACH`)."""
        self.remote: rtcp.Block | None = None
        """What the other side's last report said of this stream."""
        self.round_trip: float | None = None
        """Seconds, by that report."""

    @property
    def media(self) -> Media:
        """What a session description says of it: where its endpoint receives, and how."""
        end = self.endpoint
        return Media(end.address, end.port, (end.address, end.rtcp_port), (str(self.codec.payload_type),),
                     direction="sendrecv" if self.sends else "recvonly", ptime=self.ptime)

    def towards(self, media: Media) -> None:
        """Send to where `media` of a session description says."""
        self.target, self.rtcp_target = (media.address, media.port), media.rtcp

    @property
    def key(self) -> int:
        return rtp.key(self.ssrc, self.sender)

    @property
    def sent(self) -> int:
        """Packets that left."""
        self.endpoint.refresh()
        return self.packets - self.failed.total()


class Place(Protocol):
    """Where endpoints are that are not in this process."""

    def flow(self, streams: Sequence[Stream], report_every: float) -> Flow:
        """What is to send and receive there, see harness.voip.traffic."""


class Endpoint:
    """Two UDP sockets on `address`: RTP on `port` (0: any even one that is free), RTCP on the next; close() it.

    It may send and receive any number of streams. `tos` marks all that it sends (TOS octet or traffic class, 0 to 255).
    `open_socket` makes its sockets, in another network namespace, say. Raises HostError where they can't be had.
    """

    place: Place | None = None
    """Where its sockets are; None: in this process."""

    def __init__(self, address: str, *, port: int = 0, tos: int = 0,
                 open_socket: OpenSocket | None = None) -> None:
        self._blank(address)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        opener = open_socket or _here
        self.rtp, self.rtcp = _pair(address, port, lambda: opener(socket.SOCK_DGRAM, family))
        for own in (self.rtp, self.rtcp):
            batch.options(own, tos, _BUFFER)

    def _blank(self, address: str) -> None:
        self.address = address
        self.streams: dict[int, Stream] = {}
        """By SSRC."""
        self.received: dict[int, Received] = {}
        """By key, see rtp.key(). What bears no mark of ours has its SSRC alone as key."""
        self.sender_reports: dict[int, tuple[int, int]] = {}
        """By SSRC: middle of the NTP timestamp of the last sender report, and when it came."""
        self.unrecognised = 0
        """Datagrams that were neither RTP nor RTCP."""

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.rtp.close()
        self.rtcp.close()

    @property
    def port(self) -> int:
        return int(self.rtp.getsockname()[1])

    @property
    def rtcp_port(self) -> int:
        return int(self.rtcp.getsockname()[1])

    def refresh(self) -> None:
        """Bring what is known of it and its streams up to date, where that is not done by this process itself."""

    def clock(self) -> int:
        """Nanoseconds since 1970 by the clock of its host."""
        return time.time_ns()

    def stream(self, codec: Codec = PCMU, ptime: int = 20, *, sends: bool = True) -> Stream:
        """A new stream, which goes nowhere yet; its SSRC is no other's here. `ptime` is in milliseconds."""
        stream = Stream(self, codec, ptime, sends)
        while stream.ssrc in self.streams:
            stream.ssrc = secrets.randbits(32)
        self.streams[stream.ssrc] = stream
        return stream

    def heard_from(self, sender: int) -> dict[int, Received]:
        """All that came from this sender, by key: of one SSRC, unless the relay changed it."""
        self.refresh()
        return {key: self.received[key] for key in list(self.received) if key & 0xFFFFFFFF == sender}

    def forget(self, sender: int) -> None:
        """What comes from this sender from now on counts anew."""
        for key in [key for key in list(self.received) if key & 0xFFFFFFFF == sender]:
            self.received.pop(key, None)

    def strangers(self) -> dict[int, Received]:
        """What came from others than the peers of this endpoint's streams: SSRC (above 32 bits) and sender as key.

        What this endpoint itself sent is among it: a loop (RFC 3550, 8.2).
        """
        self.refresh()
        known = {stream.peer.sender for stream in self.streams.values() if stream.peer}
        return {key: self.received[key] for key in list(self.received) if key & 0xFFFFFFFF not in known}

    def report(self, stream: Stream, now: int) -> bytes:
        """The RTCP that `stream` owes the other side, at `now` nanoseconds since 1970."""
        peers = [stream.peer.key] if stream.peer else list(self.received)
        blocks = tuple(self._block(key >> 32, self.received[key], now) for key in peers if key in self.received)
        sent = None
        if stream.sent:
            moment = stream.timestamp - stream.samples + (now - stream.sent_at) * CLOCK // 10**9
            sent = rtcp.Sent(rtcp.ntp(now), moment, stream.sent, stream.sent * stream.samples)
        report = rtcp.Report(stream.ssrc, sent, blocks[:rtcp.MOST_BLOCKS])
        return rtcp.build(report, f"{stream.ssrc:08x}@{self.address}")

    def _block(self, ssrc: int, seen: Received, now: int) -> rtcp.Block:
        last_report, came = self.sender_reports.get(ssrc, (0, now))
        return rtcp.Block(ssrc, seen.fraction_lost(), seen.cumulative_lost, seen.highest, int(seen.jitter), last_report,
                          (now - came << 16) // 10**9)

    def heard(self, data: bytes, arrival: int) -> None:
        """Take in an RTCP datagram."""
        try:
            reports = rtcp.parse(data)
        except rtcp.RtcpError:
            self.unrecognised += 1
            return
        for report in reports:
            if report.sent is not None:
                self.sender_reports[report.ssrc] = rtcp.middle(report.sent.ntp), arrival
            for block in report.blocks:
                if (stream := self.streams.get(block.ssrc)) is not None:
                    stream.remote, stream.round_trip = block, rtcp.round_trip(block, arrival)


def address_towards(address: str, open_socket: OpenSocket | None = None) -> str:
    """The own address of this host, or of the namespace of `open_socket`, on the way to `address`. Raises HostError."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with (open_socket or _here)(socket.SOCK_DGRAM, family) as probe:
        try:
            probe.connect((address, _DISCARD))
        except OSError as error:
            raise HostError(f"no route to {address}: {error.strerror}") from error
        return str(probe.getsockname()[0])


def _here(kind: socket.SocketKind, family: socket.AddressFamily) -> socket.socket:
    return socket.socket(family, kind)


def _pair(address: str, port: int, open_one: Callable[[], socket.socket]) -> tuple[socket.socket, socket.socket]:
    """Sockets on an even port and the next one (RFC 3550, 11)."""
    for _ in range(_ATTEMPTS):
        first, second = open_one(), open_one()
        try:
            first.bind((address, port))
            found = first.getsockname()[1]
            if found % 2 == 0 or port:
                second.bind((address, found + 1))
                return first, second
        except (OSError, OverflowError) as error:
            problem = str(getattr(error, "strerror", None) or error)
        else:
            problem = "no even port"
        first.close()
        second.close()
        if port:
            break
    raise HostError(f"no pair of UDP ports for RTP and RTCP at {address}{f' port {port}' if port else ''}: {problem}",
                    hint="is the address one of this host, and the port free?")
