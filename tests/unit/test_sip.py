"""SIPp's message files, calls as both ends saw them, and what proxies are configured by."""

import re

import pytest

from harness.errors import HostError
from harness.settings import Settings
from harness.sip import programs, trace
from harness.sip.proxy import FLAGS, REFUSED, Kamailio, OpenSips, Wiring
from harness.voip.call import OPTIONS
from harness.voip.sdp import SdpError

SDP = "v=0\r\no=- 1 1 IN IP4 {0}\r\ns=-\r\nc=IN IP4 {0}\r\nt=0 0\r\nm=audio {1} RTP/AVP 0\r\n"


def message(start, method="INVITE", body="", call_id="one-1", sent=False):
    """A message as SIPp 3.6 writes it down."""
    text = (f"{start}\r\nVia: SIP/2.0/UDP 192.0.2.1:5060\r\nCall-ID: {call_id}\r\nCSeq: 1 {method}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}")
    size = len(text.encode())
    head = f"UDP message sent ({size} bytes)" if sent else f"UDP message received [{size}] bytes "
    return f"----------------------------------------------- 2026-11-28 03:41:17.396472\n{head}:\n\n{text}\n".encode()


INVITE = message("INVITE sip:callee@192.0.2.1 SIP/2.0", body=SDP.format("192.0.2.9", 30000))
TAKEN_UP = message("SIP/2.0 200 OK", body=SDP.format("192.0.2.9", 30002))
ACK = message("ACK sip:callee@192.0.2.1 SIP/2.0", "ACK")


def dialog(caller=b"", callee=b"", call_id="one-1"):
    [found] = trace.dialogs([call_id], trace.messages(caller), trace.messages(callee))
    return found


def test_messages_are_told_apart_by_their_length():
    tricky = "\r\n----------------------------------------------- x\nUDP message sent (3 bytes):\n\nabc"
    found = trace.messages(message("MESSAGE sip:ü@192.0.2.1 SIP/2.0", "MESSAGE", tricky, sent=True) + TAKEN_UP)
    assert [(m.sent, m.start, m.method, m.status, m.call_id) for m in found] == [
        (True, "MESSAGE sip:ü@192.0.2.1 SIP/2.0", "MESSAGE", 0, "one-1"),
        (False, "SIP/2.0 200 OK", "INVITE", 200, "one-1")]
    assert found[0].body == tricky
    assert (found[1].audio.address, found[1].audio.port) == ("192.0.2.9", 30002)


@pytest.mark.parametrize("cut", [1, 10, 60, len(TAKEN_UP) - 1])
def test_a_message_that_is_not_whole_yet_is_left_out(cut):
    # The newline after a message is no part of it.
    whole = trace.messages(INVITE + TAKEN_UP[:cut])
    assert len(whole) == (2 if cut == len(TAKEN_UP) - 1 else 1)
    assert trace.messages(b"") == []


def test_a_call_that_nobody_heard_of():
    nothing = dialog()
    assert not nothing.settled and not nothing.up and not nothing.over
    assert str(nothing) == "no answer"


def test_a_call_is_up_when_the_callee_has_the_ack():
    callee = INVITE + message("SIP/2.0 200 OK", body=SDP.format("192.0.2.2", 4000), sent=True)
    early = dialog(TAKEN_UP, callee)
    assert (early.status, early.settled) == (200, False)
    up = dialog(message("SIP/2.0 100 Trying") + message("SIP/2.0 180 Ringing") + TAKEN_UP, callee + ACK)
    assert up.settled and up.up and not up.over
    assert (up.told_caller.port, up.told_callee.port, up.callee.port) == (30002, 30000, 4000)
    assert str(up) == "200 OK"


def test_a_call_is_over_when_the_bye_was_answered():
    bye = message("BYE sip:callee@192.0.2.1 SIP/2.0", "BYE", sent=True)
    assert not dialog(TAKEN_UP + bye).over
    assert not dialog(TAKEN_UP + bye + message("SIP/2.0 481 Call Does Not Exist", "BYE")).over
    over = dialog(TAKEN_UP + bye + message("SIP/2.0 200 OK", "BYE"))
    # The answer to the BYE is none to the INVITE.
    assert over.over and over.told_caller.port == 30002


def test_a_refused_call():
    refused = dialog(message("SIP/2.0 100 Trying") + message("SIP/2.0 503 Media Relay Unavailable"))
    assert refused.settled and not refused.up
    assert str(refused) == "503 Media Relay Unavailable"


def test_messages_of_other_calls_are_passed_over():
    assert dialog(TAKEN_UP + message("SIP/2.0 486 Busy", call_id="one-2"), ACK).status == 200
    assert dialog(TAKEN_UP, ACK, call_id="one-10").status == 0


