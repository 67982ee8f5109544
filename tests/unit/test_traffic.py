import socket
import struct
import time

import pytest

from harness.errors import HostError
from harness.voip import batch, rtcp, rtp
from harness.voip.endpoint import Endpoint
from harness.voip.mediastats import in_words
from harness.voip.rtp import PCMA, PCMU
from harness.voip.traffic import Generator, Health, Traffic

LOOPBACK = pytest.mark.parametrize("address", ["127.0.0.1", "::1"])


def paired(caller, callee, codec=PCMU, ptime=20):
    """Streams both ways between two endpoints, without a relay."""
    there, back = caller.stream(codec, ptime), callee.stream(codec, ptime)
    there.peer, back.peer = back, there
    there.towards(back.media)
    back.towards(there.media)
    return [there, back]


@LOOPBACK
def test_media_flows_both_ways_and_every_packet_is_seen(address):
    with Endpoint(address, tos=184) as caller, Endpoint(address) as callee:
        there, back = streams = paired(caller, callee)
        health = Traffic(streams).run(0.5)
        for stream, receiver, sender in ((there, callee, caller), (back, caller, callee)):
            [seen] = receiver.heard_from(stream.sender).values()
            assert stream.sent == seen.packets == seen.expected > 5
            assert (seen.lost, seen.duplicates, seen.reordered, seen.restarts) == (0, 0, 0, 0)
            assert seen.tos == ({184} if sender is caller else {0})
            assert {batch.in_words(name) for name in seen.sources} == {(address, sender.port)}
            assert len(seen.latencies) == seen.packets and min(seen.latencies) > 0
            assert sum(seen.latencies) / seen.packets < 1e9
        assert not caller.strangers() and not callee.strangers() and not caller.unrecognised
        assert health.packets == there.sent + back.sent and not health.dropped and not health.failed


def test_packets_are_those_of_g_711_by_the_clock():
    with Endpoint("127.0.0.1") as caller, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.settimeout(5)
        stream = caller.stream(PCMA)
        stream.target = stream.rtcp_target = receiver.getsockname()
        begin = time.monotonic()
        Traffic([stream], report_every=0).run(0.4)
        assert time.monotonic() - begin > 0.38
        packets = [rtp.parse(receiver.recv(2048)) for _ in range(stream.sent)]
    assert 3 < len(packets) <= 25
    first = packets[0]
    for number, packet in enumerate(packets):
        assert (packet.payload_type, packet.ssrc, len(packet.payload)) == (8, stream.ssrc, 160)
        assert packet.sequence == first.sequence + number & 0xFFFF
        assert packet.timestamp == first.timestamp + 160 * number & 0xFFFFFFFF
        assert packet.marker == (number == 0)
        assert rtp.marked(packet.payload)[0] == stream.sender and set(packet.payload[16:]) == {0xD5}


def test_packet_intervals_other_than_20_ms():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        streams = paired(caller, callee, ptime=40)
        Traffic(streams).run(0.6)
        [seen] = callee.received.values()
        assert 3 < seen.packets <= 18 and seen.lost == 0
        with pytest.raises(ValueError, match=r"\[20, 40\]"):
            Traffic([*streams, *paired(caller, callee)])


def test_many_streams_share_a_socket_and_are_told_apart():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        streams = [stream for _ in range(50) for stream in paired(caller, callee)]
        Traffic(streams).run(0.4)
        assert len(callee.received) == len(caller.received) == 50
        assert {stream.key for stream in streams if stream.endpoint is caller} == set(callee.received)
        for stream in streams:
            assert stream.peer.endpoint.received[stream.key].packets == stream.sent > 1


def test_streams_go_on_where_they_stopped():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        there, back = paired(caller, callee)
        moments = []
        for _ in range(2):
            Traffic([there, back]).run(0.2, linger=0.05)
            moments.append((there.timestamp, there.sent_at))
            time.sleep(0.4)
        [seen] = callee.received.values()
        assert seen.packets == seen.expected == there.sent and seen.lost == 0
        (before, then), (after, now) = moments
        units = (now - then) * 8000 / 1e9
        assert units > 4000 and (after - before) % 2**32 == pytest.approx(units, abs=800)


def test_a_stream_that_goes_nowhere_is_refused():
    with Endpoint("127.0.0.1") as caller, pytest.raises(ValueError, match="goes nowhere"):
        Traffic([caller.stream()])


def test_media_runs_beside_what_else_is_done():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        there, back = paired(caller, callee)
        with Traffic([there, back]) as traffic:
            time.sleep(0.3)
            assert traffic.health.packets > 2 and there.sent > 1
        sent = there.sent
        time.sleep(0.1)
        assert there.sent == sent and traffic.health.seconds < 5


def test_reports_tell_each_side_how_the_other_receives():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        there, back = paired(caller, callee)
        Traffic([there, back], report_every=0.1).run(0.6)
        for stream in (there, back):
            assert stream.remote is not None and stream.remote.ssrc == stream.ssrc
            assert stream.remote.cumulative_lost == 0 and stream.remote.fraction == 0
            assert stream.sequence - 1 - stream.remote.highest & 0xFFFF < 10
            assert stream.round_trip is not None and 0 <= stream.round_trip < 2


def test_a_sender_report_has_the_clock_of_its_stream():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        streams = paired(caller, callee)
        Traffic(streams).run(0.2)
        now = streams[0].sent_at + 10_000_000
        [report] = rtcp.parse(caller.report(streams[0], now))
        assert report.sent.timestamp == (streams[0].timestamp - 160 + 80) % 2**32
        assert (report.sent.ntp, report.sent.packets) == (rtcp.ntp(now), streams[0].sent)
        assert report.sent.octets == 160 * streams[0].sent


