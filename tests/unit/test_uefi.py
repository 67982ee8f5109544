"""UEFI for servers: what QEMU is told, what is copied, what is refused, what a cloud is told."""

from __future__ import annotations

import io
import itertools
import json
import ssl
from pathlib import Path

import pytest
from virt.firmware.varstore.edk2 import Edk2VarStore

from harness import host
from harness.access import shell
from harness.access.readiness import Ready
from harness.cloud import Server, glance, nova, qemu, uefi
from harness.cloud.local import LocalCloud
from harness.deadline import Deadline
from harness.errors import DescriptionError, HostError
from harness.firmware import Firmware
from harness.image import build
from harness.nightly import nightly
from harness.progress import Progress
from harness.resources import Resource
from harness.run import Run
from harness.settings import Settings
from harness.stages import Work
from tests import small_image
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
    uefi.look(Firmware.BIOS)
    uefi.look(Firmware.SECURE_BOOT)
    with pytest.raises(HostError, match=f"{name}: No such file"):
        uefi.look(Firmware.UEFI)


def test_a_variable_store_of_the_wrong_size(ovmf: Path, run: Run) -> None:
    (ovmf / "OVMF_VARS_4M.fd").write_bytes(bytes(131072))
    with pytest.raises(HostError, match=r"has 131072 octets, and 540672 are left beside OVMF_CODE_4M\.fd"):
        uefi.prepare(Firmware.UEFI, run.directory, run.journal, None, Deadline(60))
    assert run.journal.outstanding() == []


def test_a_night_that_has_no_uefi_ends_before_its_build(ovmf: Path, run: Run, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    (ovmf / "OVMF_VARS_4M.fd").write_bytes(bytes(131072))
    monkeypatch.setattr(host, "prepare", lambda *_, **__: None)
    settings = Settings.load(tmp_path, {}, firmware="uefi")
    work = Work(settings, small_image.appliance(), LocalCloud(settings), run, Progress(io.StringIO()))
    with pytest.raises(HostError, match="has 131072 octets"):
        nightly(work)
    assert [(stage.name, stage.outcome) for stage in run.stages] == [("host", "failed")]


def test_a_cloud_gets_an_image_that_booted_here_by_the_same_firmware(run: Run, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    booted: list[str] = []
    machine_of_gate = Resource("path", str(tmp_path / "machine"))

    def boot(work: Work, *_: object) -> list[tuple[None, Ready]]:
        booted.append(work.settings.firmware)
        work.run.journal.creating(machine_of_gate)
        return [(None, Ready("", {}, "", (), "running"))]

    def closed_while_it_runs(run: Run) -> None:
        assert machine_of_gate in run.journal.outstanding()

    monkeypatch.setattr(Work, "_boot", boot)
    monkeypatch.setattr(shell, "close_all", closed_while_it_runs)
    monkeypatch.setattr(LocalCloud, "describe", lambda cloud: "local")
    image = build.Image(tmp_path / "image.qcow2", "", 0, "", "", tmp_path, tmp_path, False, {}, {}, ())
    for firmware in ("bios", "secure-boot", "bios", "secure-boot"):
        settings = Settings.load(tmp_path, {}, firmware=firmware)
        cloud = LocalCloud(settings)
        monkeypatch.setattr(cloud, "uploads", True)
        Work(settings, small_image.appliance(), cloud, run, Progress(io.StringIO())).gate(image)
    assert booted == ["bios", "secure-boot"]


def test_no_module_is_delivered_that_secure_boot_would_refuse(run: Run, tmp_path: Path) -> None:
    settings = Settings.load(tmp_path, {}, firmware="secure-boot")
    work = Work(settings, small_image.appliance(), LocalCloud(settings), run, Progress(io.StringIO()))
    with pytest.raises(DescriptionError, match="Secure Boot take no module that is not signed"):
        work.module()


def test_a_server_remembers_its_firmware() -> None:
    server = Server("s", "1", "debian", "10.0.0.1", "", (), Path("/c"), firmware=Firmware.UEFI)
    assert Server.from_json(server.to_json()) == server
    before = json.loads(server.to_json())
    del before["firmware"]
    assert Server.from_json(json.dumps(before)).firmware is Firmware.BIOS


Q35 = {"hw_firmware_type": "uefi", "hw_machine_type": "q35", "hw_cdrom_bus": "scsi", "hw_scsi_model": "virtio-scsi"}


@pytest.mark.parametrize(("firmware", "properties"), [
    (Firmware.BIOS, {}),
    (Firmware.UEFI, Q35),
    (Firmware.SECURE_BOOT, {**Q35, "os_secure_boot": "required"}),
])
def test_an_image_tells_a_cloud_its_firmware(tmp_path: Path, firmware: Firmware, properties: dict[str, str]) -> None:
    file = tmp_path / "image.qcow2"
    file.write_bytes(b"QFI")
    sent = glance.file_of(file, "a" * 64, "relay", "owner", "run", manifest_sha256="", min_disk=1, min_ram=64,
                          firmware=firmware)
    names = (*Q35, "os_secure_boot")
    assert {k: v for k, v in sent.properties.items() if k in names} == properties
    assert sent.name == f"relay-{'a' * 12}" + ("" if firmware is Firmware.BIOS else f"-{firmware}")


@pytest.mark.parametrize(("firmware", "fault", "complaint"), [
    (Firmware.BIOS, "No valid host was found. There are not enough hosts available.", "no host has room"),
    (Firmware.UEFI, "Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures",
     "no host starts the server relay by uefi"),
    (Firmware.SECURE_BOOT, "No valid host was found. There are not enough hosts available.",
     "no host starts the server relay by secure-boot"),
    (Firmware.SECURE_BOOT, "Secure Boot is not supported by host", "no host starts the server relay by secure-boot"),
    (Firmware.SECURE_BOOT, "Volume 7 did not finish being created", "the server relay is ERROR"),
])
def test_a_cloud_that_has_no_such_firmware(firmware: Firmware, fault: str, complaint: str) -> None:
    error = nova.failed("relay", nova.State("1", "relay", "ERROR", ""), fault, "cloud", firmware)
    assert complaint in error.message and error.excerpt == fault
    assert ("COMPUTE_SECURITY_UEFI_SECURE_BOOT" in (error.hint or "")) is ("secure-boot" in complaint)


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
