"""What starts a server: BIOS, UEFI, or UEFI that starts signed programs only."""

from __future__ import annotations

from enum import StrEnum


class Firmware(StrEnum):
    """`SECURE_BOOT` is UEFI with Secure Boot on: a kernel that it starts takes signed modules only."""

    BIOS = "bios"
    UEFI = "uefi"
    SECURE_BOOT = "secure-boot"
