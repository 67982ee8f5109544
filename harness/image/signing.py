"""Kernel modules signed by a key of the user's, which stays where it is: only openssl reads it, on this host.

A signed module is the module, its signature (CMS, RFC 5652), struct module_signature and a magic text
(Documentation/admin-guide/module-signing.rst and include/linux/module_signature.h of Linux).
"""

from __future__ import annotations

import hashlib
import os
import re
import ssl
import struct
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import DescriptionError, HostError
from harness.process import CommandFailed, run
from harness.settings import Settings

PROGRAM = "openssl"
ENGINE = "/usr/lib/x86_64-linux-gnu/engines-3/pkcs11.so"
"""What lets openssl use keys in PKCS#11 tokens (package libengine-pkcs11-openssl)."""
_MAGIC = b"~Module signature appended~\n"
_TRAILER = struct.Struct(">BBBBB3xI")  # algorithm, hash, kind of id; lengths of name, key's id and signature
_PKCS7 = 2
_SECONDS = 60.0
_DETACHED = ("-binary", "-noattr", "-nosmimecap", "-nocerts", "-md", "sha256", "-outform", "DER")
"""As scripts/sign-file of Linux signs."""


@dataclass(frozen=True)
class Signer:
    """`key` is a file or a PKCS#11 URI (RFC 7512), `passphrase` what openssl calls -passin: file:... or env:...;
    empty where the key has none."""

    key: str
    certificate: Path
    passphrase: str

    @property
    def text(self) -> str:
        """The certificate alone, PEM."""
        found = re.search(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----",
                          self.certificate.read_text(encoding="ascii"), re.DOTALL)
        return f"{found[0]}\n" if found else ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the certificate (DER)."""
        return hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.text)).hexdigest()


def signer(settings: Settings) -> Signer | None:
    """Who signs, None where the settings name nobody. Nothing of the key is read. Raises DescriptionError."""
    if not settings.signing_key:
        for name in ("signing_certificate", "signing_passphrase"):
            if getattr(settings, name):
                raise DescriptionError(f"{name} is set and signing_key is not: nothing would be signed",
                                       hint="a variable of the environment that is empty counts as not set")
        return None
    certificate = settings.project / settings.signing_certificate
    if not settings.signing_certificate:
        raise DescriptionError("signing_key is set and signing_certificate is not",
                               hint="the certificate of the key, a PEM file: servers need it to trust the module")
    found = Signer(settings.signing_key, certificate, settings.signing_passphrase)
    try:
        if not found.text:
            raise DescriptionError(f"signing_certificate: {certificate} holds no certificate",
                                   hint="a PEM file is needed")
        ssl.PEM_cert_to_DER_cert(found.text)
    except (OSError, ValueError) as error:
        raise DescriptionError(f"signing_certificate: {certificate} can't be read: {error}",
                               hint="a whole PEM file is needed") from error
    if found.passphrase and not re.fullmatch(r"(file|env):.+", found.passphrase):
        raise DescriptionError("signing_passphrase names neither a file nor a variable of the environment",
                               hint="file:PATH or env:NAME; never the pass phrase itself")
    kind, _, name = found.passphrase.partition(":")
    if kind == "file":
        found = replace(found, passphrase=f"file:{settings.project / name}")
    if not in_token(found.key):
        return replace(found, key=os.fspath(settings.project / found.key))
    if re.search(r"[;?&]pin-value=", found.key, re.IGNORECASE):
        raise DescriptionError("signing_key has the token's PIN in it, for all to see in the list of processes",
                               hint="signing_passphrase: file:PATH or env:NAME")
    return found


def check(who: Signer) -> None:
    """Sign something, to see that key, pass phrase and certificate are right. Raises DescriptionError, HostError."""
    kind, _, name = who.passphrase.partition(":")
    if kind == "env" and name not in os.environ:
        raise DescriptionError(f"signing_passphrase: the environment has no {name}")
    for what, path in (("signing_key", "" if in_token(who.key) else who.key),
                       ("signing_passphrase", name if kind == "file" else "")):
        if path:
            _private(what, Path(path))
    if not who.passphrase and _asks(who.key):
        raise _locked(who)
    with tempfile.NamedTemporaryFile(prefix="dialtone-") as probe:
        probe.write(b"probe")
        probe.flush()
        _signature(Path(probe.name), who, Deadline(_SECONDS))


def sign(module: Path, who: Signer, deadline: Deadline) -> None:
    """Append a signature to the kernel module `module`. Raises DescriptionError, HostError."""
    signature = _signature(module, who, deadline)
    with module.open("ab") as out:
        out.write(signature + _TRAILER.pack(0, 0, _PKCS7, 0, 0, len(signature)) + _MAGIC)


def signed_by(module: bytes, certificate: Path, deadline: Deadline) -> bool:
    """Whether the module bears a whole signature by the key of `certificate`."""
    end = len(module) - len(_MAGIC) - _TRAILER.size
    if not module.endswith(_MAGIC) or end < 0:
        return False
    begin = end - _TRAILER.unpack_from(module, end)[-1]
    if begin < 0:
        return False
    with tempfile.TemporaryDirectory(prefix="dialtone-") as name:
        content, signature = Path(name, "content"), Path(name, "signature")
        content.write_bytes(module[:begin])
        signature.write_bytes(module[begin:end])
        done = run([PROGRAM, "cms", "-verify", "-binary", "-inform", "DER", "-in", signature, "-content", content,
                    "-certfile", certificate, "-nointern", "-noverify", "-out", "/dev/null"], deadline=deadline,
                   check=False)
    return done.returncode == 0


def _signature(file: Path, who: Signer, deadline: Deadline) -> bytes:
    engine = ("-engine", "pkcs11", "-keyform", "engine") if in_token(who.key) else ()
    with tempfile.NamedTemporaryFile(prefix="dialtone-") as out:
        try:
            run([PROGRAM, "cms", "-sign", *_DETACHED, "-in", file, "-signer", who.certificate, *engine,
                 "-inkey", who.key, *(("-passin", who.passphrase) if who.passphrase else ()), "-out", out.name],
                deadline=deadline)
        except CommandFailed as error:
            raise _failure(error, who) from error
        signature = Path(out.name).read_bytes()
    if not signature:
        raise HostError("openssl signed nothing")
    return signature


def _failure(error: CommandFailed, who: Signer) -> DescriptionError | HostError:
    said, key = error.output, _shown(who.key)
    if "key values mismatch" in said or "private key does not match certificate" in said:
        return DescriptionError(f"signing_key and signing_certificate don't belong together: {who.certificate} is not "
                                f"the certificate of {key}")
    if re.search(r"bad decrypt|PIN incorrect|maybe wrong password|Error reading password|No PIN code", said):
        return DescriptionError(f"signing_key: {key} can't be opened with the pass phrase of "
                                f"{who.passphrase or 'nobody'}", hint="signing_passphrase: file:PATH or env:NAME")
    # Whether a file in another form than PEM has a pass phrase is seen only by openssl's asking for it.
    if not who.passphrase and "do_ui_passphrase" in said:
        return _locked(who)
    if "private key was not found" in said:
        return DescriptionError(f"signing_key: no token has {key}",
                                hint="p11tool --list-all (package gnutls-bin) shows what tokens hold")
    if re.search(r'invalid engine "pkcs11"|could not load the shared library', said):
        return HostError("openssl has no engine for PKCS#11 tokens here",
                         hint="apt-get install libengine-pkcs11-openssl, or ./inv host --install")
    return DescriptionError(f"signing_key: openssl can't sign with {key}", excerpt="\n".join(said.splitlines()[-4:]),
                            hint="a private key (PEM, DER or PKCS#12), or a PKCS#11 URI")


def _locked(who: Signer) -> DescriptionError:
    return DescriptionError(f"signing_key: {_shown(who.key)} has a pass phrase, and nobody is there to be asked for it",
                            hint="signing_passphrase: file:PATH or env:NAME")


def in_token(key: str) -> bool:
    """Whether a key is named by a PKCS#11 URI (RFC 7512), not by a file."""
    return key[:7].lower() == "pkcs11:"


def _shown(key: str) -> str:
    """The key as messages name it: of a URI what comes before its attributes for programs."""
    return key.split("?", maxsplit=1)[0]


def _private(what: str, path: Path) -> None:
    try:
        mode = path.stat().st_mode
        path.open("rb").close()
    except OSError as error:
        raise DescriptionError(f"{what}: {path}: {error.strerror}") from error
    if mode & 0o077:
        raise DescriptionError(f"{what}: others than its owner may use {path} (mode {mode & 0o777:o})",
                               hint=f"chmod 600 {path}")


def _asks(key: str) -> bool:
    """Whether openssl would ask for a pass phrase: a token has a PIN, unless the key's URI says where that is."""
    if in_token(key):
        return "pin-source=" not in key
    text = Path(key).read_bytes()
    return b"ENCRYPTED PRIVATE KEY" in text or b"Proc-Type: 4,ENCRYPTED" in text
