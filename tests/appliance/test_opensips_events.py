"""Events of the SIP proxy."""

import secrets
import time
from contextlib import closing

import pytest

from harness.access import reach
from harness.deadline import Deadline
from harness.opensips.expectation import EventMissing, Events
from harness.opensips.interface import EventInterface
from harness.opensips.keeper import Keeper
from harness.opensips.mi import MiRefused
from harness.opensips.subscriber import Subscriber
from harness.plugin import expect
from harness.sip.request import Request, by_datagrams
from harness.units import many

pytestmark = [pytest.mark.level("acceptance"), pytest.mark.after("test_management_on_loopback_only")]

REFUSED, FLOOD, MEMORY, SHARED = "E_CALL_REFUSED", "E_PIKE_BLOCKED", "E_CORE_PKG_THRESHOLD", "E_CORE_SHM_THRESHOLD"
WITHIN = 10.0
"""Seconds in which an event comes from a busy emulated server."""
CONFIGURATION = "/etc/opensips/opensips.cfg"
SECOND = 1.2
"""An expiry ends with its second."""


@pytest.fixture
def sip(session, server, opensips):
    """A socket towards the proxy's SIP port, its address there, and where that is."""
    route = server.routes[0]
    with closing(reach.open_datagrams(session.config, route, opensips.port)) as link:
        yield link, (route.address, opensips.port)


def request(method, server, *headers):
    domain = server.internal_ip
    return Request(method, f"sip:nobody-{secrets.token_hex(4)}@{domain}", f"sip:caller@{domain}",
                   headers=("Contact: <sip:caller@192.0.2.77:5070>", *headers))


def code_of(action):
    """The code that an action is refused with; none where it is carried out."""
    try:
        action()
    except MiRefused as error:
        return error.code
    return None


@pytest.mark.parametrize("way", ["datagrams", "FIFO", "HTTP"])
def test_management_answers(management, opensips, way):
    """the Management Interface answers, with the version that is described"""
    seen = EventInterface(management(way)).version
    expect(opensips.version.startswith(seen), opensips.version, seen)


@pytest.mark.after("test_management_answers")
def test_management_refuses(event_interface):
    """what is unknown is refused with its code: a method, an event, a transport"""
    asked = {-32601: lambda: event_interface.client.request("no_such_method"),
             400: lambda: event_interface.subscribe("E_NO_SUCH", "udp:127.0.0.1:9", 5),
             404: lambda: event_interface.subscriptions("E_NO_SUCH")}
    seen = {wanted: code_of(action) for wanted, action in asked.items()}
    expect(all(wanted == code for wanted, code in seen.items()), "codes " + ", ".join(map(str, seen)),
           ", ".join(map(str, seen.values())))
    transport = code_of(lambda: event_interface.subscribe(REFUSED, "carrier-pigeon:127.0.0.1:9", 5))
    expect(transport == 400, "code 400 to a transport that there is none of", transport)


@pytest.mark.after("test_management_answers")
def test_events_listed(event_interface):
    """events of the core, of a module and of the script can be subscribed to"""
    events = event_interface.events()
    missing = [name for name in (REFUSED, FLOOD, MEMORY, SHARED) if name not in events]
    expect(not missing, f"{REFUSED}, {FLOOD} and the core's thresholds", f"without {', '.join(missing)}")


@pytest.mark.after("test_events_listed")
@pytest.mark.parametrize("transport", ["udp", "tcp", "unix"])
def test_subscription_listed(event_interface, transport):
    """a subscription is listed with what is left of it, renewed, and gone a second after its end"""
    name = "unix:/run/opensips/no-such-socket" if transport == "unix" else f"{transport}:127.0.0.1:9"

    def listed():
        return [(one.expire, one.ttl) for one in event_interface.subscriptions(REFUSED) if one.socket == name]

    try:
        event_interface.subscribe(REFUSED, name, 50)
        [(expire, ttl)] = listed() or [(0, 0)]
        expect(expire == 50 and 45 < ttl <= 50, "50 s, some of them left", f"{expire} s, {ttl} left")
        event_interface.subscribe(REFUSED, name, 90)
        expect([expire for expire, _ in listed()] == [90], "one subscription of 90 s after its renewal", listed())
    finally:
        event_interface.unsubscribe(REFUSED, name)
    time.sleep(SECOND)
    expect(listed() == [], "no subscription a second after it was ended", listed())


@pytest.mark.after("test_subscription_listed")
def test_event_by_management(event_interface, events, seen):
    """an event raised by MI comes over udp, tcp and unix: names, order and types kept"""
    params = {"number": 7, "text": "7", "odd": 'quote " backslash \\ braces }{ €'}
    with events.expect(REFUSED, **params) as expected:
        event_interface.raise_event(REFUSED, params)
    orders = {tuple(one.params) for one in expected.found}
    expect(orders == {tuple(params)}, f"parameters in the order {', '.join(params)}", orders)
    values = ("first", "second")
    with events.expect(REFUSED) as expected:
        event_interface.raise_event(REFUSED, values)
    came = {one.params for one in expected.found}
    expect(came == {values}, f"values without names: {values}", came)
    seen(", ".join(one.transport for one in expected.found))


