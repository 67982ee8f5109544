"""Text from a server made safe for people and parsers, and numbers written for people."""

from __future__ import annotations

import json
import re
from typing import Any

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, cursor movement (ECMA-48, 5.4)
    r"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # OSC, DCS, SOS, PM, APC: strings up to BEL or ST
    r"|\x1b[ -/]*[0-~]"  # two-character and character set sequences
)
# XML 1.0, 2.2: a document may hold no other control characters, no lone surrogates, no U+FFFE and U+FFFF.
# The directional ones are legal and still can make a line read as what it isn't (CVE-2021-42574).
_UNSAFE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")


def clean(text: str) -> str:
    """`text` without terminal escapes, with line feeds only, and U+FFFD for what no XML document may hold."""
    text = _ESCAPES.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    return _UNSAFE.sub("\ufffd", text.replace("\x00", ""))


def scrub(value: Any) -> Any:
    """Every string in a JSON value cleaned, keys included."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [scrub(item) for item in value]
    if isinstance(value, dict):
        return {clean(str(key)): scrub(item) for key, item in value.items()}
    return value


def words(value: Any) -> str:
    """A JSON value as text: a string as it is, nothing for None, the rest as compact JSON."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value.strip("\n")
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    return json.dumps(value, ensure_ascii=False)


def lines(value: Any) -> list[str]:
    """A text or a list of texts as lines, without empty ones at either end."""
    return words(value).strip("\n").splitlines()


def clip(text: str, characters: int) -> str:
    """At most `characters` of `text`, saying how many are missing."""
    if len(text) <= characters:
        return text
    return f"{text[:characters].rstrip()} … ({len(text) - characters:,} characters more)"
