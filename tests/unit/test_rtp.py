import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.voip import rtp
from harness.voip.rtp import MARK, MARKED, MARKER, PCMA, PLAIN, Packet


def test_a_marked_packet_has_the_header_of_rfc_3550():
    data = MARKED.pack(PLAIN, PCMA.payload_type | MARKER, 0xFFFE, 160, 0xCAFE, 7, MARK, 10**18) + bytes(144)
    packet = rtp.parse(data)
    assert data[:12].hex() == "8088fffe000000a00000cafe"
    assert packet == Packet(0xFFFE, 160, 0xCAFE, 8, True, data[12:])
    assert rtp.marked(packet.payload) == (7, 10**18)
    assert rtp.MARKED_KEY.unpack_from(data)[4] == rtp.key(0xCAFE, 7)


def test_contributing_sources_extension_and_padding_are_no_payload():
    header = bytes([0x80 | 0x20 | 0x10 | 2, 0]) + bytes(10) + bytes(8) + b"\xbe\xde\x00\x01" + bytes(4)
    assert rtp.parse(header + b"voice" + b"\0\0\3").payload == b"voice"


@pytest.mark.parametrize("data", [b"", bytes(11), b"\x40" + bytes(20), b"\x80\xc8" + bytes(20), b"\x8f" + bytes(11),
                                  b"\xa0" + bytes(11), b"\xa0" + bytes(10) + b"\x10", b"\x90" + bytes(12),
                                  b"\x90" + bytes(11) + b"\0\0\0\2" + bytes(4)])
def test_anything_else_is_none(data):
    assert rtp.parse(data) is None


@given(st.binary(max_size=100))
def test_no_octets_break_the_parser(data):
    packet = rtp.parse(data)
    assert packet is None or len(packet.payload) <= len(data) - 12


@given(st.binary(max_size=15) | st.binary(min_size=16).filter(lambda data: data[4:8] != b"mark"))
def test_speech_is_no_mark(payload):
    assert rtp.marked(payload) == (0, 0)
