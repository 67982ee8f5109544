"""Relay's control port."""

import pytest

from harness.plugin import expect
from harness.voip.ng import NgRefused

pytestmark = pytest.mark.after("test_control_port_listening")


def test_ng_ping(relay):
    """an ng ping is answered over UDP through the route"""
    answer = relay.ping()
    expect(answer == "pong", "pong", answer)


@pytest.mark.after("test_ng_ping")
def test_ng_statistics(relay):
    """the relay gives its statistics"""
    statistics = relay.statistics()
    current = statistics.get("currentstatistics", {})
    wanted = {"sessionstotal", "media_kernel", "media_userspace"}
    expect(wanted <= set(current), "counters " + ", ".join(sorted(wanted)), ", ".join(sorted(current)))
    uptime = int(statistics.get("totalstatistics", {}).get("uptime", -1))
    expect(uptime >= 0, "an uptime of 0 s or more", uptime)


@pytest.mark.after("test_ng_ping")
def test_ng_list(relay):
    """the relay lists its calls: none yet"""
    calls = relay.calls()
    expect(calls == [], "no calls", ", ".join(calls))


@pytest.mark.after("test_ng_ping")
def test_ng_refusal(relay):
    """the relay refuses what it does not know"""
    with pytest.raises(NgRefused):
        relay.request("no-such-command")
