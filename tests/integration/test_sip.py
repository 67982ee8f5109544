"""Calls by SIP with the real Kamailio and SIPp of Debian, or with what `sip_root` has. The relay is a test double and
proves nothing about RTPEngine: that is test_acceptance_sip.py's."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from harness import host
from harness.deadline import Deadline
from harness.run import Journal, Run
from harness.settings import Settings
from harness.sip import calls as sip
from harness.sip import programs
from harness.sip.calls import Site
from harness.sip.proxy import Proxy
from harness.voip.endpoint import Endpoint
from harness.voip.traffic import Traffic
from tests.conftest import PROJECT
from tests.relay_double import Faults, RelayDouble, relay_double

pytestmark = pytest.mark.root

HERE = "127.0.0.1"


@pytest.fixture(scope="module")
def proxy(real_settings: Settings) -> Proxy:
    return programs.proxy_of(real_settings)


@pytest.fixture(scope="module")
def root(real_settings: Settings, proxy: Proxy) -> Path:
    host.prepare(real_settings, say=lambda text: None)
    run = Run.create(real_settings.runs, "sip", "local")
    try:
        return programs.prepare(real_settings, run, proxy, Deadline(900))
    finally:
        run.unlock()


@pytest.fixture
def site(root: Path, tmp_path: Path) -> Iterator[Site]:
    """Where SIP's programs run; at the end none of them does."""
    place = Site(root, "", HERE, tmp_path / "sip", Journal(tmp_path / "journal.jsonl"))
    yield place
    assert place.journal.outstanding() == [] and inside(root, tmp_path) == []


@pytest.fixture
def place(site: Site, proxy: Proxy) -> Iterator[Callable[..., object]]:
    """place(port, count): calls through the relay whose ng port that is."""
    with ExitStack() as opened:
        def placed(port: int, count: int = 1) -> object:
            callers, callees = ([opened.enter_context(Endpoint(HERE)) for _ in range(count)] for _ in range(2))
            return sip.placed(site, proxy, (HERE, port), callers, callees)

        yield placed


