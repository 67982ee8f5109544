"""Media."""

import pytest

from harness import acceptance
from harness.plugin import expect
from harness.voip.call import Call, placed
from harness.voip.traffic import Traffic

pytestmark = pytest.mark.level("acceptance")

SECONDS = 4.0
"""Of one call: long enough for the relay to learn its endpoints and to hand its streams to the kernel."""


def ports_of(calls):
    """The relay's ports, RTP and RTCP, as its answers have them."""
    medias = [media for call in calls for media in (call.relay_to_caller, call.relay_to_callee)]
    return [port for media in medias for port in (media.port, media.rtcp[1])]


@pytest.mark.after("test_ng_ping", "test_interfaces_of_server", "test_advertised_address")
def test_media_address(switchboard, endpoint, media_address):
    """both ends of a call are told the relay's IPv4 address, the advertised one where there is one"""
    with Call(switchboard, endpoint(), endpoint()) as call:
        medias = [call.relay_to_caller, call.relay_to_callee]
    told = {address for media in medias for address in (media.address, media.rtcp[0])}
    expect(told == {media_address}, f"{media_address} for RTP and RTCP", ", ".join(sorted(told)))


@pytest.mark.after("test_ng_ping", "test_option_in_force")
def test_media_ports(switchboard, endpoint, rtpengine):
    """the relay's ports are of the described range"""
    caller, callee = endpoint(), endpoint()
    with placed([Call(switchboard, caller, callee) for _ in range(10)]) as calls:
        ports = ports_of(calls)
    strange = sorted(port for port in ports if not rtpengine.port_min <= port <= rtpengine.port_max)
    expect(not strange, f"ports from {rtpengine.port_min} to {rtpengine.port_max}", ", ".join(map(str, strange)))
    expect(len(set(ports)) == len(ports) == 40, "40 ports, none twice", f"{len(ports)}, {len(set(ports))} different")


@pytest.mark.after("test_ng_ping", "test_ng_list")
def test_call_deleted(switchboard, endpoint):
    """a call is listed by the relay until it is deleted, and not after"""
    with Call(switchboard, endpoint(), endpoint()) as call:
        listed = switchboard.calls(limit=100)
    expect(call.id in listed, f"{call.id} listed", ", ".join(listed))
    left = switchboard.calls(limit=100)
    expect(call.id not in left, f"{call.id} gone", "it is still listed")


@pytest.mark.after("test_media_address", "test_media_ports", "test_call_deleted")
def test_one_call(switchboard, endpoint, arrived, seen):
    """a call carries media both ways, nothing is lost"""
    before = arrived()
    with Call(switchboard, endpoint(), endpoint()) as call:
        health = Traffic(call.streams).run(SECONDS, acceptance.LINGER)
        results, relayed = [call.result()], switchboard.query(call.id)["totals"]["RTP"]["packets"]
    without_loss(results, [health], arrived() - before, relayed, seen)


@pytest.mark.after("test_one_call")
def test_ten_calls(conversation, seen):
    """ten calls carry media both ways, nothing is lost"""
    without_loss(conversation.results, conversation.health, conversation.arrived,
                 conversation.totals["relayedpackets"], seen)


def without_loss(results, health, arrived, relayed, seen):
    acceptance.fit(results, health, arrived)
    acceptance.reached(results, arrived)
    said = acceptance.in_words(results)
    seen("; ".join([said, *(one.limit for one in health if one.limit)]))
    lost = sum(acceptance.missing(one) for one in acceptance.directions(results))
    expect(lost == 0, "every packet received at the other end", said,
           lambda: acceptance.cause(results, arrived, relayed))
