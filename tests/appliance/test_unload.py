"""Unloading."""

import time

import pytest

from harness.plugin import expect

pytestmark = pytest.mark.after("test_daemon_holds_table")


def test_module_unloaded_and_loaded(host, read, find, table, phase):
    """with the service stopped the module can be unloaded, and the service takes a new one"""
    if phase != "first boot":
        pytest.skip("once for each server is enough, and the reboot has loaded the module anew")
    try:
        host.check_output("systemctl stop rtpengine.service")
        rules = host.run("iptables -w -S INPUT; ip6tables -w -S INPUT").stdout
        expect("RTPENGINE" not in rules, "no rule left for the module", rules.strip())
        for _ in range(30):
            removed = host.run("rmmod xt_RTPENGINE")
            if removed.rc == 0:
                break
            time.sleep(0.1)
        expect(removed.rc == 0, "rmmod unloads the module", removed.stderr.strip())
        expect(not find("/proc/rtpengine"), "/proc/rtpengine gone", "it is still there")
    finally:
        started = host.run("modprobe xt_RTPENGINE && systemctl start rtpengine.service")
    expect(started.rc == 0, "the service starts again", started.stderr.strip())
    file = f"/proc/rtpengine/{table}/status"
    expect("Control PID" in read(file).get(file, ""), f"table {table} held by the daemon again", "it is not")
