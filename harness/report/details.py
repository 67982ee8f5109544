"""The rest of the page: all checks, the start of the server, history, sources, console, manifest, what was removed."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from harness.report.first_screen import facts_list, outcome_sign, section
from harness.report.history import Trend, trends
from harness.report.markup import Markup, breakable, join, tag
from harness.report.model import Log, Report
from harness.report.svg import marks, part, sparkline
from harness.report.text import clip, words
from harness.report.verdict import Verdict, phases, tested
from harness.results import CheckResult
from harness.units import many, octets, seconds

TAIL = 40
"""Lines of a console that are shown without asking."""

_IMAGE_EXITS = {1, 4, 5, 6}


def checks(report: Report, verdict: Verdict, explained: int, room: int, *, passed_names: bool) -> Markup:
    """Findings in the image, then the checks by group: one row per check, one column per boot."""
    if not report.checks and not report.findings:
        return section("Checks", tag("p", "None ran.", class_="soft"), id_="checks")
    anchors = {place: number for number, failure in enumerate(verdict.failures[:explained], start=1)
               for place in failure.places}
    boots, servers = phases(report), {check.server for check in report.checks}
    groups: dict[str, dict[tuple[str, str], dict[str, CheckResult]]] = {}
    for check in report.checks:
        groups.setdefault(check.group, {}).setdefault((check.id or check.title, check.server), {})[check.phase] = check
    tables = [_findings(report, room)] if report.findings else []
    tables += [_group(name, rows, boots, anchors, room, passed_names, many_servers=len(servers) > 1)
               for name, rows in groups.items()]
    ran, red = tested(report)
    note = f"{ran - red} of {ran} hold" + (f" after {' and '.join(boots)}" if len(boots) > 1 else "") if ran else ""
    return section("Checks", tag("div", *tables, class_="groups"), id_="checks", note=note)


def start(report: Report) -> Markup | None:
    """How the server came up: each step from the one before it."""
    return _steps(report.fact("server").get("timings"), "Start of the server", "start", "time since power-on")


def reboot(report: Report) -> Markup | None:
    """The same after its reboot; `down` is the way there."""
    return _steps(report.fact("reboot").get("timings"), "Reboot", "reboot", "time since it was asked for")


def _steps(timings: object, title: str, id_: str, note: str) -> Markup | None:
    steps = [(name, float(value)) for name, value in timings.items() if isinstance(value, int | float)] \
        if isinstance(timings, dict) else []
    steps.sort(key=lambda step: step[1])
    rows, at = [], 0.0
    whole = max([value for _, value in steps] + [0.1])
    for name, value in steps:
        label = f"{name} after {seconds(value)}"
        rows.append(tag("li", tag("span", name, class_="name"),
                        tag("div", part(at / whole, (value - at) / whole, label), class_="plot"),
                        tag("span", seconds(value), class_="time")))
        at = value
    return section(title, tag("ol", *rows, class_="timeline steps"), id_=id_, note=note) if rows else None


def machine(report: Report) -> Markup | None:
    """On what machine it ran."""
    facts = [(name, _machine(name, value)) for name, value in report.fact("host").items()]
    return section("Machine", facts_list(facts), id_="machine") if facts else None


_CLOUD = {"name": "cloud", "region": "region", "api_calls": "API calls", "image_id": "image", "server_id": "server",
          "flavor": "flavor", "config_drive": "config drive", "hypervisor": "hypervisor", "namespace": "namespace",
          "network_host": "on host"}


def cloud(report: Report) -> Markup | None:
    """Which cloud, what the run's things are called there, and how the server was reached."""
    facts = report.fact("cloud")
    if not facts:
        return None
    server = report.fact("server")
    rows = [(title, words(facts[name])) for name, title in _CLOUD.items() if name in facts]
    rows += [(title, words(server[name])) for name, title in (
        ("internal_ip", "internal address"), ("floating_ip", "floating IP")) if server.get(name)]
    return section("Cloud", facts_list(rows), id_="cloud")


def history(report: Report, verdict: Verdict) -> Markup | None:
    """This run against the runs that lie beside it."""
    if not report.history:
        return None
    runs = [(_passed(past.exit_code), f"{past.id}: {'no exit code' if past.exit_code is None else past.exit_code}")
            for past in report.history] + [(_passed(verdict.exit_code), f"{report.run.id}: this run")]
    good = sum(1 for passed, _ in runs if passed)
    label = f"{good} of {many(len(runs), 'run')} passed"
    outcomes = tag("div", tag("h3", "outcome"), marks(runs, label), tag("p", label),
                   tag("p", "● passed  ✕ the image failed  ○ says nothing about the image", class_="soft"),
                   class_="trend outcomes")
    return section("History", tag("div", outcomes, *[_trend(trend) for trend in trends(report)], class_="trends"),
                   id_="history", note=f"{many(len(report.history), 'earlier run')}, newest at the right")


