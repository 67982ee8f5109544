from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.voip.sdp import Media, SdpError, build, parse

ADDRESSES = st.ip_addresses().map(str)
MEDIA = st.builds(Media, ADDRESSES, st.integers(1, 65535), st.tuples(ADDRESSES, st.integers(1, 65535)),
                  st.lists(st.integers(0, 127).map(str), min_size=1, max_size=5).map(tuple),
                  st.sampled_from(["audio", "video"]), st.sampled_from(["RTP/AVP", "RTP/SAVPF"]),
                  st.sampled_from(["sendrecv", "sendonly", "recvonly", "inactive"]), st.none() | st.integers(1, 9999))
ONE = Media("192.0.2.7", 40000, ("192.0.2.7", 40001))
TEXT = build([ONE])


@given(st.lists(MEDIA, min_size=1, max_size=4))
def test_what_is_built_is_parsed(medias):
    assert parse(build(medias)) == tuple(medias)


@given(st.text() | st.text("vostcma=:\r\n 0IN4.P", max_size=80).map(lambda t: "v=0\r\n" + t)
       | st.tuples(st.integers(0, len(TEXT)), st.text(max_size=3)).map(lambda x: TEXT[:x[0]] + x[1] + TEXT[x[0] + 1:]))
def test_any_text_is_media_or_an_error_of_ours(text):
    with suppress(SdpError):
        parse(text)


def test_an_offer_has_the_lines_of_rfc_8866_in_order():
    assert TEXT.split("\r\n") == [
        "v=0", "o=- 1 1 IN IP4 192.0.2.7", "s=-", "c=IN IP4 192.0.2.7", "t=0 0", "m=audio 40000 RTP/AVP 0",
        "a=rtpmap:0 PCMU/8000", "a=rtcp:40001", "a=ptime:20", "a=sendrecv", ""]


def test_an_answer_as_a_relay_writes_it():
    text = ("v=0\r\no=- 1 1 IN IP6 ::1\r\ns=-\r\nt=0 0\r\na=inactive\r\n"
            "m=audio 30018 RTP/AVP 8 101\r\nc=IN IP6 2001:db8::1\r\na=rtpmap:8 PCMA/8000\r\na=recvonly\r\n"
            "m=video 0 RTP/AVP 31\r\nc=IN IP4 203.0.113.7\r\n")
    audio, video = parse(text)
    assert audio == Media("2001:db8::1", 30018, ("2001:db8::1", 30019), ("8", "101"), direction="recvonly", ptime=None)
    assert audio.family == "IP6" and video.family == "IP4"
    assert (video.port, video.kind, video.direction) == (0, "video", "inactive")


def test_rtcp_on_the_port_of_rtp():
    [media] = parse(TEXT.replace("a=rtcp:40001", "a=rtcp-mux"))
    assert media.rtcp == ("192.0.2.7", 40000)


def test_line_feeds_alone_are_enough():
    assert parse(TEXT.replace("\r\n", "\n")) == (ONE,)


@pytest.mark.parametrize(("old", "new", "message"), [
    (TEXT, "", "begins with ''"),
    ("v=0", "v=1", "begins with 'v=1'"),
    ("o=- 1 1 IN IP4 192.0.2.7\r\n", "", "no o= line"),
    ("t=0 0\r\n", "", "no t= line"),
    (TEXT[TEXT.index("m="):], "", r"no media \(m= line\)"),
    ("c=IN IP4 192.0.2.7\r\n", "", r"no address for audio \(c= line\)"),
    ("c=IN IP4 192.0.2.7", "c=IN IP4 relay.example.net", "no IP address"),
    ("c=IN IP4 192.0.2.7", "c=IN IP6 192.0.2.7", "not of its family IP6"),
    ("c=IN IP4 192.0.2.7", "c=IN IP4 192.0.2.7/127", "no IP address"),
    ("m=audio 40000 RTP/AVP 0", "m=audio 40000 RTP/AVP", "lacks one of kind, port, protocol, formats"),
    ("m=audio 40000", "m=audio 65536", "'65536' in m=audio 65536 RTP/AVP 0 of the SDP is no port"),
    ("m=audio 40000", "m=audio -1", "is no port"),
    ("m=audio 40000", "m=audio ٣", "is no port"),
    ("a=rtcp:40001", "a=rtcp:x", "'x' in a=rtcp: of the SDP is no port"),
    ("a=rtcp:40001", "a=rtcp:1 IN IP4", "no IP address"),
    ("a=ptime:20", "a=ptime:fast", "no number of milliseconds"),
    ("s=-", "s=", "line 3 of the SDP is not like x="),
    ("a=sendrecv\r\n", "a=sendrecv\r\n\r\n", "line 11 of the SDP"),
])
def test_what_lacks_is_named(old, new, message):
    assert old in TEXT
    with pytest.raises(SdpError, match=message):
        parse(TEXT.replace(old, new, 1))
