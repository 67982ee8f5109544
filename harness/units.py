"""Durations, sizes and counts as people read them."""

from __future__ import annotations


def seconds(value: float) -> str:
    """`0 s`, `0.4 s`, `48 s`, `2 min 37 s`, `1 h 02 min`."""
    if value < 0.05:
        return "0 s"
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def octets(value: float) -> str:
    """Decimal units, as `168 MB`, `4.3 GB`."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            shown = value / scale
            return f"{shown:.1f} {unit}" if shown < 10 else f"{shown:.0f} {unit}"
    return f"{value:.0f} B"


def many(count: int, noun: str, plural: str | None = None) -> str:
    """`1 check`, `52 checks`."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def number(value: float) -> str:
    """Three or more significant digits, no zeros behind the point: `12,000`, `127`, `12.7`, `0.127`, `0`."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    shown = f"{value:.{1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3}f}".rstrip("0").rstrip(".")
    return "0" if shown == "-0" else shown
