"""Curves over two axes as inline SVG, with a legend, and the numbers as a table for whoever wants them exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from harness.report.markup import Markup, tag
from harness.units import many, number

HUES: Final = 6
"""Curves that can be told apart in one plot: by colour, and by the shape of their points."""
_WIDTH, _HEIGHT = 360.0, 200.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 50.0, 24.0, 10.0, 22.0
_INTERVALS: Final = 5
_ALIKE: Final = 1e-9
"""Values that differ by less than this part of them are not told apart."""
_MARKED: Final = 30
"""With more points than these a curve is a line alone."""
_DRAWN: Final = 400
"""Points of a curve that are drawn and listed; of more, every so many-th."""


@dataclass(frozen=True)
class Curve:
    """`hue` is a number from 0 on; a `second` curve of a hue is dashed. `points` are (x, y)."""

    name: str
    points: tuple[tuple[float, float], ...]
    hue: int
    second: bool = False


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, with a tick at every `step`."""

    low: float
    high: float
    step: float

    @property
    def ticks(self) -> list[float]:
        return [self.low + index * self.step for index in range(round((self.high - self.low) / self.step) + 1)]

    def part(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)


def axis(values: Sequence[float]) -> Axis:
    """An axis for `values` with round ticks; it begins at 0 unless all of them are far from it."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    if 0 <= low <= 0.6 * high:
        low = 0.0
    if high - low <= _ALIKE * max(abs(low), abs(high), 1.0):
        high = low + (abs(low) if abs(low) > _ALIKE else 1.0)
    rough = (high - low) / _INTERVALS
    scale = 10.0 ** math.floor(math.log10(rough))
    step = next((factor * scale for factor in (1, 2, 5) if factor * scale >= rough * (1 - 1e-9)), 10 * scale)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Axis(first * step, last * step, step)


def plot(title: str, x: str, y: str, curves: Sequence[Curve], note: str = "") -> Markup:
    """A figure of the page; `x` and `y` name the axes, `note` says what there is to know of it."""
    drawn = [Curve(one.name, _thinned(one.points), one.hue % HUES, one.second) for one in curves if one.points]
    across = axis([value for one in drawn for value, _ in one.points])
    up = axis([value for one in drawn for _, value in one.points])
    said = f"{title}: {y} over {x}, {many(len(drawn), 'curve')}: {', '.join(one.name for one in drawn)}"
    picture = tag("svg", tag("title", said), _grid(across, up), *[_curve(one, across, up) for one in drawn],
                  class_="curves", role="img", viewBox=f"0 0 {_WIDTH:.0f} {_HEIGHT:.0f}")
    return tag("figure", tag("h3", title), tag("p", y, class_="axis"), picture,
               tag("p", x, class_="axis across"),
               tag("ul", [tag("li", _sample(one), one.name) for one in drawn], class_="legend"),
               tag("p", note, class_="soft") if note else None,
               tag("details", tag("summary", "numbers"), _numbers(x, drawn)))


def _grid(across: Axis, up: Axis) -> list[Markup]:
    lines = []
    for value in up.ticks:
        at = _y(up, value)
        lines.append(tag("path", d=f"M{_LEFT} {at:.1f}H{_WIDTH - _RIGHT}",
                         class_="base" if value == up.low else "grid"))
        lines.append(tag("text", number(value), x=_LEFT - 6, y=f"{at + 4:.1f}", class_="up"))
    for value in across.ticks:
        at = _x(across, value)
        lines.append(tag("path", d=f"M{at:.1f} {_HEIGHT - _BOTTOM}v4", class_="base"))
        lines.append(tag("text", number(value), x=f"{at:.1f}", y=_HEIGHT - _BOTTOM + 17, class_="across"))
    return lines


def _curve(one: Curve, across: Axis, up: Axis) -> Markup:
    points = [(_x(across, x), _y(up, y)) for x, y in one.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    marks = [_mark(x, y, one.hue) for x, y in points] if len(points) <= _MARKED else []
    return tag("g", tag("polyline", points=path) if len(points) > 1 else None, *marks,
               class_=_class(one))


def _sample(one: Curve) -> Markup:
    return tag("svg", tag("g", tag("path", d="M1 7H31"), _mark(16, 7, one.hue), class_=_class(one)), class_="sample",
               viewBox="0 0 32 14", aria_hidden="true")


def _class(one: Curve) -> str:
    return f"curve h{one.hue}" + (" second" if one.second else "")


def _mark(x: float, y: float, hue: int) -> Markup:
    """A point: disc, square, triangle, diamond, ring or cross."""
    at = f"M{x:.1f} {y:.1f}"
    shapes = (f"{at}m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z", f"{at}m-3.2 -3.2h6.4v6.4h-6.4z",
              f"{at}m0 -4.2l4 7h-8z", f"{at}m0 -4.4l4.4 4.4l-4.4 4.4l-4.4 -4.4z",
              f"{at}m-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0z", f"{at}m-3.3 -3.3l6.6 6.6m0 -6.6l-6.6 6.6")
    return tag("path", d=shapes[hue], class_="open" if hue >= 4 else "mark")


def _numbers(x: str, curves: Sequence[Curve]) -> Markup:
    by_curve = [dict(one.points) for one in curves]
    places = sorted({place for points in by_curve for place in points})
    every = max(1, math.ceil(len(places) / _DRAWN))
    head = tag("tr", tag("th", x, scope="col"), [tag("th", one.name, scope="col") for one in curves])
    rows = [tag("tr", tag("th", number(place), scope="row"),
                [tag("td", number(points[place]) if place in points else "") for points in by_curve])
            for place in places[::every]]
    return tag("table", tag("thead", head), tag("tbody", *rows), class_="records")


def _thinned(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    every = max(1, math.ceil(len(points) / _DRAWN))
    return tuple(points[::every])


def _x(across: Axis, value: float) -> float:
    return _LEFT + across.part(value) * (_WIDTH - _LEFT - _RIGHT)


def _y(up: Axis, value: float) -> float:
    return _HEIGHT - _BOTTOM - up.part(value) * (_HEIGHT - _TOP - _BOTTOM)
