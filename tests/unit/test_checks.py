"""Runs of pytest on checks that need no server."""

import json
import os
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness import appliance as appliances_file
from harness import checks, process
from harness.cloud import Gateway, Route, RouteKind, Server
from harness.deadline import Deadline
from harness.errors import DescriptionError, Fault, HostError
from harness.levels import Level
from harness.resources import REMOVERS, processes_with
from harness.results import CheckResult, Figure, Series
from harness.run import Run

DESCRIPTION = """\
appliances:
  relay: {description: a relay, release: bookworm, elements: [voip-appliance], checks: [checks]}
"""


ROUTES = (Route(RouteKind.FLOATING_IP, "192.0.2.1"),)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    (tmp_path / "appliances.yaml").write_text(DESCRIPTION)
    (tmp_path / "checks").mkdir()
    return Run.create(tmp_path / "runs", "relay", "local")


def check(run: Run, source: str, *selection: str, seconds: float = 60,
          level: Level = Level.BASIC, routes: tuple[Route, ...] = ROUTES,
          say: Callable[[str], None] = lambda text: None) -> list[CheckResult]:
    base = run.directory.parent.parent
    (base / "checks" / "test_it.py").write_text(
        '"""Group of checks."""\nimport pytest\nfrom harness.plugin import expect\n' + textwrap.dedent(source))
    described = appliances_file.load(base / "appliances.yaml")["relay"]
    server = Server("server1", "id", "debian", "192.0.2.1", "", routes, base / "console.log")
    return checks.run_checks(run, server, described, "first boot", say, Deadline(seconds), selection, level)


def test_every_outcome_is_told_with_its_reasons(run: Run) -> None:
    (run.directory.parent.parent / "console.log").write_text("[ 1.0] eth0: link up\r\n[ 2.0] eth0: link down\r\n")
    results = check(run, '''
        def test_good(server, phase):
            """it is good"""
            assert (server.name, phase) == ("server1", "first boot")

        def test_bad(console):
            """it is bad"""
            expect(False, "a link", "none", "it is down", lambda: console.lines("down"))

        def test_plain():
            assert 1 == 2

        def test_not_here():
            """it is elsewhere"""
            pytest.skip("it is not here")

        def test_broken():
            {}["key"]
        ''')
    by_title = {r.title: r for r in results}
    assert {t: r.outcome for t, r in by_title.items()} == {
        "it is good": "passed", "it is bad": "failed", "test_plain": "failed", "it is elsewhere": "skipped",
        "test_broken": "failed"}
    bad = by_title["it is bad"]
    assert (bad.expected, bad.seen, bad.because) == ("a link", "none", "it is down")
    assert bad.console == ("[ 2.0] eth0: link down",)
    assert (bad.group, bad.phase, bad.server, bad.id) == (
        "Group of checks", "first boot", "server1", "checks/test_it.py::test_bad")
    assert "1 == 2" in by_title["test_plain"].message
    assert by_title["it is elsewhere"].reason == "it is not here"
    assert "KeyError" in by_title["test_broken"].message


def test_a_check_of_a_part_that_the_appliance_does_not_have_is_not_selected(run: Run) -> None:
    results = check(run, '''
        @pytest.fixture
        def mine(relay):
            return relay

        def test_own_fixture(mine):
            """by a fixture of a fixture"""

        @pytest.mark.parametrize("part", ["x"])
        def test_proxy(opensips, part):
            """of a proxy"""

        def test_table(conntrack):
            """of connection tracking"""

        def test_any(appliance):
            """of every appliance"""
        ''')
    assert [(r.title, r.outcome) for r in results] == [("of every appliance", "passed")]


def test_results_are_left_in_the_run(run: Run) -> None:
    results = check(run, "def test_good():\n    pass\n")
    lines = (run.directory / "checks-first-boot.jsonl").read_text().splitlines()
    assert [json.loads(line)["outcome"] for line in lines] == ["passed"]
    assert checks.read(run.directory / "checks-first-boot.jsonl") == results
    assert 'failures="0"' in (run.directory / "junit-first-boot.xml").read_text()


def test_what_is_not_the_images_fault_is_an_error(run: Run) -> None:
    results = check(run, '''
        from harness.access.shell import ConnectionLost
        from harness.voip.ng import NgNoAnswer

        def test_connection():
            raise ConnectionLost("the connection is lost")

        def test_relay():
            raise NgNoAnswer("the relay did not answer")

        @pytest.fixture
        def broken():
            raise RuntimeError("no")

        def test_fixture(broken):
            pass
        ''')
    assert [r.outcome for r in results] == ["error", "failed", "error"]
    assert 'errors="2" failures="1"' in (run.directory / "junit-first-boot.xml").read_text()


