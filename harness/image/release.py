"""How old a mirror is: the dates in the Release files of its suites, as apt has fetched and verified them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

from harness.units import many


@dataclass(frozen=True)
class Release:
    """A suite's own dates: when it was made, and until when it may be used; None where it says nothing of an end.

    `list` is what apt calls its lists: mirror and suite.
    """

    codename: str
    date: datetime
    valid_until: datetime | None
    list: str = ""

    def expired(self, now: datetime) -> timedelta | None:
        """How long it has been too old at `now`; None while it is not."""
        return now - self.valid_until if self.valid_until and now > self.valid_until else None

    def facts(self, now: datetime) -> dict[str, str]:
        """As the manifest has it; `expired` only where it is."""
        since = self.expired(now)
        return {"date": _written(self.date),
                **({"valid_until": _written(self.valid_until)} if self.valid_until else {}),
                **({"expired": age(since)} if since else {})}


def read(lists: Path) -> list[Release]:
    """Of every suite in apt's directory of package lists, InRelease or Release; one without a date is passed over."""
    files = sorted([*lists.glob("*_InRelease"), *lists.glob("*_Release")])
    found = {file: parse(file.read_text(encoding="utf-8", errors="replace")) for file in files}
    return [replace(release, list=file.name.rpartition("_")[0]) for file, release in found.items() if release]


def parse(text: str) -> Release | None:
    """The fields Codename (else Suite), Date and Valid-Until of a Release file, be it signed inside or not."""
    fields = dict(re.findall(r"^(Codename|Suite|Date|Valid-Until): *(.+?) *$", text, re.MULTILINE))
    date = _date(fields.get("Date", ""))
    if date is None:
        return None
    return Release(fields.get("Codename") or fields.get("Suite", "a suite without a name"), date,
                   _date(fields.get("Valid-Until", "")))


def accepted(releases: Sequence[Release], now: datetime) -> str | None:
    """One sentence on those that are too old and are used nevertheless; None where none is."""
    old = [f"{release.codename} {age(since)} ago (valid until {_written(release.valid_until)})"
           for release in releases if release.valid_until and (since := release.expired(now))]
    return f"the mirror has expired and is used nevertheless: {', '.join(old)}" if old else None


def age(span: timedelta) -> str:
    """Days where it is a day or more, else hours or minutes."""
    for noun, length in (("day", timedelta(days=1)), ("hour", timedelta(hours=1))):
        if span >= length:
            return many(span // length, noun)
    return many(span // timedelta(minutes=1), "minute")


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _written(date: datetime) -> str:
    return date.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
