"""Nights of all appliances: what runs, what a matrix says, how it ends; `./inv` is a script of a few lines."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from harness import every
from harness.deadline import Cancellable
from harness.errors import DescriptionError, ExitCode
from harness.every import Wanted, at_once
from harness.levels import Level
from harness.process import follow
from harness.progress import Progress
from harness.report import matrix
from harness.report.matrix import NOT_RUN, Row
from harness.settings import Settings
from tests.waiting import until

APPLIANCES = """\
appliances:
  relay:
    description: a relay
    release: bookworm
    elements: [voip-appliance]
  other:
    description: another
    release: trixie
    elements: [voip-appliance]
  proxy:
    description: a proxy
    release: bookworm
    elements: [voip-appliance, opensips]
    opensips: {version: 4.0.1-1}
"""

INV = """\
#!{python}
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, {project!r})
from harness.run import Run
task, words = sys.argv[1], sys.argv[2:]
name = words[words.index("--appliance") + 1]
cloud = words[words.index("--cloud") + 1] if "--cloud" in words else "local"
with open("calls", "a") as calls:
    print(task, name, cloud, file=calls)
behaviour = os.environ.get(f"{{task}}_{{name}}", "")
if behaviour == "mute":
    sys.exit("appliances.yaml:1:1: there is a mistake\\nexit 2")
run = Run.create(Path("runs"), name, cloud)
print(json.dumps({{"event": "run", "run": run.id}}), flush=True)
with run.stage(task):
    print(json.dumps({{"event": "start", "stage": task}}), flush=True)
    try:
        if behaviour == "wait":
            time.sleep(60)
    except BaseException:
        pass
code = int(behaviour) if behaviour.isdigit() else 0
run.facts |= {{"exit_code": code, "image": {{"size": 200_000_000}}}}
run.save()
if task == "nightly":
    (run.directory / "report.html").write_text("report")