def test_who_sends_nothing_reports_what_it_hears():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        there, back = caller.stream(), callee.stream(sends=False)
        there.peer, back.peer = back, there
        there.towards(back.media)
        back.towards(there.media)
        Traffic([there, back], report_every=0.1).run(0.4)
        assert back.sent == 0 and not caller.received and back.media.direction == "recvonly"
        assert there.remote is not None and there.remote.cumulative_lost == 0
        assert rtcp.parse(callee.report(back, time.time_ns()))[0].sent is None


def test_strangers_are_told_apart_from_the_peer():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee, Endpoint("127.0.0.1") as third:
        there, back = paired(caller, callee)
        intruder = third.stream()
        intruder.ssrc = there.ssrc  # the same SSRC does not help it
        intruder.towards(back.media)
        third.rtp.sendto(struct.pack("!BBHII", 0x80, 0, 5, 160, there.ssrc) + bytes(160), ("127.0.0.1", callee.port))
        third.rtp.sendto(b"not rtp", ("127.0.0.1", callee.port))
        Traffic([there, back, intruder]).run(0.3)
        assert set(callee.strangers()) == {rtp.key(there.ssrc, intruder.sender), rtp.key(there.ssrc)}
        assert callee.strangers()[intruder.key].packets == intruder.sent
        assert {in_words(name) for seen in callee.strangers().values() for name in seen.sources} == {
            f"127.0.0.1:{third.port}"}
        assert callee.unrecognised == 1
        assert callee.received[there.key].packets == there.sent


def test_what_an_endpoint_hears_of_itself_is_a_loop():
    with Endpoint("127.0.0.1") as caller:
        stream = caller.stream()
        stream.towards(stream.media)
        Traffic([stream]).run(0.2)
        assert set(caller.strangers()) == {stream.key}


def test_reports_on_the_port_of_rtp_are_reports():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        there, back = paired(caller, callee)
        there.rtcp_target, back.rtcp_target = there.target, back.target
        Traffic([there, back], report_every=0.1).run(0.3)
        assert there.remote is not None and not callee.strangers() and not callee.unrecognised


def test_header_fields_of_others_do_not_hide_the_mark():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        there, back = paired(caller, callee)
        there.sends = back.sends = False
        payload = struct.pack("!IIQ", there.sender, rtp.MARK, time.time_ns()) + bytes(144)
        extended = struct.pack("!BBHII", 0x90, 0, 9, 160, there.ssrc) + b"\xbe\xde\0\1" + bytes(4) + payload
        caller.rtp.sendto(extended, there.target)
        Traffic([there, back]).run(0.1)
        assert callee.received[there.key].packets == 1 and len(callee.received[there.key].latencies) == 1


def test_what_the_system_refuses_to_send_is_no_loss_of_the_relay():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        good, _ = paired(caller, callee)
        bad = caller.stream()
        bad.target = bad.rtcp_target = "255.255.255.255", 9  # no broadcasts without SO_BROADCAST
        health = Traffic([bad, good], report_every=0).run(0.2)
        assert set(bad.failed) == {"EACCES"} and bad.sent == 0 < bad.packets
        assert callee.received[good.key].packets == good.sent > 1
        assert "could not be sent (EACCES)" in health.limit


def test_packets_without_room_are_dropped_by_this_host_and_told():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        there, _ = paired(caller, callee)
        traffic = Traffic([there])
        callee.rtp.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for number in range(100):
            caller.rtp.sendto(struct.pack("!BBHII", 0x80, 0, number, 0, there.ssrc) + bytes(160), there.target)
        health = traffic.run(0.1)
        assert health.dropped > 50 and "found no room" in health.limit


def test_packets_that_leave_late_are_counted(monkeypatch):
    stalls = [0.3]

    def receive(self, until):
        while stalls:
            time.sleep(stalls.pop())
        fetch(self, until)

    fetch = Generator._receive
    monkeypatch.setattr(Generator, "_receive", receive)
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        streams = paired(caller, callee)
        health = Traffic(streams).run(0.6)
        assert health.late > 15 and 0.25 < health.latest < 2 and "sent late" in health.limit
        assert callee.received[streams[0].key].packets == streams[0].sent > 20


def test_health_names_a_late_sender():
    assert Health(1, 1000, 0.5, 0, 0.001, 0).limit == ""
    assert Health(1, 1000, 0.5, 11, 0.3, 0).limit == "11 of 1000 packets were sent late, by up to 0.300 s"


def test_what_breaks_the_traffic_is_raised():
    with Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee:
        traffic = Traffic(paired(caller, callee))
        caller.close()
        with pytest.raises((OSError, ValueError)):
            traffic.run(5)


@LOOPBACK
def test_an_endpoint_has_an_even_port_and_the_next(address):
    with Endpoint(address) as first:
        assert first.port % 2 == 0 and first.rtcp_port == first.port + 1
        with pytest.raises(HostError, match=f"port {first.port}: Address already in use"):
            Endpoint(address, port=first.port)


def test_an_address_of_another_host_can_not_be_had():
    with pytest.raises(HostError, match=r"203\.0\.113\.9: Cannot assign requested address"):
        Endpoint("203.0.113.9")


def test_sockets_are_closed_with_the_endpoint():
    with Endpoint("127.0.0.1") as endpoint:
        port = endpoint.port
    with Endpoint("127.0.0.1", port=port):
        pass


@pytest.mark.parametrize(("address", "words"), [("192.0.2.1", "192.0.2.1:4000"), ("2001:db8::1", "[2001:db8::1]:4000")])
def test_socket_addresses(address, words):
    name = batch.socket_address(address, 4000)
    assert len(name) == (28 if ":" in address else 16) and in_words(name) == words
