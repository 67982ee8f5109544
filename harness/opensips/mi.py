"""The Management Interface of OpenSIPS: JSON-RPC 2.0 over UDP, a unix datagram socket, a FIFO or HTTP."""

from __future__ import annotations

import itertools
import json
import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

from harness.deadline import Deadline
from harness.errors import CheckFailed, DescriptionError
from harness.opensips import exchange
from harness.opensips.exchange import Unusable

Params = Mapping[str, Any] | Sequence[Any]
"""By name or by position; a value is text, a number, or a list of them."""

FORMS: Final = "udp:HOST:PORT, unix:PATH, fifo:PATH[,DIRECTORY OF REPLIES] or http://HOST:PORT/mi"


class MiError(CheckFailed):
    """OpenSIPS can't be controlled."""


class MiNoAnswer(MiError):
    """The interface did not answer before the deadline, or nobody listens there."""


class MiMalformed(MiError):
    """What came is no answer of JSON-RPC 2.0 to what was asked."""


class MiRefused(MiError):
    """OpenSIPS carried nothing out: `code` is of JSON-RPC (below zero) or of MI, the rest are its own words."""

    def __init__(self, method: str, code: int, reason: str, details: str = "") -> None:
        meaning = MEANINGS.get(code, "")
        super().__init__(f"OpenSIPS refused {method}: {code} {reason}" + (f" ({details})" if details else "")
                         + (f": {meaning}" if meaning else ""))
        self.method, self.code, self.reason, self.details = method, code, reason, details


MEANINGS: Final[Mapping[int, str]] = {
    -32700: "the request is not JSON",
    -32600: "the request is not JSON-RPC 2.0",
    -32601: "it has no such method: the names differ between versions, and come with their modules",
    -32602: "the method takes other parameters",
    -32000: "the method failed; its log says why",
    -32001: "several modules have a method of that name",
    400: "a parameter has a value that it can't take; of a subscription an unknown event, or an unknown transport",
    404: "what is asked for is not there",
    480: "nobody has subscribed to the event",
    500: "it ran into an error of its own; its log says which",
}


class Way(Protocol):
    """How a request gets to OpenSIPS and its answer back."""

    place: str

    def exchange(self, request: bytes, seconds: float) -> bytes:
        """Raises OSError where nothing comes of it, TimeoutError after `seconds`."""

    def close(self) -> None: ...


class Here:
    """The interface where this process runs; `place` as in FORMS."""

    def __init__(self, place: str) -> None:
        self.place = place
        self._kind, self._where = parsed(place)

    def exchange(self, request: bytes, seconds: float) -> bytes:
        return exchange.WAYS[self._kind](self._where, request, seconds)

    def close(self) -> None:
        """Nothing stays open."""


def parsed(place: str) -> tuple[str, str]:
    """Kind and place as harness.opensips.exchange takes them. Raises DescriptionError."""
    kind, _, where = place.partition(":")
    fits = bool(where)
    if kind == "http":
        where, fits = place, bool(re.fullmatch(r"http://[^/:]+(:\d+)?/.*", place))
    elif kind == "udp":
        fits = bool(re.fullmatch(r".+:\d+", where))
    if kind not in exchange.WAYS or not fits:
        raise DescriptionError(f"{place!r} is no place of a Management Interface", hint=f"it can be {FORMS}")
    return kind, where


class MiClient:
    """Asks OpenSIPS at `place` (FORMS), or by a Way of one's own; close() it or use `with`.

    A request is sent once: OpenSIPS keeps no answers, and would carry out a second one, too. Threads wait for each
    other.
    """

    def __init__(self, place: str | Way, seconds: float = 5.0) -> None:
        self._way = Here(place) if isinstance(place, str) else place
        self.seconds = seconds
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def __enter__(self) -> MiClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._way.close()

    @property
    def place(self) -> str:
        return self._way.place

    def request(self, method: str, params: Params = (), deadline: Deadline | None = None) -> Any:
        """The result of `method`. Raises MiNoAnswer at the deadline (else after `seconds`), MiMalformed, MiRefused."""
        limit = deadline or Deadline(self.seconds)
        with self._lock:
            number = next(self._numbers)
            asked: dict[str, Any] = {"jsonrpc": "2.0", "id": number, "method": method}
            if params:
                asked["params"] = params if isinstance(params, Mapping) else list(params)
            try:
                answer = self._way.exchange(json.dumps(asked).encode(), limit.remaining)
            except Unusable as error:
                raise MiMalformed(f"{method} was not answered at {self.place}: {error}") from error
            except OSError as error:
                why = f"no answer within {limit.seconds:.1f} s" if isinstance(error, TimeoutError) \
                    else error.strerror or str(error)
                raise MiNoAnswer(f"OpenSIPS' Management Interface at {self.place} did not answer {method}: {why}",
                                 hint="does OpenSIPS run, with its module for that (mi_datagram, mi_fifo, mi_http)?"
                                 ) from error
        return _result(method, number, answer)


def _result(method: str, number: int, octets: bytes) -> Any:
    try:
        answer = json.loads(octets.decode(errors="replace"))
    except ValueError as error:
        raise MiMalformed(f"the answer to {method} is no JSON: {octets[:80]!r}") from error
    if not isinstance(answer, dict) or answer.get("jsonrpc") != "2.0" or answer.get("id") != number:
        raise MiMalformed(f"the answer to {method} is none of JSON-RPC 2.0 to request {number}: {octets[:80]!r}")
    if "result" in answer:
        return answer["result"]
    refusal = answer.get("error")
    if not isinstance(refusal, dict) or not isinstance(refusal.get("code"), int):
        raise MiMalformed(f"the answer to {method} has neither a result nor an error: {octets[:80]!r}")
    raise MiRefused(method, refusal["code"], str(refusal.get("message", "")), str(refusal.get("data") or ""))
