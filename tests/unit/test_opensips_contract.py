"""What harness.opensips relies on of OpenSIPS: one suite for a stand-in, which is not OpenSIPS, and for a real one.

    DIALTONE_OPENSIPS_MI='udp:127.0.0.1:8080 http://127.0.0.1:8888/mi'    the real one's interfaces
    DIALTONE_OPENSIPS_SIP=127.0.0.1:5060    its SIP port (UDP), for events that SIP causes
    DIALTONE_OPENSIPS_RESTART='COMMAND'    starts it anew

It runs here as we do, with the configuration of our appliance but event_pkg_threshold=1 (docs/opensips.md).
"""

from __future__ import annotations

import itertools
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.opensips.events import Event
from harness.opensips.expectation import Events
from harness.opensips.interface import EventInterface, Subscription
from harness.opensips.keeper import Keeper
from harness.opensips.mi import MiClient, MiError, MiRefused
from harness.opensips.subscriber import Here, NoEvent, Reader, Subscriber
from harness.settings import Settings
from harness.sip.request import Request, by_datagrams
from tests.conftest import PROJECT
from tests.opensips_double import opensips_double

SETTINGS = Settings.load(PROJECT)
REAL = SETTINGS.opensips_mi.split()
SCRIPT = "E_CALL_REFUSED"
"""An event that no module raises, so that what comes is what these tests raised."""
TRANSPORTS = ("udp", "unix", "tcp")


@dataclass(frozen=True)
class Proxy:
    places: list[str]
    sip: tuple[str, int]
    restart: Callable[[], None]


@pytest.fixture(params=["the real one"] if REAL else ["stand-in 3.6.8", "stand-in 4.0.1"])
def proxy(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Proxy]:
    if REAL:
        host, _, port = SETTINGS.opensips_sip.rpartition(":")
        sip = (host, int(port or 0))
        yield Proxy(REAL, sip, real_restart)
        return
    with opensips_double(request.param.split()[-1], tmp_path) as double:
        yield Proxy(double.places, double.sip, double.restart)


def real_restart() -> None:
    if not SETTINGS.opensips_restart:
        pytest.skip("DIALTONE_OPENSIPS_RESTART does not say how the real one is started anew")
    subprocess.run(shlex.split(SETTINGS.opensips_restart), check=True, timeout=30)


@pytest.fixture
def interface(proxy: Proxy) -> Iterator[EventInterface]:
    with MiClient(proxy.places[0]) as client:
        found = EventInterface(client)
        if "127.0.0.1" in found.blocked():
            found.unblock("127.0.0.1")
        yield found


