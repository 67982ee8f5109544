"""A run's own SSH key pair, and the host keys of its servers, read from their consoles and pinned.

cloud-init prints a server's public host keys on the console between two lines (its module keys_to_console); the
console comes from the cloud, not over the network that a key is to protect.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.process import run as run_command
from harness.run import Run, write_whole

HOST_KEY_TYPE = "ssh-ed25519"
_BEGIN = "-----BEGIN SSH HOST KEY KEYS-----"
_END = "-----END SSH HOST KEY KEYS-----"
_CANDIDATE = re.compile(rf"{HOST_KEY_TYPE}\s+([A-Za-z0-9+/]+={{0,2}})")
_ED25519_OCTETS = 32


@dataclass(frozen=True)
class KeyPair:
    """`private` is a file of mode 0600, `public` one line as authorized_keys has it (sshd(8))."""

    private: Path
    public: str


def create(run: Run) -> KeyPair:
    """The run's ed25519 key pair, made on the first call: runs/<id>/ssh_key and ssh_key.pub.

    Raises CommandMissing where ssh-keygen is not installed.
    """
    private = run.directory / "ssh_key"
    public = private.with_suffix(".pub")
    if not public.exists():
        # A pair that was half made when its maker died is useless, and ssh-keygen would ask about it.
        private.unlink(missing_ok=True)
        run_command(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"dialtone-{run.id}", "-f", private],
                    stdin="")
    return KeyPair(private, public.read_text(encoding="ascii").strip())


def host_key_on(console: str) -> str | None:
    """The ed25519 host key (base64, RFC 8709) that `console` shows, None as long as it doesn't.

    Only a whole block counts; of several (a disk that booted as another instance) the last. A line that other
    console output was mixed into is not taken for a key.
    """
    for block in reversed(console.split(_BEGIN)[1:]):
        body, end, _ = block.partition(_END)
        if not end:
            continue
        for match in _CANDIDATE.finditer(body):
            if _is_key(match[1]):
                return match[1]
    return None


def _is_key(text: str) -> bool:
    try:
        blob = base64.b64decode(text, validate=True)
    except binascii.Error:
        return False
    name = HOST_KEY_TYPE.encode()
    return blob[:-_ED25519_OCTETS] == struct.pack(">I", len(name)) + name + struct.pack(">I", _ED25519_OCTETS)


def known_hosts(run: Run) -> Path:
    """The run's own known_hosts file (sshd(8), SSH_KNOWN_HOSTS FILE FORMAT)."""
    return run.directory / "known_hosts"


def pin(run: Run, names: Sequence[str], key: str) -> None:
    """Let the run know `key` as the host key of every one of `names` (aliases, addresses), and no other."""
    file = known_hosts(run)
    lines = file.read_text(encoding="ascii").splitlines() if file.exists() else []
    kept = [line for line in lines if not set(line.split(" ", 1)[0].split(",")) & set(names)]
    write_whole(file, "\n".join([*kept, f"{','.join(names)} {HOST_KEY_TYPE} {key}"]) + "\n")
