from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.report import write
from harness.report.model import CONSOLE_OCTETS, load, tail
from tests.report_samples import AGAIN, FIRST, green, make, write_checks


def test_everything_is_loaded(tmp_path: Path) -> None:
    report = load(green(tmp_path))
    assert len(report.checks) == 46
    assert {check.phase for check in report.checks} == {FIRST, AGAIN}
    assert len(report.findings) == 8
    assert report.version == "10.5.3.5-1+deb12u1"
    assert [made.gone for made in report.made] == [True] * 4
    assert len(report.history) == 12
    assert report.seconds == pytest.approx(157.9)
    assert report.consoles[0].name == "server1"
    assert report.build_log and report.build_log.text.startswith("dib-run-parts 0")


@pytest.mark.parametrize("rubbish", ["", "{", "[]", "null", '"text"', "[1, 2]", '{"packages": 3}', "\x00\xff"])
def test_damaged_files_never_stop_a_report(tmp_path: Path, rubbish: str) -> None:
    run = make(tmp_path, 1)
    for name in ("inspect.json", "manifest.json", "checks-first.jsonl", "journal.jsonl", "build.log"):
        (run.directory / name).write_text(rubbish, encoding="latin-1")
    assert write(run).stat().st_size > 1000


@pytest.mark.parametrize("value", [None, 3, "text", [], ["a"], [None], {"a": None}, {"used": "x"}, {"plan": 3}])
def test_facts_of_a_wrong_shape_never_stop_a_report(tmp_path: Path, value: object) -> None:
    names = ("failures", "image", "source", "conntrack", "server", "host", "previous", "warnings", "build_log", "fault",
             "pins")
    assert write(make(tmp_path, 1, **dict.fromkeys(names, value))).exists()


def test_a_torn_last_line_is_passed_over(tmp_path: Path) -> None:
    run = make(tmp_path, 1)
    torn = '{"id": "a::b", "outcome": "passed"}\n{"id": "a::'
    (run.directory / "checks-first.jsonl").write_text(torn, encoding="utf-8")
    (check,) = load(run).checks
    assert (check.id, check.phase, check.title) == ("a::b", "first", "a::b")


def test_boots_are_in_the_order_in_which_they_were(tmp_path: Path) -> None:
    run = make(tmp_path, 1)
    write_checks(run, "zero")
    write_checks(run, "after")
    assert list(dict.fromkeys(check.phase for check in load(run).checks)) == ["zero", "after"]


def test_only_the_end_of_a_console_is_read(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"first\n" + b"x" * CONSOLE_OCTETS)
    log = tail(path, "server1")
    assert log and log.omitted == 6 and len(log.text) == CONSOLE_OCTETS
    assert tail(tmp_path / "none", "none") is None


def test_history_is_of_the_same_appliance_and_cloud_only(tmp_path: Path) -> None:
    for number, cloud in ((1, "local"), (2, "stack"), (3, "local")):
        run = make(tmp_path, number)
        run.cloud = cloud
        run.save()
    later = make(tmp_path, 5)
    now = make(tmp_path, 4)
    assert [past.started for past in load(now).history] == sorted(past.started for past in load(now).history)
    assert len(load(now).history) == 2
    assert later.id not in {past.id for past in load(now).history}
    assert len(load(now, history=1).history) == 1
    assert load(now, history=0).history == ()


def test_json_report_holds_verdict_and_all_checks(tmp_path: Path) -> None:
    run = green(tmp_path)
    data = json.loads((write(run).parent / "report.json").read_text(encoding="utf-8"))
    assert data["verdict"] == {"outcome": "passed", "exit_code": 0, "exit_phrase": "passed", "sentence":
                               "Passed: all 22 checks hold after the first boot and again after the reboot."}
    assert len(data["checks"]) == 46
    assert data["failures"] == []
    assert {trend["name"] for trend in data["trends"]} >= {"build", "server ready", "image size"}


def test_a_run_is_not_changed_by_its_report(tmp_path: Path) -> None:
    run = green(tmp_path)
    before = (run.directory / "run.json").read_bytes()
    write(run)
    write(run)
    assert (run.directory / "run.json").read_bytes() == before
