"""Cloud."""

import json
import re

import pytest

from harness.plugin import expect

ALLOWED = {
    # pattern: why it does no harm
}
STAGES = ("init-local", "init", "modules-config", "modules-final")

LEAST_GROWN = 0.88
"""Of the disk; the rest is boot partitions and what the file system needs for itself."""


@pytest.fixture(scope="module")
def state(read):
    """What cloud-init leaves below /run/cloud-init, by file."""
    files = read("/run/cloud-init/result.json", "/run/cloud-init/status.json", "/run/cloud-init/instance-data.json")
    return {path.rsplit("/", 1)[1]: json.loads(text)["v1"] for path, text in files.items()}


@pytest.fixture(scope="module")
def result(state):
    return state["result.json"]


def test_cloud_init_done(state, result):
    """cloud-init ended without errors"""
    expect(not result["errors"], "no errors in /run/cloud-init/result.json", "; ".join(result["errors"]))
    stages = state["status.json"]
    unfinished = [name for name in STAGES if not stages.get(name, {}).get("finished")]
    expect(not unfinished, "stages finished: " + ", ".join(STAGES), "not finished: " + ", ".join(unfinished))


def test_stages_share_interpreter(units, appliance):
    """one interpreter, started once, ran all stages of cloud-init"""
    release = appliance.debian
    ran = units[release.cloud_init]["StatusText"]
    expect(ran == release.ran, f"{release.cloud_init} says: {release.ran}", ran or "nothing")


def test_datasource_as_described(read, appliance, result, server):
    """cloud-init asks the data sources of the description, in that order, and used the cloud's"""
    configured = read("/etc/cloud/cloud.cfg", "/etc/cloud/cloud.cfg.d/*.cfg").values()
    lists = re.findall(r"^datasource_list:\s*\[(.*)\]", "\n".join(configured), re.MULTILINE)
    order = [name.strip() for name in lists[-1].split(",") if name.strip() != "None"] if lists else []
    expect(order == list(appliance.datasources), "datasource_list: " + ", ".join(appliance.datasources),
           ", ".join(order) or "no datasource_list")
    # cloud-init calls a source that it asks in its first stage, by an address of its own, ...Local.
    used = (result["datasource"] or "none").split()[0].removeprefix("DataSource").removesuffix("Local")
    wanted = [server.datasource] if server.datasource else appliance.datasources
    expect(used in wanted, f"data source {' or '.join(wanted)}", result["datasource"])


def test_key_injected(read, session):
    """the run's SSH key is the only one that lets anybody in"""
    own = session.config.with_name("ssh_key.pub").read_text(encoding="ascii").split()[1]
    files = read("/root/.ssh/authorized_keys*", "/home/*/.ssh/authorized_keys*")
    lines = [line for text in files.values() for line in text.splitlines()]
    # cloud-init puts a key for root behind a command that only says which user to take.
    usable = [line for line in lines if line.strip() and not line.startswith("#") and "no-port-forwarding" not in line]
    mine = [line for line in usable if own in line]
    expect(len(mine) == 1, "the run's key once", f"{len(mine)} times")
    expect(len(usable) == 1, "no other key", f"{len(usable) - 1} more")


def test_root_grown(host, read, find):
    """the root file system fills the disk"""
    size, device = host.check_output("findmnt --bytes --noheadings --output SIZE,SOURCE /").split()
    partition = device.removeprefix("/dev/")
    sectors = next(iter(read(f"/sys/block/*/{partition}/../size").values()))
    space, disk = int(size), 512 * int(sectors)
    expect(space >= LEAST_GROWN * disk, f"at least {LEAST_GROWN:.0%} of the disk's {disk / 1e9:.2f} GB",
           f"{space / 1e9:.2f} GB, {space / disk:.0%}")


def test_host_name_set(read, state):
    """the host name is the one that was asked for"""
    live, file, user_data = "/proc/sys/kernel/hostname", "/etc/hostname", "/var/lib/cloud/instance/user-data.txt"
    texts = read(live, file, user_data)
    asked = re.search(r"^(?:hostname|fqdn):\s*(\S+)", texts.get(user_data, ""), re.MULTILINE)
    wanted = (asked[1] if asked else state["instance-data.json"]["local_hostname"]).split(".")[0]
    seen = texts[live].strip()
    expect(seen == wanted, wanted, seen)
    static = texts.get(file, "").strip().split(".")[0]
    expect(static == wanted, f"{wanted} in /etc/hostname, for the next boot", static)


def test_cloud_init_warnings(read):
    """cloud-init warned of nothing"""
    log = read("/var/log/cloud-init.log").get("/var/log/cloud-init.log")
    expect(log is not None, "/var/log/cloud-init.log", "it is not there")
    bad = [line for line in log.splitlines() if re.search(r"\[(WARNING|ERROR|CRITICAL)\]|Traceback", line)]
    strange = [line for line in bad if not any(re.search(pattern, line) for pattern in ALLOWED)]
    expect(not strange, "no warnings in /var/log/cloud-init.log", "; ".join(strange[:3]))
