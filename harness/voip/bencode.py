"""Bencode (BEP 3), as the ng protocol of RTPEngine uses it: numbers, octet strings, lists, dictionaries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Value = int | str | bytes | Sequence[Any] | Mapping[str, Any]
_DEEPEST = 32
_MOST_DIGITS = 20


class BencodeError(ValueError):
    """The octets are not bencode."""


class Incomplete(BencodeError):
    """The octets end before the value does; with more of them it may be bencode."""


def encode(value: Value) -> bytes:
    """Bencode `value`; dictionary keys are sorted as BEP 3 wants. Raises TypeError for what bencode has no form of."""
    if isinstance(value, bool):
        raise TypeError("bencode has no booleans: write 1, 0 or a flag's name")
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode("utf-8", "surrogateescape")
    if isinstance(value, bytes):
        return b"%d:%b" % (len(value), value)
    if isinstance(value, Mapping):
        pairs = sorted((key.encode("utf-8", "surrogateescape"), item) for key, item in value.items())
        return b"d" + b"".join(encode(key) + encode(item) for key, item in pairs) + b"e"
    if isinstance(value, Sequence):
        return b"l" + b"".join(encode(item) for item in value) + b"e"
    raise TypeError(f"bencode has no {type(value).__name__}")


def decode(data: bytes) -> Any:
    """The value of the bencoded `data`: int, str (UTF-8, other octets by surrogateescape), list, dict.

    Raises BencodeError, also for what is left over after the value. Takes time in proportion to the length, and
    nothing nested deeper than 32 levels.
    """
    value, end = decode_first(data)
    if end != len(data):
        raise BencodeError(f"{len(data) - end} octets are left over after a bencoded value: {data[end:end + 80]!r}")
    return value


def decode_first(data: bytes, at: int = 0) -> tuple[Any, int]:
    """The value that begins at offset `at`, and the offset after it.

    Raises Incomplete where `data` ends too early, BencodeError where no further octets can make it bencode.
    """
    return _decode(data, at, 0)


def _decode(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise BencodeError(f"not bencode: nested deeper than {_DEEPEST} levels")
    head = data[at:at + 1]
    if head == b"i":
        return _number(data, at + 1, b"e")
    if head in (b"l", b"d"):
        begin, at = at, at + 1
        items = []
        while data[at:at + 1] != b"e":
            item, at = _decode(data, at, depth + 1)
            items.append(item)
        if head == b"l":
            return items, at + 1
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values) or not all(isinstance(key, str) for key in keys):
            raise BencodeError(f"not a dictionary: {data[begin:begin + 80]!r}")
        return dict(zip(keys, values, strict=True)), at + 1
    length, begin = _number(data, at, b":")
    if length < 0:
        raise BencodeError(f"not bencode: a string of {length} octets")
    if len(data) - begin < length:
        raise Incomplete(f"not bencode: {length} octets announced, {len(data) - begin} there")
    return data[begin:begin + length].decode("utf-8", "surrogateescape"), begin + length


def _number(data: bytes, at: int, mark: bytes) -> tuple[int, int]:
    """The decimal number from `at` to `mark`, and the offset after the mark."""
    text, found, _ = data[at:at + _MOST_DIGITS + 1].partition(mark)
    digits = text.removeprefix(b"-")
    if digits.isdigit() and found:
        return int(text), at + len(text) + 1
    if not found and at + len(text) == len(data) and len(text) <= _MOST_DIGITS and (digits.isdigit() or not digits):
        raise Incomplete("not bencode: it ends within a number")
    raise BencodeError(f"not bencode: {data[at:at + 80]!r}")
