"""Events of the SIP proxy."""

import secrets
import time
from contextlib import ExitStack, closing, contextmanager

import pytest

from harness.access import reach
from harness.deadline import Deadline
from harness.opensips import remote
from harness.opensips.expectation import EventMissing, Events
from harness.opensips.interface import EventInterface
from harness.opensips.keeper import Keeper
from harness.opensips.mi import MiClient, MiRefused
from harness.opensips.subscriber import Subscriber
from harness.plugin import expect
from harness.sip.request import Request, by_datagrams
from harness.units import many

pytestmark = [pytest.mark.level("acceptance"), pytest.mark.after("test_management_on_loopback_only")]

MI = {"datagrams": "udp:127.0.0.1:8080", "FIFO": "fifo:/run/opensips/opensips_fifo,/run/opensips",
      "HTTP": "http://127.0.0.1:8888/mi"}
SOCKETS = {"udp": "127.0.0.1:0", "tcp": "127.0.0.1:0", "unix": "/run/opensips/dialtone-events.sock"}
REFUSED, FLOOD, MEMORY, SHARED = "E_CALL_REFUSED", "E_PIKE_BLOCKED", "E_CORE_PKG_THRESHOLD", "E_CORE_SHM_THRESHOLD"
WITHIN = 10.0
"""Seconds in which an event comes from a busy emulated server."""
CONFIGURATION = "/etc/opensips/opensips.cfg"
SECOND = 1.2
"""An expiry ends with its second."""


@pytest.fixture(scope="module")
def interface(session, server, opensips):
    """The event interface, by the Management Interface's datagrams on the server's loopback."""
    with MiClient(remote.Interface(session.config, server.name, MI["datagrams"]), WITHIN) as client:
        yield EventInterface(client)


@pytest.fixture(scope="module")
def subscribers(session, server, interface):
    """A subscriber on the server for each transport."""
    with ExitStack() as opened:
        keeper = opened.enter_context(Keeper(interface))
        yield [opened.enter_context(Subscriber(keeper, remote.Socket(session.config, server.name, transport, place)))
               for transport, place in SOCKETS.items()]


@pytest.fixture
def told(subscribers):
    """told(event, **params): a block after which each subscriber has been told of it; yields what each expects."""
    @contextmanager
    def expected(name, **params):
        with ExitStack() as all_of_them:
            yield [all_of_them.enter_context(Events(one).expect(name, within=WITHIN, **params)) for one in subscribers]

    return expected


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


@pytest.mark.parametrize("way", MI)
def test_management_answers(session, server, opensips, way):
    """the Management Interface answers, with the version that is described"""
    with MiClient(remote.Interface(session.config, server.name, MI[way]), WITHIN) as client:
        seen = EventInterface(client).version
    expect(opensips.version.startswith(seen), opensips.version, seen)


@pytest.mark.after("test_management_answers")
def test_management_refuses(interface):
    """what is unknown is refused with its code: a method, an event, a transport"""
    asked = {-32601: lambda: interface.client.request("no_such_method"),
             400: lambda: interface.subscribe("E_NO_SUCH", "udp:127.0.0.1:9", 5),
             404: lambda: interface.subscriptions("E_NO_SUCH")}
    seen = {wanted: code_of(action) for wanted, action in asked.items()}
    expect(all(wanted == code for wanted, code in seen.items()), "codes " + ", ".join(map(str, seen)),
           ", ".join(map(str, seen.values())))
    transport = code_of(lambda: interface.subscribe(REFUSED, "carrier-pigeon:127.0.0.1:9", 5))
    expect(transport == 400, "code 400 to a transport that there is none of", transport)


@pytest.mark.after("test_management_answers")
def test_events_listed(interface):
    """events of the core, of a module and of the script can be subscribed to"""
    events = interface.events()
    missing = [name for name in (REFUSED, FLOOD, MEMORY, SHARED) if name not in events]
    expect(not missing, f"{REFUSED}, {FLOOD} and the core's thresholds", f"without {', '.join(missing)}")


@pytest.mark.after("test_events_listed")
@pytest.mark.parametrize("transport", ["udp", "tcp", "unix"])
def test_subscription_listed(interface, transport):
    """a subscription is listed with what is left of it, renewed, and gone a second after its end"""
    name = "unix:/run/opensips/no-such-socket" if transport == "unix" else f"{transport}:127.0.0.1:9"

    def listed():
        return [(one.expire, one.ttl) for one in interface.subscriptions(REFUSED) if one.socket == name]

    try:
        interface.subscribe(REFUSED, name, 50)
        [(expire, ttl)] = listed() or [(0, 0)]
        expect(expire == 50 and 45 < ttl <= 50, "50 s, some of them left", f"{expire} s, {ttl} left")
        interface.subscribe(REFUSED, name, 90)
        expect([expire for expire, _ in listed()] == [90], "one subscription of 90 s after its renewal", listed())
    finally:
        interface.unsubscribe(REFUSED, name)
    time.sleep(SECOND)
    expect(listed() == [], "no subscription a second after it was ended", listed())


