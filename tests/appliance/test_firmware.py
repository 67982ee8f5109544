"""Firmware."""

from harness.firmware import Firmware
from harness.plugin import expect

EFI = "/sys/firmware/efi"
SECURE_BOOT = f"{EFI}/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def test_firmware(find, read, server):
    """the server came up by the firmware that it was to start by"""
    seen = Firmware.BIOS
    if find(EFI):
        # Four octets of attributes, then the variable's only one (UEFI specification 2.10, 8.2).
        on = read(SECURE_BOOT).get(SECURE_BOOT, "").endswith("\1")
        seen = Firmware.SECURE_BOOT if on else Firmware.UEFI
    expect(seen is server.firmware, server.firmware, seen)
