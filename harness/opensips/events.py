"""Events as OpenSIPS sends them: JSON-RPC 2.0 notifications, the same over UDP, unix datagrams and TCP.

Over TCP one follows another on a connection without anything between them, in pieces as it happens.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

Value = int | str | None
"""What OpenSIPS sends as the value of a parameter."""

LARGEST: Final = 1 << 20
"""Characters of one event; what is longer is none."""


@dataclass(frozen=True, slots=True)
class Event:
    """What happened: `params` by name, or by position where OpenSIPS was given no names, or one twice; nothing where it
    had none.

    `received_at` is seconds since the epoch by this host's clock; `transport` is udp, unix or tcp.
    """

    name: str
    params: Mapping[str, Value] | tuple[Value, ...]
    received_at: float
    transport: str

    def matches(self, wanted: Mapping[str, Value]) -> bool:
        """Whether each parameter that is `wanted` is there, with that value and type."""
        if not isinstance(self.params, Mapping):
            return not wanted
        return all(name in self.params and self.params[name] == value and type(self.params[name]) is type(value)
                   for name, value in wanted.items())

    def __str__(self) -> str:
        if isinstance(self.params, Mapping):
            said = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        else:
            said = ", ".join(map(repr, self.params))
        return f"{self.name}({said})"


def _object(pairs: list[tuple[str, Any]]) -> Any:
    """Without names OpenSIPS sends an array or, where MI raised the event, an object with empty names, as it happens:
    it does not initialise them in evi_dup_shm_params. Then the values are what there is."""
    named = dict(pairs)
    return named if len(named) == len(pairs) and "" not in named else [value for _, value in pairs]


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object)


def of_notification(found: Any, received_at: float, transport: str) -> Event | None:
    """The event that a decoded object is; None where it is none."""
    if type(found) is not dict or found.get("jsonrpc") != "2.0" or type(name := found.get("method")) is not str:
        return None
    params = found.get("params")
    if type(params) is dict:
        return Event(name, MappingProxyType(params), received_at, transport)
    if params is None or type(params) is list:
        return Event(name, tuple(params or ()), received_at, transport)
    return None


def of_datagram(octets: bytes, received_at: float, transport: str) -> Event | None:
    """The event that a datagram is; None where it is none."""
    try:
        return of_notification(_DECODER.decode(octets.decode(errors="replace")), received_at, transport)
    except (ValueError, RecursionError):
        return None


class Decoder:
    """Finds the JSON objects in a stream of octets that comes in pieces cut anywhere; `malformed` counts what is none.

    The work is proportional to the octets, however small the pieces: an object that is not complete is looked through
    once for its end, and decoded when that has come.
    """

    _TOKEN = re.compile(r'["{}\\]')
    _IN_TEXT = re.compile(r'["\\]')

    def __init__(self) -> None:
        self.malformed = 0
        self._octets = codecs.getincrementaldecoder("utf-8")("replace")
        self._decode = _DECODER.raw_decode
        self._text = ""
        """Begins with an object whose end has not come, where it isn't empty."""
        self._looked = self._depth = 0
        self._quoted = False

    @property
    def begun(self) -> bool:
        """Whether an object has begun whose end has not come."""
        return bool(self._text)

    def feed(self, data: bytes) -> list[Any]:
        """Every object that `data` completes."""
        found: list[Any] = []
        begun = self.begun
        self._text += self._octets.decode(data)
        if not begun:
            self._take(found)
        while self._text and (end := self._end()) is not None:
            try:
                found.append(self._decode(self._text[:end])[0])
            except (ValueError, RecursionError):
                self.malformed += 1
            self._text = self._text[end:]
            self._take(found)
        return found

    def _take(self, found: list[Any]) -> None:
        """Decode what the text begins with as long as it is whole objects, and pass over what is none."""
        text, decode, position, size = self._text, self._decode, 0, len(self._text)
        try:
            while position < size and text[position] == "{":
                one, position = decode(text, position)
                found.append(one)
        except (ValueError, RecursionError):
            pass
        rest = text[position:].lstrip(" \t\r\n")
        if rest and rest[0] != "{":
            self.malformed += 1
            rest = rest[rest.find("{"):] if "{" in rest else ""
        self._text, self._looked, self._depth, self._quoted = rest, 0, 0, False

    def _end(self) -> int | None:
        """Where the object that the text begins with ends; None where that has not come."""
        text, position, depth, quoted = self._text, self._looked, self._depth, self._quoted
        size = len(text)
        while position < size:
            token = (self._IN_TEXT if quoted else self._TOKEN).search(text, position)
            if token is None:
                position = size
                break
            position = token.end()
            sign = token[0]
            if sign == '"':
                quoted = not quoted
            elif sign == "\\":
                position += 1
            elif sign == "{":
                depth += 1
            else:
                depth -= 1
                if depth == 0:
                    return position
        self._looked, self._depth, self._quoted = position, depth, quoted
        if size > LARGEST:
            self.malformed += 1
            self._text = ""
        return None
