from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from harness.report import html, write
from harness.report.markup import Markup, breakable, join, tag
from harness.report.svg import sparkline
from tests.report_samples import HOSTILE, PLAN, SAMPLES, green, huge, make, red, write_console

VOID = {"meta", "link", "br", "wbr", "rect", "circle", "path", "polyline"}


class Page(HTMLParser):
    """Elements, references and text of a page; asserts that every element is closed where it should be."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        for name, value in attrs:
            assert not name.startswith("on"), name
            if name in {"src", "href", "xlink:href", "action"}:
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)


@pytest.mark.parametrize("name", SAMPLES)
def test_every_page_is_whole_alone_and_small(tmp_path: Path, name: str) -> None:
    path = write(SAMPLES[name](tmp_path))
    page = Page(path)
    assert path.stat().st_size < html.LARGEST
    assert "script" not in page.elements
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert {reference[1:] for reference in page.references if reference.startswith("#")} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert "url(" not in path.read_text(encoding="utf-8").partition("</style>")[0]


def test_first_screen_of_a_red_run_comes_in_the_order_of_use(tmp_path: Path) -> None:
    page = Page(write(red(tmp_path)))
    wanted = ["does not hold", "expected", "seen", "because", "console", "look", "again", "next", "Timeline", "Image",
              "Conntrack", "Checks", "History", "Sources", "Manifest", "What was removed"]
    at = -1
    for word in wanted:
        found = next((i for i, text in enumerate(page.texts) if i > at and word in text), None)
        assert found is not None, word
        at = found
    assert "new in this run" in page.text
    assert "1 value differs" in page.text


def test_what_differs_from_the_plan_comes_first_and_the_rest_of_the_live_values_is_folded(tmp_path: Path) -> None:
    source = write(red(tmp_path)).read_text(encoding="utf-8").partition('id="conntrack"')[2].partition("</section>")[0]
    table, _, folded = source.partition("<details>")
    assert table.index("differs") < table.index("as planned")
    assert table.count("as planned") == len(PLAN) - 1
    assert "1 live value not in the plan" in folded


def test_outcomes_are_told_without_colour(tmp_path: Path) -> None:
    page = Page(write(red(tmp_path)))
    for sign, word in (("✓", "passed"), ("✕", "failed"), ("–", "skipped")):
        assert re.search(rf"{sign}\s+{word}", page.text)


def test_sources_say_why_an_earlier_one_was_not_used(tmp_path: Path) -> None:
    page = Page(write(green(tmp_path)))
    assert "the mirror answers 404 for rtpengine_10.5.3.5.orig.tar.xz" in page.text
    assert "98889066cb85362e6f387f945881d827b53d16b640863a0905c41bd5ee610d00" in page.text


def test_pins_that_have_aged_are_told_with_what_to_take_and_turn_nothing_red(tmp_path: Path) -> None:
    run = green(tmp_path)
    before = Page(write(run)).text
    sentence = "appliances.yaml:16: debian-source 10.5.3.5-1 is older than bookworm's; take 10.5.3.5-1+deb12u1"
    run.facts["pins"] = [{"sentence": sentence, "hashes": {"rtpengine": "4" * 64}, "take": "10.5.3.5-1+deb12u1"}]
    page = Page(write(run))
    assert sentence not in before and sentence in page.text
    assert f"rtpengine: {'4' * 64}" in page.text
    report = json.loads((run.directory / "report.json").read_text(encoding="utf-8"))
    assert report["facts"]["pins"] == run.facts["pins"]
    assert report["verdict"]["outcome"] == "passed"


def test_the_bill_of_materials_is_linked_by_its_name_alone(tmp_path: Path) -> None:
    run = green(tmp_path)
    for name, linked in (("sbom.cdx.json", True), ("javascript:alert(1)", False), ("../sbom.cdx.json", False)):
        run.facts["image"]["sbom"] = name
        assert (name in Page(write(run)).references) is linked


def test_a_long_console_is_folded_and_its_end_shown(tmp_path: Path) -> None:
    run = make(tmp_path, 1)
    write_console(run, "the very last line", lines=3000)
    source = write(run).read_text(encoding="utf-8")
    folded, _, shown = source.partition('id="console"')[2].partition("</details>")
    assert "Started sample0.service" in folded
    assert "the very last line" in shown and "Started sample0.service" not in shown


def test_quoted_console_lines_are_marked(tmp_path: Path) -> None:
    assert "<mark>[   41.203] xt_RTPENGINE" in write(red(tmp_path)).read_text(encoding="utf-8")


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    source = write(huge(tmp_path)).read_text(encoding="utf-8")
    assert "<script" not in source and "&lt;script&gt;" in source
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", source)


def test_what_a_check_that_passed_has_measured_is_shown(tmp_path: Path) -> None:
    run = green(tmp_path)
    file = run.directory / "checks-first-boot.jsonl"
    entry, *rest = file.read_text().splitlines()
    file.write_text("\n".join([json.dumps({**json.loads(entry), "seen": "10 calls, 0 lost, MOS 4.41"}), *rest, ""]))
    assert "seen at first boot 10 calls, 0 lost, MOS 4.41" in Page(write(run)).text


def test_what_is_left_behind_is_named(tmp_path: Path) -> None:
    page = Page(write(red(tmp_path)))
    assert "kept on purpose (--keep failed)" in page.text and "qrouter-5f3b" in page.text


def test_markup_escapes_all_but_itself() -> None:
    assert tag("p", HOSTILE).count("<") == 2
    assert tag("p", tag("b", "x & y"), None, ["<", 3]) == "<p><b>x &amp; y</b>&lt;3</p>"
    assert tag("a", "x", href='"><script>', hidden=True, title=None) == (
        '<a href="&quot;&gt;&lt;script&gt;" hidden>x</a>')
    assert breakable("a/b_<c>") == "a/<wbr/>b_<wbr/>&lt;c&gt;"
    assert isinstance(join("a", Markup("<b>")), Markup)


def test_plots_stand_any_values() -> None:
    for values in ([0.0], [0.0, 0.0], [5.0], [1e-9, 1e12], [3.0, 3.0, 3.0]):
        assert "nan" not in sparkline(values, "label") and "inf" not in sparkline(values, "label")
