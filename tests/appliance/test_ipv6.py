"""Media over IPv6."""

import time
from dataclasses import dataclass
from functools import partial

import pytest

from harness import acceptance
from harness.plugin import expect
from harness.voip.call import Call, CallResult, placed
from harness.voip.traffic import Traffic

pytestmark = [pytest.mark.level("acceptance"), pytest.mark.after("test_one_call")]

WAYS = {"IPv6": "66", "IPv4-to-IPv6": "46", "IPv6-to-IPv4": "64"}
"""Of the caller and the callee."""
LEARNING = 15.0
AFTERWARDS = 2.0


@dataclass(frozen=True)
class Bridged:
    """A call between these families. `told` is where the relay wants the media of both ends, `afterwards` how many
    packets were sent since the module had the ports of all calls, `forwarded` how many its list counts, before too.
    `all_afterwards` and `all_forwarded` are of the calls of all ways, the latter by the module's own count."""

    result: CallResult
    told: list[str]
    afterwards: int
    forwarded: int
    all_afterwards: int
    all_forwarded: int


@pytest.fixture(scope="module")
def bridged(server, switchboard, endpoint, endpoint_towards, read, arrived, by_module, rtpengine):
    """A call each way, all at once, until the kernel forwards them and some seconds more."""
    if not server.internal_ipv6:
        pytest.skip("the server has no IPv6 address")
    file = f"/proc/rtpengine/{rtpengine.table}/list"

    def targets():
        return acceptance.targets(read(file).get(file, ""))

    open_one = {"4": endpoint, "6": partial(endpoint_towards, server.internal_ipv6)}
    calls = {way: Call(switchboard, *(open_one[family]() for family in families)) for way, families in WAYS.items()}
    before, begun = arrived(), by_module({})
    with placed(list(calls.values())):
        streams = [stream for call in calls.values() for stream in call.streams]
        ports = {stream.target[1] for stream in streams} if rtpengine.table >= 0 else set()
        with Traffic(streams, report_every=0) as traffic:
            limit = time.monotonic() + LEARNING
            while not ports <= set(targets()) and time.monotonic() < limit:
                traffic.wait(0.5)
            sent = {stream: stream.sent for stream in streams}
            traffic.wait(AFTERWARDS)
            health = traffic.stop(acceptance.LINGER)
        known = acceptance.grown({}, targets(), [stream.target[1] for stream in streams])
        together = sum(stream.sent for stream in streams) - sum(sent.values()), by_module(known) - begun
        seen = {way: Bridged(call.result(), [media.address for media in (call.relay_to_caller, call.relay_to_callee)],
                             sum(stream.sent - sent[stream] for stream in call.streams),
                             sum(known[stream.target[1]] for stream in call.streams), *together)
                for way, call in calls.items()}
    acceptance.fit([one.result for one in seen.values()], [health], arrived() - before)
    return seen


@pytest.mark.after("test_tos_in_user_space")
@pytest.mark.parametrize("way", WAYS)
def test_call_over_ipv6(bridged, server, media_address, rtpengine, seen, way):
    """a call carries media both ways, nothing is lost, and every packet bears the described TOS"""
    call, address = bridged[way], {"4": media_address, "6": server.internal_ipv6}
    said = acceptance.in_words([call.result])
    seen(f"{said}, {call.forwarded:,} forwarded in the kernel")
    wanted = [address[family] for family in WAYS[way]]
    expect(call.told == wanted, f"media to {' and '.join(wanted)}", " and ".join(call.told))
    every = acceptance.directions([call.result])
    expect(sum(acceptance.missing(one) for one in every) == 0, "every packet received at the other end", said)
    marks = sorted({tos for one in every for tos in one.tos})
    expect(marks == [rtpengine.tos], f"TOS {rtpengine.tos}", ", ".join(map(str, marks)))


@pytest.mark.after("test_forwarded_by_module")
@pytest.mark.parametrize("way", WAYS)
def test_ipv6_forwarded_by_module(bridged, table, seen, way):
    """once its endpoints are learned a call is forwarded in the kernel, by the module's own count"""
    call = bridged[way]
    said = f"{call.forwarded:,} packets forwarded in the kernel"
    seen(f"{said}, {call.afterwards:,} of them sent after learning")
    expect(call.forwarded >= call.afterwards > 0, f"{call.afterwards:,} or more, those sent after learning", said)
    expect(call.all_forwarded >= call.all_afterwards,
           f"{call.all_afterwards:,} or more of the calls of all ways, those sent after learning",
           f"{call.all_forwarded:,} by the module's own count")
