"""Two runs side by side, as text for a terminal and as a page like the report's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.report.compare import MEASURED, Comparison, Row
from harness.report.first_screen import section
from harness.report.html import document
from harness.report.markup import Markup, breakable, tag
from harness.report.plot import plot
from harness.units import many, number

_NOTHING = "–"


def text(found: Comparison) -> str:
    """Columns of plain text."""
    blocks = ["\n".join(_columns([("", "A", "B", ""), *[(*one, "") for one in found.about]]))]
    rows = [(f"{one.title} ({one.phase})", one.first, one.second, "") for one in found.checks]
    blocks.append("\n".join([f"checks that differ ({many(found.alike, 'other')} alike)",
                             *_columns(rows or [("none", "", "", "")])]))
    blocks += ["\n".join([name, *_columns([_cells(row) for row in rows])]) for name, rows in found.numbers.items()]
    return "\n\n".join(blocks) + "\n"


def page(found: Comparison) -> str:
    """The whole page; needs no file beside it."""
    first, second = next((left, right) for name, left, right in found.about if name == "run")
    about = tag("table", _head(("", "A", "B")), tag("tbody", [
        tag("tr", tag("th", name, scope="row"), tag("td", left), tag("td", right))
        for name, left, right in found.about if name != "run"]), class_="compared")
    checks = tag("table", _head(("check", "A", "B")), tag("tbody", [
        tag("tr", tag("th", one.title, f" ({one.phase})", tag("code", breakable(one.place)), scope="row"),
            tag("td", one.first), tag("td", one.second)) for one in found.checks]), class_="compared")
    plots = [plot(one.title, one.x, one.y, one.curves, one.note) for one in found.plots]
    body = tag(
        "body",
        tag("header", tag("p", "Dialtone", class_="brand"), tag("h1", "Two runs side by side"),
            tag("p", f"A is {first}, B is {second}", class_="closing")),
        tag("main",
            section("Runs", about, id_="runs"),
            *[_numbers(name, rows) for name, rows in found.numbers.items() if name == MEASURED],
            section("Plots", tag("div", *plots, class_="plots"), id_="plots", note="A solid, B dashed")
            if plots else None,
            *[_numbers(name, rows) for name, rows in found.numbers.items() if name != MEASURED],
            section("Checks that differ", checks if found.checks else tag("p", "None.", class_="soft"), id_="checks",
                    note=f"{many(found.alike, 'other')} alike")))
    return document(f"{first} and {second}", None, body)


def _numbers(name: str, rows: Iterable[Row]) -> Markup:
    body = [tag("tr", tag("th", row.name, scope="row"), tag("td", _value(row, row.first)),
                tag("td", _value(row, row.second)),
                tag("td", _ratio(row), tag("small", row.word) if row.word else None)) for row in rows]
    return section(name, tag("table", _head(("", "A", "B", "B / A")), tag("tbody", *body), class_="compared"),
                   id_=name.lower().replace(" ", "-"))


def _cells(row: Row) -> tuple[str, str, str, str]:
    return row.name, _value(row, row.first), _value(row, row.second), f"× {_ratio(row)} {row.word}".rstrip(" ×")


def _value(row: Row, value: float | None) -> str:
    return _NOTHING if value is None else row.show(value)


def _ratio(row: Row) -> str:
    return "" if row.ratio is None else number(row.ratio)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows]


def _head(names: Sequence[str]) -> Markup:
    return tag("thead", tag("tr", [tag("th", name, scope="col") for name in names]))
