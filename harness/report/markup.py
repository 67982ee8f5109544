"""HTML as values: text is escaped unless it is Markup already, so untrusted text can't become markup."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from harness.report.text import clean

_VOID = frozenset({"br", "col", "hr", "img", "link", "meta", "circle", "line", "path", "polyline", "rect", "wbr"})


class Markup(str):
    """Text that is markup; made by tag(), join() and by whoever vouches for it."""

    __slots__ = ()


Content = str | int | float | None | Iterable["Content"]


def tag(element: str, /, *content: Content, **attributes: str | int | float | bool | None) -> Markup:
    """An element. `class_` is class, `data_x` is data-x; None and False leave an attribute out, True bares it."""
    shown = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items()
                    if value is not None and value is not False)
    if element in _VOID:
        return Markup(f"<{element}{shown}/>")
    return Markup(f"<{element}{shown}>{join(*content)}</{element}>")


def join(*content: Content) -> Markup:
    """Several pieces as one; None is nothing."""
    return Markup("".join(_piece(piece) for piece in content))


def breakable(name: str) -> Markup:
    """A long name that may be broken where a reader would: after a slash, a colon or an underscore."""
    parts = filter(None, re.split(r"(?<=[/:_])", name))
    return join(*[join(part, tag("wbr")) if part[-1] in "/:_" else part for part in parts])


def _piece(piece: Content) -> str:
    if piece is None:
        return ""
    if isinstance(piece, Markup):
        return str(piece)
    if isinstance(piece, str | int | float):
        return html.escape(clean(str(piece)))
    return "".join(_piece(part) for part in piece)


def _attribute(key: str, value: str | int | float | bool) -> str:
    return f" {key}" if value is True else f' {key}="{html.escape(clean(str(value)))}"'
