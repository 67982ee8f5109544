from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, fromstring

from harness.report import write
from harness.run import Run
from tests.report_samples import (
    FIRST,
    broken_cloud,
    died_at_once,
    green,
    huge,
    interrupted,
    make,
    red,
    stages,
    write_checks,
)


def junit(run: Run) -> Element:
    return fromstring((write(run).parent / "junit.xml").read_bytes())


def counts(element: Element) -> tuple[int, int, int, int]:
    tests, failures, errors, skipped = (int(element.get(n, "-1")) for n in ("tests", "failures", "errors", "skipped"))
    return tests, failures, errors, skipped


def test_green(tmp_path: Path) -> None:
    root = junit(green(tmp_path))
    assert [suite.get("name") for suite in root] == ["stages", "image", "first boot", "after reboot"]
    assert counts(root) == (7 + 8 + 23 + 23, 0, 0, 2)
    assert {p.get("name"): p.get("value") for p in root[0].iter("property")}.items() >= {
        "appliance": "rtpengine", "cloud": "local", "version": "10.5.3.5-1+deb12u1", "source": "debian-packages",
        "image.sha256": "9b6f1d0c3a7e52488c1f0e6bb7a4d9935d2c8f7160e4a3b9c8d7e6f50a1b2c3d"}.items()


def test_a_red_check_is_one_failure_and_its_stage_none(tmp_path: Path) -> None:
    root = junit(red(tmp_path))
    assert counts(root)[1:3] == (1, 0)
    (failure,) = root.iter("failure")
    assert failure.get("message") == "0 % of 10,000; the daemon relayed them in user space"
    assert "because: no module xt_RTPENGINE" in str(failure.text)


def test_a_broken_cloud_is_an_error(tmp_path: Path) -> None:
    root = junit(broken_cloud(tmp_path))
    assert counts(root)[1:3] == (0, 1)
    (error,) = root.iter("error")
    assert error.get("type") == "the cloud"
    assert [case.get("name") for case in root.iter("testcase") if case.find("error") is not None] == ["launch"]


def test_a_failed_build_is_a_failure_where_the_image_is_at_fault(tmp_path: Path) -> None:
    for number, (fault, kind) in enumerate((("image", "failure"), ("host", "error"))):
        root = junit(make(tmp_path, number, exit_code=4, stages=stages(0.0, ("build", 3.0, "failed", "no")),
                          failures=[{"stage": "build", "title": "no", "fault": fault}]))
        assert [case.find(kind) is not None for case in root.iter("testcase")] == [True]


def test_interrupted_and_died(tmp_path: Path) -> None:
    assert counts(junit(interrupted(tmp_path / "a")))[1:3] == (0, 1)
    assert counts(junit(died_at_once(tmp_path / "b"))) == (1, 0, 1, 0)


def test_a_failure_without_a_stage_is_not_lost(tmp_path: Path) -> None:
    root = junit(make(tmp_path, 1, exit_code=2, failures=[{"title": "unknown appliance", "fault": "description"}]))
    assert counts(root) == (1, 0, 1, 0)


def test_a_check_that_broke_is_an_error(tmp_path: Path) -> None:
    run = make(tmp_path, 1, exit_code=7)
    write_checks(run, FIRST, lambda entry: entry | {"outcome": "error", "message": "timed out"})
    assert counts(junit(run)) == (23, 0, 23, 0)


def test_hostile_text_is_valid_xml(tmp_path: Path) -> None:
    root = junit(huge(tmp_path))
    assert counts(root)[1] == 375
    assert any("<script>" in str(case.get("name")) for case in root.iter("testcase"))