def test_an_error_of_this_host_is_told_as_this_hosts(run: Run) -> None:
    results = check(run, '''
        from harness.errors import HostError

        def test_media():
            raise HostError("5 packets found no room in this process's sockets")
        ''')
    assert [(r.outcome, r.fault) for r in results] == [("error", Fault.HOST)]
    verdict = checks.verdict(results, "first boot")
    assert isinstance(verdict, HostError) and verdict.exit_code == 3


def test_what_a_fixture_finds_at_fault_is_a_failure(run: Run) -> None:
    results = check(run, '''
        from harness.voip.ng import NgOutOfPorts

        @pytest.fixture
        def calls():
            raise NgOutOfPorts("offer", "Ran out of ports")

        @pytest.fixture
        def measured():
            expect(False, "100 packets", "99")

        def test_calls(calls):
            pass

        def test_measured(measured):
            pass
        ''')
    assert [(r.outcome, r.seen) for r in results] == [
        ("failed", "the relay refused offer: Ran out of ports"), ("failed", "99")]
    assert 'errors="0" failures="2"' in (run.directory / "junit-first-boot.xml").read_text()


def test_a_plain_assert_of_a_fixture_is_a_failure(run: Run) -> None:
    results = check(run, '''
        @pytest.fixture
        def configured():
            assert 1 == 2, "Unexpected exit code 1 for a command"

        def test_configured(configured):
            pass
        ''')
    assert [(r.outcome, r.fault) for r in results] == [("failed", Fault.IMAGE)]
    assert "Unexpected exit code 1" in results[0].message
    assert 'errors="0" failures="1"' in (run.directory / "junit-first-boot.xml").read_text()


def test_a_mistake_in_the_description_is_told_as_the_descriptions(run: Run) -> None:
    results = check(run, '''
        from harness.errors import DescriptionError

        @pytest.fixture
        def known():
            raise DescriptionError("known/relay.yaml:3: no such field")

        def test_by_itself():
            raise DescriptionError("known/relay.yaml:3: no such field")

        def test_by_a_fixture(known):
            pass
        ''')
    assert [(r.outcome, r.fault) for r in results] == [("error", Fault.DESCRIPTION)] * 2
    verdict = checks.verdict(results, "first boot")
    assert isinstance(verdict, DescriptionError) and verdict.exit_code == 2


def test_what_fails_first_says_why(run: Run) -> None:
    results = check(run, '''
        from harness.errors import HostError

        @pytest.fixture
        def call():
            yield
            raise HostError("the call is not deleted")

        def test_first(call):
            expect(False, "a relay", "none")

        def test_at_its_end(call):
            pass
        ''')
    assert [(r.outcome, r.seen) for r in results] == [("failed", "none"), ("error", "the call is not deleted")]


def test_what_was_measured_is_told_of_a_check_that_passes(run: Run) -> None:
    results = check(run, '''
        def test_good(seen):
            seen("0 of 100 packets lost")

        def test_bad(seen):
            seen("1 of 100 packets lost")
            expect(False, "none lost", "1 lost")
        ''')
    assert [(r.outcome, r.seen) for r in results] == [("passed", "0 of 100 packets lost"), ("failed", "1 lost")]


def test_what_a_check_measured_stays_when_it_fails_afterwards(run: Run) -> None:
    good, bad = check(run, """
        def test_good(measure):
            measure.figure("calls held", 120, "calls", "more")
            for most in (2, 3):
                measure.series("Loss", "kernel", "calls", "%", [(n, n * n) for n in range(most)])

        def test_bad(measure):
            measure.series("Loss", "user", "calls", "%", [(25, 0.5)])
            raise AssertionError("no")
        """)
    assert good.figures == (Figure("calls held", 120, "calls", "more"),)
    assert good.series == (Series("Loss", "kernel", "calls", "%", ((0, 0), (1, 1), (2, 4))),)
    assert bad.outcome == "failed" and bad.series[0].points == ((25, 0.5),)


def test_what_a_check_measured_stays_when_it_is_ended(run: Run) -> None:
    first, last = check(run, """
        import os, signal

        def test_ended(measure):
            measure.figure("calls held", 25, "calls")
            os.kill(os.getpid(), signal.SIGTERM)
        """)
    assert (first.outcome, first.message) == ("error", "it was ended in the middle")
    assert first.figures[0].value == 25
    assert last.id == "pytest" and last.outcome == "error"