@pytest.fixture
def phone(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.connect(proxy.sip)
        yield own


def request(proxy: Proxy, method: str, headers: tuple[str, ...] = ()) -> Request:
    return Request(method, f"sip:nobody@{proxy.sip[0]}:{proxy.sip[1]}", "sip:test@127.0.0.1",
                   headers=("Contact: <sip:test@127.0.0.1>", *headers))


NUMBERS = itertools.count()


def place(transport: str, directory: Path) -> str:
    return os.fspath(directory / f"ev{next(NUMBERS)}.sock") if transport == "unix" else "127.0.0.1:0"


@pytest.fixture
def subscriber(interface: EventInterface, tmp_path: Path) -> Iterator[Callable[..., Subscriber]]:
    """subscriber(transport, *events, expire=60): one that is closed at the end."""
    opened: list[Keeper | Subscriber] = []
    # OpenSIPS may be another user than we are.
    tmp_path.chmod(0o755)

    def make(transport: str, *events: str, expire: int = 60) -> Subscriber:
        opened.append(keeper := Keeper(interface, expire, watch=0.2))
        opened.append(one := Subscriber(keeper, Here(transport, place(transport, tmp_path)), *events))
        return one

    yield make
    for one in reversed(opened):
        one.close()


def code_of(action: Callable[[], object]) -> int:
    with pytest.raises(MiRefused) as refused:
        action()
    return refused.value.code


def listed(interface: EventInterface, socket_name: str) -> list[Subscription]:
    return [one for one in interface.subscriptions(SCRIPT) if one.socket == socket_name]


def take(reader: Reader, count: int, seconds: float = 5) -> list[Event]:
    """So many events, or those that came in time."""
    found: list[Event] = []
    limit = Deadline(seconds)
    for event in reader.until(limit):
        found.append(event)
        if len(found) == count:
            break
    return found


def test_each_interface_answers(proxy: Proxy) -> None:
    seen = set()
    for where in proxy.places:
        with MiClient(where) as client:
            one = EventInterface(client)
            seen.add((one.version, one.profile.subscribe, one.up_since(), one.events()))
    assert len(seen) == 1


def test_what_is_asked_wrongly_is_refused(interface: EventInterface) -> None:
    client = interface.client
    assert code_of(lambda: client.request("no_such_method")) == -32601
    assert code_of(lambda: client.request(interface.profile.subscribe, ["E_CORE_THRESHOLD"])) == -32602
    assert code_of(lambda: client.request(interface.profile.subscribe, {"event": "E_CORE_THRESHOLD", "sock": "x"})) \
        == -32602
    assert code_of(lambda: interface.subscribe(SCRIPT, "udp:127.0.0.1:9", -1)) == -32602


def test_events_are_listed(interface: EventInterface) -> None:
    events = interface.events()
    assert {"E_CORE_THRESHOLD", "E_CORE_PKG_THRESHOLD", "E_PIKE_BLOCKED", SCRIPT} <= set(events)
    assert len(set(events)) == len(events)


def test_unknown_event_and_transport_are_refused(interface: EventInterface) -> None:
    assert code_of(lambda: interface.subscribe("E_NO_SUCH", "udp:127.0.0.1:9", 5)) == 400
    assert code_of(lambda: interface.subscribe(SCRIPT, "carrier-pigeon:127.0.0.1:9", 5)) == 400
    assert code_of(lambda: interface.subscribe(SCRIPT, "udp:127.0.0.1", 5)) == 400
    assert code_of(lambda: interface.subscriptions("E_NO_SUCH")) == 404
    assert not interface.subscribed(SCRIPT, "udp:127.0.0.1:9")


@pytest.mark.parametrize("name", ["udp:127.0.0.1:40001", "tcp:127.0.0.1:40002", "unix:/tmp/no-such-socket"])
def test_a_subscription_is_listed_until_it_ends(interface: EventInterface, name: str) -> None:
    interface.subscribe(SCRIPT, name, 50)
    try:
        [one] = listed(interface, name)
        assert (one.event, one.expire) == (SCRIPT, 50) and one.ttl is not None and 48 <= one.ttl <= 50
        assert one in interface.subscriptions() and interface.subscribed(SCRIPT, name)
        interface.subscribe(SCRIPT, name, 90)
        assert [again.expire for again in listed(interface, name)] == [90]
    finally:
        interface.unsubscribe(SCRIPT, name)
    assert [one.ttl for one in listed(interface, name)] in ([0], [])
    time.sleep(1.1)
    assert listed(interface, name) == [] and not interface.subscribed(SCRIPT, name)
    interface.unsubscribe(SCRIPT, name)


def test_of_addresses_that_begin_alike_one_is_taken_for_the_other(interface: EventInterface) -> None:
    long, short = "udp:127.0.0.11:40004", "udp:127.0.0.1:40004"
    interface.subscribe(SCRIPT, long, 50)
    interface.subscribe(SCRIPT, short, 60)
    try:
        assert [(one.socket, one.expire) for one in interface.subscriptions(SCRIPT)
                if one.socket in (long, short)] == [(long, 60)]
    finally:
        interface.unsubscribe(SCRIPT, long)


def test_without_subscriber_nothing_is_raised(interface: EventInterface) -> None:
    limit = Deadline(3)
    while interface.subscriptions(SCRIPT) and not limit.expired:
        time.sleep(0.2)
    assert code_of(lambda: interface.raise_event(SCRIPT, ["x"])) == 480
    assert code_of(lambda: interface.raise_event("E_NO_SUCH", ["x"])) == 404


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_parameters_keep_names_order_and_types(interface, subscriber, transport) -> None:
    one = subscriber(transport, SCRIPT)
    named = {"z": 7, "a": "7", "text": 'quote " backslash \\ brace } {', "utf": "Größe €", "empty": ""}
    with one.reader() as reader:
        for params in (named, ["second", "first"], ["second", "first"], ["one"], ()):
            interface.raise_event(SCRIPT, params)
            event = reader.next(Deadline(5))
            if isinstance(params, dict):
                assert list(event.params.items()) == list(params.items())
            else:
                assert event.params == tuple(params)
            assert (event.name, event.transport) == (SCRIPT, transport)
            assert abs(time.time() - event.received_at) < 5
    assert not one.losses and not one.gaps


def test_an_object_of_parameters_has_to_be_a_text(interface, subscriber) -> None:
    subscriber("udp", SCRIPT)
    method = interface.profile.raise_event
    assert code_of(lambda: interface.client.request(method, [SCRIPT, {"a": 1}])) == 400
    assert code_of(lambda: interface.client.request(method, [SCRIPT, "no JSON"])) == 400


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_event_of_the_script(proxy, subscriber, phone, transport) -> None:
    with Events(subscriber(transport)).expect(SCRIPT, code=404, reason="Not Found") as expected:
        assert by_datagrams(phone, proxy.sip, request(proxy, "INVITE"), Deadline(3)).status == 404
    params = expected.event.params
    # The script assigned callee, caller, reason, code: what is assigned last comes first.
    assert list(params) == ["code", "reason", "caller", "callee"]
    assert params["caller"] == "sip:test@127.0.0.1" and params["callee"].startswith("sip:nobody@")


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_event_of_a_module(proxy, interface, subscriber, phone, transport) -> None:
    with Events(subscriber(transport)).expect("E_PIKE_BLOCKED", ip="127.0.0.1") as expected:
        for _ in range(60):
            phone.send(bytes(request(proxy, "OPTIONS")))
    assert dict(expected.event.params) == {"ip": "127.0.0.1"}
    assert interface.blocked() == ("127.0.0.1",)
    interface.unblock("127.0.0.1")
    assert interface.blocked() == ()
    assert code_of(lambda: interface.unblock("192.0.2.1")) in (400, 404, 500)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_an_event_of_the_core(proxy, subscriber, phone, transport) -> None:
    with Events(subscriber(transport)).expect("E_CORE_PKG_THRESHOLD", threshold=1) as expected:
        # To answer it, all of its headers are looked at, and kept meanwhile.
        for _ in range(5):
            phone.send(bytes(request(proxy, "OPTIONS", tuple(f"X-{number}: x" for number in range(4000)))))
    params = expected.event.params
    assert set(params) == {"usage", "threshold", "used", "size", "pid"}
    assert all(isinstance(value, int) for value in params.values()) and params["used"] < params["size"]


def test_expired_means_told_no_longer(interface, tmp_path) -> None:
    with Keeper(interface) as keeper, Subscriber(keeper, Here("udp", "127.0.0.1:0")) as one, one.reader() as reader:
        interface.subscribe(SCRIPT, one.listener.name, 1)
        interface.raise_event(SCRIPT, ["in time"])
        assert reader.next(Deadline(2)).params == ("in time",)
        time.sleep(2.1)
        try:
            interface.raise_event(SCRIPT, ["too late"])
        except MiRefused as error:
            assert error.code == 480
        with pytest.raises(NoEvent):
            reader.next(Deadline(0.5))


def test_unsubscribed_means_told_no_longer_after_a_second(interface, subscriber) -> None:
    one, other = subscriber("tcp", SCRIPT), subscriber("udp", SCRIPT)
    one.unsubscribe(SCRIPT)
    time.sleep(1.1)
    with one.reader() as reader, other.reader() as still:
        interface.raise_event(SCRIPT, ["x"])
        assert still.next(Deadline(2)).params == ("x",)
        with pytest.raises(NoEvent):
            reader.next(Deadline(0.5))


def test_a_subscription_is_kept_beyond_its_expiry(interface, subscriber) -> None:
    one = subscriber("udp", SCRIPT, expire=2)
    limit = Deadline(3.6)
    while not limit.expired:
        with Events(one).expect(SCRIPT, within=1):
            interface.raise_event(SCRIPT, ["x"])
        time.sleep(0.3)
    assert not one.gaps


def test_a_subscription_that_somebody_else_ends_is_taken_anew(interface, subscriber) -> None:
    one = subscriber("udp", SCRIPT, expire=4)
    interface.unsubscribe(SCRIPT, one.listener.name)
    limit = Deadline(6)
    while not one.gaps and not limit.expired:
        time.sleep(0.1)
    [gap] = one.gaps
    assert gap.reason == "OpenSIPS had it no longer"
    with Events(one).expect(SCRIPT):
        interface.raise_event(SCRIPT, ["x"])


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_restart_is_noticed_and_the_gap_is_told(proxy, interface, subscriber, transport) -> None:
    one = subscriber(transport, SCRIPT)
    with Events(one).expect(SCRIPT):
        interface.raise_event(SCRIPT, ["before"])
    begin = time.time()
    proxy.restart()
    limit = Deadline(20)
    while not one.gaps and not limit.expired:
        time.sleep(0.1)
    [gap] = one.gaps
    assert "started anew" in gap.reason and begin - 1 < gap.since < gap.until <= time.time()
    with Events(one).expect(SCRIPT):
        interface.raise_event(SCRIPT, ["after"])


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_a_burst_comes_whole(interface, subscriber, transport) -> None:
    one = subscriber(transport, SCRIPT)
    with one.reader() as reader:
        for number in range(1000):
            interface.raise_event(SCRIPT, {"n": number})
        came = take(reader, 1000)
    assert sorted(event.params["n"] for event in came) == list(range(1000)) and not one.losses


def test_on_the_way_out_the_subscription_ends(interface, subscriber) -> None:
    with Keeper(interface) as keeper, Subscriber(keeper, Here("udp", "127.0.0.1:0"), SCRIPT) as one:
        assert [found.ttl for found in listed(interface, one.listener.name)] > [50]
    assert [found.ttl for found in listed(interface, one.listener.name)] in ([0], [])


def test_no_interface_answers_where_none_is(proxy: Proxy) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    begin = time.monotonic()
    for where in (f"udp:127.0.0.1:{port}", f"http://127.0.0.1:{port}/mi", "unix:/no/such/socket", "fifo:/no/such/fifo"):
        with MiClient(where) as client, pytest.raises(MiError, match="did not answer version"):
            EventInterface(client)
    assert time.monotonic() - begin < 3
