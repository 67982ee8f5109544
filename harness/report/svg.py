"""Small plots as inline SVG: coloured by CSS classes, told to a screen reader by a title."""

from __future__ import annotations

from collections.abc import Sequence

from harness.report.markup import Markup, tag

_LEAST = 0.006
"""No bar is narrower than this part of the whole, or a stage of a second could not be seen."""


def bar(start: float, length: float, before: float | None, *, red: bool = False, label: str = "") -> Markup:
    """One row of a timeline; all as parts of the whole width, `before` the length it had last time.

    Measures are percentages and the text is outside, so that a row can be as wide as a phone or a page.
    """
    drawn = [tag("rect", class_="track", x="0", y="0", width="100%", height="100%", rx="4")]
    if before is not None:
        drawn.append(_rect("before", start, before, 15, 5))
    drawn.append(_rect("now red" if red else "now", start, length, 3, 10))
    return _svg("bar", label, *drawn, width="100%", height="23")


def part(start: float, length: float, label: str) -> Markup:
    """A part of a whole: both as parts of the whole width."""
    return _svg("bar", label, tag("rect", class_="track", x="0", y="0", width="100%", height="100%", rx="4"),
                _rect("now", start, length, 3, 10), width="100%", height="16")


def sparkline(values: Sequence[float], label: str) -> Markup:
    """Values in their order, the last one marked; the lowest is at least half-way down to nothing."""
    width, height, margin = 160.0, 36.0, 5.0
    low, high = min(values), max(values)
    span = max(high - low, 0.2 * abs(high), 1e-9)
    bottom = (low + high - span) / 2
    step = (width - 2 * margin) / max(len(values) - 1, 1)
    left = margin if len(values) > 1 else width / 2
    points = [(left + index * step, height - margin - (value - bottom) / span * (height - 2 * margin))
              for index, value in enumerate(values)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    end_x, end_y = points[-1]
    return _svg("spark", label, tag("polyline", points=path),
                tag("circle", cx=f"{end_x:.1f}", cy=f"{end_y:.1f}", r="3.5"), viewBox=f"0 0 {width:.0f} {height:.0f}")


def marks(outcomes: Sequence[tuple[bool | None, str]], label: str) -> Markup:
    """One mark per run: a dot for passed, a cross for the image's failure, a ring for no verdict; with titles."""
    size = 18
    drawn = []
    for index, (passed, title) in enumerate(outcomes):
        x = index * size + size / 2
        if passed is None:
            shape = tag("circle", class_="ring", cx=x, cy=9, r=4.5)
        elif passed:
            shape = tag("circle", class_="dot", cx=x, cy=9, r=5)
        else:
            shape = tag("path", class_="cross", d=f"M{x - 4.5} 4.5 l9 9 m0 -9 l-9 9")
        drawn.append(tag("g", tag("title", title), shape))
    wide = len(outcomes) * size
    return _svg("marks", label, *drawn, viewBox=f"0 0 {wide} {size}", style=f"max-width: {wide}px")


def _rect(name: str, start: float, length: float, y: int, height: int) -> Markup:
    length = min(max(length, _LEAST), 1.0)
    start = min(max(start, 0.0), 1.0 - length)
    return tag("rect", class_=name, x=f"{start:.3%}", y=y, width=f"{length:.3%}", height=height, rx="3")


def _svg(name: str, label: str, *content: Markup, **attributes: str) -> Markup:
    return tag("svg", tag("title", label), *content, class_=name, role="img", **attributes)
