"""Outages.

What each of them costs is measured and shown. Calls whose daemon ends are lost, unless Redis keeps them; what is asked
for is that no more is lost than that, and that calls are relayed afterwards as before.
"""

import time

import pytest

from harness import acceptance
from harness.deadline import Deadline
from harness.plugin import expect
from harness.units import many
from harness.voip.call import Call
from harness.voip.ng import NgNoAnswer
from harness.voip.traffic import Traffic

pytestmark = [pytest.mark.level("acceptance"), pytest.mark.after("test_ten_calls")]

UNIT = "rtpengine.service"
BACK = 30.0
"""Seconds at most until the daemon answers again. systemd starts it 2 s after its end."""
AFTERWARDS = 2.0
"""Seconds of media by which the losses of an outage are known."""

# In one transaction for both directions. The server itself puts its network back, whatever becomes of who asked for it.
CUT = r"""
trap '' HUP PIPE
every() { printf '*filter\n-%s INPUT -j DROP\n-%s OUTPUT -j DROP\nCOMMIT\n' "$1" "$1" | COMMAND-restore -w --noflush; }
now() { read -r up rest </proc/uptime; echo "$up"; }
now
every I || exit
now
sleep 1
now
until every D; do sleep 0.1; done
now
"""


def test_network_cut(host, settled, media_address, whole):
    """a second without network costs the media of that second, and nothing more"""
    settled.during(0)
    settled.traffic.wait(0.5)  # a gap is one after a packet of each stream
    command = CUT.replace("COMMAND", "ip6tables" if ":" in media_address else "iptables")
    cut = acceptance.Cut.between(host.check_output(command))
    every = acceptance.directions(settled.during(AFTERWARDS))
    lost = [one.lost for one in every]
    said = (f"{cut.least:.2f} to {cut.most:.2f} s without network: {min(lost)} to {max(lost)} packets lost of each "
            f"stream, nothing came for {max(one.longest_gap for one in every) / 1000:.1f} s")
    whole(settled.during(AFTERWARDS), said)
    wanted = cut.packets(settled.streams[0].ptime)
    expect(all(number in wanted for number in lost),
           f"{wanted.start} to {wanted.stop - 1} packets lost of each stream", said)


def test_daemon_stopped(host, ended):
    """the daemon is stopped and started: new calls are relayed, and old ones go on where Redis keeps them"""
    ended(lambda: host.run("systemctl stop %s && systemctl start %s", UNIT, UNIT))


def test_daemon_killed(host, ended):
    """the daemon is killed: it comes back, new calls are relayed, and old ones go on where Redis keeps them"""
    try:
        ended(lambda: host.run("systemctl kill --kill-who=main --signal=KILL %s", UNIT))
    finally:
        host.run("systemctl reset-failed %s", UNIT)  # its count of restarts


@pytest.fixture
def ended(host, next_daemon, new_call, switchboard, talk, whole, rtpengine, seen):
    """ended(end): `end` the daemon, and look what became of its calls and what becomes of a new one."""
    def look(end):
        talk.during(0)
        away = next_daemon(end)
        expect(away is not None, f"another daemon that answers within {BACK:.0f} s", "none",
               lambda: host.run("journalctl -b -u %s -o cat -n 5", UNIT).stdout.strip())
        known = switchboard.calls(limit=100)
        kept = [call for call in talk.calls if call.id in known]
        said = f"the daemon answers again after {away:.1f} s, {len(kept)} of {many(len(talk.calls), 'call')} kept"
        if kept:
            every = acceptance.directions(talk.during(AFTERWARDS))
            sent = sum(one.sent for one in every)
            said += (f", no media for {max(one.longest_gap for one in every) / 1000:.1f} s, "
                     f"{sent - sum(one.received for one in every):,} of {sent:,} packets lost")
        else:
            talk.traffic.stop()  # its ports may be a new call's
        seen(said)
        expect(len(kept) == len(talk.calls) or not rtpengine.redis_endpoint,
               f"{many(len(talk.calls), 'call')} kept by Redis", said)
        lost, forwarded = new_call([stream for call in kept for stream in call.streams])
        expect(lost == 0, "no packet of a new call lost", f"{lost} lost; {said}")
        expect(forwarded, "every stream in the module's table again", f"some are not; {said}")
        if kept:
            talk.during(0)
            whole(talk.during(AFTERWARDS), said)

    return look


@pytest.fixture
def next_daemon(read, daemon, switchboard):
    """next_daemon(end): the seconds from `end`() until another daemon answers, None where none does."""
    file = daemon.option("pidfile")

    def seconds(end):
        before, begin = read(file).get(file, ""), time.monotonic()
        end()
        deadline = Deadline(BACK)
        while not deadline.expired:
            if read(file).get(file, before) != before:
                try:
                    switchboard.request("ping", deadline=deadline.within(1))
                    return time.monotonic() - begin
                except NgNoAnswer:
                    pass
            time.sleep(0.05)
        return None

    return seconds


@pytest.fixture
def new_call(switchboard, endpoint, listed, arrived, rtpengine):
    """new_call(streams): packets that a new call lost, and whether it and `streams` are in the kernel, if to be."""
    def place(streams):
        came = arrived()
        with Call(switchboard, endpoint(), endpoint()) as call:
            with Traffic(call.streams, report_every=0) as traffic:
                forwarded = rtpengine.table < 0 or acceptance.learned(
                    traffic, [*call.streams, *streams], listed) is not None
                traffic.wait(1)
                health = traffic.stop(acceptance.LINGER)
            result = call.result()
        acceptance.fit([result], [health], arrived() - came)
        return sum(acceptance.missing(one) for one in acceptance.directions([result])), forwarded

    return place
