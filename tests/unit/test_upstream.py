from dataclasses import replace
from types import SimpleNamespace

import pytest

from harness import appliance as appliances_file
from harness.errors import DescriptionError
from harness.upstream import SCRIPTS, Stand, hang_up, judge, verdict
from harness.voip import sdp
from harness.voip.ng import NgClient
from tests.relay_double import relay_double


def printed(*ends):
    """As teardown of upstream's NGCP::Rtpengine::Test prints it: packets sent and received, RTP and RTCP."""
    return "".join(f"media packets sent: {sent} 3\nmedia packets received: {received} 4\n"
                   f"media packets outstanding: {outstanding} 0\n" for sent, received, outstanding in ends)


@pytest.mark.parametrize(("ends", "good", "said"), [
    ([(350, 500, 0), (500, 350, 0)], True, "350 of 350 packets came, 500 of 500 packets came"),
    ([(350, 495, 5), (500, 350, 0)], True, "350 of 350 packets came, 495 of 500 packets came"),
    ([(350, 400, 0), (500, 350, 0)], False, "350 of 350 packets came, 400 of 500 packets came"),
    ([(350, 500, 0), (500, 0, 350)], False, "0 of 350 packets came, 500 of 500 packets came"),
    ([(350, 501, 0), (500, 350, 0)], False, "350 of 350 packets came, 501 of 500 packets came"),
    ([(0, 0, 0), (0, 0, 0)], False, "it counted no packets both ways"),
    ([(350, 500, 0)], False, "it counted no packets both ways"),
    ([], False, "it counted no packets both ways"),
])
def test_all_packets_must_come_but_for_those_on_their_way(ends, good, said):
    seen = verdict("basic-ipv4", 0, printed(*ends) + "$VAR1 = { 'result' => 'ok' };\n")
    assert (seen.script, seen.good, seen.said) == ("basic-ipv4", good, said)


@pytest.mark.parametrize(("text", "said"), [
    (printed((350, 500, 0), (500, 350, 0)) + "80ff ne 8001 at Test.pm line 413.\n\n",
     "exit code 255: 80ff ne 8001 at Test.pm line 413."),
    (f"{'80' * 172} ne {'81' * 172} at Test.pm line 413.\n",
     f"exit code 255: {'80' * 12}... ne {'81' * 12}... at Test.pm line 413."),
    ("", "exit code 255: it said nothing"),
])
def test_an_error_is_bad_whatever_came(text, said):
    seen = verdict("sdes-sdes", 255, text)
    assert not seen.good and seen.said == said


def test_scripts_are_those_of_the_tree_and_of_the_families_there_are(tmp_path):
    (tmp_path / "t").mkdir()
    for script in (*SCRIPTS[:4], "basic-ipv6", "ice"):
        (tmp_path / f"t/test-{script}.pl").touch()

    def of(*own):
        return Stand(tmp_path, tmp_path, "", own, ("192.0.2.1", 2223)).scripts

    assert of("192.0.2.2", "2001:db8::2") == [*SCRIPTS[:4], "basic-ipv6"]
    assert of("192.0.2.2") == [*SCRIPTS[:4]]


def test_an_appliance_without_such_a_source_is_refused(project, tmp_path):
    described = appliances_file.load(project / "appliances.yaml")["rtpengine"]
    packages = [spec for spec in described.rtpengine.sources if spec.kind == "debian-packages"]
    assert packages
    run = SimpleNamespace(directory=tmp_path)
    for without in (replace(described, rtpengine=replace(described.rtpengine, sources=packages)),
                    replace(described, rtpengine=None)):
        with pytest.raises(DescriptionError, match=r"no source of rtpengine has|has no relay"):
            judge(None, run, None, without, SimpleNamespace(detail=print))


def test_calls_that_a_script_leaves_are_deleted_and_no_others():
    media = sdp.build([sdp.Media("127.0.0.1", 4000, ("127.0.0.1", 4001))])
    with relay_double() as double, NgClient("127.0.0.1", double.port) as client:
        for call in ("before", "left", "gone"):
            client.offer(call, f"tag of {call}", media)
        hang_up(client, ["before"])
        assert client.calls() == ["before"]
        hang_up(client, ["before"])
        assert client.calls() == ["before"] and double.commands["delete"] == 2