sys.exit(code)
"""


@pytest.fixture
def settings(tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "appliances.yaml").write_text(APPLIANCES)
    inv = tmp_path / "inv"
    inv.write_text(INV.format(python=sys.executable, project=os.fspath(project)))
    inv.chmod(0o755)
    return Settings.load(tmp_path, {})


def wanted(*names: str, clouds: tuple[str, ...] = ("local",)) -> Wanted:
    return Wanted(names, clouds, Level.BASIC, "never", False)


def conducted(settings: Settings, asked: Wanted) -> tuple[int, str]:
    out = io.StringIO()
    return every.conduct(settings, asked, Progress(out)), out.getvalue()


def calls(settings: Settings) -> list[str]:
    return (settings.project / "calls").read_text().splitlines()


def test_images_come_first_and_what_lacks_a_setting_is_named(settings: Settings) -> None:
    code, said = conducted(settings, wanted())
    assert code == 0
    assert sorted(calls(settings)[:2]) == ["build other local", "build relay local"]
    assert calls(settings)[2:] == ["nightly relay local", "nightly other local"]
    assert "proxy is not run: appliances.yaml:14: appliances.proxy.opensips: repository is missing" in said
    assert "2 of 2 nights passed, 1 not run" in said
    [place] = settings.runs.glob("nights-*")
    page = (place / "index.html").read_text()
    rows = json.loads((place / "matrix.json").read_text())
    assert [(row["appliance"], row["outcome"]) for row in rows] == [
        ("relay", "passed"), ("other", "passed"), ("proxy", NOT_RUN)]
    for row in rows[:2]:
        link = os.path.relpath(row["page"], place)
        assert f'href="{link}"' in page and (place / link).read_text() == "report"


def test_what_lacks_a_setting_counts_where_it_was_asked_for(settings: Settings) -> None:
    code, _ = conducted(settings, wanted("relay", "proxy"))
    assert code == ExitCode.DESCRIPTION
    assert calls(settings) == ["build relay local", "nightly relay local"]


def test_an_unknown_name_is_a_mistake_before_anything_runs(settings: Settings) -> None:
    with pytest.raises(DescriptionError, match="no appliance 'rely'"):
        conducted(settings, wanted("rely"))
    assert not (settings.project / "calls").exists() and not settings.runs.exists()


def test_an_unknown_cloud_is_a_mistake_before_anything_runs(settings: Settings) -> None:
    with pytest.raises(DescriptionError, match="nimbus"):
        conducted(settings, wanted("relay", clouds=("local", "nimbus")))
    assert not (settings.project / "calls").exists() and not settings.runs.exists()


def test_nothing_to_be_run_is_not_green(settings: Settings) -> None:
    with pytest.raises(DescriptionError, match="nothing to be run") as error:
        conducted(settings, wanted("proxy"))
    assert "proxy is not run: appliances.yaml:14: " in str(error.value.excerpt)


def test_every_cloud_has_its_night(settings: Settings) -> None:
    (settings.project / "clouds.yaml").write_text("clouds: {far: {auth: {auth_url: 'http://127.0.0.1:9'}}}\n")
    conducted(settings, wanted("relay", "relay", clouds=("local", "far", "local")))
    assert calls(settings) == ["build relay local", "nightly relay local", "nightly relay far"]


def test_one_that_fails_keeps_none_of_the_others_from_running(settings: Settings,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nightly_relay", "1")
    code, said = conducted(settings, wanted())
    assert code == 1 and "1 of 2 nights passed" in said and "(exit 1)" in said
    assert calls(settings)[2:] == ["nightly relay local", "nightly other local"]


@pytest.mark.parametrize(("behaviour", "outcome", "code"), [("4", "failed", 4), ("mute", NOT_RUN, 1)])
def test_an_image_that_can_not_be_built_has_no_night(settings: Settings, monkeypatch: pytest.MonkeyPatch,
                                                     behaviour: str, outcome: str, code: int) -> None:
    monkeypatch.setenv("build_relay", behaviour)
    ended, said = conducted(settings, wanted("relay", "other"))
    assert ended == code and "1 FAILED" in said
    assert [call for call in calls(settings) if "nightly" in call] == ["nightly other local"]
    [place] = settings.runs.glob("nights-*")
    row = json.loads((place / "matrix.json").read_text())[0]
    assert row["outcome"] == outcome
    assert row["page"] is None if outcome == NOT_RUN else Path(row["page"]).exists()
    if outcome == NOT_RUN:
        assert row["said"] == "appliances.yaml:1:1: there is a mistake"


def test_an_image_that_can_not_be_built_is_missing_on_every_cloud(settings: Settings, monkeypatch: pytest.MonkeyPatch
                                                                  ) -> None:
    (settings.project / "clouds.yaml").write_text("clouds: {far: {auth: {auth_url: 'http://127.0.0.1:9'}}}\n")
    monkeypatch.setenv("build_relay", "4")
    _, said = conducted(settings, wanted("relay", "other", clouds=("far", "local")))
    assert "2 of 4 nights passed" in said
    [place] = settings.runs.glob("nights-*")
    rows = json.loads((place / "matrix.json").read_text())
    assert [(row["appliance"], row["cloud"], row["outcome"]) for row in rows] == [
        ("relay", "far", "failed"), ("relay", "local", "failed"),
        ("other", "far", "passed"), ("other", "local", "passed")]


def test_an_interruption_ends_the_night_that_runs_and_begins_no_other(
        settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nightly_relay", "wait")

    def stop() -> None:
        until(lambda: "nightly relay local" in calls(settings), "the first night has begun", 20)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    (settings.project / "calls").touch()
    thread = threading.Thread(target=stop)
    thread.start()
    code, said = conducted(settings, wanted("relay", "other"))
    thread.join()
    assert code == ExitCode.INTERRUPTED and "interrupted" in said
    assert not any("nightly other" in call for call in calls(settings))


def test_a_command_that_is_followed_is_asked_to_stop_and_waited_for(tmp_path: Path) -> None:
    script = "trap 'sleep 1; echo cleaned; exit 7' TERM; echo begun; while :; do sleep 0.1; done"
    limit, heard = Cancellable(60), []

    def listen(line: str) -> None:
        heard.append(line)
        limit.cancelled.set()

    assert follow(["sh", "-c", script], tmp_path / "log", deadline=limit, on_line=listen) == 7
    assert heard == ["begun"] and (tmp_path / "log").read_text() == "begun\ncleaned\n"


def test_a_command_that_is_followed_is_asked_to_stop_when_who_follows_it_dies(tmp_path: Path, project: Path) -> None:
    gone = tmp_path / "gone"
    script = f"trap 'touch {gone}; exit' TERM; echo begun; while :; do sleep 0.1; done"
    program = ("import sys; from pathlib import Path; from harness.process import follow; "
               "from harness.deadline import Deadline; "
               f"follow(['sh', '-c', {script!r}], Path({os.fspath(tmp_path / 'log')!r}), deadline=Deadline(60), "
               "on_line=lambda line: print(line, flush=True))")
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=project) as process:
        assert process.stdout and process.stdout.readline() == b"begun\n"
        process.kill()
    until(gone.exists, "it was asked to end", 10)


@pytest.mark.parametrize(("builds", "cores", "gib", "number"), [
    (3, 2, 16, 1), (3, 8, 16, 3), (5, 8, 16, 4), (3, 8, 5, 2), (3, 1, 1, 1), (0, 8, 16, 1)])
def test_how_many_builds_at_once(builds: int, cores: int, gib: int, number: int) -> None:
    assert at_once(builds, cores, gib * 2**30) == number


def row(outcome: str, code: ExitCode) -> Row:
    return Row("relay", "10.5.3.5", "bookworm", "local", outcome, outcome, code)


def test_the_worst_exit_code_is_not_the_largest() -> None:
    assert set(matrix.SEVERITY) == set(ExitCode)
    assert matrix.worst([]) is ExitCode.PASSED
    assert matrix.worst([row("blocked", ExitCode.CLOUD), row("failed", ExitCode.CHECK)]) is ExitCode.CHECK
    assert matrix.worst([row("passed", ExitCode.PASSED), row("blocked", ExitCode.CLOUD)]) is ExitCode.CLOUD


def test_text_of_a_row_becomes_no_markup(tmp_path: Path) -> None:
    page = matrix.page([Row("relay", "", "", "local", "failed", "<script>", ExitCode.CHECK)], "today", 1.0, tmp_path)
    assert "<script>" not in page and "&lt;script&gt;" in page and '<body class="failed">' in page
