"""Forwarding in the kernel."""

import re

import pytest

from harness.plugin import expect

CONTROL = "/proc/rtpengine/control"


def write(host, text):
    """Write to the module's control file by tee(1), which names the error."""
    return host.run("echo %s | tee %s >/dev/null", text, CONTROL)


@pytest.mark.after("test_service_active", "test_module_control_files")
def test_daemon_holds_table(host, daemon, table):
    """the daemon holds its forwarding table in the kernel"""
    status = host.run("cat /proc/rtpengine/%s/status", str(table))
    owner = re.search(r"Control PID:\s*(\d+)", status.stdout)
    expect(owner is not None and owner[1] == str(daemon.pid), f"table {table} controlled by process {daemon.pid}",
           f"controlled by process {owner[1]}" if owner else status.stderr.strip() or status.stdout.strip(),
           f"the daemon runs with table = {daemon.option('table', '0')}"
           if daemon.option("table", "0") != str(table) else "")


@pytest.mark.after("test_daemon_holds_table")
def test_table_in_use_is_kept(host, table):
    """a table in use can't be deleted"""
    refused = write(host, f"del {table}")
    expect("resource busy" in refused.stderr, "Device or resource busy", refused.stderr.strip() or "no error")
    listed = host.check_output("cat /proc/rtpengine/list").split()
    expect(str(table) in listed, f"table {table} still in /proc/rtpengine/list", " ".join(listed))


@pytest.mark.after("test_daemon_holds_table")
def test_module_in_use_is_kept(host, table):
    """the module can't be unloaded while it is in use"""
    refused = host.run("rmmod xt_RTPENGINE")
    if refused.rc == 0:
        host.run("systemctl restart rtpengine.service")
    expect(refused.rc != 0 and "in use" in refused.stderr, "rmmod refused: in use",
           refused.stderr.strip() or "the module was unloaded")


@pytest.mark.after("test_module_control_files")
def test_table_added_and_deleted(host, table):
    """a table can be added and deleted"""
    spare = 63 if table != 63 else 62
    added = write(host, f"add {spare}")
    try:
        expect(added.rc == 0, f"table {spare} added", added.stderr.strip())
        names = host.run("ls /proc/rtpengine/%s", str(spare)).stdout.split()
        expect({"blist", "control", "list", "status"} <= set(names), "blist, control, list and status in its directory",
               " ".join(names))
        listed = host.check_output("cat /proc/rtpengine/list").split()
        expect(str(spare) in listed, f"table {spare} in /proc/rtpengine/list", " ".join(listed))
    finally:
        deleted = write(host, f"del {spare}")
    expect(deleted.rc == 0 and not host.file(f"/proc/rtpengine/{spare}").exists, f"table {spare} deleted",
           deleted.stderr.strip() or "its directory is still there")


@pytest.mark.after("test_daemon_holds_table")
@pytest.mark.parametrize("command", ["iptables", "ip6tables"])
def test_rule_to_module(host, table, command):
    """UDP packets are handed to the module"""
    wanted = f"-A INPUT -p udp -j RTPENGINE --id {table}"
    rules = host.check_output("%s -w -S INPUT", command).splitlines()
    expect(rules.count(wanted) == 1, f"{command}: {wanted}, once",
           "; ".join(rule for rule in rules if "RTPENGINE" in rule) or "no rule for RTPENGINE")
