"""Boot."""

import re

import pytest

from harness.plugin import expect

FAULTS = re.compile(r"\bOops\b|\bBUG:|Kernel panic|general protection fault|Call Trace:|WARNING: CPU|"
                    r"soft lockup|hung_task|blocked for more than|Out of memory:")


@pytest.mark.after("test_module_loaded", "test_service_active", "test_conntrack_loaded_at_boot")
def test_no_failed_units(host):
    """no unit failed"""
    failed = [line.split()[0] for line in
              host.check_output("systemctl list-units --failed --plain --no-legend").splitlines()]
    expect(not failed, "no failed units", ", ".join(failed),
           lambda: host.run("journalctl -b -u %s -o cat -n 3", failed[0]).stdout.strip())
    state = host.run("systemctl is-system-running").stdout.strip()
    expect(state == "running", "the system state running", state)


def test_kernel_log_clean(host, console):
    """the kernel reported no fault"""
    faults = [line for line in host.check_output("dmesg").splitlines() if FAULTS.search(line)]
    expect(not faults, "no oops, BUG, panic or lockup", "; ".join(faults[:3]), "",
           lambda: console.lines(FAULTS.pattern))


def test_machine_id(host):
    """the machine has an id of its own"""
    identity = host.check_output("cat /etc/machine-id")
    expect(re.fullmatch(r"[0-9a-f]{32}", identity) is not None, "32 hexadecimal digits in /etc/machine-id", identity)
