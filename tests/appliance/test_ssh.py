"""Remote access."""

import pytest

from harness.plugin import expect

SLACK = 120
"""Seconds between the machine's id and its host key, made in the same boot."""


@pytest.fixture(scope="module")
def sshd(host):
    """sshd's settings in force, names in lower case: newer versions print them as the manual has them."""
    lines = [line.partition(" ") for line in host.check_output("/usr/sbin/sshd -T").splitlines()]
    return {name.lower(): [value for key, _, value in lines if key == name] for name, _, _ in lines}


def test_host_key_types(find):
    """the only host key is of type ed25519"""
    files = [path.removeprefix("/etc/ssh/") for path in find("/etc/ssh/ssh_host_*_key")]
    expect(files == ["ssh_host_ed25519_key"], "ssh_host_ed25519_key", ", ".join(files))


def test_host_key_made_here(host):
    """the host key was made on this server, at its first boot"""
    times = host.check_output("stat -c %Y /etc/machine-id /etc/ssh/ssh_host_ed25519_key").split()
    born, key = map(int, times)
    expect(key >= born - SLACK, "a host key not older than /etc/machine-id", f"{born - key} s older",
           "it was in the image: every server of this image has it")


def test_no_password_login(read, sshd):
    """nobody gets in by a password"""
    for name in ("passwordauthentication", "kbdinteractiveauthentication", "permitemptypasswords"):
        expect(sshd.get(name) == ["no"], f"sshd: {name} no", ", ".join(sshd.get(name, ["not set"])))
    entries = [line.split(":") for line in read("/etc/shadow")["/etc/shadow"].splitlines()]
    usable = [entry[0] for entry in entries if not entry[1].startswith(("!", "*"))]
    expect(not usable, "no account with a password", ", ".join(usable))
