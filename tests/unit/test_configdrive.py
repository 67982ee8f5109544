"""What the config drive says; that a guest reads it is for the integration tests."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cloud import configdrive
from harness.deadline import Deadline
from tests.conftest import lacking

INSTANCE = configdrive.Instance(
    uuid="a63c1954-e412-4b79-be24-4901c8559f69", name="server1", public_key="ssh-ed25519 AAAA me\n",
    user_data="#cloud-config\n", mac="fa:16:3e:61:16:0a", network_id="n", internal_ip="10.64.0.10",
    internal_ipv6="fd00::a", floating_ip="198.18.77.1", metadata={"rtpengine_advertised": "198.18.77.1"})


def test_metadata_names_server_and_key() -> None:
    data = json.loads(configdrive.files(INSTANCE)["openstack/latest/meta_data.json"])
    assert data["uuid"] == INSTANCE.uuid
    assert data["public_keys"] == {"dialtone": "ssh-ed25519 AAAA me"}
    assert data["meta"] == {"rtpengine_advertised": "198.18.77.1"}


def test_network_is_dhcp_on_the_server_s_mac_and_a_fixed_ipv6_address() -> None:
    data = json.loads(configdrive.files(INSTANCE)["openstack/latest/network_data.json"])
    assert data["links"][0]["ethernet_mac_address"] == INSTANCE.mac
    assert data["networks"] == [{"id": "network0", "type": "ipv4_dhcp", "link": data["links"][0]["id"],
                                 "network_id": "n"},
                                {"id": "network1", "type": "ipv6", "link": data["links"][0]["id"], "network_id": "n",
                                 "ip_address": "fd00::a", "netmask": "ffff:ffff:ffff:ffff::", "routes": []}]
    without = configdrive.files(replace(INSTANCE, internal_ipv6=""))["openstack/latest/network_data.json"]
    assert json.loads(without)["networks"] == data["networks"][:1]


def test_user_data_is_passed_as_it_is() -> None:
    assert configdrive.files(INSTANCE)["openstack/latest/user_data"] == "#cloud-config\n"


def test_addresses_are_in_the_ec2_part() -> None:
    data = json.loads(configdrive.files(INSTANCE)["ec2/latest/meta-data.json"])
    assert (data["local-ipv4"], data["public-ipv4"]) == ("10.64.0.10", "198.18.77.1")


def test_drive_is_labelled_private_and_whole(tmp_path: Path) -> None:
    for program in (configdrive.PROGRAM, "isoinfo"):
        if shutil.which(program) is None:
            lacking(f"{program} is not installed")
    drive = tmp_path / "config.iso"
    content = configdrive.files(INSTANCE)
    configdrive.write(content, drive, Deadline(20))
    described = subprocess.run(["isoinfo", "-d", "-i", drive], capture_output=True, text=True, check=True).stdout
    assert "Volume id: config-2" in described
    assert drive.stat().st_mode & 0o777 == 0o600
    for name, text in content.items():
        read = subprocess.run(["isoinfo", "-R", "-x", f"/{name}", "-i", drive], capture_output=True, check=True)
        assert read.stdout.decode() == text
    assert list(tmp_path.iterdir()) == [drive]


@pytest.mark.parametrize("name", ["openstack/latest/vendor_data.json", "openstack/latest/meta_data.json"])
def test_every_json_file_is_an_object(name: str) -> None:
    assert isinstance(json.loads(configdrive.files(INSTANCE)[name]), dict)
