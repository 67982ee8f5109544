from __future__ import annotations

from harness.cloud.router import Interface, Place, candidates, choose, locate

GATEWAY = Interface("r1", "10.0.0.1", True)
OTHER = Interface("r2", "10.0.0.9", True)
INSIDE = Interface("r3", "10.0.0.8", False)


def place(host: str, *namespaces: str, address: str = "10.0.0.1") -> Place:
    return Place(host, frozenset(namespaces), {n: [address] for n in namespaces})


def test_of_several_routers_the_default_gateway() -> None:
    assert choose([INSIDE, OTHER, GATEWAY], "10.0.0.1") is GATEWAY
    assert choose([INSIDE, OTHER], "10.0.0.1") is OTHER
    assert choose([], "10.0.0.1") is None


def test_the_router_before_the_others() -> None:
    assert candidates(GATEWAY, "n") == ["qrouter-r1", "snat-r1", "qdhcp-n", "ovnmeta-n"]
    assert candidates(None, "n") == ["qdhcp-n", "ovnmeta-n"]


def test_the_first_that_is_there() -> None:
    assert locate([place("a", "qdhcp-n"), place("b", "qrouter-r1")], GATEWAY, "n") == (1, "qrouter-r1")
    assert locate([place("a", "qdhcp-n"), place("b", "snat-r1")], GATEWAY, "n") == (1, "snat-r1")
    assert locate([place("a", "ovnmeta-n")], None, "n") == (0, "ovnmeta-n")


def test_dhcps_namespace_stands_in_after_some_patience_only() -> None:
    early = [place("a", "qdhcp-n")]
    assert isinstance(locate(early, GATEWAY, "n", patient=True), str)
    assert locate(early, GATEWAY, "n") == (0, "qdhcp-n")
    assert locate(early, None, "n", patient=True) == (0, "qdhcp-n"), "there is no router to wait for"
    assert locate([place("a", "ovnmeta-n")], GATEWAY, "n", patient=True) == (0, "ovnmeta-n"), "OVN has no other"


def test_of_several_hosts_the_active_one() -> None:
    standby, active = place("a", "qrouter-r1", address="169.254.0.1"), place("b", "qrouter-r1")
    assert locate([standby, active], GATEWAY, "n") == (1, "qrouter-r1")


def test_why_none_will_do() -> None:
    assert locate([place("a", "qrouter-x"), place("b")], GATEWAY, "n") == (
        "none of qrouter-r1, snat-r1, qdhcp-n, ovnmeta-n is on a, b")
    said = locate([place("a", "qrouter-r1", address="169.254.0.1")], GATEWAY, "n")
    assert said == "the router r1 is on standby on a: its active host is none of a"