def test_a_description_that_makes_no_sense_is_an_error():
    with pytest.raises(SdpError):
        dialog(message("SIP/2.0 200 OK", body="v=1\r\n"))


def test_the_last_messages_of_a_call_as_lines():
    of = trace.messages(message("INVITE sip:callee@192.0.2.1 SIP/2.0", sent=True) + message("SIP/2.0 100 Trying")
                        + message("SIP/2.0 503 No", call_id="one-2") + TAKEN_UP)
    assert trace.excerpt("one-1", of) == ["received SIP/2.0 100 Trying", "received SIP/2.0 200 OK"]
    assert trace.excerpt("one-2", of) == ["received SIP/2.0 503 No"]


WIRING = Wiring(("192.0.2.1", 5060), ("192.0.2.1", 5062), ("192.0.2.9", 2223), 4711)


def test_kamailio_is_told_who_is_where():
    [(name, text)] = Kamailio().files(WIRING).items()
    assert name == "kamailio.cfg" and Kamailio().command("/files")[-1] == "/files/kamailio.cfg"
    assert "listen=udp:192.0.2.1:5060\n" in text and "server_id=4711\n" in text
    assert '"udp:192.0.2.9:2223"' in text
    assert '$du = "sip:192.0.2.1:5062";' in text and f't_reply("{REFUSED}"' in text
    assert re.findall(r'rtpengine_(\w+)\("(.*?)"\)', text) == [
        ("delete", "delete-delay=0"), ("offer", FLAGS), ("answer", FLAGS), ("delete", "delete-delay=0")]


def test_kamailios_errors():
    failed = " 1(8) ERROR: rtpengine [rtpengine.c:2706]: rtpp_function_call(): no available proxies\n"
    log = (" 0(1) INFO: <core> [main.c:3055]: main(): all is well\n"
           " 1(8) WARNING: rtpengine [rtpengine.c:2763]: rtpp_function_call(): proxy udp:192.0.2.9:2223: "
           "Ran out of ports 1(8) INFO: rtpengine [rtpengine.c:2929]: rtpp_test(): found\n" + failed + failed)
    assert Kamailio().complaints(log) == ["rtpengine: proxy udp:192.0.2.9:2223: Ran out of ports",
                                          "rtpengine: no available proxies"]


def test_opensips_is_told_who_is_where():
    [(name, text)] = OpenSips().files(WIRING).items()
    assert name == "opensips.cfg" and OpenSips().command("/files")[-1] == "/files/opensips.cfg"
    assert "socket=udp:192.0.2.1:5060\n" in text and '"udp:192.0.2.9:2223"' in text
    assert '$du = "sip:192.0.2.1:5062";' in text and f"t_reply({REFUSED}" in text
    assert re.findall(r'rtpengine_(\w+)\("(.*?)"\)', text) == [
        ("delete", "delete-delay=0"), ("offer", FLAGS), ("answer", FLAGS), ("delete", "delete-delay=0")]


def test_opensips_errors():
    log = ("Nov 28 07:40:00 [8] INFO:core:main: version: opensips\n"
           "Nov 28 07:40:01 [8] ERROR:rtpengine:rtpe_function_call: proxy replied with error: Ran out of ports\n" * 2)
    assert OpenSips().complaints(log) == ["rtpengine: proxy replied with error: Ran out of ports"]


@pytest.mark.parametrize(("programs_there", "said"), [
    (["usr/sbin/opensips", "usr/bin/sipp"], ""), (["usr/sbin/opensips"], "has no SIPp"),
    (["usr/bin/sipp"], "has no proxy")])
def test_the_proxy_of_a_system_that_the_settings_name(tmp_path, programs_there, said):
    for path in programs_there:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    settings = Settings.load(tmp_path, {"DIALTONE_SIP_ROOT": str(tmp_path)})
    if said:
        with pytest.raises(HostError, match=said):
            programs.proxy_of(settings)
    else:
        assert programs.proxy_of(settings).name == "OpenSIPS"
    assert programs.proxy_of(Settings.load(tmp_path, {})).name == "Kamailio"


def test_proxies_ask_the_relay_for_what_calls_without_sip_ask_for():
    asked = [flag.replace(" ", "-") for flag in OPTIONS["flags"]]
    asked += [f"replace-{what.replace(' ', '-')}" for what in OPTIONS["replace"]] + [f"ICE={OPTIONS['ICE']}"]
    assert sorted(FLAGS.split()) == sorted(asked)


def test_every_module_is_in_the_documentation(project):
    text = (project / "docs/sip.md").read_text()
    modules = {path.stem for path in (project / "harness/sip").glob("*.py")} - {"__init__"}
    assert {name for name in modules if f"`{name}`" not in text} == set()
