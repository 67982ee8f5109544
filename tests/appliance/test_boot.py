"""Boot."""

import re

import pytest

from harness.kernellog import STALL, without_waits
from harness.plugin import expect

FAULTS = re.compile(rf"{STALL.pattern}|"
                    r"\bOops\b|\bBUG:|Kernel panic|general protection fault|Call Trace:|WARNING: CPU|"
                    r"soft lockup|hung_task|blocked for more than|Out of memory:")


@pytest.mark.after("test_module_loaded", "test_service_active", "test_proxy_active", "test_conntrack_loaded_at_boot")
def test_no_failed_units(host):
    """no unit failed"""
    now = dict(line.split("=", 1) for line in
               host.check_output("systemctl show --property=SystemState,NFailedUnits").splitlines())
    failed = [] if now["NFailedUnits"] == "0" else [
        line.split()[0] for line in
        host.check_output("systemctl list-units --failed --plain --no-legend").splitlines()]
    expect(not failed, "no failed units", ", ".join(failed),
           lambda: host.run("journalctl -b -u %s -o cat -n 3", failed[0]).stdout.strip())
    expect(now["SystemState"] == "running", "the system state running", now["SystemState"])


def test_kernel_log_clean(host, kernel_log, console, seen):
    """the kernel reported no fault"""
    rest, waits = without_waits(kernel_log)
    if waits and host.run("systemd-detect-virt").stdout.strip() == "qemu":
        seen(f"an emulated processor was not run for long: {waits[-1]}")
    else:
        rest = kernel_log
    faults = [line for line in rest if FAULTS.search(line)]
    expect(not faults, "no oops, BUG, panic or lockup", "; ".join(faults[:3]), "",
           lambda: console.lines(FAULTS.pattern))


def test_machine_id(read):
    """the machine has an id of its own"""
    identity = read("/etc/machine-id")["/etc/machine-id"].strip()
    expect(re.fullmatch(r"[0-9a-f]{32}", identity) is not None, "32 hexadecimal digits in /etc/machine-id", identity)
