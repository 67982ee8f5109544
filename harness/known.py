"""What of an appliance's images and servers differs from the rule, and is known: data with a reason for every line.

The files of the directory known/ beside appliances.yaml (where there is none, the project's): `debian.yaml` for every
image, `<element>.yaml` for those with that element.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Final

from harness.appliance import Appliance, Document
from harness.appliance import schema as appliance_schema
from harness.errors import DescriptionError

_PROJECT: Final = Path(__file__).resolve().parent.parent
DIRECTORY: Final = "known"
EVERYWHERE: Final = "debian"
"""Name of the file that every appliance reads."""


@dataclass(frozen=True)
class KnownFile:
    """Files by their path from the image's root: `*` matches "/" as well, as in dpkg's path-exclude (fnmatch(3)).

    `optional`: that there is none in an image is nothing to tell. `where` is FILE:LINE of the entry.
    """

    pattern: str
    reason: str
    where: str
    optional: bool = False

    def __str__(self) -> str:
        return f"{self.pattern} ({self.where})"


@dataclass(frozen=True)
class KnownLine:
    """Lines that a regular expression is found in; after the day `until` somebody has to look again."""

    pattern: re.Pattern[str]
    reason: str
    until: date
    where: str

    def __str__(self) -> str:
        return f"{self.where} (until {self.until}: {self.reason})"


@dataclass(frozen=True)
class Known:
    """`missing` and `changed` are files of packages, `unowned` of none; `units` are lines of systemd-analyze(1),
    `log` those of the journal."""

    missing: tuple[KnownFile, ...] = ()
    changed: tuple[KnownFile, ...] = ()
    unowned: tuple[KnownFile, ...] = ()
    units: tuple[KnownLine, ...] = ()
    log: tuple[KnownLine, ...] = ()


def load(appliance: Appliance) -> Known:
    """What is known of `appliance`. Raises DescriptionError with every mistake of a file, one a line."""
    beside = appliance.file.parent / DIRECTORY
    directory = beside if beside.is_dir() else _PROJECT / DIRECTORY
    names = dict.fromkeys((EVERYWHERE, *appliance.elements))
    files = [file for name in names if (file := directory / f"{name}.yaml").exists()]
    found = [_read(file, appliance.release) for file in files]
    return Known(**{section.name: tuple(entry for known in found for entry in getattr(known, section.name))
                    for section in fields(Known)})


def unexpected(paths: Iterable[str], known: Sequence[KnownFile]) -> tuple[list[str], list[KnownFile]]:
    """Those of `paths` that nothing in `known` matches, and what of `known` matches none of them and is not optional.

    Every pattern that matches counts as used.
    """
    matchers = [(entry, re.compile(fnmatch.translate(entry.pattern)).match) for entry in known]
    used: set[KnownFile] = set()
    strange = []
    for path in paths:
        matched = [entry for entry, match in matchers if match(path)]
        used.update(matched)
        if not matched:
            strange.append(path)
    return strange, [entry for entry in known if entry not in used and not entry.optional]


def unknown(lines: Iterable[str], known: Sequence[KnownLine]) -> list[str]:
    """Those of `lines` that nothing in `known` is found in, whatever its date."""
    return [line for line in lines if not any(entry.pattern.search(line) for entry in known)]


def expired(known: Sequence[KnownLine], today: date) -> list[KnownLine]:
    """What was to be looked at again by `today`."""
    return [entry for entry in known if entry.until < today]


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a file of known/."""
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("known.schema.json").read_text(encoding="utf-8"))
    return loaded


def _read(file: Path, release: str) -> Known:
    name = f"{file.parent.name}/{file.name}"
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DescriptionError(f"{name} cannot be read: {error}") from error
    document = Document.parse(file, name, text)
    document.validate(schema())
    problems: list[str] = []
    sections: dict[str, list[Any]] = {}
    for section, entries in document.value.items():
        sections[section] = []
        for number, entry in enumerate(entries):
            path = (section, number)
            if strange := set(entry.get("releases", ())) - set(_releases()):
                problems.append(f"{document.at((*path, 'releases'))}: {section}.{number}.releases: there is no release "
                                f"{min(strange)}; known: {', '.join(_releases())}")
            made = _files(document, path, entry) if "paths" in entry else _line(document, path, entry, problems)
            if release in entry.get("releases", (release,)):
                sections[section] += made
    if problems:
        raise DescriptionError("\n".join(problems))
    return Known(**{section: tuple(made) for section, made in sections.items()})


def _releases() -> list[str]:
    found: list[str] = appliance_schema()["$defs"]["appliance"]["properties"]["release"]["enum"]
    return found


def _files(document: Document, path: tuple[str, int], entry: Mapping[str, Any]) -> list[KnownFile]:
    return [KnownFile(pattern, entry["reason"], _line_of(document, (*path, "paths", number)),
                      entry.get("optional", False))
            for number, pattern in enumerate(entry["paths"])]


def _line(document: Document, path: tuple[str, int], entry: Mapping[str, Any], problems: list[str]
          ) -> list[KnownLine]:
    try:
        pattern = re.compile(entry["pattern"])
    except (re.error, OverflowError, RecursionError) as error:
        problems.append(f"{document.at((*path, 'pattern'))}: {path[0]}.{path[1]}.pattern: "
                        f"is no regular expression: {error}")
        return []
    try:
        until = date.fromisoformat(entry["until"])
    except ValueError as error:
        problems.append(f"{document.at((*path, 'until'))}: {path[0]}.{path[1]}.until: "
                        f"{entry['until']} is no day: {error}")
        return []
    return [KnownLine(pattern, entry["reason"], until, _line_of(document, path))]


def _line_of(document: Document, path: Sequence[str | int]) -> str:
    return document.at(path).rpartition(":")[0]
