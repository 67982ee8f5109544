"""Calls by SIP."""

import socket
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

import harness
from harness import acceptance
from harness.access import reach
from harness.deadline import Deadline
from harness.errors import CloudError
from harness.plugin import expect
from harness.settings import Settings
from harness.sip import calls as sip
from harness.sip import programs
from harness.sip.proxy import REFUSED
from harness.sip.trace import Dialog
from harness.units import many
from harness.voip.call import CallResult
from harness.voip.ng import NgClient, NgNoAnswer
from harness.voip.traffic import Health, Traffic

pytestmark = pytest.mark.level("acceptance")

CALLS = 3
SECONDS = 4.0
"""Of media in a call: long enough for the relay to hand its streams to the kernel."""
COUNTED = 5.0
"""Seconds at most until the relay knows what the kernel counted for it: it looks every second."""
PROGRAMS = 300.0
"""Seconds at most until the programs are there, where the cache does not have them."""
NOWHERE = 9
"""A port of the server where no relay is: discard's, which nothing serves."""


@pytest.fixture(scope="session")
def settings():
    return Settings.load(Path(harness.__file__).parent.parent)


@pytest.fixture(scope="session")
def proxy(settings):
    """What calls go by."""
    return programs.proxy_of(settings)


@pytest.fixture(scope="session")
def way(server, media_address):
    """The route that SIP's programs reach the relay by. They run on this host: the media's route where that begins
    here, else another one that does."""
    here = [route for route in server.routes if route.gateway is None]
    if not here:
        pytest.skip(f"SIP's programs run on this host, and no route to {server.name} begins here")
    return next((route for route in here if route.address == media_address), here[0])


@pytest.fixture(scope="session")
def site(session, way, settings, proxy):
    """Where SIP's programs run: on this side of that route."""
    root = programs.prepare(settings, session.run, proxy, Deadline(PROGRAMS))
    return sip.Site(root, way.namespace, reach.own_address(way), session.run.directory / "sip", session.run.journal)


@pytest.fixture(scope="session")
def control(switchboard, site, way, media_address):
    """Where the proxy asks the relay: its ng protocol, known to answer there."""
    with NgClient(way.address, switchboard.port, partial(site.open_socket, socket.SOCK_DGRAM)) as client:
        try:
            client.ping()
        except NgNoAnswer as error:
            if way.address != media_address:
                pytest.skip(f"SIP's programs run on this host, and from here {error.message}")
            raise CloudError(f"no call by SIP can be placed: {error.message}") from error
    return way.address, switchboard.port


@dataclass(frozen=True)
class Telephony:
    """Calls that took place at once. `results` and `relayed` (RTP packets that the relay counted before anybody hung
    up) are of those that were taken up; `left` are the Call-IDs that the relay had after the callers hung up."""

    taken_up: list[Dialog]
    hung_up: list[Dialog]
    results: list[CallResult]
    relayed: list[int]
    health: list[Health]
    arrived: int
    left: list[str]
    said: str


@pytest.fixture(scope="session")
def telephony(site, proxy, control, switchboard, endpoint, arrived):
    """Calls by a proxy, with media both ways, until the callers hang up. Whatever happens, the relay has none in the
    end."""
    callers, callees = ([endpoint() for _ in range(CALLS)] for _ in range(2))
    came = arrived()
    with sip.placed(site, proxy, control, callers, callees) as calls:
        try:
            taken_up = calls.settle()
            exchanges, health = calls.exchanges(), []
            if exchanges:
                streams = [stream for exchange in exchanges.values() for stream in exchange.streams]
                health = [Traffic(streams, report_every=0).run(SECONDS, acceptance.LINGER)]
            results = [exchange.result() for exchange in exchanges.values()]
            relayed = counted(switchboard, exchanges, sum(one.sent for one in acceptance.directions(results)))
            hung_up = calls.hang_up()
            left = [call_id for call_id in calls.call_ids if call_id in switchboard.calls(limit=1000)]
            wrong = next((dialog for dialog in hung_up if not dialog.over), None)
            return Telephony(taken_up, hung_up, results, relayed, health, arrived() - came, left,
                             calls.said(wrong) if wrong else "")
        finally:
            for call_id in set(calls.call_ids) & set(switchboard.calls(limit=1000)):
                switchboard.delete(call_id, call_id)


def all_taken_up(telephony):
    expect(all(dialog.up and dialog.status == 200 for dialog in telephony.taken_up),
           f"{many(CALLS, 'call')} answered with 200", ", ".join(map(str, telephony.taken_up)), telephony.said)


def counted(switchboard, call_ids, sent):
    """RTP packets that the relay counted of each call, as soon as they are `sent` in all."""
    limit = Deadline(COUNTED)
    while True:
        found = [switchboard.query(call_id)["totals"]["RTP"]["packets"] for call_id in call_ids]
        if sum(found) >= sent or limit.expired:
            return found
        time.sleep(0.2)


@pytest.mark.after("test_ng_ping", "test_one_call")
def test_sip_answered(telephony, media_address):
    """calls by SIP are taken up, and both ends are told the relay's address by the proxy"""
    all_taken_up(telephony)
    told = [media for dialog in telephony.taken_up for media in (dialog.told_caller, dialog.told_callee)]
    addresses = {media.address if media else "no audio" for media in told}
    expect(addresses == {media_address}, f"media to {media_address}", ", ".join(sorted(addresses)), telephony.said)


@pytest.mark.after("test_sip_answered")
def test_sip_media(telephony, seen):
    """calls by SIP carry media both ways through the relay, nothing is lost"""
    all_taken_up(telephony)
    acceptance.fit(telephony.results, telephony.health, telephony.arrived)
    acceptance.reached(telephony.results, telephony.arrived)
    directions = acceptance.directions(telephony.results)
    relayed, sent = sum(telephony.relayed), sum(one.sent for one in directions)
    said = acceptance.in_words(telephony.results)
    seen("; ".join([said, *(one.limit for one in telephony.health if one.limit)]))
    expect(not any(acceptance.missing(one) for one in directions), "every packet received at the other end", said,
           lambda: acceptance.cause(telephony.results, telephony.arrived, relayed))
    each = [result.to_callee.sent + result.to_caller.sent for result in telephony.results]
    expect(telephony.relayed == each, f"{sent:,} packets counted by the relay, call by call as they were sent ("
           f"{', '.join(map(str, each))})", ", ".join(map(str, telephony.relayed)))


@pytest.mark.after("test_sip_answered", "test_call_deleted")
def test_sip_hang_up(telephony):
    """a BYE is answered, and the relay has the call no longer"""
    all_taken_up(telephony)
    over = sum(dialog.over for dialog in telephony.hung_up)
    expect(over == CALLS, f"{many(CALLS, 'BYE')} answered with 200", over, telephony.said)
    expect(not telephony.left, "no call of these on the relay", ", ".join(telephony.left))


@pytest.mark.after("test_ng_ping")
def test_sip_without_relay(site, proxy, control, endpoint, seen):
    """a call is refused when no relay answers the proxy"""
    address, _ = control
    with sip.placed(site, proxy, (address, NOWHERE), [endpoint()], [endpoint()]) as calls:
        [dialog] = calls.settle()
        said = calls.said(dialog)
        calls.hang_up()
    seen(str(dialog))
    expect(dialog.status == REFUSED, f"{REFUSED} within {sip.PATIENCE:.0f} s", dialog, said)
