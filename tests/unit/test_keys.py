import base64
import os
import stat
import struct
from pathlib import Path

import pytest

from harness.access import keys
from harness.run import Run


def blob(octet: int, kind: bytes = b"ssh-ed25519") -> str:
    return base64.b64encode(struct.pack(">I", len(kind)) + kind + struct.pack(">I", 32) + bytes([octet]) * 32).decode()


def block(*lines: str) -> str:
    return "\r\n".join(["-----BEGIN SSH HOST KEY KEYS-----", *lines, "-----END SSH HOST KEY KEYS-----", ""])


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs", "relay", "local")


def test_a_key_pair_is_private_and_made_once(run: Run) -> None:
    pair = keys.create(run)
    assert stat.S_IMODE(pair.private.stat().st_mode) == 0o600
    assert pair.public.startswith("ssh-ed25519 ") and pair.public.endswith(f"dialtone-{run.id}")
    assert keys.create(run) == pair


def test_a_half_made_pair_is_made_anew(run: Run) -> None:
    (run.directory / "ssh_key").write_text("half")
    assert "PRIVATE KEY" in keys.create(run).private.read_text()


def test_the_host_key_is_read_from_the_console() -> None:
    console = "[  1.0] Linux\r\n" + block(f"ecdsa-sha2-nistp256 {blob(1)} root@a", f"ssh-ed25519 {blob(2)} root@a")
    assert keys.host_key_on(console) == blob(2)


def test_a_block_that_is_not_whole_yet_does_not_count() -> None:
    assert keys.host_key_on(block(f"ssh-ed25519 {blob(2)} root@a").split("-----END")[0]) is None
    assert keys.host_key_on("") is None


def test_the_last_of_several_blocks_counts() -> None:
    console = block(f"ssh-ed25519 {blob(1)} root@a") + "login:\n" + block(f"ssh-ed25519 {blob(2)} root@b")
    assert keys.host_key_on(console) == blob(2)
    assert keys.host_key_on(console + "-----BEGIN SSH HOST KEY KEYS-----\r\nssh-ed") == blob(2)


@pytest.mark.parametrize("line", [
    f"ssh-ed25519 {blob(2)[:30]}[   12.3] random: crng init done",
    f"ssh-ed25519 {blob(2, b'ssh-ed25518')}",
    f"ssh-ed25519 {blob(2)[:-8]}",
    "ssh-ed25519 =",
])
def test_a_spoilt_line_is_no_key(line: str) -> None:
    assert keys.host_key_on(block(line)) is None


def test_a_pin_replaces_older_ones_of_the_same_names(run: Run) -> None:
    keys.pin(run, ["server1", "10.0.0.2"], blob(1))
    keys.pin(run, ["server2", "10.0.0.3"], blob(2))
    keys.pin(run, ["server1", "10.0.0.4"], blob(3))
    assert keys.known_hosts(run).read_text().splitlines() == [
        f"server2,10.0.0.3 ssh-ed25519 {blob(2)}", f"server1,10.0.0.4 ssh-ed25519 {blob(3)}"]
    assert not os.access(keys.known_hosts(run), os.X_OK)
