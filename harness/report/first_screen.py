"""What a reader sees first: why it failed, where the time went, what was built, the plan against the live values."""

from __future__ import annotations

import re
from typing import Any

from harness.errors import Fault
from harness.report.explain import rows_of
from harness.report.history import last_night, red_since
from harness.report.markup import Markup, breakable, join, tag
from harness.report.model import Failure, Report
from harness.report.svg import bar, part
from harness.report.text import clip, lines, words
from harness.report.verdict import Verdict, blames_image, fault_words
from harness.units import many, octets, seconds

SIGNS = {"passed": "✓", "failed": "✕", "error": "!", "skipped": "–", "running": "…"}


def section(title: str, *content: Markup | None, id_: str, note: str = "") -> Markup:
    """A card of the page with a heading."""
    return tag("section", tag("h2", title, tag("small", note) if note else None), *content, id=id_)


def facts_list(pairs: list[tuple[str, str | Markup]], class_: str = "facts") -> Markup:
    """Names and values; a pair without a value is left out."""
    return tag("dl", [join(tag("dt", name), tag("dd", value)) for name, value in pairs if value], class_=class_)


def outcome_sign(outcome: str) -> Markup:
    """The outcome as a sign, and as a word for whoever doesn't see it."""
    return tag("span", SIGNS.get(outcome, "?"), tag("span", f" {outcome}", class_="unseen"), class_=f"o {outcome}")


def warnings(report: Report) -> Markup | None:
    """Warnings of the run, notes on its sources, and pins that have aged, each once."""
    source = report.fact("source").get("notes")
    found = [words(note) for note in report.facts_list("warnings") + (source if isinstance(source, list) else [])]
    notes = [note for note in dict.fromkeys(found) if note]
    pins = [_pin(pin) for pin in report.facts_list("pins") if isinstance(pin, dict)]
    return tag("aside", tag("h2", "To know"), tag("ul", [tag("li", clip(note, 600)) for note in notes], pins),
               class_="notes") if notes or pins else None


def failures(report: Report, verdict: Verdict, shown: int, room: int) -> Markup | None:
    """The ten lines for each failure; those beyond `shown` are counted, the checks' list has them all."""
    if all(failure.fault == Fault.USER for failure in verdict.failures):
        return None
    cards = [_failure(report, failure, number, room)
             for number, failure in enumerate(verdict.failures[:shown], start=1)]
    more = len(verdict.failures) - shown
    rest = tag("p", f"And {many(more, 'more failure')}; every red check is ",
               tag("a", "in the list below", href="#checks"), ".", class_="more") if more > 0 else None
    return tag("div", *cards, rest, class_="failures", id="failures")


def timeline(report: Report) -> Markup:
    """The stages, each with its time; the time it took in the run before as a thin line under it."""
    if not report.stages:
        return section("Timeline", tag("p", "No stage had begun.", class_="soft"), id_="timeline")
    before = last_night(report)
    begin = min(stage.started for stage in report.stages)
    whole = max([stage.started - begin + max(stage.seconds or 0.0, before.get(stage.name, 0.0))
                 for stage in report.stages] + [0.1])
    rows = []
    for stage in report.stages:
        took, last = stage.seconds or 0.0, before.get(stage.name)
        label = f"{stage.name}: {stage.outcome}, {seconds(took)}" + (f", last time {seconds(last)}" if last else "")
        rows.append(tag(
            "li", tag("span", outcome_sign(stage.outcome), " ", stage.name, class_="name"),
            tag("div", bar((stage.started - begin) / whole, took / whole, last / whole if last is not None else None,
                           red=stage.outcome == "failed", label=label),
                tag("p", clip(stage.detail, 200)) if stage.detail else None, class_="plot"),
            tag("span", seconds(took) if stage.seconds is not None else "not ended",
                _against(took, last, stage.outcome) if stage.seconds is not None else None, class_="time")))
    key = "thick: this run · thin: the run before" if before else "no run before it to compare with"
    return section("Timeline", tag("ol", *rows, class_="timeline"), id_="timeline", note=key)


def image(report: Report) -> Markup:
    """Size, kernel, module, packages, hash."""
    facts, manifest = report.fact("image"), report.manifest
    if not facts and not manifest:
        return section("Image", tag("p", "No image was made.", class_="soft"), id_="image")
    used = report.fact("source").get("used")
    used = used if isinstance(used, dict) else {}
    size, virtual = (facts.get(name, manifest.get(name)) for name in ("size", "virtual_size"))
    shown_size = Markup() if not isinstance(size, int | float) else join(octets(size))
    if isinstance(size, int | float) and isinstance(virtual, int | float) and virtual > 0:
        said = f"{octets(size)} of file for a disk of {octets(virtual)}"
        shown_size = join(said, part(0, size / virtual, said))
    packages = manifest.get("packages")
    path = words(facts.get("path")).removeprefix(report.project)
    pairs: list[tuple[str, str | Markup]] = [
        ("size", shown_size),
        ("kernel", words(facts.get("kernel") or manifest.get("kernel"))),
        ("module", _module(manifest.get("modules"))),
        ("packages", f"{len(packages):,}" if isinstance(packages, list | dict) else ""),
        ("source", " ".join(filter(None, (words(used.get("kind")), words(used.get("version")))))),
        ("built", "taken from the cache: no input had changed" if facts.get("from_cache") else
         "in this run" if "from_cache" in facts else ""),
        ("SHA-256", tag("code", words(facts["sha256"])) if facts.get("sha256") else ""),
        ("file", tag("code", breakable(path)) if path else ""),
    ]
    return section("Image", facts_list(pairs), id_="image")


