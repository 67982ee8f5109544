"""The run as JUnit XML: one suite for the stages, one for the image on disk, one for each boot.

A failure says that the image is at fault; whatever else went wrong is an error, and never counts against it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from harness.report.explain import block
from harness.report.model import Failure, Report
from harness.report.text import clean, words
from harness.report.verdict import Verdict, blames_image, fault_words, phases
from harness.results import CheckResult, Finding

_KINDS = {"failure": "failures", "error": "errors", "skipped": "skipped"}


def render(report: Report, verdict: Verdict) -> str:
    """The document; its counts are those of the cases in it."""
    root = Element("testsuites", name=f"dialtone {report.appliance}")
    suites = [_suite(root, report, "stages", _stages(report, verdict))]
    if report.findings:
        suites.append(_suite(root, report, "image", [_finding(finding) for finding in report.findings]))
    for phase in phases(report):
        cases = [_check(check) for check in report.checks if check.phase == phase]
        suites.append(_suite(root, report, phase, cases))
    for count in ("tests", *_KINDS.values()):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in suites)))
    root.set("time", f"{report.seconds:.2f}")
    indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _suite(root: Element, report: Report, name: str, cases: Iterable[Element]) -> Element:
    suite = SubElement(root, "testsuite", name=name,
                       timestamp=f"{datetime.fromtimestamp(report.run.started, UTC):%Y-%m-%dT%H:%M:%S}")
    used = report.fact("source").get("used")
    properties = {
        "run": report.run.id, "appliance": report.appliance, "version": report.version, "cloud": report.cloud,
        "source": words(used.get("kind")) if isinstance(used, dict) else "",
        "image.sha256": words(report.fact("image").get("sha256")),
        "image.kernel": words(report.fact("image").get("kernel")),
        "exit_code": words(report.facts.get("exit_code")),
    }
    holder = SubElement(suite, "properties")
    for key, value in properties.items():
        if value:
            SubElement(holder, "property", name=key, value=clean(value))
    suite.extend(cases)
    suite.set("tests", str(len(suite.findall("testcase"))))
    for kind, count in _KINDS.items():
        suite.set(count, str(len(suite.findall(f"testcase/{kind}"))))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in suite.findall('testcase')):.2f}")
    return suite


def _stages(report: Report, verdict: Verdict) -> list[Element]:
    """One case per stage. A stage whose checks or findings are red passes: those are counted where they are."""
    listed = {check.id for check in report.checks} | {check.title for check in report.checks}
    listed |= {finding.title for finding in report.findings}
    own = [failure for failure in verdict.failures
           if not listed.intersection(failure.places) and failure.title not in listed]
    cases = []
    for stage in report.stages:
        case = _case("stage", stage.name, stage.seconds or 0.0)
        reasons = [failure for failure in own if stage.name in failure.stages]
        if reasons:
            _blame(case, reasons)
        elif stage.outcome == "running" and report.dead:
            _mark(case, "error", "the run died during this stage", "")
        elif stage.outcome == "skipped":
            _mark(case, "skipped", stage.detail, "")
        elif stage.detail:
            SubElement(case, "system-out").text = stage.detail
        cases.append(case)
    names = {stage.name for stage in report.stages}
    homeless = [failure for failure in own if not names.intersection(failure.stages)]
    if homeless:
        case = _case("stage", "run", 0.0)
        _blame(case, homeless)
        cases.append(case)
    return cases


def _blame(case: Element, failures: list[Failure]) -> None:
    first = failures[0]
    _mark(case, "failure" if blames_image(first) else "error", first.title, "\n".join(block(f) for f in failures),
          fault_words(first.fault))


def _finding(finding: Finding) -> Element:
    case = _case("image", finding.title, 0.0)
    _outcome(case, finding.outcome, finding.seen or finding.title,
             {"expected": finding.expected, "seen": finding.seen, "because": finding.because, "next": finding.hint})
    return case


def _check(check: CheckResult) -> Element:
    case = _case(check.group, check.title, check.seconds)
    if check.id:
        file, _, _ = check.id.partition("::")
        case.set("file", file)
    message = check.reason if check.outcome == "skipped" else check.seen or check.message
    _outcome(case, check.outcome, message, {
        "check": check.id, "server": check.server, "expected": check.expected, "seen": check.seen,
        "because": check.because, "console": "\n".join(check.console), "message": check.message})
    return case


def _outcome(case: Element, outcome: str, message: str, rows: dict[str, str]) -> None:
    if outcome == "passed":
        return
    kind = {"failed": "failure", "skipped": "skipped"}.get(outcome, "error")
    body = "" if kind == "skipped" else "\n".join(f"{name}: {value}" for name, value in rows.items() if value)
    _mark(case, kind, message, body)


def _mark(case: Element, kind: str, message: str, body: str, type_: str = "") -> None:
    entry = SubElement(case, kind, message=clean(" ".join(message.split())))
    if type_:
        entry.set("type", type_)
    entry.text = clean(body) or None


def _case(classname: str, name: str, seconds: float) -> Element:
    return Element("testcase", classname=clean(classname), name=clean(name), time=f"{seconds:.2f}")
