"""The daemon's options as they are written, and those of old manuals."""

from __future__ import annotations

import pytest

from harness.relayoptions import Outdated, merged, of_arguments, of_file, outdated


def test_options_of_a_command_line() -> None:
    words = ["--foreground", "--table", "0", "--interface=a/1.2.3.4", "--interface=5.6.7.8!9.9.9.9", "-f", "x"]
    assert of_arguments(words) == {"foreground": ["true"], "table": ["0"],
                                   "interface": ["a/1.2.3.4", "5.6.7.8!9.9.9.9"]}


def test_options_of_a_file() -> None:
    assert of_file("# one\n[rtpengine]\ntable = 0\nlisten-ng = [::]:2223\n[other]\ntable = 1\n") == {
        "table": ["0"], "listen-ng": ["[::]:2223"]}


@pytest.mark.parametrize("text", ["", "table = 0", "[other]\ntable = 0", "[rtpengine]\n???"])
def test_what_is_no_configuration_file(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        of_file(text)


def test_the_command_line_wins() -> None:
    assert merged({"table": ["1"]}, {"table": ["0"], "tos": ["184"]}) == {"table": ["1"], "tos": ["184"]}


@pytest.mark.parametrize("options, found", [
    ({}, []),
    ({"redis": ["127.0.0.1:6379/1"], "redis-write": ["secret@192.0.2.5:6379/0"], "redis-num-threads": ["4"]}, []),
    ({"redis": ["127.0.0.1:6379"]}, [Outdated("redis = 127.0.0.1:6379", "redis = 127.0.0.1:6379/0")]),
    ({"redis": ["127.0.0.1:6379"], "redis-db": ["1"]},
     [Outdated("redis = 127.0.0.1:6379", "redis = 127.0.0.1:6379/1"),
      Outdated("redis-db = 1", "redis = 127.0.0.1:6379/1")]),
    ({"redis": ["127.0.0.1:6379/2"], "redis-db": ["1"]}, [Outdated("redis-db = 1", "redis = 127.0.0.1:6379/1")]),
    ({"redis-db": ["3"]}, [Outdated("redis-db = 3", "redis = HOST:PORT/3")]),
])
def test_what_is_no_more(options: dict[str, list[str]], found: list[Outdated]) -> None:
    assert outdated(options) == found
