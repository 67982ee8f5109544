"""UEFI for virtual machines: OVMF's code, and a variable store of the server's own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from harness.cloud.qemu import Uefi
from harness.deadline import Deadline
from harness.errors import HostError
from harness.firmware import Firmware
from harness.process import CommandFailed, run
from harness.resources import Resource
from harness.run import Journal

OVMF = Path("/usr/share/OVMF")
CODE = {Firmware.UEFI: "OVMF_CODE_4M.fd", Firmware.SECURE_BOOT: "OVMF_CODE_4M.secboot.fd"}
VARIABLES = {Firmware.UEFI: "OVMF_VARS_4M.fd", Firmware.SECURE_BOOT: "OVMF_VARS_4M.ms.fd"}
"""The second knows the keys of Microsoft, who signs shim, and turns Secure Boot on."""
FLASH = 4 << 20
"""Octets of code and variable store together: one flash chip, cut in two."""

_SHIM = "605dab50-e046-4300-abb6-3dd810dd8b23"
"""Owner of the keys that shim keeps (shim's lib/guid.c)."""


def look(firmware: Firmware) -> None:
    """Whether this machine has what starts servers by `firmware`; makes nothing. Raises HostError as prepare()."""
    if firmware is not Firmware.BIOS:
        _parts(firmware)


def prepare(firmware: Firmware, directory: Path, journal: Journal, certificate: Path | None, deadline: Deadline
            ) -> Uefi | None:
    """What a server in `directory` starts by: None for BIOS, else with a variable store of its own there.

    With Secure Boot the owner of `certificate` is enrolled as a machine owner (MOK): shim hands the key to the kernel,
    which then trusts modules that it signed.

    Raises HostError where OVMF is missing, or its two parts don't fit each other.
    """
    if firmware is Firmware.BIOS:
        return None
    code, template = _parts(firmware)
    variables = directory / "variables.fd"
    journal.creating(Resource("path", os.fspath(variables)))
    variables.touch(mode=0o600)
    variables.write_bytes(template.read_bytes())
    if firmware is Firmware.SECURE_BOOT and certificate:
        _enrol(certificate, variables, deadline)
    return Uefi(code, variables, firmware is Firmware.SECURE_BOOT)


def _parts(firmware: Firmware) -> tuple[Path, Path]:
    """OVMF's code, and what a new variable store is a copy of."""
    code, template = OVMF / CODE[firmware], OVMF / VARIABLES[firmware]
    try:
        sizes = code.stat().st_size, template.stat().st_size
    except OSError as error:
        raise HostError(f"{error.filename}: {error.strerror}: there is no UEFI for virtual machines here",
                        hint="apt-get install ovmf, or ./inv host --install") from error
    if sum(sizes) != FLASH:
        raise HostError(f"{template} has {sizes[1]} octets, and {FLASH - sizes[0]} are left beside {code.name}",
                        hint="apt-get install --reinstall ovmf")
    return code, template


def _enrol(certificate: Path, variables: Path, deadline: Deadline) -> None:
    try:
        run([Path(sys.executable).with_name("virt-fw-vars"), "--inplace", variables, "--add-mok", _SHIM, certificate],
            deadline=deadline)
    except CommandFailed as error:
        raise HostError(f"{certificate} can't be enrolled in a variable store of OVMF", excerpt=error.excerpt,
                        hint="a certificate in PEM form is needed") from error