@pytest.mark.after("test_subscription_listed")
def test_event_by_management(interface, told, seen):
    """an event raised by MI comes over udp, tcp and unix: names, order and types kept"""
    params = {"number": 7, "text": "7", "odd": 'quote " backslash \\ braces }{ €'}
    with told(REFUSED, **params) as expected:
        interface.raise_event(REFUSED, params)
    orders = {tuple(one.event.params) for one in expected}
    expect(orders == {tuple(params)}, f"parameters in the order {', '.join(params)}", orders)
    values = ("first", "second")
    with told(REFUSED) as expected:
        interface.raise_event(REFUSED, values)
    came = {one.event.params for one in expected}
    expect(came == {values}, f"values without names: {values}", came)
    seen(", ".join(one.event.transport for one in expected))


@pytest.mark.after("test_event_by_management", "test_call_refused")
def test_event_of_script(server, sip, told):
    """a call that the script refuses is an event over udp, tcp and unix"""
    link, to = sip
    invite = request("INVITE", server)
    with told(REFUSED, code=404, caller=invite.aor, callee=invite.uri) as expected:
        by_datagrams(link, to, invite, Deadline(WITHIN))
    # An AVP is a stack, so that what the script assigns last comes first.
    orders = {tuple(one.event.params) for one in expected}
    expect(orders == {("code", "reason", "caller", "callee")}, "code, reason, caller, callee", orders)


@pytest.mark.after("test_event_by_management", "test_options_answered")
def test_event_of_module(interface, opensips, server, sip, told, seen):
    """an address that floods the proxy is blocked, and that is an event over udp, tcp and unix"""
    link, to = sip
    before = set(interface.blocked())
    try:
        with told(FLOOD) as expected:
            for _ in range(4 * opensips.pike_density):
                link.sendto(bytes(request("OPTIONS", server)), to)
        [address] = {one.event.params["ip"] for one in expected}
        seen(f"{address} is blocked")
        blocked = set(interface.blocked())
        expect(address in blocked, f"{address} among the blocked", ", ".join(blocked) or "nobody is blocked")
    finally:
        for address in set(interface.blocked()) - before:
            interface.unblock(address)
    expect(set(interface.blocked()) <= before, "nobody blocked any more", ", ".join(interface.blocked()))


@pytest.mark.after("test_event_by_management")
def test_not_told_after_expiry(session, server, interface):
    """whose subscription has expired, or who has ended it, is told nothing a second later"""
    why = {REFUSED: "expired", SHARED: "ended"}
    with Keeper(interface) as keeper, \
            Subscriber(keeper, remote.Socket(session.config, server.name, "udp", SOCKETS["udp"])) as one:
        name = one.listener.name
        for event, expire in ((REFUSED, 2), (SHARED, 60)):
            interface.subscribe(event, name, expire)
            with one.reader() as reader:
                interface.raise_event(event, ["in time"])
                reader.next(Deadline(WITHIN))
        interface.unsubscribe(SHARED, name)
        time.sleep(2 + SECOND)
        with one.reader() as reader:
            for event in why:
                # Where nobody else has subscribed it is refused (480).
                code_of(lambda event=event: interface.raise_event(event, ["too late"]))
            late = list(reader.until(Deadline(1)))
    expect(not late, "nothing", ", ".join(f"{event} for a subscription that has {why[event.name]}" for event in late))


@pytest.mark.after("test_event_by_management")
def test_kept_beyond_expiry(session, server, interface):
    """a subscription of 2 s that is renewed is told of events after 5 s, and has no gap"""
    with Keeper(interface, expire=2) as keeper, \
            Subscriber(keeper, remote.Socket(session.config, server.name, "udp", SOCKETS["udp"]), REFUSED) as one:
        time.sleep(5)
        with Events(one).expect(REFUSED, within=WITHIN):
            interface.raise_event(REFUSED, ["later"])
        expect(not one.gaps, "no gap", "; ".join(map(str, one.gaps)))


@pytest.mark.after("test_event_of_script", "test_event_of_module")
def test_event_of_core(host, interface, server, sip, subscribers, told, seen):
    """private memory beyond its threshold is an event over udp, tcp and unix; a restart is noticed, and the gap told"""
    link, to = sip
    for one in subscribers:
        one.subscribe(MEMORY)
    # To answer it, all of its headers are looked at, and kept meanwhile.
    large = bytes(request("OPTIONS", server, *(f"X-{number}: x" for number in range(4000))))
    host.check_output("cp %s /run/dialtone-opensips.cfg", CONFIGURATION)
    try:
        host.check_output("sed -i 's/^event_pkg_threshold=.*/event_pkg_threshold=1/' %s", CONFIGURATION)
        begin = time.monotonic()
        host.check_output("systemctl restart opensips.service")
        gaps = again(subscribers, MEMORY)
        took = time.monotonic() - begin
        with told(MEMORY, threshold=1) as expected:
            for _ in range(10):
                link.sendto(large, to)
    finally:
        host.check_output("cat /run/dialtone-opensips.cfg >%s && rm /run/dialtone-opensips.cfg && "
                          "systemctl restart opensips.service", CONFIGURATION)
    wrong = [one.event for one in expected if set(one.event.params) != {"usage", "threshold", "used", "size", "pid"}
             or not all(isinstance(value, int) for value in one.event.params.values())]
    expect(not wrong, "usage, threshold, used, size and pid, all numbers", ", ".join(map(str, wrong)))
    seen(f"{expected[0].event.params['usage']} % in use; told again {took:.1f} s after the restart was asked for")
    expect(gaps == len(subscribers), f"{many(len(subscribers), 'gap')} told", gaps)


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