@pytest.mark.after("test_event_by_management", "test_call_refused")
def test_event_of_script(server, sip, events):
    """a call that the script refuses is an event over udp, tcp and unix"""
    link, to = sip
    invite = request("INVITE", server)
    with events.expect(REFUSED, code=404, caller=invite.aor, callee=invite.uri) as expected:
        by_datagrams(link, to, invite, Deadline(WITHIN))
    # An AVP is a stack, so that what the script assigns last comes first.
    orders = {tuple(one.params) for one in expected.found}
    expect(orders == {("code", "reason", "caller", "callee")}, "code, reason, caller, callee", orders)


@pytest.mark.after("test_event_by_management", "test_options_answered")
def test_event_of_module(event_interface, opensips, server, sip, events, seen):
    """an address that floods the proxy is blocked, and that is an event over udp, tcp and unix"""
    link, to = sip
    before = set(event_interface.blocked())
    try:
        with events.expect(FLOOD) as expected:
            for _ in range(4 * opensips.pike_density):
                link.sendto(bytes(request("OPTIONS", server)), to)
        [address] = {one.params["ip"] for one in expected.found}
        seen(f"{address} is blocked")
        blocked = set(event_interface.blocked())
        expect(address in blocked, f"{address} among the blocked", ", ".join(blocked) or "nobody is blocked")
    finally:
        for address in set(event_interface.blocked()) - before:
            event_interface.unblock(address)
    expect(set(event_interface.blocked()) <= before, "nobody blocked any more", ", ".join(event_interface.blocked()))


@pytest.mark.after("test_event_by_management")
def test_not_told_after_expiry(event_interface, event_socket):
    """whose subscription has expired, or who has ended it, is told nothing a second later"""
    why = {REFUSED: "expired", SHARED: "ended"}
    with Keeper(event_interface) as keeper, Subscriber(keeper, event_socket("udp")) as one:
        name = one.listener.name
        for event, expire in ((REFUSED, 2), (SHARED, 60)):
            event_interface.subscribe(event, name, expire)
            with one.reader() as reader:
                event_interface.raise_event(event, ["in time"])
                reader.next(Deadline(WITHIN))
        event_interface.unsubscribe(SHARED, name)
        time.sleep(2 + SECOND)
        with one.reader() as reader:
            for event in why:
                # Where nobody else has subscribed it is refused (480).
                code_of(lambda event=event: event_interface.raise_event(event, ["too late"]))
            late = list(reader.until(Deadline(1)))
    expect(not late, "nothing", ", ".join(f"{event} for a subscription that has {why[event.name]}" for event in late))


@pytest.mark.after("test_event_by_management")
def test_kept_beyond_expiry(event_interface, event_socket):
    """a subscription of 2 s that is renewed is told of events after 5 s, and has no gap"""
    with Keeper(event_interface, expire=2) as keeper, Subscriber(keeper, event_socket("udp"), REFUSED) as one:
        time.sleep(5)
        with Events(one).expect(REFUSED, within=WITHIN):
            event_interface.raise_event(REFUSED, ["later"])
        expect(not one.gaps, "no gap", "; ".join(map(str, one.gaps)))


@pytest.mark.after("test_event_of_script", "test_event_of_module")
def test_event_of_core(host, server, sip, events, seen):
    """private memory beyond its threshold is an event over udp, tcp and unix; a restart is noticed, and the gap told"""
    link, to = sip
    for one in events.subscribers:
        one.subscribe(MEMORY)
    # To answer it, all of its headers are looked at, and kept meanwhile.
    large = bytes(request("OPTIONS", server, *(f"X-{number}: x" for number in range(4000))))
    host.check_output("cp %s /run/dialtone-opensips.cfg", CONFIGURATION)
    try:
        host.check_output("sed -i 's/^event_pkg_threshold=.*/event_pkg_threshold=1/' %s", CONFIGURATION)
        begin = time.monotonic()
        host.check_output("systemctl restart opensips.service")
        gaps = again(events.subscribers, MEMORY)
        took = time.monotonic() - begin
        with events.expect(MEMORY, threshold=1) as expected:
            for _ in range(10):
                link.sendto(large, to)
    finally:
        host.check_output("cat /run/dialtone-opensips.cfg >%s && rm /run/dialtone-opensips.cfg && "
                          "systemctl restart opensips.service", CONFIGURATION)
    wrong = [one for one in expected.found if set(one.params) != {"usage", "threshold", "used", "size", "pid"}
             or not all(isinstance(value, int) for value in one.params.values())]
    expect(not wrong, "usage, threshold, used, size and pid, all numbers", ", ".join(map(str, wrong)))
    seen(f"{expected.event.params['usage']} % in use; told again {took:.1f} s after the restart was asked for")
    expect(gaps == len(events.subscribers), f"{many(len(events.subscribers), 'gap')} told", gaps)


def again(subscribers, event):
    """Gaps in the subscriptions to `event`, once there is one for each subscriber."""
    limit = Deadline(3 * WITHIN)
    while True:
        gaps = [gap for one in subscribers for gap in one.gaps if gap.event == event]
        if len(gaps) >= len(subscribers):
            return len(gaps)
        if limit.expired:
            raise EventMissing("subscriptions taken anew after the restart", [], [
                trouble.message for one in subscribers if (trouble := one.keeper.trouble)])
        time.sleep(0.2)
