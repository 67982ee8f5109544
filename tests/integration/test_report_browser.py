"""The page as a browser shows it: on a desktop, on a phone, in the dark, on paper; all there, nothing overflowing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.report import write, write_comparison
from harness.report.model import load
from harness.report.text import clean
from tests.browser import Browser, installed
from tests.conftest import lacking
from tests.report_samples import HOSTILE, SAMPLES, loaded

DESKTOP, PHONE = (1280, 900), (390, 844)

FAULTS = r"""
(() => {
  const found = [], wide = document.documentElement.clientWidth;
  const least = matchMedia("print").matches ? 10 : 11.5;
  const name = e => e.tagName.toLowerCase() + "." + (e.getAttribute("class") || "") + " " + e.textContent.slice(0, 40);
  const rgb = text => (text.match(/[\d.]+/g) || []).map(Number);
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const ground = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  };
  if (document.documentElement.scrollWidth > wide) found.push("the page is wider than the screen");
  for (const e of document.body.querySelectorAll("*")) {
    if (e.closest("svg") && e.tagName !== "svg") continue;
    const style = getComputedStyle(e), box = e.getBoundingClientRect();
    if (!e.checkVisibility() || style.position === "absolute" || e.closest(".unseen")) continue;
    if (box.right > wide + 1 || box.left < -1) found.push("outside the screen: " + name(e));
    if (!style.display.startsWith("inline") && e.scrollWidth > e.clientWidth + 1 && e.clientWidth)
      found.push("content overflows: " + name(e));
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own) continue;
    if (parseFloat(style.fontSize) < least) found.push("too small to read: " + name(e));
    if (box.width < 4 || box.height < 4) found.push("no room: " + name(e));
    const [a, b] = [light(rgb(style.color)), light(ground(e))].sort((x, y) => y - x);
    if ((a + .05) / (b + .05) < 4.5) found.push("contrast " + ((a + .05) / (b + .05)).toFixed(1) + ": " + name(e));
  }
  return found.slice(0, 20);
})()
"""

EMPTY_BARS = """
[...document.querySelectorAll("svg .now")].filter(e => e.getBBox().width < 1 || e.getBBox().height < 1).length
"""

CROWDED = """
(() => {
  const found = [];
  for (const plot of document.querySelectorAll("svg.curves")) {
    const whole = plot.getBoundingClientRect(), texts = [...plot.querySelectorAll("text")];
    const boxes = texts.map(e => e.getBoundingClientRect());
    boxes.forEach((a, i) => {
      const name = texts[i].textContent + " of " + plot.querySelector("title").textContent.slice(0, 40);
      if (a.left < whole.left - 1 || a.right > whole.right + 1) found.push("outside the plot: " + name);
      if (boxes.some((b, j) => j > i && a.left < b.right && b.left < a.right && a.top + 2 < b.bottom
          && b.top + 2 < a.bottom))
        found.push("texts overlap: " + name);
      if (parseFloat(getComputedStyle(texts[i]).fontSize) * whole.width / plot.viewBox.baseVal.width < 10)
        found.push("too small to read: " + name);
    });
  }
  return found.slice(0, 20);
})()
"""

OPEN_ALL = 'document.querySelectorAll("details").forEach(e => e.open = true)'


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not installed():
        lacking("no Chromium (package chromium)")
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    runs = tmp_path_factory.mktemp("compared")
    _, compared = write_comparison(loaded(runs, 20), loaded(runs, 21, 0.8))
    return {name: write(make(tmp_path_factory.mktemp(name))) for name, make in SAMPLES.items()} | {"compared": compared}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", [*SAMPLES, "compared"])
def test_nothing_overflows_and_all_can_be_read(browser: Browser, pages: dict[str, Path], name: str,
                                               size: tuple[int, int], scheme: str) -> None:
    browser.open(pages[name], *size, scheme=scheme)
    assert browser.evaluate(FAULTS) == []
    assert browser.evaluate(EMPTY_BARS) == 0
    assert browser.evaluate(CROWDED) == []
    browser.evaluate(OPEN_ALL)
    assert browser.evaluate(FAULTS) == []
    assert browser.problems == []


@pytest.mark.parametrize(("change", "fault"), [
    ("document.querySelector('h1').style.width = '3000px'", "outside the screen"),
    ("document.querySelector('dd').innerHTML = '<b style=\"white-space: nowrap\">' + 'wide '.repeat(99)", "overflows"),
    ("document.querySelector('h1').style.color = getComputedStyle(document.body).backgroundColor", "contrast 1.0"),
    ("document.querySelector('h1').style.fontSize = '6px'", "too small"),
    ("document.querySelector('h1').style.height = '0'", "no room"),
])
def test_a_fault_would_be_found(browser: Browser, pages: dict[str, Path], change: str, fault: str) -> None:
    browser.open(pages["green"], *PHONE)
    browser.evaluate(change)
    assert any(fault in found for found in browser.evaluate(FAULTS))


@pytest.mark.parametrize(("change", "fault"), [
    ("document.querySelectorAll('svg.curves text').forEach(e => e.style.fontSize = '60px')", "texts overlap"),
    ("document.querySelector('svg.curves text').style.fontSize = '4px'", "too small"),
    ("document.querySelector('svg.curves text.up').textContent = '1,000,000,000'", "outside the plot"),
])
def test_a_fault_of_a_plot_would_be_found(browser: Browser, pages: dict[str, Path], change: str, fault: str) -> None:
    browser.open(pages["loaded"], *PHONE)
    browser.evaluate(change)
    assert any(fault in found for found in browser.evaluate(CROWDED))


def test_plots_show_every_curve_with_its_legend_and_axes(browser: Browser, pages: dict[str, Path]) -> None:
    for name, curves in (("loaded", (2, 4, 4, 2)), ("compared", (4, 8, 8, 4))):
        browser.open(pages[name], *DESKTOP)
        drawn = "[...document.querySelectorAll('figure')].map(f => f.querySelectorAll('.curves polyline').length)"
        legend = "[...document.querySelectorAll('figure')].map(f => f.querySelectorAll('.legend li').length)"
        assert browser.evaluate(drawn) == browser.evaluate(legend) == list(curves)
        seen = _seen(browser)
        for words in ("% of packets lost", "packets relayed a second", "processors busy", "in the kernel",
                      "in user space", "Connection tracking over time", "not whole: calls are held, user_space"):
            assert words in seen, words


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_nothing_is_missing(browser: Browser, pages: dict[str, Path], size: tuple[int, int]) -> None:
    for name in ("green", "red"):
        report = load(_run(pages[name]))
        browser.open(pages[name], *size)
        browser.evaluate(OPEN_ALL)
        seen = _seen(browser)
        for check in report.checks:
            assert check.title in seen
        for stage in report.stages:
            assert stage.name in seen and stage.detail in seen
        for key, value in report.facts["conntrack"]["live"].items():
            assert key.removeprefix("net.netfilter.") in seen and value in seen.replace(",", "")
        assert report.facts["image"]["sha256"] in seen
    for row in ("expected", "seen", "because", "console", "look", "again", "next"):
        assert report.facts["failures"][0][row] is not None and row in seen
    for heading in ("Timeline", "Image", "Conntrack", "Start of the server", "Reboot", "Checks", "History", "Sources",
                    "Console", "Build log", "Manifest", "What was removed"):
        assert heading in seen


def test_the_first_screen_says_it_all(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["red"], *DESKTOP)
    bottom = "document.querySelector('.failure').getBoundingClientRect().bottom"
    assert browser.evaluate(bottom) < DESKTOP[1]
    browser.open(pages["green"], *DESKTOP)
    assert browser.evaluate("document.querySelector('#timeline').getBoundingClientRect().top") < DESKTOP[1] / 2


def test_hostile_text_runs_nothing(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["huge"], *DESKTOP)
    assert browser.evaluate("document.title").startswith("✕ rtpengine failed")
    assert browser.evaluate("document.scripts.length") == 0
    assert " ".join(clean(HOSTILE).split()) in " ".join(_seen(browser).split())


def test_even_markup_that_got_in_could_not_run(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(pages["green"].read_text(encoding="utf-8").replace(
        "<main>", "<main><script>document.title = 'owned'</script><img src='http://192.0.2.1/x'>"), encoding="utf-8")
    browser.open(page, *DESKTOP)
    assert browser.evaluate("document.title") != "owned"
    assert any("Content Security Policy" in problem for problem in browser.problems)


def test_on_paper_it_is_dark_on_white_and_unfolded_logs_stay_away(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["red"], 700, 1000, scheme="dark", media="print")
    assert browser.evaluate(FAULTS) == []
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert browser.evaluate("[...document.querySelectorAll('details')].some(e => e.checkVisibility())") is False
    pdf = browser.pdf()
    assert pdf.startswith(b"%PDF-")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8


def _seen(browser: Browser) -> str:
    return str(browser.evaluate("document.body.innerText"))


def _run(page: Path) -> Any:
    from harness.run import Run

    return Run.open(page.parent)
