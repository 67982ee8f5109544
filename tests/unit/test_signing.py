"""Kernel modules signed by a key of the user's: with openssl itself, and a token in software where there is one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.deadline import Deadline
from harness.errors import DescriptionError
from harness.image import signing
from harness.settings import Settings
from tests.conftest import lacking
from tests.small_image import kernel_module

SOFTHSM = Path("/usr/lib/softhsm/libsofthsm2.so")
MODULE = kernel_module({"vermagic": "6.1.0-99-cloud-amd64 SMP "})
SECRET = "open sesame"


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def pair(directory: Path, name: str) -> tuple[Path, Path]:
    """A key and its certificate."""
    key, certificate = directory / f"{name}.key", directory / f"{name}.pem"
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, "-subj",
            f"/CN={name}", "-days", "9")
    key.chmod(0o600)
    return key, certificate


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with keys: good, other, and the first with a pass phrase."""
    directory = tmp_path_factory.mktemp("keys")
    pair(directory, "good")
    pair(directory, "other")
    openssl("pkey", "-aes256", "-passout", f"pass:{SECRET}", "-in", directory / "good.key", "-out",
            directory / "locked.key")
    openssl("pkcs8", "-topk8", "-passout", f"pass:{SECRET}", "-in", directory / "good.key", "-outform", "DER", "-out",
            directory / "locked.der")
    openssl("pkcs12", "-export", "-passout", f"pass:{SECRET}", "-inkey", directory / "good.key", "-in",
            directory / "good.pem", "-out", directory / "locked.p12")
    text = (directory / "good.pem").read_text().strip()
    (directory / "one-line-less.pem").write_text(text)
    lines = text.splitlines()
    (directory / "damaged.pem").write_text("\n".join([*lines[:-2], lines[-2].rstrip("=")[:-1], lines[-1]]))
    (directory / "phrase").write_text(f"{SECRET}\n")
    (directory / "wrong").write_text("open barley\n")
    for name in ("locked.key", "locked.der", "locked.p12", "phrase", "wrong"):
        (directory / name).chmod(0o600)
    return directory


Signing = Callable[..., signing.Signer]


@pytest.fixture
def who(made: Path) -> Signing:
    def signer(key: str = "good.key", certificate: str = "good.pem", passphrase: str = "") -> signing.Signer:
        found = signing.signer(Settings.load(made, {}, signing_key=key, signing_certificate=certificate,
                                             signing_passphrase=passphrase))
        assert found
        return found

    return signer


@pytest.fixture
def module(tmp_path: Path) -> Path:
    file = tmp_path / "module.ko"
    file.write_bytes(MODULE)
    return file


def test_a_signed_module_is_known_by_its_certificate_alone(who: Signing, made: Path, module: Path) -> None:
    signing.sign(module, who(), Deadline(60))
    signed = module.read_bytes()
    assert signed.startswith(MODULE)
    assert signing.signed_by(signed, made / "good.pem", Deadline(60))
    assert not signing.signed_by(signed, made / "other.pem", Deadline(60))
    assert not signing.signed_by(MODULE, made / "good.pem", Deadline(60))
    changed = signed.replace(b"vermagic=6", b"vermagic=7")
    assert not signing.signed_by(changed, made / "good.pem", Deadline(60))
    shown = subprocess.run(["modinfo", module], check=True, capture_output=True, text=True).stdout
    assert "signer:         good" in shown and "sig_hashalgo:   sha256" in shown


