"""Receiving events when something is wrong: places that are taken, floods, rubbish, an OpenSIPS that goes away."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import HostError
from harness.opensips.expectation import EventMissing, Events
from harness.opensips.interface import EventInterface
from harness.opensips.keeper import Keeper
from harness.opensips.mi import MiClient, MiNoAnswer, MiRefused
from harness.opensips.subscriber import Here, Losses, NoEvent, Subscriber
from tests.opensips_double import OpenSipsDouble, opensips_double

SCRIPT = "E_CALL_REFUSED"
TRANSPORTS = ("udp", "unix", "tcp")


@pytest.fixture
def double(tmp_path: Path) -> Iterator[OpenSipsDouble]:
    with opensips_double("3.6.8", tmp_path) as running:
        yield running


@pytest.fixture
def keeper(double: OpenSipsDouble) -> Iterator[Keeper]:
    with MiClient(double.places[0], seconds=0.5) as client, Keeper(EventInterface(client), 4, watch=0.1) as one:
        yield one


def here(transport: str, directory: Path) -> Here:
    return Here(transport, os.fspath(directory / "events.sock") if transport == "unix" else "127.0.0.1:0")


def wait(condition, seconds: float = 5) -> None:
    limit = Deadline(seconds)
    while not condition():
        assert not limit.expired
        time.sleep(0.01)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_place_that_is_taken_is_told(transport, tmp_path):
    first = here(transport, tmp_path)
    try:
        with pytest.raises(HostError, match="it is taken"):
            Here(transport, first.name.partition(":")[2])
    finally:
        first.close()


@pytest.mark.parametrize(("transport", "place", "why"), [
    ("udp", "192.0.2.1:0", "Cannot assign"), ("tcp", "127.0.0.1:70000", "0-65535"), ("tcp", "127.0.0.1", "invalid"),
    ("unix", "/no/such/directory/socket", "No such file")])
def test_a_place_that_is_none_is_told(transport, place, why):
    with pytest.raises(HostError, match=why):
        Here(transport, place)


def test_what_was_made_is_gone_afterwards(keeper, tmp_path):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for transport in TRANSPORTS:
        with Subscriber(keeper, here(transport, tmp_path), SCRIPT):
            pass
    assert not (tmp_path / "events.sock").exists()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_an_unknown_event_leaves_nothing(keeper, tmp_path):
    with pytest.raises(MiRefused, match="400 Bad parameter value"):
        Subscriber(keeper, here("unix", tmp_path), "E_NO_SUCH")
    assert not (tmp_path / "events.sock").exists()


@pytest.mark.parametrize("cut", [0, 1, 7, 1448])
def test_over_tcp_pieces_make_events(double, keeper, tmp_path, cut):
    double.cut = cut
    with Subscriber(keeper, here("tcp", tmp_path), SCRIPT) as one, one.reader() as reader:
        for number in range(300):
            double.happened(SCRIPT, {"n": number, "text": "}{\"\\€" * (number % 40)})
        assert [reader.next(Deadline(5)).params["n"] for _ in range(300)] == list(range(300))
        assert not reader.losses


def test_ten_thousand_over_tcp_come_whole(double, keeper, tmp_path):
    with Subscriber(keeper, here("tcp", tmp_path), SCRIPT) as one, one.reader() as reader:
        for number in range(10_000):
            double.happened(SCRIPT, {"n": number})
        assert [reader.next(Deadline(10)).params["n"] for _ in range(10_000)] == list(range(10_000))
        assert not reader.losses and double.unsent == 0


def test_datagrams_that_find_no_room_are_counted(double, keeper, tmp_path):
    """As long as the thread that receives has no processor, the kernel keeps what there is room for."""
    with Subscriber(keeper, here("udp", tmp_path), SCRIPT) as one, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        host, _, port = one.listener.name.removeprefix("udp:").rpartition(":")
        one.listener._intake._own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        payload = b'{"jsonrpc":"2.0","method":"E","params":["' + b"x" * 900 + b'"]}'
        with one.changed:  # it can't go on with what it has
            for _ in range(2000):
                out.sendto(payload, (host, int(port)))
        out.sendto(payload, (host, int(port)))
        wait(lambda: one.received + one.losses.socket >= 2000)
        assert one.losses.socket > 0 and one.losses.malformed == 0


def test_a_reader_that_is_too_slow_is_told(double, keeper, tmp_path):
    with Subscriber(keeper, here("tcp", tmp_path), SCRIPT, most=10) as one, one.reader() as reader:
        for number in range(25):
            double.happened(SCRIPT, {"n": number})
        wait(lambda: one.received == 25)
        assert [event.params["n"] for event in reader.until(Deadline(0.2))] == list(range(10))
        assert reader.losses == Losses(queue=15)
        with pytest.raises(NoEvent, match="0 datagrams found no room in the socket, 15 events none in the queue"):
            reader.next(Deadline(0.1))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_rubbish_is_counted(keeper, tmp_path, transport):
    with Subscriber(keeper, here(transport, tmp_path)) as one, one.reader() as reader:
        kind, _, place = one.listener.name.partition(":")
        to = place if kind == "unix" else (place.split(":")[0], int(place.split(":")[1]))
        for data in (b"rubbish", b'{"jsonrpc":"2.0","method":"E"}', b'{"id":1}'):
            with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET,
                               socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM) as out:
                out.connect(to)
                out.send(data)
        assert reader.next(Deadline(2)).name == "E"
        wait(lambda: one.losses.malformed == 2)
        assert reader.losses == Losses(malformed=2)


def test_an_event_whose_end_never_comes_is_counted(keeper, tmp_path):
    with Subscriber(keeper, here("tcp", tmp_path)) as one:
        host, _, port = one.listener.name.removeprefix("tcp:").rpartition(":")
        with socket.create_connection((host, int(port))) as out:
            out.send(b'{"jsonrpc":"2.0",')
        wait(lambda: one.losses == Losses(malformed=1))


def test_an_expectation_says_what_came_instead(double, keeper, tmp_path):
    with Subscriber(keeper, here("udp", tmp_path)) as one:
        with pytest.raises(EventMissing) as missing, Events(one).expect(SCRIPT, within=0.3, code=486):
            double.script(SCRIPT, ("reason", "code"), ("Not Found", 404))
        assert str(missing.value) == (f"{SCRIPT} with {{'code': 486}} within 0.3 s over udp did not come; what came is "
                                      f"{SCRIPT}(code=404, reason='Not Found')")
        with pytest.raises(EventMissing, match="what came is nothing"), Events(one).expect(SCRIPT, within=0.1):
            pass
        with pytest.raises(EventMissing, match=" and 3 before"), Events(one).expect(SCRIPT, within=0.2, n=9):
            for number in range(8):
                double.happened(SCRIPT, {"n": number})


def test_what_is_expected_may_come_in_the_middle_of_others(double, keeper, tmp_path):
    with Subscriber(keeper, here("udp", tmp_path)) as one:
        with Events(one).expect(SCRIPT, n=1) as expected:
            with pytest.raises(LookupError):
                _ = expected.event
            for number in range(3):
                double.happened(SCRIPT, {"n": number})
        assert expected.event.params == {"n": 1} and len(expected.came) == 2


def test_what_is_expected_has_to_come_to_each(double, keeper, tmp_path):
    with Subscriber(keeper, here("udp", tmp_path)) as one, Subscriber(keeper, here("tcp", tmp_path)) as other:
        with Events(one, other).expect(SCRIPT) as expected:
            double.happened(SCRIPT, None)
        assert [event.transport for event in expected.found] == ["udp", "tcp"]
        with pytest.raises(EventMissing, match=r"E_CALL_REFUSED within 0\.2 s over tcp did not come"), \
                Events(one, other).expect(SCRIPT, within=0.2):
            double.subscribers[SCRIPT][:] = [known for known in double.subscribers[SCRIPT] if "udp" in known.socket]
            double.happened(SCRIPT, None)


def test_a_block_that_fails_is_not_waited_for(keeper, tmp_path):
    begin = time.monotonic()
    with Subscriber(keeper, here("udp", tmp_path)) as one, pytest.raises(KeyError), Events(one).expect(SCRIPT):
        raise KeyError("x")
    assert time.monotonic() - begin < 3


def test_what_should_not_come_is_told_when_it_does(double, keeper, tmp_path):
    with Subscriber(keeper, here("udp", tmp_path), SCRIPT) as one:
        with Events(one).none("E_PIKE_BLOCKED", within=0.2):
            double.happened(SCRIPT, None)
        with pytest.raises(Exception, match=rf"{SCRIPT}\(\) came"), Events(one).none(SCRIPT, within=0.2):
            double.happened(SCRIPT, None)


def test_an_opensips_that_does_not_answer_is_told_and_the_gap_afterwards(double, keeper, tmp_path):
    with Subscriber(keeper, here("udp", tmp_path), SCRIPT) as one:
        double.silent = True
        wait(lambda: isinstance(keeper.trouble, MiNoAnswer))
        with pytest.raises(EventMissing, match="what came is nothing; OpenSIPS' Management Interface at "), \
                Events(one).expect(SCRIPT, within=0.1):
            pass
        double.restart()
        double.silent = False
        wait(lambda: one.gaps)
        [gap] = one.gaps
        assert gap.event == SCRIPT and gap.until - gap.since > 0.5 and "no subscription" in str(gap)
        wait(lambda: keeper.trouble is None)
        with Events(one).expect(SCRIPT):
            double.happened(SCRIPT, None)


def test_a_gap_is_said_where_an_event_is_missing(double, keeper, tmp_path):
    with Subscriber(keeper, here("udp", tmp_path), SCRIPT) as one, \
            pytest.raises(EventMissing, match=r"no subscription to E_CALL_REFUSED for up to .* started anew"), \
            Events(one).expect(SCRIPT, within=0.2):
        double.restart()
        double.happened(SCRIPT, None)
        wait(lambda: one.gaps)


def test_an_event_that_is_gone_after_a_restart_is_told(double, keeper, tmp_path):
    with Subscriber(keeper, here("udp", tmp_path), SCRIPT, "E_CORE_THRESHOLD") as one:
        double.subscribers.pop(SCRIPT)
        double.restart()
        wait(lambda: isinstance(keeper.trouble, MiRefused))
        assert [gap.event for gap in one.gaps] == ["E_CORE_THRESHOLD"]
        assert keeper.trouble.code == 400


def test_where_nothing_receives_any_more_that_is_told(keeper, tmp_path):
    with Subscriber(keeper, here("udp", tmp_path)) as one, one.reader() as reader:
        one.listener.stop()
        with pytest.raises(HostError, match="nothing receives events at udp:"):
            reader.next(Deadline(5))


def test_closing_waits_for_no_opensips(double, tmp_path):
    with MiClient(double.places[0], seconds=0.2) as client:
        keeper = Keeper(EventInterface(client), 60, watch=0.1)
        one = Subscriber(keeper, here("udp", tmp_path), SCRIPT)
        double.silent = True
        begin = time.monotonic()
        one.close()
        keeper.close()
        assert time.monotonic() - begin < 3


def test_what_cannot_be_renewed_in_time_is_refused(double):
    with MiClient(double.places[0]) as client, pytest.raises(ValueError, match="can't be renewed"):
        Keeper(EventInterface(client), 1)


def test_many_subscriptions_are_kept(double):
    """100 of them, for two expiries, by asking the stand-in all the time."""
    names = [f"udp:127.0.0.1:{port}" for port in range(20_000, 20_100)]
    with MiClient(double.places[0]) as client, MiClient(double.places[0]) as other, \
            Keeper(EventInterface(client), 3, watch=0.2) as keeper:
        for name in names:
            keeper.keep(SCRIPT, name)
        interface, limit = EventInterface(other), Deadline(7)
        while not limit.expired:
            seen = {one.socket: one.ttl for one in interface.subscriptions(SCRIPT)}
            assert set(seen) == set(names) and all(seen.values())
            time.sleep(0.1)
        assert keeper.gaps == () and keeper.trouble is None


def test_ipv6_is_not_what_opensips_sends(double, keeper):
    """event_datagram and event_stream have IPv4 sockets only: such a place can't be bound, and is told."""
    with pytest.raises(HostError, match="events can't be received at udp:"):
        Here("udp", "::1:0")


def test_json_is_what_the_wire_has(double, keeper, tmp_path):
    with Subscriber(keeper, here("unix", tmp_path), SCRIPT) as one, one.reader() as reader:
        double.script(SCRIPT, ("first", "second"), ("1", 2))
        assert json.dumps(dict(reader.next(Deadline(2)).params)) == '{"second": 2, "first": "1"}'
