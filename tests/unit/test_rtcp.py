from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.voip import rtcp
from harness.voip.rtcp import Block, Report, RtcpError, Sent

U32 = st.integers(0, 2**32 - 1)
BLOCKS = st.builds(Block, U32, st.integers(0, 255), st.integers(-2**23, 2**23 - 1), U32, U32, U32, U32)
REPORTS = st.builds(Report, U32, st.none() | st.builds(Sent, st.integers(0, 2**64 - 1), U32, U32, U32),
                    st.lists(BLOCKS, max_size=31).map(tuple))
SECOND = 10**9
NOW = 1_795_619_041 * SECOND


@given(REPORTS, st.text(max_size=50))
def test_what_is_built_is_parsed(report, name):
    data = rtcp.build(report, name)
    assert rtcp.parse(data) == (report,)
    assert len(data) % 4 == 0


def test_a_report_has_the_octets_of_rfc_3550():
    block = Block(0x0A0B0C0D, 64, -1, 70000, 9, 3, 4)
    report = Report(0x01020304, Sent(0x1112131415161718, 0x21222324, 5, 800), (block,))
    assert rtcp.build(report, "ab@c").hex(" ", 4) == (
        "81c8000c 01020304 11121314 15161718 21222324 00000005 00000320 "
        "0a0b0c0d 40ffffff 00011170 00000009 00000003 00000004 "
        "81ca0003 01020304 01046162 40630000")


def test_a_name_always_ends_with_a_zero():
    for length in range(8):
        data = rtcp.build(Report(1, None, ()), "x" * length)
        assert data[-1] == 0 and len(data) % 4 == 0


def test_goodbyes_and_unknown_kinds_are_passed_over():
    data = rtcp.build(Report(1, None, ()), "x") + bytes.fromhex("81cb000100000001") + bytes.fromhex("80cf000101020304")
    assert rtcp.parse(data) == (Report(1, None, ()),)


@given(st.binary(max_size=200))
def test_any_octets_are_reports_or_an_error(data):
    with suppress(RtcpError):
        rtcp.parse(data)


@given(REPORTS, st.data())
def test_damaged_reports_are_reports_or_an_error(report, data):
    octets = bytearray(rtcp.build(report, "name"))
    octets[data.draw(st.integers(0, len(octets) - 1))] = data.draw(st.integers(0, 255))
    with suppress(RtcpError):
        rtcp.parse(bytes(octets))


@pytest.mark.parametrize("data", ["", "81", "40c90001 00000001", "80ca0000", "80c90002 00000001", "81c90001 00000001",
                                  "80c80001 00000001"])
def test_what_is_no_compound_packet_is_an_error(data):
    with pytest.raises(RtcpError):
        rtcp.parse(bytes.fromhex(data))


def test_more_blocks_than_a_report_holds():
    with pytest.raises(ValueError):
        rtcp.build(Report(1, None, (Block(1, 0, 0, 0, 0),) * 32), "x")


def test_ntp_time_begins_in_1900():
    assert rtcp.ntp(0) == 2_208_988_800 << 32
    assert rtcp.ntp(SECOND // 2) & 0xFFFFFFFF == 1 << 31


def test_round_trip_is_without_the_time_that_the_reporter_took():
    sent = rtcp.middle(rtcp.ntp(NOW))
    block = Block(1, 0, 0, 0, 0, sent, 2 << 16)
    assert rtcp.round_trip(block, NOW + 2 * SECOND + SECOND // 4) == pytest.approx(0.25, abs=1e-4)
    assert rtcp.round_trip(block, NOW + SECOND) == 0.0
    assert rtcp.round_trip(Block(1, 0, 0, 0, 0), NOW) is None
