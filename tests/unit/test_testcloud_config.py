import re
from configparser import ConfigParser
from dataclasses import fields
from pathlib import Path

import pytest

from harness.errors import DescriptionError
from harness.settings import Settings
from harness.testcloud.config import LOGINS, PORTS, Addresses, Secrets, SshIdentity, addresses_of, logins, render

ADDRESSES = addresses_of(Settings(Path("/p")))
SECRETS = Secrets(*(f"{field.name}-secret" for field in fields(Secrets)))
SSH = SshIdentity("host key", "stack's key")
FILES = {file.path: file for file in render(ADDRESSES, SECRETS, SSH, volumes=True)}


def _ini(path: str) -> ConfigParser:
    parser = ConfigParser(interpolation=None)
    parser.read_string(FILES[path].text)
    return parser


def test_nothing_is_left_to_fill_in():
    for file in FILES.values():
        if not file.text.startswith("#!"):
            assert not re.search(r"\$\w|\$\{", file.text), file.path


def test_secrets_are_random_and_not_shown():
    first, second = Secrets.generate(), Secrets.generate()
    values = [getattr(s, field.name) for s in (first, second) for field in fields(Secrets)]
    assert len(set(values)) == len(values) and all(re.fullmatch(r"[0-9a-f]{32}", value) for value in values)
    assert not any(value in repr(first) for value in values)


@pytest.mark.parametrize("secret", [field.name for field in fields(Secrets)])
def test_no_secret_is_in_a_file_that_all_can_read(secret):
    holders = [file for file in FILES.values() if f"{secret}-secret" in file.text]
    assert [file.path for file in holders if file.mode & 0o007] == []
    # people's passwords are in the database and in clouds.yaml, not in the node's files
    assert bool(holders) is (secret not in {"admin", "user", "other"})


def test_a_service_can_read_its_own_configuration_and_no_other():
    assert (FILES["/etc/nova/nova.conf"].group, FILES["/etc/nova/nova.conf"].mode) == ("nova", 0o640)
    assert FILES["/etc/neutron/plugins/ml2/ml2_conf.ini"].group == "neutron"
    assert FILES["/etc/sudoers.d/testcloud"].mode == 0o440
    assert FILES["/etc/ssh/host_key"].mode == 0o600


@pytest.mark.parametrize("user", LOGINS.values())
def test_every_service_logs_in_as_itself(user):
    path = {"neutron": "neutron/neutron.conf", "nova": "nova/nova.conf", "glance": "glance/glance-api.conf",
            "placement": "placement/placement.conf", "cinder": "cinder/cinder.conf"}[user]
    section = _ini(f"/etc/{path}")["keystone_authtoken"]
    assert (section["username"], section["password"]) == (user, "service-secret")
    assert section["auth_url"] == "http://198.19.255.2:5000/v3"


def test_a_node_without_volumes_has_no_file_and_no_account_for_them():
    plain = {file.path for file in render(ADDRESSES, SECRETS, SSH, volumes=False)}
    assert set(FILES) - plain == {"/etc/cinder/cinder.conf", "/etc/testcloud/volumes.sql", "/usr/sbin/mount.nfs"}
    assert set(logins(volumes=True).values()) - set(logins(volumes=False).values()) == {"cinder"}


def test_a_share_is_mounted_by_a_program_that_all_can_run():
    """What the template leaves of the shell's own dollars."""
    helper = FILES["/usr/sbin/mount.nfs"]
    assert helper.mode == 0o755 and '"${1#*:}" "$2"' in helper.text


def test_databases_are_named_after_their_services():
    nova = _ini("/etc/nova/nova.conf")
    assert nova["api_database"]["connection"].startswith("mysql+pymysql://nova:database-secret@localhost/nova_api?")
    assert nova["database"]["connection"].startswith("mysql+pymysql://nova:database-secret@localhost/nova?")


def test_the_host_reaches_the_apis_and_nothing_else():
    text = FILES["/etc/testcloud/filter"].text
    ports = re.search(r"dport != \{ ([\d, ]+) \} drop", text)
    assert ports and {int(port) for port in ports[1].split(",")} == set(PORTS.values())
    assert 'iifname "uplink" ip saddr != 198.19.255.1 drop' in text


def test_only_the_node_s_own_user_logs_in_by_key():
    text = FILES["/etc/ssh/sshd_testcloud"].text
    assert "AllowUsers stack" in text and "PasswordAuthentication no" in text
    assert "ListenAddress 198.19.255.2" in text


def test_addresses():
    chosen = addresses_of(Settings(Path("/p"), testcloud_link="10.9.8.4/30", testcloud_external="10.9.0.0/24"))
    assert (str(chosen.host), str(chosen.node)) == ("10.9.8.5", "10.9.8.6")
    assert (str(chosen.outside), str(chosen.bridge)) == ("10.9.0.1", "10.9.0.2")
    assert chosen.url("compute") == "http://10.9.8.6:8774/v2.1"
    assert isinstance(chosen, Addresses)


@pytest.mark.parametrize(("names", "complaint"), [
    ({"testcloud_link": "nonsense"}, "testcloud_link is 'nonsense'"),
    ({"testcloud_link": "10.0.0.0/31"}, "testcloud_link is '10.0.0.0/31'"),
    ({"testcloud_external": "fd00::/64"}, "testcloud_external is 'fd00::/64'"),
    ({"testcloud_external": "198.19.255.0/24"}, "overlap"),
])
def test_addresses_that_can_t_be(names, complaint):
    with pytest.raises(DescriptionError, match=re.escape(complaint)):
        addresses_of(Settings(Path("/p"), **names))
