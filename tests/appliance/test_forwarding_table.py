"""Forwarding in the kernel."""

import re

import pytest

from harness.plugin import expect

CONTROL = "/proc/rtpengine/control"
LIST = "/proc/rtpengine/list"


@pytest.mark.after("test_service_active", "test_module_control_files")
def test_daemon_holds_table(read, daemon, table):
    """the daemon holds its forwarding table in the kernel"""
    file = f"/proc/rtpengine/{table}/status"
    status = read(file).get(file)
    owner = re.search(r"Control PID:\s*(\d+)", status or "")
    expect(owner is not None and owner[1] == str(daemon.pid), f"table {table} controlled by process {daemon.pid}",
           f"controlled by process {owner[1]}" if owner else f"{file} is not there" if status is None else status,
           f"the daemon runs with table = {daemon.option('table', '0')}"
           if daemon.option("table", "0") != str(table) else "")


@pytest.mark.after("test_daemon_holds_table")
def test_table_in_use_is_kept(host, read, table):
    """a table in use can't be deleted"""
    # tee names the error, the shell's own echo doesn't.
    refused = host.run("echo del %s | tee %s", str(table), CONTROL)
    expect("resource busy" in refused.stderr, "Device or resource busy", refused.stderr.strip() or "no error")
    listed = read(LIST)[LIST].split()
    expect(str(table) in listed, f"table {table} still in {LIST}", " ".join(listed))


@pytest.mark.after("test_daemon_holds_table")
def test_module_in_use_is_kept(host, generation, table):
    """the module can't be unloaded while it is in use"""
    refused = host.run("rmmod %s", generation.module)
    if refused.rc == 0:
        host.run("systemctl restart rtpengine.service")
    expect(refused.rc != 0 and "in use" in refused.stderr, "rmmod refused: in use",
           refused.stderr.strip() or "the module was unloaded")


@pytest.mark.after("test_module_control_files")
def test_table_added_and_deleted(host, read, find, generation, table):
    """a table can be added and deleted"""
    spare = 63 if table != 63 else 62
    added = host.run("echo add %s >%s", str(spare), CONTROL)
    try:
        expect(added.rc == 0, f"table {spare} added", added.stderr.strip())
        names = [path.rsplit("/", 1)[1] for path in find(f"/proc/rtpengine/{spare}/*")]
        expect(set(generation.files) <= set(names), f"{', '.join(generation.files)} in its directory", " ".join(names))
        listed = read(LIST)[LIST].split()
        expect(str(spare) in listed, f"table {spare} in {LIST}", " ".join(listed))
    finally:
        deleted = host.run("echo del %s >%s", str(spare), CONTROL)
    expect(deleted.rc == 0 and not find(f"/proc/rtpengine/{spare}"), f"table {spare} deleted",
           deleted.stderr.strip() or "its directory is still there")


@pytest.mark.after("test_daemon_holds_table")
@pytest.mark.parametrize("family", ["ip", "ip6"])
def test_rule_to_module(host, generation, table, family):
    """UDP packets are handed to the module"""
    rule = generation.rule(family, table)
    shown = host.run(rule.show).stdout.splitlines()
    expect(shown.count(rule.line) == 1, f"{family}: {rule.line}, once",
           "; ".join(line for line in shown if "rtpengine" in line.lower() or len(shown) == 1) or "no rule for it")
