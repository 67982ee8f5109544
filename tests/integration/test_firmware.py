"""One image by every firmware: BIOS, UEFI, and Secure Boot with and without the key that its module needs."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from harness import host
from harness.access.secure_boot import ModuleRefused
from harness.appliance import Appliance
from harness.errors import Fault
from harness.firmware import Firmware
from harness.image.build import Image
from harness.levels import Level
from harness.settings import Settings
from tests.conftest import PROJECT
from tests.real_server import Booted, work_in

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]


@pytest.fixture(scope="module")
def signing(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Settings that sign with a key made here."""
    directory = tmp_path_factory.mktemp("signing")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
                    "-subj", "/CN=a key of a test", "-days", "9"], check=True, capture_output=True)
    key.chmod(0o600)
    return Settings.load(PROJECT, runs=os.fspath(directory / "runs"), signing_key=os.fspath(key),
                         signing_certificate=os.fspath(certificate))


@pytest.fixture(scope="module")
def signed(signing: Settings, real_appliance: Appliance) -> Image:
    """The image with a signed module."""
    host.prepare(signing, say=lambda text: None)
    with work_in(signing, real_appliance) as work:
        image = work.build()
        work.inspect(image)
    secret = Path(signing.signing_key).read_text().splitlines()[1]
    for file in (image.manifest, image.log):
        assert secret not in file.read_text(errors="replace"), f"{file} has the key in it"
    return image


@contextmanager
def server_by(firmware: Firmware, settings: Settings, appliance: Appliance, image: Image) -> Iterator[Booted]:
    with work_in(replace(settings, firmware=firmware), appliance) as work:
        yield Booted(work, work.launch(work.upload(image))[0])


@pytest.mark.parametrize("firmware", [Firmware.BIOS, Firmware.UEFI])
def test_the_image_boots_by(firmware: Firmware, real_settings: Settings, real_appliance: Appliance, real_image: Image
                            ) -> None:
    with server_by(firmware, real_settings, real_appliance, real_image) as server:
        assert server.red() == []
        other = Firmware.UEFI if firmware is Firmware.BIOS else Firmware.BIOS
        taken = replace(server, server=replace(server.server, firmware=other))
        assert taken.red("-k", "test_firmware") == ["test_firmware"]


def test_a_module_of_an_enrolled_key_forwards_under_secure_boot(signing: Settings, real_appliance: Appliance,
                                                                signed: Image) -> None:
    with server_by(Firmware.SECURE_BOOT, signing, real_appliance, signed) as server:
        assert server.root("modinfo -F signer xt_RTPENGINE").strip() == "a key of a test"
        assert server.red(level=Level.ACCEPTANCE) == []


def test_a_module_that_nobody_signed_is_one_line(real_settings: Settings, real_appliance: Appliance,
                                                 real_image: Image) -> None:
    said = refused(real_settings, real_appliance, real_image)
    assert said.endswith("not signed by an enrolled key: xt_RTPENGINE: it is not signed")


def test_a_key_that_is_not_enrolled_is_one_line(signing: Settings, real_appliance: Appliance, signed: Image) -> None:
    said = refused(replace(signing, signing_certificate=""), real_appliance, signed)
    assert said.endswith("not signed by an enrolled key: xt_RTPENGINE: the key that signed it is not enrolled")


def refused(settings: Settings, appliance: Appliance, image: Image) -> str:
    with pytest.raises(ModuleRefused) as raised, server_by(Firmware.SECURE_BOOT, settings, appliance, image):
        pass
    assert raised.value.fault is Fault.IMAGE
    return raised.value.message
