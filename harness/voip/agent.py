"""Endpoints for a process on another host: this is what runs on theirs, driven over standard input and output.

It is harness.voip.remote that starts it and says what to do. It writes no file, and ends with its input.

    frame     its length in octets (32 bits, big-endian), then a pickle
    request   (number, method, arguments); 0 as number: no answer is wanted
    answer    (number, what went wrong or nothing, value)
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, BinaryIO, Final

from harness.errors import DialtoneError
from harness.voip.endpoint import Endpoint, Stream, address_towards
from harness.voip.stats import Received
from harness.voip.traffic import Health, Traffic, endpoints_of, with_peers

PROGRESS: Final = ("sequence", "timestamp", "packets", "sent_at", "failed", "remote", "round_trip")
"""Attributes of a stream that change while media flow."""
_ATTEMPTS: Final = 20
_LARGEST: Final = 1 << 28
_LIFETIME: Final = 7200
"""Seconds after which it ends in any case, should a connection hang for ever."""

State = tuple[Health, list[tuple[Any, ...]], Mapping[int, tuple[dict[int, Received], dict[int, tuple[int, int]], int]]]
"""Of a traffic: how the generator does; PROGRESS of with_peers(its streams); by endpoint what came to it: `received`,
`sender_reports`, `unrecognised`."""


class Agent:
    """The methods that can be asked for. Endpoints and traffics are known by the numbers that they are given here."""

    def __init__(self) -> None:
        self._endpoints: dict[int, Endpoint] = {}
        self._traffics: dict[int, tuple[Traffic, Sequence[Stream]]] = {}
        self._last = 0

    def address_towards(self, address: str) -> str:
        return address_towards(address)

    def open(self, address: str, port: int, tos: int) -> tuple[int, int, int]:
        """An endpoint: its number and its ports, RTP and RTCP. Raises HostError."""
        endpoint = Endpoint(address, port=port, tos=tos)
        self._last += 1
        self._endpoints[self._last] = endpoint
        return self._last, endpoint.port, endpoint.rtcp_port

    def close(self, number: int) -> None:
        self._endpoints.pop(number).close()

    def clock(self, number: int) -> int:
        return self._endpoints[number].clock()

    def forget(self, number: int, sender: int) -> None:
        self._endpoints[number].forget(sender)

    def begin(self, streams: Sequence[Stream], report_every: float) -> int:
        """Let media flow; the traffic's number."""
        for stream in with_peers(streams):
            stream.endpoint.streams[stream.ssrc] = stream
        traffic = Traffic(streams, report_every=report_every)
        self._last += 1
        self._traffics[self._last] = traffic, streams
        traffic.__enter__()
        return self._last

    def look(self, number: int) -> State:
        """How a traffic does now."""
        traffic, streams = self._traffics[number]
        numbers = {endpoint: known for known, endpoint in self._endpoints.items()}
        return (traffic.health, [tuple(getattr(stream, name) for name in PROGRESS) for stream in with_peers(streams)],
                {numbers[end]: (dict(end.received), dict(end.sender_reports), end.unrecognised)
                 for end in endpoints_of(streams)})

    def end(self, number: int, linger: float) -> State:
        """Stop a traffic; how it did. Raises what broke it."""
        try:
            self._traffics[number][0].stop(linger)
            return self.look(number)
        finally:
            del self._traffics[number]

    def loads(self, data: bytes) -> Any:
        """What a request holds; endpoints in it are these here."""
        unpickler = pickle.Unpickler(io.BytesIO(data))
        unpickler.persistent_load = self._endpoints.__getitem__  # type: ignore[method-assign]
        return unpickler.load()


def frames(source: BinaryIO) -> Iterator[bytes]:
    """What whole frames hold, until there are no more. Raises ValueError for what is none."""
    while len(head := source.read(4)) == 4:
        if (size := int.from_bytes(head, "big")) > _LARGEST:
            raise ValueError(f"no frame begins with {head!r}")
        if len(data := source.read(size)) < size:
            return
        yield data


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _dumps(value: object) -> bytes:
    for _ in range(_ATTEMPTS):
        with suppress(RuntimeError):  # media flow meanwhile: a set grew while it was written
            return pickle.dumps(value)
    return pickle.dumps(value)


def serve(source: BinaryIO, sink: BinaryIO) -> None:
    """Do what requests ask for until there are no more."""
    agent = Agent()
    for data in frames(source):
        number, method, arguments = agent.loads(data)
        value, problem = None, ""
        try:
            value = getattr(agent, method)(*arguments)
        except DialtoneError as error:
            problem = error.message
        except Exception as error:
            problem = f"{method}: {type(error).__name__}: {error}"
        if number:
            sink.write(frame(_dumps((number, problem, value))))
            sink.flush()


def main() -> None:
    signal.alarm(_LIFETIME)
    serve(sys.stdin.buffer, sys.stdout.buffer)
    os._exit(0)  # media that still flow end with it


if __name__ == "__main__":
    main()
