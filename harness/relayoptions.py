"""The daemon's options: on its command line, in its configuration file, and those that are no more."""

from __future__ import annotations

import configparser
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Options = dict[str, list[str]]
"""Values by long name without dashes; an option without a value has `true`."""

_ENDPOINTS = ("redis", "redis-write")
_DATABASE = re.compile(r"/\d+$")


@dataclass(frozen=True)
class Outdated:
    """An option as it is written, and what to write in its place."""

    written: str
    instead: str


def of_arguments(arguments: Sequence[str]) -> Options:
    """The long options of a command line without the program's name."""
    found: Options = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, separator, value = argument[2:].partition("=")
            following = arguments[position + 1:position + 2]
            if not separator and following and not following[0].startswith("-"):
                value = following[0]
            found.setdefault(name, []).append(value or "true")
    return found


def of_file(text: str) -> Options:
    """The section [rtpengine] of a configuration file. Raises ValueError where there is none."""
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    try:
        parser.read_string(text)
        return {name: [value] for name, value in parser["rtpengine"].items()}
    except (configparser.Error, KeyError) as error:
        raise ValueError(str(error).splitlines()[0]) from error


def merged(arguments: Options, file: Options) -> Options:
    """The options in force: the command line wins over the file."""
    return {**file, **arguments}


def outdated(options: Mapping[str, Sequence[str]]) -> list[Outdated]:
    """The Redis options of old manuals. RTPEngine passes over redis-db in its file, and on its command line ends by it
    without a word; a Redis without its database it refuses (since mr4.3.1.1)."""
    database = options.get("redis-db", ["0"])[-1]
    found = [Outdated(f"{name} = {value}", f"{name} = {value}/{database}")
             for name in _ENDPOINTS for value in options.get(name, ()) if not _DATABASE.search(value)]
    if "redis-db" in options:
        address = _DATABASE.sub("", options.get("redis", ["HOST:PORT"])[-1])
        found.append(Outdated(f"redis-db = {database}", f"redis = {address}/{database}"))
    return found