def inside(root: Path, directory: Path) -> list[int]:
    """Processes in namespaces that have `root` as their root and something of `directory` mounted."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "root").readlink() == root and directory.name in (entry / "mountinfo").read_text():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def spoken(relay: RelayDouble) -> dict[str, int]:
    return {command: count for command, count in relay.commands.items() if command != "ping"}


def test_calls_are_taken_up_carry_media_and_are_hung_up(place):
    with relay_double() as relay, place(relay.port, 3) as calls:
        dialogs = calls.settle()
        exchanges = calls.exchanges()
        assert [(d.status, d.up, d.over) for d in dialogs] == [(200, True, False)] * 3
        assert {d.callee.port for d in dialogs} == {e.callee.endpoint.port for e in exchanges.values()}
        assert list(relay.calls) and set(relay.calls) == set(calls.call_ids) == set(exchanges)
        health = Traffic([s for e in exchanges.values() for s in e.streams], report_every=0).run(1)
        results = [exchange.result() for exchange in exchanges.values()]
        assert all(d.over for d in calls.hang_up())
        assert relay.calls == {} and spoken(relay) == {"offer": 3, "answer": 3, "delete": 3}
    assert not health.dropped and not health.failed
    for result, exchange in zip(results, exchanges.values(), strict=True):
        assert result.to_callee.lost == result.to_caller.lost == 0
        assert result.to_callee.sources == (f"{HERE}:{exchange.relay_to_callee.port}",)
    asked = [a for a in relay.arguments if a["command"] in ("offer", "answer")]
    assert all("strict-source" in a["flags"] and a["ICE"] == "remove" for a in asked)


def test_a_proxy_is_not_answered_what_another_asked_before(place):
    """The relay answers a cookie that it knows from its cache, and process ids repeat in a namespace of their own."""
    with relay_double() as relay:
        for _ in range(3):
            with place(relay.port) as calls:
                assert [d.up for d in calls.settle()] == [True] and set(relay.calls) == set(calls.call_ids)
                assert [d.over for d in calls.hang_up()] == [True] and relay.calls == {}
        assert spoken(relay) == {"offer": 3, "answer": 3, "delete": 3}


def test_the_example_of_the_documentation_runs(site, proxy, tmp_path, capsys):
    [text] = re.findall(r"^```python\n(.*?)^```", (PROJECT / "docs/sip.md").read_text(), re.MULTILINE | re.DOTALL)
    text = text.replace("/tmp/sip", os.fspath(tmp_path / "example")).replace("seconds=3", "seconds=0.5")
    text = text.replace("Kamailio", type(proxy).__name__)
    with relay_double() as relay:
        exec(compile(text, "docs/sip.md", "exec"), {"ROOT": site.root, "RELAY": (HERE, relay.port)})
        assert relay.calls == {}
    assert capsys.readouterr().out == "['200 OK']\n0 lost\nTrue\n"


def test_what_the_relay_loses_is_lost(place):
    with relay_double(Faults(lose=lambda number: number == 10)) as relay, place(relay.port) as calls:
        calls.settle()
        [exchange] = calls.exchanges().values()
        Traffic(exchange.streams, report_every=0).run(0.5)
        assert exchange.result().to_callee.lost == 1
        calls.hang_up()


def test_a_relay_that_refuses(place, proxy):
    with relay_double() as relay:
        relay.refuse["offer"] = "Ran out of ports"
        with place(relay.port, 2) as calls:
            dialogs = calls.settle()
            assert {str(d) for d in dialogs} == {"503 Media Relay Unavailable"} and calls.exchanges() == {}
            assert f"{proxy.name} said: rtpengine: " in calls.said(dialogs[0])
            assert "Ran out of ports\n" in calls.said(dialogs[0])
            assert calls.hang_up() == dialogs


def test_a_relay_that_fails_in_the_middle_is_not_hidden(place):
    """The caller is told the callee's own address then, and a check of addresses sees it."""
    with relay_double() as relay:
        relay.refuse["answer"] = "Unknown call-id"
        with place(relay.port) as calls:
            [dialog] = calls.settle()
            assert dialog.up and dialog.told_caller.port == dialog.callee.port
            calls.hang_up()


def test_without_a_relay_a_call_is_refused_at_once(place, site):
    with place(*site.free_ports(1)) as calls:
        limit = Deadline(sip.PATIENCE)
        [dialog] = calls.settle()
        assert str(dialog) == "503 Media Relay Unavailable" and limit.remaining > sip.PATIENCE - 4


def test_with_a_silent_relay_a_call_is_refused_in_time(place):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        silent.bind((HERE, 0))
        with place(silent.getsockname()[1]) as calls:
            [dialog] = calls.settle()
            assert str(dialog) == "503 Media Relay Unavailable"


def test_programs_have_no_privileges_and_die_with_who_started_them(root, proxy, tmp_path):
    program = f"""
import sys, time
from pathlib import Path
from harness.run import Journal
from harness.sip import calls
from harness.sip.proxy import {type(proxy).__name__}
from harness.voip.endpoint import Endpoint
here = Path({os.fspath(tmp_path)!r})
site = calls.Site(Path({os.fspath(root)!r}), "", {HERE!r}, here / "sip", Journal(here / "journal.jsonl"))
with calls.placed(site, {type(proxy).__name__}(), ({HERE!r}, 9), [Endpoint({HERE!r})], [Endpoint({HERE!r})]):
    print("begun", flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=PROJECT)
    try:
        assert parent.stdout is not None and parent.stdout.readline() == b"begun\n"
        running = inside(root, tmp_path)
        users = {line for pid in running for line in Path(f"/proc/{pid}/status").read_text().splitlines()
                 if line.startswith(("Uid:", "CapEff:"))}
        assert len(running) > 2 and users == {"Uid:" + "\t65534" * 4, "CapEff:\t" + "0" * 16}
        assert len(Journal(tmp_path / "journal.jsonl").outstanding()) == 3
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    limit = Deadline(5)
    while inside(root, tmp_path) and not limit.expired:
        pass
    assert inside(root, tmp_path) == []

