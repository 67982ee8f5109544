"""Media ports."""

from contextlib import contextmanager

import pytest

from harness.plugin import expect
from harness.voip.call import Call, placed
from harness.voip.ng import NgOutOfPorts, NgRefused

pytestmark = [pytest.mark.level("acceptance"), pytest.mark.after("test_media_ports", "test_call_deleted")]

MOST = 5
"""Calls that the ports of the check's own range are for: RTP and RTCP for either side of each."""
CONFIGURATION = "/etc/rtpengine/rtpengine.conf"
COPY = "/run/few-ports.conf"


@pytest.fixture
def few_ports(host, put_back, rtpengine):
    """The daemon started anew with ports for few calls, then as it was. The file itself is not changed, but covered."""
    last = rtpengine.port_min + 4 * MOST - 1
    with put_back(f"umount {CONFIGURATION}; rm -f {COPY}; systemctl restart rtpengine.service"):
        covered = host.run(f"cp --preserve=mode,ownership {CONFIGURATION} {COPY} && "
                           f"sed -i 's/^port-max *=.*/port-max = {last}/' {COPY} && "
                           f"mount --bind {COPY} {CONFIGURATION} && systemctl restart rtpengine.service")
        expect(covered.rc == 0, "the daemon starts anew", covered.stderr.strip())
        yield range(rtpengine.port_min, last + 1)


def test_ports_exhausted_and_released(few_ports, switchboard, endpoint, seen):
    """when all ports are taken a further call is refused for that reason, and not once they are free again"""
    caller, callee = endpoint(), endpoint()

    @contextmanager
    def all_taken():
        with placed([Call(switchboard, caller, callee) for _ in range(MOST)]) as calls:
            ports = {port for call in calls for media in (call.relay_to_caller, call.relay_to_callee)
                     for port in (media.port, media.rtcp[1])}
            expect(ports == set(few_ports), f"{len(few_ports)} ports from {few_ports[0]} to {few_ports[-1]} taken",
                   ", ".join(map(str, sorted(ports))))
            yield

    with all_taken():
        try:
            with Call(switchboard, caller, callee):
                refusal = None
        except NgRefused as error:
            refusal = error
        said = f"{MOST} calls took all {len(few_ports)} ports, the next: {refusal.reason if refusal else 'accepted'}"
        seen(said)
        expect(isinstance(refusal, NgOutOfPorts), f"call {MOST + 1} refused: Ran out of ports", said)
    with all_taken():
        pass
    left = switchboard.calls()
    expect(left == [], "no call left", ", ".join(left))
