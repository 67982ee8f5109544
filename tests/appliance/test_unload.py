"""Unloading."""

import time

import pytest

from harness.plugin import expect

pytestmark = pytest.mark.after("test_daemon_holds_table")


def test_module_unloaded_and_loaded(host, read, find, generation, table, phase):
    """with the service stopped the module can be unloaded, and the service takes a new one"""
    if phase != "first boot":
        pytest.skip("once for each server is enough, and the reboot has loaded the module anew")
    try:
        host.check_output("systemctl stop rtpengine.service")
        rules = host.run("iptables -w -S; ip6tables -w -S").stdout
        expect("rtpengine" not in rules.lower(), "no rule left for the module", rules.strip())
        for _ in range(50):
            removed = host.run("rmmod %s", generation.module)
            if removed.rc == 0:
                break
            time.sleep(0.1)
        expect(removed.rc == 0, "rmmod unloads the module", removed.stderr.strip())
        expect(not find("/proc/rtpengine"), "/proc/rtpengine gone", "it is still there")
    finally:
        started = host.run("modprobe %s && systemctl start rtpengine.service", generation.module)
    expect(started.rc == 0, "the service starts again", started.stderr.strip())
    file = f"/proc/rtpengine/{table}/status"
    expect("Control PID" in read(file).get(file, ""), f"table {table} held by the daemon again", "it is not")
