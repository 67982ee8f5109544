"""UEFI for servers: what QEMU is told, what is copied, what is refused, what a cloud is told."""

from __future__ import annotations

import itertools
import json
import ssl
from pathlib import Path

import pytest
from virt.firmware.varstore.edk2 import Edk2VarStore

from harness.cloud import Server, glance, qemu, uefi
from harness.deadline import Deadline
from harness.errors import HostError
from harness.firmware import Firmware
from harness.resources import Resource
from harness.run import Run
from tests.conftest import lacking
from tests.unit.test_qemu import machine
from tests.unit.test_signing import pair


@pytest.fixture
def ovmf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of OVMF's sizes."""
    directory = tmp_path / "OVMF"
    directory.mkdir()
    for firmware, name in uefi.CODE.items():
        (directory / name).write_bytes(bytes(uefi.FLASH - 540672))
        (directory / uefi.VARIABLES[firmware]).write_bytes(firmware.encode().ljust(540672, b"\xff"))
    monkeypatch.setattr(uefi, "OVMF", directory)
    return directory


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs", "x", "local")


def arguments(flash: qemu.Uefi | None) -> list[tuple[str, str]]:
    made = machine(Path("/r"))
    return list(itertools.pairwise(qemu.command(qemu.Machine(**{**vars(made), "uefi": flash}))))


def test_a_server_has_a_variable_store_of_its_own(ovmf: Path, run: Run) -> None:
    flash = uefi.prepare(Firmware.SECURE_BOOT, run.directory, run.journal, None, Deadline(60))
    assert flash and flash.secure and flash.code == ovmf / "OVMF_CODE_4M.secboot.fd"
    assert flash.variables.read_bytes() == (ovmf / "OVMF_VARS_4M.ms.fd").read_bytes()
    assert flash.variables.stat().st_mode & 0o777 == 0o600
    assert run.journal.outstanding() == [Resource("path", str(flash.variables))]


def test_a_bios_needs_nothing(run: Run) -> None:
    assert uefi.prepare(Firmware.BIOS, run.directory, run.journal, None, Deadline(60)) is None
    assert run.journal.outstanding() == []
    assert ("-machine", "q35") in arguments(None)
    assert not any("pflash" in word for pair in arguments(None) for word in pair)


def test_uefi_is_in_the_machines_flash() -> None:
    told = arguments(qemu.Uefi(Path("/o,vmf/code"), Path("/r/variables.fd"), False))
    assert ("-drive", "if=pflash,unit=0,format=raw,readonly=on,file=/o,,vmf/code") in told
    assert ("-drive", "if=pflash,unit=1,format=raw,file=/r/variables.fd") in told
    assert ("-machine", "q35") in told


def test_secure_boot_lets_only_the_firmware_write_variables() -> None:
    told = arguments(qemu.Uefi(Path("/code"), Path("/variables"), True))
    assert ("-machine", "q35,smm=on") in told
    assert ("-global", "driver=cfi.pflash01,property=secure,value=on") in told


@pytest.mark.parametrize("name", ["OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"])
def test_without_ovmf(ovmf: Path, run: Run, name: str) -> None:
    (ovmf / name).unlink()
    with pytest.raises(HostError, match=f"{name}: No such file") as raised:
        uefi.prepare(Firmware.UEFI, run.directory, run.journal, None, Deadline(60))
    assert "ovmf" in (raised.value.hint or "")
    assert run.journal.outstanding() == []


def test_a_variable_store_of_the_wrong_size(ovmf: Path, run: Run) -> None:
    (ovmf / "OVMF_VARS_4M.fd").write_bytes(bytes(131072))
    with pytest.raises(HostError, match=r"has 131072 octets, and 540672 are left beside OVMF_CODE_4M\.fd"):
        uefi.prepare(Firmware.UEFI, run.directory, run.journal, None, Deadline(60))
    assert run.journal.outstanding() == []


def test_a_server_remembers_its_firmware() -> None:
    server = Server("s", "1", "debian", "10.0.0.1", "", (), Path("/c"), firmware=Firmware.UEFI)
    assert Server.from_json(server.to_json()) == server
    before = json.loads(server.to_json())
    del before["firmware"]
    assert Server.from_json(json.dumps(before)).firmware is Firmware.BIOS


@pytest.mark.parametrize(("firmware", "properties"), [
    (Firmware.BIOS, {}),
    (Firmware.UEFI, {"hw_firmware_type": "uefi", "hw_machine_type": "q35"}),
    (Firmware.SECURE_BOOT, {"hw_firmware_type": "uefi", "hw_machine_type": "q35", "os_secure_boot": "required"}),
])
def test_an_image_tells_a_cloud_its_firmware(tmp_path: Path, firmware: Firmware, properties: dict[str, str]) -> None:
    file = tmp_path / "image.qcow2"
    file.write_bytes(b"QFI")
    sent = glance.file_of(file, "a" * 64, "relay", "owner", "run", manifest_sha256="", min_disk=1, min_ram=64,
                          firmware=firmware)
    names = ("hw_firmware_type", "hw_machine_type", "os_secure_boot")
    assert {k: v for k, v in sent.properties.items() if k in names} == properties
    assert sent.name == f"relay-{'a' * 12}" + ("" if firmware is Firmware.BIOS else f"-{firmware}")


def test_an_owners_certificate_is_enrolled(run: Run, tmp_path: Path) -> None:
    if not (uefi.OVMF / uefi.VARIABLES[Firmware.SECURE_BOOT]).exists():
        lacking("ovmf is not installed")
    _, certificate = pair(tmp_path, "owner")
    before = Edk2VarStore(str(uefi.OVMF / uefi.VARIABLES[Firmware.SECURE_BOOT])).get_varlist()
    flash = uefi.prepare(Firmware.SECURE_BOOT, run.directory, run.journal, certificate, Deadline(60))
    assert flash
    after = Edk2VarStore(str(flash.variables)).get_varlist()
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    assert "MokList" not in before and der in after["MokList"].data
    assert {name: after[name].data for name in ("PK", "KEK", "db", "dbx", "SecureBootEnable")} == {
        name: before[name].data for name in ("PK", "KEK", "db", "dbx", "SecureBootEnable")}
    assert flash.variables.stat().st_size == uefi.FLASH - flash.code.stat().st_size


def test_what_is_no_certificate_is_not_enrolled(ovmf: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no certificate")
    with pytest.raises(HostError, match="text can't be enrolled"):
        uefi.prepare(Firmware.SECURE_BOOT, run.directory, run.journal, tmp_path / "text", Deadline(60))
