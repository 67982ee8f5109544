"""The programs of docs/examples do what they say. They listen to a stand-in, which is not OpenSIPS."""

from __future__ import annotations

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from harness.deadline import Deadline
from tests.conftest import PROJECT
from tests.opensips_double import OpenSipsDouble, opensips_double

FLOOD = "E_PIKE_BLOCKED"


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenSipsDouble]:
    with opensips_double("4.0.1", tmp_path) as running:
        yield running


@contextmanager
def example(double: OpenSipsDouble, name: str, *arguments: str, before: tuple[str, ...] = ()
            ) -> Iterator[subprocess.Popen[str]]:
    """One of them, once it has subscribed to the flood."""
    program = [*before, sys.executable, os.fspath(PROJECT / "docs/examples" / name), double.places[0], *arguments]
    process = subprocess.Popen(program, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": os.fspath(PROJECT)})
    try:
        wait(lambda: double.subscribers[FLOOD] or process.poll() is not None)
        yield process
    finally:
        said = interrupted(process)
    assert process.returncode == 0, said
    assert not [one for one in double.subscribers[FLOOD] if one.expire]


def interrupted(process: subprocess.Popen[str]) -> str:
    """What it said on its way out. Python ignores a KeyboardInterrupt within a destructor: it is sent again."""
    for _ in range(5):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=5)[1]
    process.kill()
    raise AssertionError(f"it goes on when interrupted: {process.communicate()[1]}")


def wait(condition: Callable[[], object], seconds: float = 10) -> None:
    limit = Deadline(seconds)
    while not condition():
        assert not limit.expired
        time.sleep(0.01)


def test_events_are_printed(double):
    with example(double, "print_events.py") as process:
        # Of all that there are it knows when it has subscribed to the last.
        wait(lambda: all(double.subscribers.values()))
        double.happened(FLOOD, {"ip": "192.0.2.66"})
        assert process.stdout.readline() == f"{FLOOD}(ip='192.0.2.66')\n"
        double.restart()
        wait(lambda: all(double.subscribers.values()))
        double.memory(26)
        assert process.stdout.readline().startswith("E_CORE_PKG_THRESHOLD(usage=26, threshold=1, ")
        assert "no subscription to E_CORE_SR_STATUS_CHANGED for up to" in process.stderr.readline()


def test_a_command_is_run(double, tmp_path):
    file = tmp_path / "events"
    with example(double, "run_command.py", FLOOD, "sh", "-c", f"cat >>{file}; echo >>{file}; exit 3") as process:
        double.happened(FLOOD, {"ip": "$(reboot)"})
        assert process.stderr.readline() == f"{FLOOD}(ip='$(reboot)'): sh: exit code 3\n"
        event = json.loads(file.read_text())
        assert (event["event"], event["params"]) == (FLOOD, {"ip": "$(reboot)"})
        double.happened(FLOOD, None)
        wait(lambda: len(file.read_text().splitlines()) == 2)


def test_a_command_that_is_not_there_is_told(double):
    with example(double, "run_command.py", FLOOD, "/no/such/program") as process:
        double.happened(FLOOD, None)
        assert "No such file or directory" in process.stderr.readline()


def test_a_webhook_is_posted_to_and_its_failure_told(double):
    posted: list[object] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204 if len(posted) == 1 else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Hook) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            with example(double, "post_webhook.py", f"http://127.0.0.1:{server.server_port}/hook", FLOOD) as process:
                double.happened(FLOOD, {"ip": "192.0.2.66"})
                wait(lambda: posted)
                assert posted[0]["event"] == FLOOD and posted[0]["params"] == {"ip": "192.0.2.66"}
                double.happened(FLOOD, {"ip": "192.0.2.67"})
                assert f"{FLOOD}(ip='192.0.2.67') was not posted: HTTP Error 500" in process.stderr.readline()
        finally:
            server.shutdown()
            thread.join()


BLOCKED = "nft list set inet opensips blocked; nft list chain inet opensips before"


NEIGHBOUR = """
until [ "$(readlink /proc/$1/ns/net)" != "$(readlink /proc/self/ns/net)" ]; do sleep 0.05; done
ip link set lo up
ip link add here type veth peer name there
ip link set there netns $1
ip address add 192.0.2.1/24 dev here
ip link set here up
nsenter -t $1 -n ip address add 192.0.2.98/24 dev there
nsenter -t $1 -n ip address add 192.0.2.99/24 dev there
nsenter -t $1 -n ip link set there up
"""
SENDING = """
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
    own.bind((sys.argv[1], 0))
    own.sendto(sys.argv[1].encode(), ("192.0.2.1", 9999))
"""


@pytest.mark.root
def test_an_address_is_blocked(tmp_path):
    """In two network namespaces of its own: a host with its firewall, and a neighbour with two addresses."""
    program = f"""
import socket, subprocess, sys
sys.path.insert(0, {os.fspath(PROJECT)!r})
from pathlib import Path
from tests.integration.test_opensips_examples import BLOCKED, FLOOD, NEIGHBOUR, SENDING, example
from tests.opensips_double import opensips_double
neighbour = subprocess.Popen(["unshare", "--net", "sleep", "60"])
subprocess.run(["bash", "-euc", NEIGHBOUR, "bash", str(neighbour.pid)], check=True)
with opensips_double("4.0.1", Path({os.fspath(tmp_path)!r})) as double:
    with example(double, "block_address.py", "600") as process:
        for address, said in (("192.0.2.66", "is blocked"), ("2001:db8::1", "is not IPv4"),
                              ("127.0.0.1", "is blocked"), ("192.0.2.99", "is blocked")):
            double.happened(FLOOD, {{"ip": address}})
            assert process.stdout.readline() == f"{{address}} {{said}}\\n"
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("192.0.2.1", 9999))
        for address in ("192.0.2.99", "192.0.2.98"):
            subprocess.run(["nsenter", "-t", str(neighbour.pid), "-n", sys.executable, "-c", SENDING, address],
                           check=True)
        receiver.settimeout(2)
        assert receiver.recv(100) == b"192.0.2.98"
    print(subprocess.run(BLOCKED, shell=True, capture_output=True, text=True, check=True).stdout)
neighbour.kill()
"""
    done = subprocess.run(["unshare", "--net", sys.executable, "-c", program], capture_output=True, text=True,
                          timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "192.0.2.66 timeout 10m" in done.stdout and "192.0.2.99 timeout 10m" in done.stdout
    counted = [line.split() for line in done.stdout.splitlines() if "counter packets" in line]
    assert int(counted[0][counted[0].index("packets") + 1]) > 0