def sources(report: Report) -> Markup | None:
    """Where the software came from, and why an earlier source was not used."""
    facts = report.fact("source")
    used, skipped = facts.get("used"), facts.get("skipped")
    rows = [_source(entry, "passed", "used") for entry in ([used] if isinstance(used, dict) else [])]
    rows += [_source(entry, "skipped", "not used") for entry in (skipped if isinstance(skipped, list) else [])
             if isinstance(entry, dict)]
    return section("Sources", *rows, id_="sources") if rows else None


def consoles(report: Report, verdict: Verdict, room: int) -> Markup | None:
    """The end of every server's console; what came before is folded. Lines that a failure quotes are marked."""
    if not report.consoles:
        return None
    quoted = {line.strip() for failure in verdict.failures for line in failure.console if line.strip()}
    share = room // len(report.consoles)
    return section("Console", *[_console(log, quoted, share) for log in report.consoles], id_="console")


def build_log(report: Report, room: int) -> Markup | None:
    if not report.build_log:
        return None
    log = report.build_log
    text, missing = _end(log, room)
    return section("Build log", tag("details", tag("summary", many(text.count("\n") + 1, "line"), missing),
                                    tag("pre", text)), id_="build-log")


def manifest(report: Report) -> Markup | None:
    """Everything that the image's manifest says, folded by part."""
    if not report.manifest:
        return None
    short = [(name, words(value)) for name, value in report.manifest.items() if not isinstance(value, list | dict)]
    long = [tag("details", tag("summary", name, f" ({len(value):,})"), _value(value))
            for name, value in report.manifest.items() if isinstance(value, list | dict) and value]
    sbom = words(report.fact("image").get("sbom"))
    link = tag("p", "As a bill of materials (CycloneDX), beside this page: ", tag("a", tag("code", sbom), href=sbom)
               ) if re.fullmatch(r"[a-z.]+", sbom) else None
    return section("Manifest", link, facts_list([(name, value) for name, value in short]) if short else None, *long,
                   id_="manifest")


def removed(report: Report) -> Markup:
    """What the run made on this machine or in the cloud, and that it is gone."""
    if not report.made:
        return section("What was removed", tag("p", "The run made nothing that had to be removed.", class_="soft"),
                       id_="removed")
    left = [made for made in report.made if not made.gone]
    counts = Counter(made.kind for made in report.made if made.gone)
    said = ", ".join(f"{kind} × {count}" if count > 1 else kind for kind, count in counts.items())
    kept = report.run.state == "kept"
    left_list = tag("ul", [tag("li", tag("strong", made.kind), " ", tag("code", made.name)) for made in left])
    return section(
        "What was removed",
        tag("p", outcome_sign("passed"), " ", said) if said else None,
        join(tag("p", outcome_sign("skipped" if kept else "failed"), " ",
                 f"kept on purpose (--keep {report.run.keep}), until ./inv destroy:" if kept
                 else "still there; ./inv reap removes it:"), left_list) if left else None,
        tag("details", tag("summary", f"all {many(len(report.made), 'resource')}"),
            tag("ul", [tag("li", made.kind, " ", tag("code", made.name)) for made in report.made])),
        id_="removed", note="nothing left" if not left else many(len(left), "thing") + " left")


def _findings(report: Report, room: int) -> Markup:
    body = []
    for finding in report.findings:
        body.append(tag("tr", tag("th", finding.title, scope="row"), tag("td", outcome_sign(finding.outcome)),
                        class_=finding.outcome))
        if finding.red:
            body.append(_explanation([("expected", finding.expected), ("seen", finding.seen),
                                      ("because", finding.because), ("next", finding.hint)], 2, room))
    return _table("the image, not booted", [finding.outcome for finding in report.findings], ["on disk"], body)


def _group(name: str, rows: dict[tuple[str, str], dict[str, CheckResult]], boots: tuple[str, ...],
           anchors: dict[str, int], room: int, passed_names: bool, *, many_servers: bool) -> Markup:
    body = []
    for (_, server), by_boot in rows.items():
        first = next(iter(by_boot.values()))
        worst = _worst([check.outcome for check in by_boot.values()])
        name_of = tag("code", breakable(first.id.removeprefix("tests/appliance/")))
        title = tag("th", tag("span", first.title, f" on {server}" if many_servers and server else None),
                    name_of if passed_names or worst != "passed" else None, scope="row")
        cells = [tag("td", outcome_sign(check.outcome), tag("small", seconds(check.seconds)))
                 if (check := by_boot.get(boot)) else tag("td", tag("span", "not run", class_="soft"))
                 for boot in boots]
        body.append(tag("tr", title, *cells, class_=worst))
        measured = [(f"seen at {boot}" if len(boots) > 1 else "seen", check.seen)
                    for boot, check in by_boot.items() if check.outcome == "passed" and check.seen]
        if measured:
            body.append(_explanation(measured, len(boots) + 1, room))
        skipped = next((check for check in by_boot.values() if check.outcome == "skipped"), None)
        if worst == "skipped" and skipped:
            body.append(_explanation([("reason", skipped.reason or skipped.because)], len(boots) + 1, room))
        red = next((check for check in by_boot.values() if check.red), None)
        if red and red.id in anchors:
            link = tag("a", "explained above", href=f"#failure-{anchors[red.id]}")
            body.append(tag("tr", tag("td", link, colspan=len(boots) + 1), class_="explanation"))
        elif red:
            body.append(_explanation(
                [("expected", red.expected), ("seen", red.seen or red.message), ("because", red.because),
                 ("console", "\n".join(red.console[-5:]))], len(boots) + 1, room))
    return _table(name, [_worst([c.outcome for c in by_boot.values()]) for by_boot in rows.values()], list(boots), body)


