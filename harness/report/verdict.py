"""What a run proved, whose fault a failure is, and the one sentence that says so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from harness.errors import ExitCode, Fault
from harness.report.model import Failure, Report, level_of
from harness.report.text import clip, words
from harness.results import CheckResult
from harness.run import Stage
from harness.units import many


class Outcome(StrEnum):
    """`blocked`: something else than the image failed, so nothing was learned about the image."""

    PASSED = "passed"
    FAILED = "failed"
    BLOCKED = "blocked"
    INTERRUPTED = "interrupted"
    UNFINISHED = "unfinished"


FAULTS = {
    Fault.IMAGE: "the image", Fault.DESCRIPTION: "the description", Fault.HOST: "this host",
    Fault.CLOUD: "the cloud", Fault.USER: "interrupted",
}

EXIT_CODES = {
    ExitCode.PASSED: "passed", ExitCode.CHECK: "the image", ExitCode.DESCRIPTION: "the description",
    ExitCode.HOST: "this host", ExitCode.BUILD: "the build", ExitCode.INSPECT: "the inspection",
    ExitCode.NOT_READY: "the server never became ready", ExitCode.CLOUD: "the cloud",
    ExitCode.NOT_REMOVED: "something could not be removed", ExitCode.INTERRUPTED: "interrupted",
}

_IMAGE_EXITS = {ExitCode.CHECK, ExitCode.BUILD, ExitCode.INSPECT, ExitCode.NOT_READY}


@dataclass(frozen=True)
class Verdict:
    """`sentence` is complete in itself; `failures` are all of them, those of one cause as one."""

    outcome: Outcome
    sentence: str
    failures: tuple[Failure, ...]
    exit_code: int | None


def judge(report: Report) -> Verdict:
    """The verdict on a run, from its exit code where it has one and from what is recorded where it has none."""
    failures = tuple(_failures(report))
    code = report.facts.get("exit_code")
    code = code if isinstance(code, int) and not isinstance(code, bool) else None
    outcome = _outcome(report, failures, code)
    return Verdict(outcome, _sentence(report, outcome, failures, code), failures, code)


def exit_phrase(code: int) -> str:
    """`the image` for 1, `interrupted` for 130."""
    try:
        return EXIT_CODES[ExitCode(code)]
    except ValueError:
        return f"code {code}"


def fault_words(fault: str) -> str:
    """`the cloud` for `cloud`; an unknown fault as it is."""
    return FAULTS[Fault(fault)] if fault in set(Fault) else fault


def blames_image(failure: Failure) -> bool:
    """Whether a failure says anything about the image."""
    return failure.fault == Fault.IMAGE


def tested(report: Report) -> tuple[int, int]:
    """How many different checks ran to an end, and how many of them were red at least once."""
    ran = {(check.id, check.server) for check in report.checks if check.outcome != "skipped"}
    red = {(check.id, check.server) for check in report.checks if check.red}
    return len(ran), len(red)


def phases(report: Report) -> tuple[str, ...]:
    """The boots after which checks ran, in order."""
    return tuple(dict.fromkeys(check.phase for check in report.checks))


def _failures(report: Report) -> Iterable[Failure]:
    """What the run told of its failures, then what its files show and it didn't tell; equal ones merged."""
    told_at = {failure.where for failure in report.told} | {failure.title for failure in report.told}
    derived = [_of_check(check, level_of(report.facts)) for check in report.checks
               if check.red and check.id not in told_at and check.title not in told_at]
    derived += [Failure(f.title, ("inspect",), expected=f.expected, seen=f.seen, because=f.because, next=f.hint,
                        fault=Fault.IMAGE)
                for f in report.findings if f.red and f.title not in told_at]
    known = [*report.told, *derived]
    fault = _fault_of_exit(report)
    if not known:
        known = [Failure(stage.detail or f"{stage.name} failed and said nothing", (stage.name,), fault=fault)
                 for stage in _last(report.stages) if stage.outcome == "failed"]
    return _by_cause(_once(failure if failure.fault else replace(failure, fault=fault) for failure in known))


def _last(stages: Iterable[Stage]) -> Iterable[Stage]:
    """The stages that count: of a kept server's checks, after a reboot or not, those of the last time."""
    last: dict[str, Stage] = {}
    for stage in stages:
        if stage.name in {"check", "reboot"}:
            last.pop("check", None)
            last.pop("reboot", None)
        last[stage.name] = stage
    return last.values()


def _once(failures: Iterable[Failure]) -> Iterable[Failure]:
    """The same failure at several stages (after both boots, say) as one that names them all."""
    merged: dict[tuple[str, ...], Failure] = {}
    for failure in failures:
        key = (failure.where, failure.title, failure.seen, failure.because)
        stages = merged[key].stages if key in merged else ()
        merged[key] = replace(merged.get(key, failure), stages=tuple(dict.fromkeys(stages + failure.stages)),
                              places=(failure.where,) if failure.where else ())
    return merged.values()


