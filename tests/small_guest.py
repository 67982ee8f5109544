"""Guests of a few bytes: enough to see a machine boot, be reset, and end."""

from __future__ import annotations

import subprocess
from pathlib import Path

from harness.cloud import ServerSpec

GREETING = "hello from the guest"

_PRINT = "31 c0 8e d8 ba f8 03 be 00 00 fc"  # ds = 0, dx = COM1, si = message
_LOOP = "ac 84 c0 74 03 ee eb f8"            # lodsb; out dx, al until the byte is 0
_HALT = "f4 eb fd"
_POWER_OFF = "ba 04 06 b8 00 20 ef"          # out 0x604, 0x2000: ACPI's S5 of a q35 machine


def sector(*, ends: bool = False) -> bytes:
    """A boot sector that prints GREETING to the first serial port and halts, or powers the machine off."""
    code = bytearray.fromhex(_PRINT + _LOOP + (_POWER_OFF if ends else "") + _HALT)
    code[8:10] = (0x7C00 + len(code)).to_bytes(2, "little")
    return (bytes(code) + GREETING.encode() + b"\r\n\0").ljust(510, b"\0") + b"\x55\xaa"


def image(path: Path, *, ends: bool = False) -> Path:
    """A compressed qcow2 image of such a guest."""
    raw = path.with_suffix(".sector")
    raw.write_bytes(sector(ends=ends) + bytes(1 << 20))
    subprocess.run(["qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", raw, path], check=True)
    raw.unlink()
    return path


def spec(image: Path, name: str = "server1", ports: tuple[str, ...] = ()) -> ServerSpec:
    """A server of 64 MiB."""
    return ServerSpec(name, str(image), "debian", "ssh-ed25519 AAAA test", "#cloud-config\n", memory=64, cpus=1, disk=1,
                      ports=ports)
