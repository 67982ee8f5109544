"""The config drive of a server: an ISO 9660 file system labelled config-2, as Nova makes it.

Source: the OpenStack metadata format (Nova's documentation, "Metadata service" and "Config drives").
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.process import run

PROGRAM = "genisoimage"
LABEL = "config-2"


@dataclass(frozen=True)
class Instance:
    """What a server is told about itself; `public_key` is one line of OpenSSH's format, `mtu` is in bytes.

    `internal_ipv6` is empty, or of a network with a prefix of 64 bits.
    """

    uuid: str
    name: str
    public_key: str
    user_data: str
    mac: str
    network_id: str
    internal_ip: str
    internal_ipv6: str
    floating_ip: str
    mtu: int = 1500
    metadata: Mapping[str, str] = field(default_factory=dict)


def files(instance: Instance) -> dict[str, str]:
    """The content of the drive by path."""
    key = instance.public_key.strip()
    metadata: dict[str, Any] = {
        "uuid": instance.uuid,
        "name": instance.name,
        "hostname": instance.name,
        "availability_zone": "local",
        "launch_index": 0,
        "public_keys": {"dialtone": key},
        "keys": [{"name": "dialtone", "type": "ssh", "data": key}],
        "meta": dict(instance.metadata),
    }
    network: dict[str, Any] = {
        "links": [{"id": "tap0", "type": "tap", "ethernet_mac_address": instance.mac, "mtu": instance.mtu}],
        "networks": [{"id": "network0", "type": "ipv4_dhcp", "link": "tap0", "network_id": instance.network_id}],
        "services": [],
    }
    if instance.internal_ipv6:
        network["networks"].append({
            "id": "network1", "type": "ipv6", "link": "tap0", "network_id": instance.network_id,
            "ip_address": instance.internal_ipv6, "netmask": "ffff:ffff:ffff:ffff::", "routes": []})
    ec2 = {
        "instance-id": instance.uuid,
        "local-hostname": instance.name,
        "local-ipv4": instance.internal_ip,
        "public-ipv4": instance.floating_ip,
    }
    return {
        "openstack/latest/meta_data.json": json.dumps(metadata),
        "openstack/latest/network_data.json": json.dumps(network),
        "openstack/latest/vendor_data.json": "{}",
        "openstack/latest/user_data": instance.user_data,
        "ec2/latest/meta-data.json": json.dumps(ec2),
    }


def tree(drive: Path) -> Path:
    """The directory in which the files of `drive` lie while it is written."""
    return drive.with_suffix(".tree")


def write(content: Mapping[str, str], drive: Path, deadline: Deadline) -> None:
    """Write `content` to the ISO file `drive`, readable by its owner only, for user-data may hold secrets.

    Raises CommandMissing, CommandFailed.
    """
    drive.touch(mode=0o600)
    top = tree(drive)
    top.mkdir(mode=0o700)
    for name, text in content.items():
        path = top / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    run([PROGRAM, "-quiet", "-joliet", "-rock", "-volid", LABEL, "-output", drive, top], deadline=deadline)
    shutil.rmtree(top)