@pytest.mark.parametrize("passphrase", ["file:phrase", "env:DIALTONES_PHRASE"])
def test_a_key_with_a_pass_phrase(who: Signing, made: Path, module: Path, passphrase: str,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIALTONES_PHRASE", SECRET)
    locked = who("locked.key", passphrase=passphrase)
    signing.check(locked)
    signing.sign(module, locked, Deadline(60))
    assert signing.signed_by(module.read_bytes(), made / "good.pem", Deadline(60))


def test_the_last_line_of_a_certificate_may_have_no_end(who: Signing) -> None:
    short = who(certificate="one-line-less.pem")
    signing.check(short)
    assert (short.text, short.fingerprint) == (who().text, who().fingerprint)


def test_nobody_signs_unless_the_settings_say_so(made: Path) -> None:
    assert signing.signer(Settings.load(made, {})) is None


@pytest.mark.parametrize(("key", "certificate", "passphrase", "complaint"), [
    ("good.key", "other.pem", "", "don't belong together: .*other.pem is not the certificate of .*good.key"),
    ("locked.key", "good.pem", "", "locked.key has a pass phrase, and nobody is there to be asked"),
    ("locked.key", "good.pem", "file:wrong", "locked.key can't be opened with the pass phrase of file:.*wrong"),
    ("locked.key", "good.pem", "env:NO_SUCH_PHRASE", "the environment has no NO_SUCH_PHRASE"),
    ("locked.key", "good.pem", "file:none", "signing_passphrase: .*none: No such file"),
    ("none.key", "good.pem", "", "signing_key: .*none.key: No such file"),
    ("good.pem", "good.pem", "", "others than its owner may use .*good.pem"),
    ("phrase", "good.pem", "", "openssl can't sign with .*phrase"),
    ("pkcs11:token=dialtone", "good.pem", "", "pkcs11:token=dialtone has a pass phrase, and nobody is there"),
    ("good.key", "", "", "signing_key is set and signing_certificate is not"),
    ("", "good.pem", "", "signing_certificate is set and signing_key is not"),
    ("", "", "env:PHRASE", "signing_passphrase is set and signing_key is not"),
    ("good.key", "none.pem", "", "signing_certificate: .*none.pem.*No such file"),
    ("good.key", "good.key", "", "good.key holds no certificate"),
    ("good.key", "damaged.pem", "", "damaged.pem can't be read: .*padding"),
    ("locked.key", "good.pem", SECRET, "names neither a file nor a variable"),
    ("pkcs11:token=dialtone?pin-value=1234", "good.pem", "", "has the token's PIN in it"),
    ("PKCS11:token=x;pin-value=1234", "good.pem", "", "has the token's PIN in it"),
    ("locked.der", "good.pem", "", "locked.der has a pass phrase, and nobody is there to be asked"),
    ("locked.p12", "good.pem", "", "locked.p12 has a pass phrase, and nobody is there to be asked"),
    ("locked.p12", "good.pem", "file:wrong", "locked.p12 can't be opened with the pass phrase of file:.*wrong"),
])
def test_what_can_be_wrong_is_one_error(who: Signing, made: Path, key: str, certificate: str, passphrase: str,
                                        complaint: str) -> None:
    (made / "good.pem").chmod(0o644)
    with pytest.raises(DescriptionError, match=complaint) as raised:
        signing.check(who(key, certificate, passphrase))
    assert SECRET not in str(raised.value) and "1234" not in str(raised.value)


def test_a_key_that_others_may_read_is_refused(who: Signing, made: Path, tmp_path: Path) -> None:
    key = Path(shutil.copy(made / "good.key", tmp_path / "shared.key"))
    key.chmod(0o640)
    with pytest.raises(DescriptionError, match="mode 640"):
        signing.check(who(str(key)))


def test_a_key_in_a_token(who: Signing, made: Path, module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
                          ) -> None:
    for needed, package in ((SOFTHSM, "softhsm2"), (Path(signing.ENGINE), "libengine-pkcs11-openssl")):
        if not needed.exists():
            lacking(f"{package} is not installed")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm.conf").write_text(f"directories.tokendir = {tmp_path}/tokens\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm.conf"))
    monkeypatch.setenv("PKCS11_MODULE_PATH", str(SOFTHSM))
    monkeypatch.setenv("TOKENS_PIN", "1234")
    for arguments in (["--init-token", "--free", "--label", "dialtone", "--pin", "1234", "--so-pin", "4321"],
                      ["--import", made / "good.key", "--token", "dialtone", "--label", "modules", "--id", "01",
                       "--pin", "1234"]):
        subprocess.run(["softhsm2-util", *arguments], check=True, capture_output=True)
    uri = "pkcs11:token=dialtone;object=modules"
    token = who(uri, passphrase="env:TOKENS_PIN")
    signing.check(token)
    signing.sign(module, token, Deadline(60))
    assert signing.signed_by(module.read_bytes(), made / "good.pem", Deadline(60))
    with pytest.raises(DescriptionError, match="don't belong together"):
        signing.check(who(uri, "other.pem", "env:TOKENS_PIN"))
    with pytest.raises(DescriptionError, match="no token has pkcs11:token=dialtone;object=none"):
        signing.check(who("pkcs11:token=dialtone;object=none", passphrase="env:TOKENS_PIN"))
    monkeypatch.setenv("TOKENS_PIN", "9999")
    with pytest.raises(DescriptionError, match="can't be opened with the pass phrase of env:TOKENS_PIN"):
        signing.check(token)
    assert os.environ["TOKENS_PIN"] not in str(token)
