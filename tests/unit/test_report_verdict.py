from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import Fault
from harness.report.explain import block, summary, text
from harness.report.model import Failure, load
from harness.report.verdict import Outcome, Verdict, judge
from harness.run import Run, State
from tests.report_samples import (
    AGAIN,
    FAILURE,
    FIRST,
    broken_cloud,
    died_at_once,
    green,
    interrupted,
    make,
    red,
    stages,
    write_checks,
)


def verdict(run: Run) -> Verdict:
    return judge(load(run))


def redden(*tests: str, outcome: str = "failed", **more: Any) -> Any:
    def alter(entry: dict[str, Any]) -> dict[str, Any]:
        return entry | {"outcome": outcome} | more if entry["id"].rsplit("::")[-1] in tests else entry
    return alter


def test_checks_that_pass_when_they_are_done_again_count(tmp_path: Path) -> None:
    run = green(tmp_path)
    check = next(stage for stage in run.stages if stage.name == "check")
    run.stages.append(replace(check, outcome="failed", detail="21 passed, 1 FAILED"))
    run.save()
    assert verdict(run).outcome is not Outcome.PASSED
    run.stages.append(check)
    run.save()
    assert verdict(run).outcome is Outcome.PASSED and summary(run).startswith("passed in")


def test_green(tmp_path: Path) -> None:
    run = green(tmp_path)
    assert verdict(run).outcome is Outcome.PASSED
    assert verdict(run).sentence == "Passed: all 22 checks hold after the first boot and again after the reboot."
    assert text(run) == ""
    assert summary(run) == "passed in 2 min 38 s"


def test_red_is_understood_from_ten_lines(tmp_path: Path) -> None:
    run = red(tmp_path)
    assert verdict(run).outcome is Outcome.FAILED
    assert verdict(run).sentence == ("Failed: “media is forwarded in the kernel” does not hold; "
                                     "the other 21 checks do.")
    lines = text(run).splitlines()
    assert len(lines) <= 10
    assert lines[0].split("  ")[0] == "FAILED"
    assert lines[0].endswith("tests/appliance/test_forwarding.py::test_counters")
    rows = [line.split()[0] for line in lines[1:]]
    assert rows == ["expected", "seen", "because", "console", "look", "again", "next"]
    assert lines[3] == f"  because   {FAILURE['because']}"
    assert summary(run) == "failed in 3 min 27 s (exit 1: the image)"


def test_the_cloud_s_fault_is_not_the_image_s(tmp_path: Path) -> None:
    run = broken_cloud(tmp_path)
    assert verdict(run).outcome is Outcome.BLOCKED
    assert verdict(run).sentence.startswith("No verdict on the image: the cloud failed at launch: the floating address")
    assert text(run).splitlines()[1] == "  fault     the cloud, not the image"
    assert summary(run) == "failed in 7.8 s (exit 7: the cloud)"


def test_interrupted(tmp_path: Path) -> None:
    run = interrupted(tmp_path)
    assert verdict(run).outcome is Outcome.INTERRUPTED
    assert verdict(run).sentence == "Interrupted during build: no verdict on the image."
    assert summary(run) == "interrupted after 19 s (exit 130)"


def test_a_run_that_died_never_passed(tmp_path: Path) -> None:
    run = died_at_once(tmp_path)
    assert verdict(run).outcome is Outcome.UNFINISHED
    assert verdict(run).sentence == "Ended during host without a verdict: its process died."
    assert summary(run) == "no verdict after 0 s"


def test_a_run_that_goes_on_has_no_verdict_yet(tmp_path: Path) -> None:
    run = died_at_once(tmp_path)
    run.lock()
    assert verdict(run).sentence == "Not finished: at host, no verdict yet."
    run.unlock()


def test_green_checks_without_an_exit_code_are_no_pass(tmp_path: Path) -> None:
    run = make(tmp_path, 1, exit_code=None)
    write_checks(run, FIRST)
    assert verdict(run).outcome is Outcome.UNFINISHED


def test_a_red_check_is_red_whatever_the_exit_code_says(tmp_path: Path) -> None:
    run = make(tmp_path, 1, exit_code=0)
    write_checks(run, FIRST, redden("test_units", seen="2 units failed"))
    assert verdict(run).outcome is Outcome.FAILED
    assert verdict(run).failures[0].again == "./inv check -- -k test_units"
    assert verdict(run).failures[0].seen == "2 units failed"


def test_the_same_failure_after_both_boots_is_one(tmp_path: Path) -> None:
    run = make(tmp_path, 1, exit_code=1)
    write_checks(run, FIRST, redden("test_units"))
    write_checks(run, AGAIN, redden("test_units"))
    (failure,) = verdict(run).failures
    assert failure.stages == ("check, first boot", "check, after reboot")


def test_failures_of_one_cause_are_one(tmp_path: Path) -> None:
    run = make(tmp_path, 1, exit_code=1)
    write_checks(run, FIRST, redden("test_unit", "test_ng_ping", "test_log_file", because="the daemon exited"))
    (failure,) = verdict(run).failures
    assert len(failure.also) == 2 and len(failure.places) == 3
    assert "2 more of the same cause: the relay answers an ng ping over the route; the daemon writes" in text(run)
    assert verdict(run).sentence.startswith("Failed: 3 of 22 checks do not hold; the first is “the unit is")