def _table(name: str, outcomes: list[str], columns: list[str], body: list[Markup]) -> Markup:
    counts = Counter(outcomes)
    said = ", ".join(f"{counts[o]} {o}" for o in ("failed", "error", "passed", "skipped") if counts[o])
    head = tag("tr", tag("th", tag("h3", name, tag("small", said)), scope="col"),
               [tag("th", column, scope="col") for column in columns])
    return tag("table", tag("thead", head), tag("tbody", *body), class_="checks")


def _explanation(pairs: list[tuple[str, str]], columns: int, room: int) -> Markup:
    rows = [join(tag("dt", name), tag("dd", tag("pre" if name == "console" else "p", clip(value, room))))
            for name, value in pairs if value]
    return tag("tr", tag("td", tag("dl", *rows, class_="why") if rows else "no reason was given", colspan=columns),
               class_="explanation")


def _worst(outcomes: list[str]) -> str:
    return next((o for o in ("failed", "error", "skipped") if o in outcomes), outcomes[0])


def _trend(trend: Trend) -> Markup:
    sign = {"better": "▼ ", "worse": "▲ ", "as usual": "≈ "}.get(trend.word, "")
    change = f" {abs(trend.change):.0%}" if trend.change is not None and trend.word in {"better", "worse"} else ""
    label = f"{trend.name}: " + ", ".join(trend.show(value) for value in trend.values)
    return tag("div", tag("h3", trend.name), tag("p", trend.show(trend.values[-1]), class_="figure"),
               sparkline(trend.values, label) if len(trend.values) > 1 else None,
               tag("p", f"{sign}{trend.word}{change}", class_=f"word {trend.word.replace(' ', '-')}"), class_="trend")


def _passed(code: int | None) -> bool | None:
    return True if code == 0 else False if code in _IMAGE_EXITS else None


def _source(entry: dict[str, Any], state: str, word: str) -> Markup:
    rest = {key: value for key, value in entry.items() if key not in {"kind", "version", "reason"} and value}
    return tag("article", tag("h3", outcome_sign(state), f" {words(entry.get('kind'))} {words(entry.get('version'))}",
                              tag("small", word)),
               tag("p", words(entry.get("reason"))) if entry.get("reason") else None,
               *[join(tag("h4", key), _value(value)) for key, value in rest.items()], class_="source")


def _console(log: Log, quoted: set[str], room: int) -> Markup:
    text, missing = _end(log, room)
    every = text.split("\n")
    before, last = every[:-TAIL], every[-TAIL:]
    folded = tag("details", tag("summary", f"{many(len(before), 'line')} before these", missing),
                 tag("pre", _marked(before, quoted))) if before else None
    return join(tag("h3", log.name), folded, tag("pre", _marked(last, quoted)))


def _marked(shown: list[str], quoted: set[str]) -> Markup:
    """The lines as one text, those that a failure quotes marked; plain ones in one piece, for there are many."""
    if not quoted:
        return join("\n".join(shown))
    return join(*[join(tag("mark", line) if line.strip() in quoted else line, "\n") for line in shown])


def _end(log: Log, room: int) -> tuple[str, str]:
    """The last `room` characters from a line's beginning, and what to say about the rest."""
    if len(log.text) <= room and not log.omitted:
        return log.text, ""
    cut = log.text[-room:]
    if len(log.text) > room:
        cut = cut.partition("\n")[2] or cut
    return cut, f"; {octets(log.omitted + len(log.text) - len(cut))} before them are in the run's directory only"


def _machine(name: str, value: Any) -> str:
    """Memory in GiB, be it told in octets or as /proc/meminfo does."""
    told = re.fullmatch(r"(\d+) kB", words(value)) if name == "memory" else None
    memory = int(told[1]) * 1024 if told else value if name == "memory" else None
    if isinstance(memory, int) and memory >= 2**20:
        return f"{memory / 2**30:.1f} GiB"
    return words(value)


def _value(value: Any) -> Markup:
    """A JSON value of the manifest: mappings as two columns, records as a table, lists as a list."""
    if isinstance(value, dict):
        return facts_list([(key, _value(item)) for key, item in value.items()], "facts deep")
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        columns = list(dict.fromkeys(key for item in value for key in item))
        return tag("table", tag("thead", tag("tr", [tag("th", column, scope="col") for column in columns])),
                   tag("tbody", [tag("tr", [tag("td", _value(item.get(column))) for column in columns])
                                 for item in value]), class_="records")
    if isinstance(value, list):
        return tag("ul", [tag("li", _value(item)) for item in value], class_="plain")
    text = words(value)
    return tag("code" if re.fullmatch(r"[0-9a-f]{32,}", text) else "span", text)
