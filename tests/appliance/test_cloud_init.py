"""Cloud."""

import json
import re

import pytest

from harness.plugin import expect

ALLOWED = {
    # pattern: why it does no harm
}
EXPECTED_DATASOURCE = {"local": "ConfigDrive"}
"""What a cloud offers, where the description leaves several; other clouds offer any of the description's."""

STAGES = ("init-local", "init", "modules-config", "modules-final")

LEAST_GROWN = 0.88
"""Of the disk; the rest is boot partitions and what the file system needs for itself."""


@pytest.fixture(scope="module")
def result(host):
    """/run/cloud-init/result.json"""
    return json.loads(host.check_output("cat /run/cloud-init/result.json"))["v1"]


def test_cloud_init_done(host, result):
    """cloud-init ended without errors"""
    expect(not result["errors"], "no errors in /run/cloud-init/result.json", "; ".join(result["errors"]))
    stages = json.loads(host.check_output("cat /run/cloud-init/status.json"))["v1"]
    unfinished = [name for name in STAGES if not stages.get(name, {}).get("finished")]
    expect(not unfinished, "stages finished: " + ", ".join(STAGES), "not finished: " + ", ".join(unfinished))


def test_datasource_as_described(host, appliance, result, cloud_name):
    """cloud-init asks the data sources of the description, in that order, and used the cloud's"""
    configured = host.run("cat /etc/cloud/cloud.cfg /etc/cloud/cloud.cfg.d/*.cfg").stdout
    lists = re.findall(r"^datasource_list:\s*\[(.*)\]", configured, re.MULTILINE)
    order = [name.strip() for name in lists[-1].split(",") if name.strip() != "None"] if lists else []
    expect(order == list(appliance.datasources), "datasource_list: " + ", ".join(appliance.datasources),
           ", ".join(order) or "no datasource_list")
    used = (result["datasource"] or "none").split()[0].removeprefix("DataSource")
    wanted = EXPECTED_DATASOURCE.get(cloud_name)
    expect(used == wanted if wanted else used in appliance.datasources,
           f"data source {wanted or 'one of ' + ', '.join(appliance.datasources)}", result["datasource"])


def test_key_injected(host, appliance, session):
    """the run's SSH key is the only one that lets anybody in"""
    own = session.config.with_name("ssh_key.pub").read_text(encoding="ascii").split()[1]
    lines = host.run("cat /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys 2>/dev/null").stdout.splitlines()
    # cloud-init puts a key for root behind a command that only says which user to take.
    usable = [line for line in lines if line.strip() and not line.startswith("#") and "no-port-forwarding" not in line]
    mine = [line for line in usable if own in line]
    expect(len(mine) == 1, "the run's key once", f"{len(mine)} times")
    expect(len(usable) == 1, "no other key", f"{len(usable) - 1} more")


def test_root_grown(host):
    """the root file system fills the disk"""
    space = int(host.check_output("df --block-size=1 --output=size / | tail -n 1"))
    device = host.check_output("lsblk -no PKNAME $(findmnt -no SOURCE /)")
    disk = 512 * int(host.check_output("cat /sys/class/block/%s/size", device))
    expect(space >= LEAST_GROWN * disk, f"at least {LEAST_GROWN:.0%} of the disk's {disk / 1e9:.2f} GB",
           f"{space / 1e9:.2f} GB, {space / disk:.0%}")


def test_host_name_set(host):
    """the host name is the one that was asked for"""
    asked = re.search(r"^(?:hostname|fqdn):\s*(\S+)",
                      host.run("cat /var/lib/cloud/instance/user-data.txt").stdout, re.MULTILINE)
    metadata = json.loads(host.check_output("cat /run/cloud-init/instance-data.json"))["v1"]["local_hostname"]
    wanted = (asked[1] if asked else metadata).split(".")[0]
    seen = host.check_output("hostname")
    expect(seen == wanted, wanted, seen)
    static = host.check_output("cat /etc/hostname").split(".")[0]
    expect(static == wanted, f"{wanted} in /etc/hostname, for the next boot", static)


def test_cloud_init_warnings(host):
    """cloud-init warned of nothing"""
    lines = host.run("grep -hE ' - [a-z_.A-Z]+\\[(WARNING|ERROR|CRITICAL)\\]|Traceback' /var/log/cloud-init.log")
    strange = [line for line in lines.stdout.splitlines() if not any(re.search(p, line) for p in ALLOWED)]
    expect(not strange, "no warnings in /var/log/cloud-init.log", "; ".join(strange[:3]))
