"""What one pass of removal asks of a cloud's APIs; that it removes is seen on a real one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cloud.removal import Removal
from harness.errors import CloudError
from harness.resources import Resource
from harness.run import Journal

RUN, MARK = "20260101-000000-relay-beef", "dialtone:owner:20260101-000000-relay-beef"


class Cloud:
    """Servers that go at the second look after they were deleted, ports, and floating IPs, of a run and of others."""

    name = "cloud"

    def __init__(self, count: int) -> None:
        self.calls: Counter[str] = Counter()
        self.going: dict[str, int] = {}
        self.stuck = False
        names = [f"{RUN}-server{number}" for number in range(count)]
        self.there = {"server": {n: self._thing(n, status="ACTIVE", hypervisor_hostname="", host_id="") for n in names},
                      "port": {n: self._thing(n, description=MARK) for n in [*names, "theirs"]},
                      "ip": {n: self._thing(n, description=f"{MARK} {n}") for n in [*names, "theirs"]}}
        self.sdk: Any = SimpleNamespace(
            compute=SimpleNamespace(servers=lambda **query: self._servers(), delete_server=self._delete_server),
            network=SimpleNamespace(
                ports=lambda **query: self._list("port"), delete_port=lambda entry, **_: self._delete("port", entry.id),
                ips=lambda **query: self._list("ip"), delete_ip=lambda entry, **_: self._delete("ip", entry.id)))

    def get(self, what: str, action: Callable[[], Any]) -> Any:
        return action()

    @staticmethod
    def _thing(name: str, **more: str) -> SimpleNamespace:
        return SimpleNamespace(id=name, name=name, **more)

    def _list(self, kind: str) -> list[Any]:
        self.calls[f"list {kind}"] += 1
        return list(self.there[kind].values())

    def _servers(self) -> list[Any]:
        for name in list(self.going):
            self.going[name] -= 1
            if self.going[name] == 0 and not self.stuck:
                self.there["server"].pop(name, None)
        return self._list("server")

    def _delete_server(self, identity: str, **_: bool) -> None:
        self.calls["delete server"] += 1
        self.going[identity] = 2

    def _delete(self, kind: str, identity: str) -> None:
        self.calls[f"delete {kind}"] += 1
        del self.there[kind][identity]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))


def remove(cloud: Cloud, count: int, journal: Journal) -> list[Any]:
    for kind, data, name in (("os-port", {"mark": MARK}, "{}"), ("os-floating-ip", {"mark": MARK}, MARK + " {}"),
                             ("os-server", {"run": RUN}, "{}")):
        for number in range(count):
            journal.creating(Resource(kind, name.format(f"{RUN}-server{number}"), data))
    left: list[Any] = journal.remove_outstanding(Removal(cloud).removers)  # type: ignore[arg-type]
    return left


def test_many_servers_are_deleted_together_and_every_kind_is_listed_once(clock, tmp_path) -> None:
    cloud = Cloud(20)
    assert remove(cloud, 20, Journal(tmp_path / "journal.jsonl")) == []
    assert {kind: list(things) for kind, things in cloud.there.items()} == {
        "server": [], "port": ["theirs"], "ip": ["theirs"]}
    assert cloud.calls == {"list server": 3, "delete server": 20, "list port": 1, "delete port": 20,
                           "list ip": 1, "delete ip": 20}


def test_a_server_that_does_not_go_is_said_and_kept_in_the_journal(clock, tmp_path) -> None:
    cloud = Cloud(1)
    cloud.stuck = True
    journal = Journal(tmp_path / "journal.jsonl")
    [(resource, error)] = remove(cloud, 1, journal)
    assert isinstance(error, CloudError) and "is ACTIVE still, 180 s after it was deleted" in error.message
    assert journal.outstanding() == [resource] == [Resource("os-server", f"{RUN}-server0", {"run": RUN})]
    assert cloud.calls["delete server"] == 1