def test_a_check_that_is_ended_in_a_fixture_is_named(run: Run) -> None:
    first, last = check(run, """
        import os, signal

        @pytest.fixture(scope="session")
        def calls():
            os.kill(os.getpid(), signal.SIGTERM)

        def test_ended(calls):
            pass
        """)
    assert (first.title, first.outcome, last.id) == ("test_ended", "error", "pytest")


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_an_endpoint_has_the_address_of_its_side_of_the_route(run: Run, address: str) -> None:
    result = check(run, f'''
        def test_endpoint(endpoint_towards):
            end = endpoint_towards("{address}", tos=184)
            assert end.address == "{address}" and end.rtcp_port == end.port + 1
        ''', routes=(Route(RouteKind.FLOATING_IP, address),))[0]
    assert result.outcome == "passed", result.message + result.seen


SSH = """\
#!/bin/sh
for command; do :; done
exec sh -c "exec $command"
"""


@pytest.fixture
def other_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Route:
    """A route through a host that is this one: its ssh runs the command here."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(SSH)
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    return Route(RouteKind.JUMP, "127.0.0.1", gateway=Gateway("node"))


AGENTS = """
import time
from pathlib import Path
from harness.resources import processes_with
from harness.voip.remote import RemoteEndpoint

def agents(session):
    return processes_with(str(session.run.directory / "agent-"))

def test_endpoints(endpoint_towards, session):
    ends = [endpoint_towards("127.0.0.1", tos=184) for _ in range(2)]
    assert all(isinstance(end, RemoteEndpoint) and end.address == "127.0.0.1" for end in ends)
    assert [r.name for r in session.run.journal.outstanding() if "/agent-" in r.name] and len(agents(session)) == 1
    ENDING