def test_failures_without_a_cause_stay_apart(tmp_path: Path) -> None:
    run = make(tmp_path, 1, exit_code=1)
    write_checks(run, FIRST, redden("test_unit", "test_ng_ping"))
    assert len(verdict(run).failures) == 2


def test_a_check_that_broke_is_not_the_image_s_fault(tmp_path: Path) -> None:
    run = make(tmp_path, 1, exit_code=7)
    write_checks(run, FIRST, redden("test_units", outcome="error", message="ssh: connection reset"))
    assert verdict(run).outcome is Outcome.BLOCKED
    assert text(run).startswith("ERROR ")


@pytest.mark.parametrize(("blamed", "fault"), [("host", Fault.HOST), ("", Fault.CLOUD), ("moon", Fault.CLOUD)])
def test_a_check_that_broke_names_whose_fault_it_said_it_was(tmp_path: Path, blamed: str, fault: Fault) -> None:
    run = make(tmp_path, 1, exit_code=3)
    write_checks(run, FIRST, redden("test_units", outcome="error", message="no room", blamed=blamed))
    assert verdict(run).failures[0].fault is fault


def test_a_red_finding_on_disk(tmp_path: Path) -> None:
    run = make(tmp_path, 1, exit_code=5, stages=stages(0.0, ("inspect", 4.0, "failed", "7 passed, 1 FAILED")))
    (run.directory / "inspect.json").write_text(json.dumps([{
        "title": "no SSH host key is in the image", "outcome": "failed", "seen": "etc/ssh/ssh_host_ed25519_key",
        "hint": "./inv build --force"}]), encoding="utf-8")
    assert verdict(run).sentence == "Failed: “no SSH host key is in the image” does not hold."
    assert summary(run).endswith("(exit 5: the image)")


@pytest.mark.parametrize(("code", "outcome"), [(1, "failed"), (4, "failed"), (5, "failed"), (6, "failed"),
                                               (2, "blocked"), (3, "blocked"), (7, "blocked"), (8, "blocked"),
                                               (130, "interrupted")])
def test_exit_codes_alone_tell_whose_fault_it_is(tmp_path: Path, code: int, outcome: str) -> None:
    run = make(tmp_path, 1, exit_code=code, stages=stages(0.0, ("build", 1.0, "failed", "it broke")))
    assert verdict(run).outcome == outcome
    assert verdict(run).failures[0].title == "it broke"


def test_what_could_not_be_removed_doesn_t_hide_that_the_checks_hold(tmp_path: Path) -> None:
    run = make(tmp_path, 1, exit_code=8, failures=[{"stage": "remove", "title": "link rtp0 is still there",
                                                    "fault": "host"}])
    write_checks(run, FIRST)
    assert verdict(run).sentence == "All 22 checks hold, but something could not be removed: link rtp0 is still there."


def test_a_build_alone_names_what_was_done(tmp_path: Path) -> None:
    run = make(tmp_path, 1, stages=stages(0.0, ("host", 1.0, "passed", ""), ("build", 9.0, "passed", "")))
    assert verdict(run).sentence == "Passed: host, build; no check was asked for."


def test_a_kept_run_is_judged_like_any(tmp_path: Path) -> None:
    run = red(tmp_path)
    assert run.state is State.KEPT
    assert verdict(run).exit_code == 1


@pytest.mark.parametrize(("failed", "names", "outcome"), [
    ("reboot", ("check", "reboot", "check"), Outcome.PASSED), ("reboot", ("check", "reboot"), Outcome.FAILED),
    ("reboot", ("check", "reboot", "check", "reboot"), Outcome.FAILED),
    ("check", ("check", "reboot"), Outcome.PASSED), ("check", ("check", "reboot", "check"), Outcome.FAILED)])
def test_only_the_last_checks_of_a_kept_server_count(tmp_path: Path, failed: str, names: tuple[str, ...],
                                                     outcome: Outcome) -> None:
    entries = [(name, 4.0, "failed" if name == failed else "passed", "") for name in names]
    run = make(tmp_path, 1, exit_code=int(outcome is Outcome.FAILED), stages=stages(0.0, *entries))
    assert verdict(run).outcome is outcome


def test_an_explanation_is_bounded() -> None:
    shown = block(Failure("a title\nwith a break", seen="y" * 5000,
                          console=tuple(f"line {n}" for n in range(100)), fault="image"))
    assert "line 99" in shown and "line 90" not in shown
    assert len(shown) < 1000
    assert shown.splitlines()[0].startswith("FAILED  a title with a break")


def test_an_explanation_can_t_drive_the_terminal(tmp_path: Path) -> None:
    run = make(tmp_path, 1, exit_code=1, failures=[{**FAILURE, "console": ["\x1b[2J\x1b]0;owned\x07 a line \x07"]}])
    assert "\x1b" not in text(run) and "\x07" not in text(run)