def _by_cause(failures: Iterable[Failure]) -> Iterable[Failure]:
    """Failures with the same cause as one: the first, with the titles of the others. Without a cause none is merged."""
    merged: dict[tuple[str, ...], Failure] = {}
    for number, failure in enumerate(failures):
        key = (failure.fault, failure.because) if failure.because else (str(number),)
        if key in merged:
            first = merged[key]
            merged[key] = replace(first, also=(*first.also, failure.title), places=first.places + failure.places,
                                  stages=tuple(dict.fromkeys(first.stages + failure.stages)))
        else:
            merged[key] = failure
    return merged.values()


def _of_check(check: CheckResult, level: str) -> Failure:
    return Failure(
        title=check.title, stages=(f"check, {check.phase}" if check.phase else "check",), where=check.id,
        expected=check.expected, seen=check.seen or check.message, because=check.because, console=check.console,
        again=check.again(level) if check.id else "", message=check.message, fault=check.fault)


def _fault_of_exit(report: Report) -> str:
    fault = words(report.facts.get("fault"))
    if fault:
        return fault
    code = report.facts.get("exit_code")
    if code == ExitCode.INTERRUPTED:
        return Fault.USER
    if code == ExitCode.DESCRIPTION:
        return Fault.DESCRIPTION
    if code == ExitCode.CLOUD:
        return Fault.CLOUD
    return Fault.IMAGE if code in _IMAGE_EXITS else Fault.HOST


def _outcome(report: Report, failures: tuple[Failure, ...], code: int | None) -> Outcome:
    if code == ExitCode.INTERRUPTED:
        return Outcome.INTERRUPTED
    if failures:
        return Outcome.FAILED if any(blames_image(failure) for failure in failures) else Outcome.BLOCKED
    if code:
        return Outcome.FAILED if code in _IMAGE_EXITS else Outcome.BLOCKED
    return Outcome.UNFINISHED if code is None else Outcome.PASSED


def _sentence(report: Report, outcome: Outcome, failures: tuple[Failure, ...], code: int | None) -> str:
    last = report.stages[-1].name if report.stages else "the start"
    at = failures[0].stages[0] if failures and failures[0].stages else last
    title = clip(failures[0].title, 160).rstrip(".") if failures else ""
    if outcome is Outcome.PASSED:
        return _passed(report)
    if outcome is Outcome.INTERRUPTED:
        return f"Interrupted during {at}: no verdict on the image."
    if outcome is Outcome.UNFINISHED:
        return (f"Ended during {last} without a verdict: its process died." if report.dead
                else f"Not finished: at {last}, no verdict yet.")
    if outcome is Outcome.BLOCKED:
        return _blocked(report, failures, code, at, title)
    found = [finding.title for finding in report.findings if finding.outcome != "passed"]
    if failures and failures[0].title in found:
        return _not_holding(title, len(found), len(report.findings), "finding")
    ran, red = tested(report)
    if red and blames_image(failures[0]) and failures[0].where:
        return _not_holding(title, red, ran, "check")
    return f"Failed at {at}: {title or exit_phrase(code or 1)}."


def _not_holding(title: str, red: int, ran: int, noun: str) -> str:
    if red > 1:
        of = " in the image" if noun == "finding" else ""
        return f"Failed: {red} of {ran:,} {noun}s{of} do not hold; the first is “{title}”."
    others = f"; the other {many(ran - 1, noun)} {'does' if ran == 2 else 'do'}" if ran > 1 else ""
    return f"Failed: “{title}” does not hold{others}."


def _passed(report: Report) -> str:
    ran, _ = tested(report)
    if ran:
        boots = phases(report)
        after = f" after the first boot and again after {'the' if len(boots) == 2 else 'each'} reboot"
        every = "the only check holds" if ran == 1 else f"all {ran:,} checks hold"
        return f"Passed: {every}{after if len(boots) > 1 else ''}."
    done = [stage.name for stage in report.stages if stage.outcome == "passed"]
    return f"Passed: {', '.join(done)}; no check was asked for." if done else "Passed."


def _blocked(report: Report, failures: tuple[Failure, ...], code: int | None, at: str, title: str) -> str:
    if code == ExitCode.NOT_REMOVED or (at == "remove" and code in {0, None}):
        ran, red = tested(report)
        held = f"All {ran} checks hold, but something" if ran and not red else "Something"
        return f"{held} could not be removed: {title}."
    fault = failures[0].fault if failures else _fault_of_exit(report)
    who = fault_words(fault)
    if fault == Fault.DESCRIPTION:
        return f"Nothing was proved: the description is wrong at {at}: {title}."
    return f"No verdict on the image: {who} failed at {at}: {title or exit_phrase(code or 3)}."