"""


def test_endpoints_live_on_the_host_in_between(run: Run, other_host: Route) -> None:
    result = check(run, AGENTS.replace("ENDING", ""), routes=(other_host,))[0]
    assert result.outcome == "passed", result.message + result.seen
    assert not run.journal.outstanding() and processes_with(f"{run.directory}/agent-") == []


def test_an_agent_does_not_outlive_checks_that_are_killed(run: Run, other_host: Route) -> None:
    results = check(run, AGENTS.replace("ENDING", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
                    routes=(other_host,))
    assert [result.outcome for result in results] == ["error"]
    limit = Deadline(10)
    while processes_with(f"{run.directory}/agent-"):
        assert not limit.expired
        time.sleep(0.05)
    assert run.journal.remove_outstanding(REMOVERS) == [] == run.journal.outstanding()


@pytest.mark.parametrize("route, why", [
    (Route(RouteKind.FLOATING_IP, "127.0.0.2"), "no route leads to 127.0.0.1"),
    (Route(RouteKind.NAMESPACE, "127.0.0.1", "nowhere"), "network namespace nowhere"),
    (Route(RouteKind.JUMP, "127.0.0.1", gateway=Gateway("node")), "no endpoints at the jump host node: it ended")])
def test_a_host_that_media_can_not_be_sent_from_is_an_error(run: Run, route: Route, why: str) -> None:
    result = check(run, "def test_endpoint(endpoint_towards):\n    endpoint_towards('127.0.0.1')\n", routes=(route,))[0]
    assert (result.outcome, why in result.seen) == ("error", True), result


def test_a_connection_that_stays_lost_is_told_twice_and_not_for_every_check(run: Run) -> None:
    results = check(run, '''
        from harness.access.shell import ConnectionLost

        @pytest.mark.parametrize("n", range(6))
        def test_connection(n):
            raise ConnectionLost("the connection is lost")
        ''')
    assert [r.outcome for r in results] == ["error", "error", "skipped", "skipped", "skipped", "skipped"]
    assert results[-1].reason == "not looked at, because the connection to the server is lost"


def test_one_defect_is_one_failure(run: Run) -> None:
    results = check(run, '''
        @pytest.mark.after("test_second")
        def test_third():
            """third"""
            assert False

        @pytest.mark.after("test_first")
        def test_second():
            """second"""
            assert False

        def test_first():
            """first"""
            assert False

        def test_other():
            """other"""
        ''')
    assert [(r.title, r.outcome) for r in results] == [
        ("first", "failed"), ("second", "skipped"), ("third", "skipped"), ("other", "passed")]
    assert results[2].reason == "not looked at, because another check failed: first"


def test_a_check_whose_condition_is_not_selected_runs(run: Run) -> None:
    source = '''
        def test_first():
            assert False

        @pytest.mark.after("test_first")
        def test_second():
            pass
        '''
    assert [r.outcome for r in check(run, source, "-k", "second")] == ["passed"]


def test_no_checks_is_a_mistake_and_never_green(run: Run) -> None:
    with pytest.raises(DescriptionError, match="no check of relay at level basic is selected by: -k nothing"):
        check(run, "def test_good():\n    pass\n", "-k", "nothing")
    with pytest.raises(DescriptionError, match="has no checks"):
        check(run, "")


@pytest.mark.parametrize("level, ran", [
    (Level.BASIC, ["test_basic", "test_last"]), (Level.ACCEPTANCE, ["test_basic", "test_call", "test_last"]),
    (Level.LOAD, ["test_basic", "test_call", "test_many", "test_last"])])
def test_each_level_runs_its_own_checks_after_those_before_it(run: Run, level: Level, ran: list[str]) -> None:
    source = '''
        @pytest.mark.last
        def test_last():
            pass

        @pytest.mark.level("load")
        def test_many():
            pass

        @pytest.mark.level("acceptance")
        def test_call():
            pass

        def test_basic():
            pass
        '''
    assert [r.title for r in check(run, source, level=level)] == ran


def test_checks_of_a_higher_level_alone_are_no_checks(run: Run) -> None:
    with pytest.raises(DescriptionError, match="has no checks of level basic"):
        check(run, "@pytest.mark.level('acceptance')\ndef test_call():\n    pass\n")


def test_a_place_that_is_not_there_is_a_mistake(run: Run) -> None:
    base = run.directory.parent.parent
    (base / "appliances.yaml").write_text(DESCRIPTION.replace("[checks]", "[chekcs]"))
    with pytest.raises(DescriptionError, match=r"appliances.yaml:2.*chekcs is not there"):
        check(run, "def test_good():\n    pass\n")


@pytest.mark.parametrize("source, message", [
    ("import no_such_module\n", "no_such_module"),
    ("import os\ndef test_good():\n    pass\ndef test_crash():\n    os._exit(0)\n", "test_crash"),
    ("import os\ndef test_crash():\n    os.abort()\n", "exit code -6"),
    ("def test_good():\n    pass\n@pytest.mark.after('test_it')\ndef test_it():\n    pass\n", "wait for each other"),
    ("@pytest.mark.level('basics')\ndef test_it():\n    pass\n", "there is no level 'basics'"),
])
def test_a_pytest_that_does_not_come_to_its_end_is_an_error(run: Run, source: str, message: str) -> None:
    results = check(run, source)
    assert results[-1].outcome == "error"
    assert message in "".join(r.message for r in results)


def test_checks_that_never_end_are_an_error_at_the_deadline(run: Run) -> None:
    last = check(run, "import time\ndef test_long():\n    time.sleep(60)\n", seconds=2)[-1]
    assert last.outcome == "error" and "within 2 s" in last.message


def test_checks_that_are_interrupted_have_the_time_to_put_back_what_they_changed(
        run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATIENCE", 0.1)

    def interrupt(text: str) -> None:
        if text.startswith("1 done"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(run, """
            import time
            from pathlib import Path

            @pytest.fixture(scope="session")
            def changed():
                yield
                time.sleep(1)
                Path("put-back").touch()

            def test_short(changed):
                pass

            def test_long():
                time.sleep(60)
            """, say=interrupt)
    assert (run.directory.parent.parent / "put-back").exists()


@pytest.mark.parametrize(("outcomes", "code"), [
    (["passed", "skipped"], None), (["passed", "failed"], 1), (["error", "failed"], 1), (["passed", "error"], 7)])
def test_only_a_check_that_failed_is_held_against_the_image(outcomes: list[str], code: int | None) -> None:
    results = [CheckResult(str(n), "", "", "first boot", "server1", outcome, 0.0) for n, outcome in enumerate(outcomes)]
    verdict = checks.verdict(results, "first boot")
    assert (verdict.exit_code if verdict else None) == code


@pytest.mark.parametrize(("blamed", "code"), [
    (["host", "host"], 3), (["host", "cloud"], 7), (["host", ""], 7), (["cloud"], 7),
    (["host", "description", "cloud"], 2)])
def test_errors_are_the_descriptions_where_one_is_and_this_hosts_where_all_are(blamed: list[str], code: int) -> None:
    results = [CheckResult(str(n), "", "", "first boot", "server1", "error", 0.0, blamed=one)
               for n, one in enumerate(blamed)]
    verdict = checks.verdict(results, "first boot")
    assert verdict and verdict.exit_code == code
