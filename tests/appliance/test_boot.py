"""Boot."""

import re
from datetime import date

import pytest

from harness.kernellog import STALL
from harness.known import expired, unknown
from harness.plugin import expect

FAULTS = re.compile(rf"{STALL.pattern}|"
                    r"\bOops\b|\bBUG:|Kernel panic|general protection fault|Call Trace:|WARNING: CPU|"
                    r"soft lockup|hung_task|blocked for more than|Out of memory:")


@pytest.fixture
def no_fault(but_waits, console, seen):
    """no_fault(log): that these lines of the kernel's log are none of a fault."""
    def judge(log):
        rest, waits = but_waits(log)
        if waits:
            seen(f"an emulated processor was not run for long: {waits[-1]}")
        faults = [line for line in rest if FAULTS.search(line)]
        expect(not faults, "no oops, BUG, panic or lockup", "; ".join(faults[:3]), "",
               lambda: console.lines(FAULTS.pattern))
    return judge


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


def test_kernel_log_clean(kernel_log, no_fault):
    """the kernel reported no fault"""
    no_fault(kernel_log)


@pytest.mark.last
@pytest.mark.after("test_kernel_log_clean")
def test_kernel_log_stays_clean(host, no_fault):
    """the kernel reported no fault while checks ran"""
    no_fault(host.check_output("dmesg").splitlines())


def test_no_ordering_cycle(complaints):
    """systemd found no ordering cycle among the units"""
    cycles = [entry.message for entry in complaints if "ordering cycle" in entry.message]
    expect(not cycles, "no ordering cycle", "; ".join(cycles[:3]),
           "systemd breaks an ordering cycle by leaving out one of its units")


@pytest.mark.after("test_no_failed_units", "test_kernel_log_clean", "test_no_ordering_cycle",
                   "test_conntrack_never_full")
def test_log_known(complaints, but_waits, known, seen):
    """kernel log and journal hold no warning that is not known"""
    kernel, _ = but_waits([entry.message for entry in complaints if entry.source == "kernel"])
    strange = unknown([*(str(entry) for entry in complaints if entry.source != "kernel"),
                       *(f"kernel: {line}" for line in kernel)], known.log)
    seen(f"{len(complaints)} warnings, all known")
    expect(not strange, "warnings that known/*.yaml names with a reason", "; ".join(strange[:5])
           + (f" and {len(strange) - 5} more" if len(strange) > 5 else ""))


def test_known_issues_in_date(complaints, known):
    """what is known of the logs was looked at in time"""
    old = expired(known.log, date.today())
    told = [f"{entry}: {sum(bool(entry.pattern.search(str(line))) for line in complaints)} times in this log"
            for entry in old]
    expect(not old, "every known issue looked at again before its day", "; ".join(told),
           "whoever wrote it down wanted it looked at again: take it away, or give it another day")


def test_machine_id(read):
    """the machine has an id of its own"""
    identity = read("/etc/machine-id")["/etc/machine-id"].strip()
    expect(re.fullmatch(r"[0-9a-f]{32}", identity) is not None, "32 hexadecimal digits in /etc/machine-id", identity)
