"""The transport against a real HTTP server that misbehaves as it is told; no cloud behind it."""

from __future__ import annotations

import email.utils
import fcntl
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import keystoneauth1.exceptions
import pytest
import requests

from harness.cloud import api, neutron
from harness.cloud.api import Api, Refused, cloud_names, retry_after, translated
from harness.cloud.removal import Removal
from harness.deadline import Deadline
from harness.errors import CloudError, DescriptionError, Fault, Unreachable
from harness.resources import Resource
from harness.run import Journal
from harness.settings import Settings

Plan = list[tuple[int, dict[str, str]]]


class Faulty(BaseHTTPRequestHandler):
    """Answers as `plan` says, 0 meaning that the connection is cut; 200 when it is used up."""

    plan: ClassVar[Plan] = []
    seen: ClassVar[list[str]] = []

    def answer(self) -> None:
        type(self).seen.append(self.command)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers = type(self).plan.pop(0) if type(self).plan else (200, {})
        if status == 0:
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST = do_PUT = do_DELETE = answer

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Faulty.plan, Faulty.seen = [], []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Faulty)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{running.server_address[1]}"
    running.shutdown()
    running.server_close()
    thread.join()


@pytest.fixture
def session() -> requests.Session:
    made = requests.Session()
    made.trust_env = False
    made.counts = Counter()  # type: ignore[attr-defined]
    made.mount("http://", api._Transport(made.counts, threading.Lock()))  # type: ignore[attr-defined]
    return made


@pytest.mark.parametrize("fault", [(503, {}), (429, {}), (502, {}), (0, {})])
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_what_may_be_repeated_is(server: str, session: requests.Session, method: str,
                                 fault: tuple[int, dict[str, str]]) -> None:
    Faulty.plan = [fault]
    assert session.request(method, server).status_code == 200
    assert Faulty.seen == [method, method]
    assert session.counts == {method: 2}  # type: ignore[attr-defined]


@pytest.mark.parametrize("status", [503, 504])
def test_a_creation_is_not_repeated_blindly(server: str, session: requests.Session, status: int) -> None:
    Faulty.plan = [(status, {})]
    assert session.post(server, json={}).status_code == status
    assert Faulty.seen == ["POST"]


def test_a_creation_that_was_cut_is_not_repeated(server: str, session: requests.Session) -> None:
    Faulty.plan = [(0, {})]
    with pytest.raises(requests.ConnectionError):
        session.post(server, json={})
    assert Faulty.seen == ["POST"]


def test_a_creation_that_was_refused_unseen_is_repeated(server: str, session: requests.Session) -> None:
    Faulty.plan = [(429, {"Retry-After": "0"})]
    assert session.post(server, json={}).status_code == 200
    assert Faulty.seen == ["POST", "POST"]


def test_retry_after_is_waited_for(server: str, session: requests.Session) -> None:
    Faulty.plan = [(503, {"Retry-After": "1"})]
    begin = time.monotonic()
    session.get(server)
    assert time.monotonic() - begin >= 1.0


def test_a_retry_after_beyond_the_patience_is_not(server: str, session: requests.Session) -> None:
    Faulty.plan = [(503, {"Retry-After": "3600"})]
    assert session.get(server).status_code == 503


def test_a_body_that_was_streamed_is_not_sent_again(server: str, session: requests.Session) -> None:
    Faulty.plan = [(503, {})]
    assert session.put(server, data=iter([b"x"])).status_code in (503, 200)
    assert Faulty.seen.count("PUT") == 1


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after({"Retry-After": "7"}) == 7.0
    assert 3 < retry_after({"Retry-After": email.utils.formatdate(time.time() + 5, usegmt=True)}) <= 5
    assert retry_after({"Retry-After": "soon"}) == 0.0
    assert retry_after({}) == 0.0


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    return Settings.load(tmp_path, {})


def written(settings: Settings, text: str) -> None:
    (settings.project / "clouds.yaml").write_text(text)


CLOUD = """
clouds:
  lab:
    region_name: One
    auth: {auth_url: "http://127.0.0.1:1/v3", username: me, password: s3cr3t-word, project_name: p,
           user_domain_name: Default, project_domain_name: Default}
    dialtone: {external_network: public}
"""


def test_a_cloud_is_found_with_its_options(settings: Settings) -> None:
    written(settings, CLOUD)
    assert cloud_names(settings) == ["lab"]
    found = Api("lab", settings)
    assert (found.region, found.options.external_network) == ("One", "public")


def test_an_unknown_cloud_names_those_that_are_known(settings: Settings) -> None:
    written(settings, CLOUD)
    with pytest.raises(DescriptionError, match="no cloud 'lib'") as caught:
        Api("lib", settings)
    assert "known: local, lab" in str(caught.value.hint)


@pytest.mark.parametrize("password", [
    '"s3cr3t-word', "!!int s3cr3t-word", "!!bool s3cr3t-word", "!!timestamp s3cr3t-word", "2026-02-30",
    pytest.param("[" * 3000, id="nested")])
def test_a_broken_clouds_yaml_is_named_without_what_it_holds(settings: Settings, password: str) -> None:
    written(settings, f"clouds:\n  lab: {{auth: {{password: {password}}}}}\n")
    with pytest.raises(DescriptionError) as caught:
        Api("lab", settings)
    assert "clouds.yaml" in str(caught.value)
    assert not any(secret in str(caught.value) for secret in ("s3cr3t", "2026"))
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


AUTH = '{auth_url: "http://127.0.0.1:1/v3", username: me, password: s3cr3t-word, project_name: p}'


