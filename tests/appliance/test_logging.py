"""Relay's log."""

import time

import pytest

from harness.plugin import expect
from harness.voip.ng import NgRefused

LOG = "/var/log/rtpengine.log"
ELSEWHERE = ("/var/log/syslog", "/var/log/messages", "/var/log/user.log")


@pytest.mark.after("test_ng_ping")
def test_log_written(host, read, relay, rtpengine):
    """what the daemon does is written to /var/log/rtpengine.log, and not to the system's log"""
    command = f"unknown-{time.monotonic_ns()}"
    with pytest.raises(NgRefused):
        relay.request(command)
    # The daemon says this by the log facility alone; warnings go to its standard error, to the journal, as well.
    line = f"INFO: [control] Received command '{command}'"
    new = ""
    for _ in range(20):
        new = host.run("tail -n 20 %s", LOG).stdout
        if line in new:
            break
        time.sleep(0.1)
    expect(line in new, f"in {LOG}: {line}", new.strip()[-200:] or f"nothing new in {LOG}",
           lambda: "" if any(LOG in text for text in read("/etc/rsyslog.conf", "/etc/rsyslog.d/*.conf").values())
           else "no rule of rsyslog names it")
    strays = host.run("grep -lF %s " + " ".join(ELSEWHERE), line).stdout.split()
    expect(not strays, f"that line in {LOG} only", "also in " + ", ".join(strays))


def test_log_rotated(rotated, rtpengine):
    """the log is rotated"""
    rotated(LOG)
