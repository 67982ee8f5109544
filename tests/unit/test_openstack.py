from __future__ import annotations

from pathlib import Path

from harness.cloud.glance import min_disk, url_of
from harness.cloud.openstack import merged


def test_a_console_grows() -> None:
    assert merged("", "a\nb\n") == "a\nb\n"
    assert merged("a\n", "a\nb\n") == "a\nb\n"


def test_a_console_whose_beginning_was_dropped_keeps_it() -> None:
    lines = [f"line {n}\n" for n in range(200)]
    assert merged("".join(lines[:150]), "".join(lines[100:])) == "".join(lines)


def test_a_console_that_begins_anew_is_added() -> None:
    assert merged("one\n", "another\n") == "one\nanother\n"


def test_nothing_new() -> None:
    assert merged("a\nb\n", "a\nb\n") == "a\nb\n"
    assert merged("a\nb\n", "") == "a\nb\n"


def test_a_disk_for_an_image() -> None:
    assert (min_disk(1), min_disk(1 << 30), min_disk((1 << 30) + 1)) == (1, 1, 2)


def test_where_an_image_is_served() -> None:
    assert url_of("http://h/images/", Path("/x/images/relay-1/image.qcow2")) == "http://h/images/relay-1/image.qcow2"
    assert url_of("", Path("/x/i.qcow2")) == ""
