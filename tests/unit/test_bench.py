"""How figures are counted, compared and shown; what they are measured on is not here."""

from __future__ import annotations

import http.server
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.bench import proxy, testcloud
from harness.bench.figures import Row, Table, machine, passed, table
from harness.errors import HostError, Interrupted
from harness.testcloud.status import Process
from tests import faulty_proxy
from tests.faulty_proxy import Fault

ABOUT = Table("Performance of things", "./inv things", "local")


def row(ours: float, peer: float | None = None) -> Row:
    return Row("a thing", "calls", ours, peer, "somebody", "at most 0.2 x")


def test_a_figure_is_compared_with_its_peer() -> None:
    assert row(1.0, 8.0).ratio == 0.12
    assert row(1.0).ratio is None


def test_the_table_has_units_peers_and_what_is_to_reach() -> None:
    text = table(ABOUT, {"cores": 2, "load": 0.1}, [row(1.26, 2.0), row(21, 210), Row("b", "s", 3.0, None, "", "")])
    assert text.startswith("# Performance of things\n\nWritten by `./inv things`;")
    assert "cores: 2, load: 0.1\n" in text
    assert text.splitlines()[-3:] == ["| a thing | 1.3 calls | 2.0 calls (somebody) | 0.63 | at most 0.2 x |",
                                      "| a thing | 21 calls | 210 calls (somebody) | 0.10 | at most 0.2 x |",
                                      "| b | 3.0 s | - | - | - |"]


def test_the_load_is_that_of_before() -> None:
    assert machine("local", 7.26)["load"] == 7.3


def test_the_time_of_a_run_that_failed_is_no_figure() -> None:
    passed(0, "it")
    with pytest.raises(HostError, match="it ended with exit code 7"):
        passed(7, "it")
    with pytest.raises(Interrupted):
        passed(130, "it")


def test_from_the_request_to_ssh() -> None:
    """The request at 100, the wait from 110 to 150, SSH after 25 seconds of it."""
    assert testcloud.to_ssh(100.0, 150.0, {"key": 20.0, "ssh": 25.0, "ready": 40.0}) == 35.0


def test_guests_are_counted_for_themselves_and_among_all() -> None:
    processes = [Process("nova-api", 1, 10), Process("qemu-system-x86", 2, 1000), Process("qemu-img", 3, 5)]
    assert (testcloud.pss(processes), testcloud.guests(processes)) == (1015, 1000)


def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENCH_A", "before")
    monkeypatch.delenv("BENCH_B", raising=False)
    with testcloud.environment(BENCH_A=None, BENCH_B="inside"):
        assert ("BENCH_A" in os.environ, os.environ["BENCH_B"]) == (False, "inside")
    assert (os.environ["BENCH_A"], "BENCH_B" in os.environ) == ("before", False)


class Api(http.server.BaseHTTPRequestHandler):
    """Answers with what it was sent."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(201)
        self.send_header("X-Said", f"{self.path} {self.headers['Host']}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def post(address: str, api: str, body: bytes = b"x") -> tuple[int, str, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": address}))
    with opener.open(urllib.request.Request(f"http://{api}/v2/things?a=1", body), timeout=10) as response:
        return response.status, response.headers["X-Said"], response.read()


def test_a_proxy_hands_on_and_counts(api: str) -> None:
    body = os.urandom(200_000)
    with proxy.serving(proxy.Proxy, proxy.Handler) as seen:
        for _ in range(3):
            assert post(seen.address, api, body) == (201, f"/v2/things?a=1 {api}", body)
        assert seen.seen == ["POST /v2/things"] * 3
        assert (seen.count("POST", ".*/things"), seen.count("POST", "/v2"), seen.count("GET", ".*")) == (3, 0, 0)


def test_a_faulty_proxy_does_what_it_was_told_and_counts_all(api: str) -> None:
    with faulty_proxy.running() as faulty:
        faulty.faults += [Fault("POST", "/things$", status=503), Fault("POST", "/things$", cut="before"),
                          Fault("POST", "/things$", cut=2), Fault("POST", "/things$", cut="after")]
        with pytest.raises(urllib.error.HTTPError, match="503"):
            post(faulty.address, api)
        with pytest.raises(OSError):
            post(faulty.address, api)
        with pytest.raises(OSError):
            post(faulty.address, api, b"more than that")
        with pytest.raises(OSError):
            post(faulty.address, api)
        assert post(faulty.address, api)[0] == 201
        assert faulty.count("POST", ".*") == 5


def test_the_processes_of_a_node_and_no_others(tmp_path: Path) -> None:
    from harness.testcloud import status

    def process(pid: int, space: str, name: str, pss: int | None) -> None:
        place = tmp_path / str(pid)
        (place / "ns").mkdir(parents=True)
        (place / "ns/pid").symlink_to(f"pid:[{space}]")
        (place / "status").write_text(f"Name:\t{name}\nNSpid:\t{pid}\t{pid % 100}\nNSsid:\t{pid}\t{pid % 100}\n")
        if pss is not None:
            (place / "smaps_rollup").write_text(
                f"00400000-7fff0000 ---p 00000000 00:00 0   [rollup]\nRss:    9999 kB\nPss:    {pss} kB\n"
                "Pss_Dirty:  7 kB\n")

    process(501, "2", "python3", 10)
    process(502, "2", "qemu-system-x86", 300)
    process(503, "1", "of the host", 1000)
    process(504, "2", "ended meanwhile", None)
    (tmp_path / "self").symlink_to("503")
    found = sorted(status.processes(501, tmp_path), key=lambda p: p.session)
    assert found == [Process("python3", 1, 10240), Process("qemu-system-x86", 2, 307200)]
