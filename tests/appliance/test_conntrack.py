"""Connection tracking."""

import re

import pytest

from harness.conntrack import parse_entries
from harness.plugin import expect
from harness.units import many


@pytest.fixture(scope="module")
def live(read, plan):
    """The values in force, by full name."""
    return {f"net.netfilter.{path.rsplit('/', 1)[1]}": value.strip() for path, value
            in read("/proc/sys/net/netfilter/nf_conntrack_*").items()}


def test_conntrack_loaded_at_boot(read, find, plan):
    """connection tracking is loaded at boot, before the sysctls are set"""
    named = [path for path, text in read("/etc/modules-load.d/*.conf", "/usr/lib/modules-load.d/*.conf").items()
             if "nf_conntrack" in text.split()]
    loaded = find("/sys/module/nf_conntrack")
    expect(bool(named and loaded), "nf_conntrack loaded by a file below /etc/modules-load.d",
           "loaded, but no file names it" if loaded else "not loaded",
           "" if loaded else "keys of net.netfilter are passed over while the module is not there")


@pytest.mark.after("test_conntrack_loaded_at_boot")
@pytest.mark.parametrize("key", ["max", "buckets", "expect_max"])
def test_conntrack_size(live, plan, key):
    """the table has the planned size"""
    name = f"net.netfilter.nf_conntrack_{key}"
    expect(live.get(name) == plan.sysctls[name], f"{name} = {plan.sysctls[name]}", live.get(name, "no such key"))


@pytest.mark.after("test_conntrack_loaded_at_boot")
def test_conntrack_hashsize(read, plan):
    """the module was given the planned number of buckets"""
    given = [line for text in read("/etc/modprobe.d/*.conf").values() for line in text.splitlines()
             if line.startswith("options nf_conntrack ")]
    wanted = f"options nf_conntrack hashsize={plan.buckets}"
    expect(given == [wanted], f"{wanted} below /etc/modprobe.d", "; ".join(given) or "no options")
    parameter = "/sys/module/nf_conntrack/parameters/hashsize"
    seen = read(parameter).get(parameter, "").strip()
    expect(seen == str(plan.buckets), f"hashsize {plan.buckets} in force", seen)


@pytest.mark.after("test_conntrack_loaded_at_boot")
def test_conntrack_settings(live, plan):
    """every other setting of the plan is in force"""
    wrong = [f"{name} = {live.get(name, 'no such key')}, not {value}" for name, value in sorted(plan.sysctls.items())
             if live.get(name) != value and not re.search(r"_(max|buckets)$", name)]
    expect(not wrong, f"{len(plan.sysctls)} settings as planned", "; ".join(wrong))


@pytest.mark.after("test_conntrack_loaded_at_boot")
def test_conntrack_gone_keys(live, plan):
    """what the plan calls gone is gone from this kernel"""
    there = sorted(set(plan.gone) & set(live))
    expect(not there, "none of " + ", ".join(plan.gone), ", ".join(there))


@pytest.mark.after("test_conntrack_loaded_at_boot")
def test_conntrack_entries_readable(host, plan):
    """entries can be read: both directions, state and timeout"""
    # Nothing is tracked where no rule asks for it, so it is provoked in a namespace of its own.
    shown = host.run("""\
        set -e
        ip netns add dialtone-check
        trap 'ip netns delete dialtone-check' EXIT
        ip netns exec dialtone-check sh -ec '
            ip link set lo up
            iptables -w -A INPUT -m conntrack --ctstate NEW -j ACCEPT
            bash -c "echo x >/dev/udp/127.0.0.1/9"
            cat /proc/net/nf_conntrack'""")
    entries = [e for e in parse_entries(shown.stdout) if e.protocol == "udp" and e.original.destination_port == 9]
    expect(len(entries) == 1, "the entry of one datagram to port 9", shown.stdout.strip() or shown.stderr.strip())
    entry = entries[0]
    expect(entry.reply.source_port == 9 and entry.reply.source == "127.0.0.1", "its other direction", entry.reply)
    expect("UNREPLIED" in entry.flags and not entry.assured, "the flag UNREPLIED", ", ".join(entry.flags))
    expect(entry.timeout is not None and 0 < entry.timeout <= 30, "a timeout of 1 to 30 s", entry.timeout)


@pytest.mark.after("test_conntrack_loaded_at_boot")
def test_conntrack_never_full(losses, provoked, plan):
    """no packet was dropped because the table was full"""
    lost = losses() - provoked()
    expect(lost.drop == lost.early_drop == 0, "0 drops and 0 early drops",
           f"{lost.drop} drops and {lost.early_drop} early drops")
    expect(lost.told <= 0, 'no "table full" in the kernel log', many(lost.told, "line"))
