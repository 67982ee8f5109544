import os
from datetime import UTC, datetime
from types import SimpleNamespace

from harness.testcloud import status
from harness.testcloud.services import Service

DAEMON = Service("daemon", ("d",))
COMMAND = Service("command", ("c",), once=True)


def _entry(**values):
    return {"pid": 7, "started": 100.0, "ready": None, "ended": None, "code": None} | values


def _lines(service, entry):
    return list(status.of_services([service], {} if entry is None else {service.name: entry}, {7: 5_000_000}))


def test_a_daemon_that_runs_is_well():
    (line,) = _lines(DAEMON, _entry(ready=101.0))
    assert line.well and line.memory == 5_000_000
    assert line.text(161.0).split() == ["daemon", "alive", "since", "1", "min", "00", "s", "5.0", "MB"]


def test_a_daemon_that_ended_is_not_even_when_it_ended_well():
    (line,) = _lines(DAEMON, _entry(ready=101.0, ended=102.0, code=0))
    assert not line.well and line.seen == "DEAD, exit code 0"
    (line,) = _lines(DAEMON, _entry(ready=101.0, ended=102.0, code=-9))
    assert line.seen == "DEAD, ended by signal 9"


def test_what_has_not_begun_or_is_not_ready_is_not_well():
    assert [line.seen for line in _lines(DAEMON, None)] == ["not started"]
    assert [line.seen for line in _lines(DAEMON, _entry())] == ["starting"]
    assert not any(line.well for line in (*_lines(DAEMON, None), *_lines(DAEMON, _entry())))


def test_a_command_shows_only_where_it_failed():
    assert _lines(COMMAND, _entry(ready=1.0, ended=1.0, code=0)) == []
    (line,) = _lines(COMMAND, _entry(ended=1.0, code=3))
    assert not line.well and line.seen == "DEAD, exit code 3"


HEARTBEAT = "2026-11-25 10:00:30"
START = datetime(2026, 11, 25, 10, 0, 30, 500_000, tzinfo=UTC).timestamp()


def _reporting(services):
    return lambda: [SimpleNamespace(binary=name, state=state, updated_at=None) for name, state in services]


def _cloud(agents, compute, hypervisors, volumes=()):
    return SimpleNamespace(
        block_storage=SimpleNamespace(services=_reporting(volumes)),
        network=SimpleNamespace(agents=lambda: [
            SimpleNamespace(agent_type=name, is_alive=alive, last_heartbeat_at=HEARTBEAT) for name, alive in agents]),
        compute=SimpleNamespace(
            services=_reporting(compute), hypervisors=lambda: [SimpleNamespace(name=name) for name in hypervisors]))


ALL = [(name, True) for name in status.AGENTS], [(name, "up") for name in status.COMPUTE], ["testcloud"]


def test_agents_that_all_report_are_well():
    assert all(line.well for line in status.of_agents(_cloud(*ALL), START, volumes=False))


def test_an_agent_that_is_silent_or_never_came_is_not():
    agents, compute, hypervisors = ALL
    for cloud, name in ((_cloud(agents[1:], compute, hypervisors), "Linux bridge agent"),
                        (_cloud([(agents[0][0], False), *agents[1:]], compute, hypervisors), "Linux bridge agent"),
                        (_cloud(agents, [("nova-compute", "down"), *compute[1:]], hypervisors), "nova-compute"),
                        (_cloud(agents, compute, []), "hypervisor")):
        assert [line.name for line in status.of_agents(cloud, START, volumes=False) if not line.well] == [name]


def test_services_of_volumes_are_looked_for_where_there_are_volumes():
    up = [(name, "up") for name in status.VOLUMES]
    assert all(line.well for line in status.of_agents(_cloud(*ALL, up), START, volumes=True))
    for volumes in (up[1:], [(up[0][0], "down"), *up[1:]]):
        lines = status.of_agents(_cloud(*ALL, volumes), START, volumes=True)
        assert [line.name for line in lines if not line.well] == [up[0][0]]


def test_a_heartbeat_of_before_the_start_is_none():
    """Neutron believes in it for 75 seconds."""
    lines = status.of_agents(_cloud(*ALL), START + 1, volumes=False)
    assert [line.name for line in lines if not line.well] == list(status.AGENTS)
    assert "silent since the start" in lines[0].seen


def test_memory_is_counted_by_session():
    memory = status.memory_of(os.getpid())
    assert memory[os.getsid(0)] > 1_000_000