def conntrack(report: Report) -> Markup | None:
    """The computed plan beside what the running kernel says."""
    facts = report.fact("conntrack")
    plan, live = _mapping(facts.get("plan")), _mapping(facts.get("live"))
    if not plan and not live:
        return None
    first = [key for key in plan if key.removeprefix("net.netfilter.nf_conntrack_") in {"max", "buckets", "expect_max"}]
    rows = sorted((_compared(key, words(plan[key]), words(live.get(key))) for key in dict.fromkeys([*first, *plan])),
                  key=lambda row: row[0] != "failed")
    differing = sum(state == "failed" for state, _ in rows)
    note = f"{many(differing, 'value')} {'differs' if differing == 1 else 'differ'}" if differing else "all as planned"
    if not plan:
        note = "nothing was planned"
    elif not live:
        note = "the server was not read"
    half = len(rows) if len(rows) <= 8 else (len(rows) + 1) // 2
    head = tag("thead", tag("tr", [tag("th", name, scope="col") for name in ("key", "plan", "live", "")]))
    tables = [tag("table", head, tag("tbody", [row for _, row in rows[at:at + half]]), class_="plan")
              for at in range(0, len(rows), half or 1)]
    others = [(key, words(value)) for key, value in live.items() if key not in plan]
    return section("Conntrack", tag("div", *tables, class_="plans"),
                   tag("details", tag("summary", f"{many(len(others), 'live value')} not in the plan"),
                       facts_list([(key.removeprefix("net.netfilter."), value) for key, value in others],
                                  "facts deep")) if others else None,
                   id_="conntrack", note=note)


def _compared(key: str, wanted: str, found: str) -> tuple[str, Markup]:
    if not found:
        state, word = "skipped", "not read"
    else:
        state, word = ("passed", "as planned") if wanted == found else ("failed", "differs")
    sign = tag("span", SIGNS[state], class_=f"o {state}")
    return state, tag("tr", tag("th", breakable(key.removeprefix("net.netfilter.")), scope="row"),
                      tag("td", _grouped(wanted)), tag("td", _grouped(found)),
                      tag("td", sign, " ", tag("span", word)), class_=state)


def _pin(pin: dict[str, Any]) -> Markup:
    """What to write in its place, with the hashes as a description has them."""
    hashes = [tag("li", tag("code", f"{name}: {words(digest)}"))
              for name, digest in _mapping(pin.get("hashes")).items()]
    return tag("li", clip(words(pin.get("sentence")), 600), tag("ul", hashes) if hashes else None)


def _failure(report: Report, failure: Failure, number: int, room: int) -> Markup:
    badges = [tag("span", f"at {stage}") for stage in failure.stages]
    if failure.fault and failure.fault != Fault.USER:
        who = fault_words(failure.fault)
        badges.append(tag("span", who if blames_image(failure) else f"{who}, not the image"))
    if "::" in failure.where and report.history:
        since = red_since(report, failure.where)
        badges.append(tag("span", f"red since run {since}" if since else "new in this run"))
    rows = [join(tag("dt", name), tag("dd", _row(name, content, room))) for name, content in rows_of(failure)]
    return tag("article", tag("h2", tag("span", SIGNS["failed"] if blames_image(failure) else SIGNS["error"],
                                        class_="o failed" if blames_image(failure) else "o error"),
                               " ", clip(failure.title, 300)),
               tag("p", *badges, class_="badges"),
               tag("p", tag("code", breakable(failure.where)), class_="where") if failure.where else None,
               tag("dl", *rows, class_="why") if rows else None,
               class_="failure" if blames_image(failure) else "failure other", id=f"failure-{number}")


def _row(name: str, content: list[str], room: int) -> Markup:
    text = clip("\n".join(content[-12:] if name == "console" else content), room)
    if name == "console":
        return tag("pre", text)
    if name in {"look", "again"}:
        return join(*[tag("p", _command(line)) for line in lines(text)])
    return join(*[tag("p", line) for line in lines(text)])


def _command(line: str) -> Markup:
    """`./inv ssh     the server is kept`: a command, and after a gap what it is for."""
    parts = re.split(r"\s{2,}", line.strip(), maxsplit=1)
    return join(tag("code", parts[0]), *[join(" ", part) for part in parts[1:]])


def _against(took: float, last: float | None, outcome: str) -> Markup | None:
    if last is None:
        return None
    change = took - last
    if outcome != "passed" or abs(change) < 1.0 or abs(change) < 0.1 * last:
        return tag("small", f"was {seconds(last)}")
    return tag("small", "▲ " if change > 0 else "▼ ", f"was {seconds(last)}")


def _module(modules: Any) -> str:
    if isinstance(modules, dict):
        return ", ".join(f"{name} {words(value)}".strip() if isinstance(value, str) else name
                         for name, value in list(modules.items())[:4])
    if isinstance(modules, list):
        names = [words(m.get("name")) if isinstance(m, dict) else words(m) for m in modules]
        ours = [name for name in names if "rtpengine" in name.lower()]
        return ", ".join((ours or names)[:4])
    return words(modules)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _grouped(value: str) -> str:
    return f"{int(value):,}" if re.fullmatch(r"\d{5,15}", value) else value or "–"