@pytest.mark.parametrize(("entry", "said"), [
    ("", "clouds.lab: is no mapping"),
    ("s3cr3t-word", "clouds.lab: is no mapping"),
    ("{auth: s3cr3t-word}", "clouds.lab.auth: is no mapping"),
    ("{auth: {auth_url: 5, username: me, password: s3cr3t-word, project_name: p}}", "clouds.lab: "),
    (f"{{api_timeout: abc, auth: {AUTH}}}", "clouds.lab: .*'abc'")])
def test_an_entry_of_another_form_is_a_mistake_in_that_file(settings: Settings, entry: str, said: str) -> None:
    written(settings, f"clouds:\n  lab: {entry}\n")
    with pytest.raises(DescriptionError, match=f"clouds.yaml: {said}") as caught:
        Api("lab", settings)
    assert "s3cr3t" not in str(caught.value)


def test_an_entry_of_secrets_that_is_text_is_a_mistake_in_that_file(settings: Settings) -> None:
    written(settings, CLOUD)
    (settings.project / "secure.yaml").write_text("clouds:\n  lab: s3cr3t-word\n")
    with pytest.raises(DescriptionError, match=r"secure.yaml: clouds.lab: is no mapping") as caught:
        Api("lab", settings)
    assert "s3cr3t" not in str(caught.value)


def test_a_cloud_that_is_not_there_says_so_and_keeps_the_secret(settings: Settings,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_ABSENT", 1.0)
    written(settings, CLOUD)
    found = Api("lab", settings)
    with pytest.raises(Unreachable) as caught:
        found.get("login", lambda: found.sdk.current_project_id)
    assert "lab: login" in caught.value.message
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.exit_code == 7


def test_not_found_at_the_login_is_not_the_resource_s(server: str, settings: Settings) -> None:
    Faulty.plan = [(404, {})] * 9
    written(settings, CLOUD.replace("http://127.0.0.1:1", server))
    found = Api("lab", settings)
    with pytest.raises(Unreachable, match="lab: the servers: "):
        found.get("the servers", lambda: list(found.sdk.compute.servers()))


PORT = Resource("os-port", "run-server1", {"cloud": "lab", "mark": "dialtone:owner:run:"})


def making(lab: Api, journal: Path) -> object:
    return neutron.Neutron(lab, Journal(journal), "mark", "run").floating_ip("server1", "public", "port", Deadline(0))


@pytest.mark.parametrize("use", [
    lambda lab, journal: neutron.listed(lab, "os-port"),
    making,
    lambda lab, journal: Removal(lab).removers["os-port"](PORT)])
def test_a_login_that_fails_at_the_first_use_of_the_network_is_an_error_of_ours(
        server: str, settings: Settings, tmp_path: Path, use: Callable[[Api, Path], object]) -> None:
    Faulty.plan = [(404, {})] * 9
    written(settings, CLOUD.replace("http://127.0.0.1:1", server))
    with pytest.raises(Unreachable, match="lab: "):
        use(Api("lab", settings), tmp_path / "journal.jsonl")


def test_a_service_that_says_nothing_of_its_versions_is_out_of_reach() -> None:
    with pytest.raises(Unreachable, match="lab: the ports: no versions"), translated("the ports", "lab"):
        raise keystoneauth1.exceptions.DiscoveryFailure("no versions")


def test_the_test_cloud_has_to_be_up(settings: Settings) -> None:
    place = settings.cache / "testcloud"
    place.mkdir(parents=True)
    (place / "clouds.yaml").write_text(CLOUD)
    with pytest.raises(Unreachable, match="the test cloud is not up") as caught:
        Api("lab", settings).ready()
    assert caught.value.hint == "./inv testcloud.up"
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        Api("lab", settings).ready()


def test_another_cloud_is_not_asked_whether_it_is_up(lab: Api) -> None:
    lab.ready()


@pytest.fixture
def lab(settings: Settings) -> Api:
    written(settings, CLOUD)
    return Api("lab", settings)


def test_a_creation_of_unknown_fate_is_looked_for(lab: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_SETTLE", (0.0, 0.0))
    made: list[str] = []

    def create() -> str:
        made.append("server")
        raise requests.ConnectionError("cut")

    looks = iter([None, "server"])
    assert lab.create("a server", lambda: next(looks), create, Deadline(5)) == "server"
    assert made == ["server"], "it was made a second time"


def test_a_creation_that_left_nothing_is_done_again(lab: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "_SETTLE", (0.0,))
    tries = iter([requests.ConnectionError("cut"), None])

    def create() -> str:
        if error := next(tries):
            raise error
        return "server"

    assert lab.create("a server", lambda: None, create, Deadline(5)) == "server"


def test_a_refused_creation_is_not_tried_again(lab: Api) -> None:
    with pytest.raises(CloudError, match="no good"):
        lab.create("a server", lambda: None, lambda: _refuse(400, "no good"), Deadline(5))


def _refuse(status: int, said: str) -> str:
    import openstack.exceptions

    response = requests.Response()
    response.status_code = status
    raise openstack.exceptions.HttpException(said, response=response)


@pytest.mark.parametrize(("status", "said", "kind", "fault"), [
    (403, "Quota exceeded for instances", api.QuotaExceeded, Fault.CLOUD),
    (409, "Quota exceeded for resources: ['floatingip']", api.QuotaExceeded, Fault.CLOUD),
    (403, "Policy doesn't allow it", Refused, Fault.CLOUD),
    (401, "The request you have made requires authentication", Refused, Fault.DESCRIPTION),
    (404, "No image found", Refused, Fault.CLOUD),
])
def test_what_an_api_refuses(status: int, said: str, kind: type[CloudError], fault: Fault) -> None:
    with pytest.raises(CloudError) as caught, translated("a thing", "lab"):
        _refuse(status, said)
    assert type(caught.value) is kind
    assert caught.value.fault is fault
    assert said in caught.value.message
