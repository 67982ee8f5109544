"""A stand-in for RTPEngine's source: three directories and one real kernel module. It is not RTPEngine.

It proves that a tree is fetched, compiled in all three parts for one kernel and packed; nothing in it relays media.
And a signed repository of Debian packages with it, for apt on this machine alone.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

VERSION = "10.5.3.5"
DEBIAN_VERSION = f"{VERSION}-1"
UNPATCHED = "stand-in, not RTPEngine, without its patch"
PATCHED = "stand-in, not RTPEngine, with its patch applied"

TREE = {
    "daemon/text.h": f'#define TEXT "{UNPATCHED}"\n',
    "daemon/rtpengine.c": '#include <stdio.h>\n#include <zlib.h>\n#include "text.h"\n'
                          'int main(void) { return printf("%s, zlib %s\\n", TEXT, zlibVersion()) < 0; }\n',
    "daemon/Makefile": "rtpengine: rtpengine.c text.h\n\t$(CC) -o $@ $< -lz\n",
    "iptables-extension/libxt_RTPENGINE.c": "int stand_in(void) { return 0; }\n",
    "iptables-extension/Makefile": "libxt_RTPENGINE.so: libxt_RTPENGINE.c\n\t$(CC) -shared -fPIC -o $@ $<\n",
    "kernel-module/xt_RTPENGINE.c": '#include <linux/module.h>\nMODULE_LICENSE("GPL");\n'
                                    'MODULE_DESCRIPTION("stand-in, not RTPEngine");\n'
                                    "static int __init begin(void) { return 0; }\nstatic void __exit end(void) {}\n"
                                    "module_init(begin);\nmodule_exit(end);\n",
    "kernel-module/Makefile": "obj-m := xt_RTPENGINE.o\nmodules:\n\t$(MAKE) -C $(KSRC) M=$(CURDIR) modules\n",
}

PATCH = f"""Description: what a security fix looks like
--- a/daemon/text.h
+++ b/daemon/text.h
@@ -1 +1 @@
-#define TEXT "{UNPATCHED}"
+#define TEXT "{PATCHED}"
"""


def write_tree(directory: Path, changes: Mapping[str, str] | None = None) -> Path:
    """The stand-in's files below `directory`; `changes` replaces some."""
    for name, text in {**TREE, **(changes or {})}.items():
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return directory


def archive(files: Mapping[str, str], top: str = "") -> bytes:
    """A tar.xz of text files."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"{top}{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


@dataclass(frozen=True)
class Repository:
    """A signed repository at `path` whose public key is in `keyring`; `dsc` is the SHA-256 of the source package."""

    path: Path
    keyring: Path
    dsc: str
    debs: Mapping[str, str]

    @property
    def uri(self) -> str:
        return f"file:{self.path}"

    def orig(self) -> Path:
        return self.path / f"pool/rtpengine_{VERSION}.orig.tar.xz"


def make_repository(directory: Path) -> Repository:
    """The stand-in as source package rtpengine and as one binary package, in suites bookworm, -updates, -security."""
    home = make_key(directory / "gnupg")
    pool = directory / "pool"
    pool.mkdir()
    keyring = directory / "keyring.gpg"
    keyring.write_bytes(gpg(home, "--export"))
    source = _source_package(pool)
    deb = binary_package(directory / "deb", pool)
    for suite in ("bookworm", "bookworm-updates", "bookworm-security"):
        main = suite == "bookworm"
        publish(directory, home, suite, source if main else "", stanza(deb) if main else "")
    dsc = pool / f"rtpengine_{DEBIAN_VERSION}.dsc"
    return Repository(directory, keyring, sha256(dsc), {"rtpengine-daemon": sha256(deb)})


def make_key(home: Path) -> Path:
    """A directory of gpg's with a new key that signs."""
    home.mkdir(mode=0o700, parents=True)
    gpg(home, "--quick-generate-key", "--passphrase", "", "test@example.org", "ed25519", "sign", "1d")
    return home


def _source_package(pool: Path) -> str:
    """Write orig, debian and .dsc files (dsc(5), format 3.0 quilt); return the paragraph for the index Sources."""
    files = {
        f"rtpengine_{VERSION}.orig.tar.xz": archive(TREE, f"rtpengine-{VERSION}/"),
        f"rtpengine_{DEBIAN_VERSION}.debian.tar.xz": archive({
            "debian/changelog": f"rtpengine ({DEBIAN_VERSION}) bookworm; urgency=low\n\n  * Stand-in.\n\n"
                                " -- Test <test@example.org>  Wed, 25 Nov 2026 00:00:00 +0000\n",
            "debian/control": "Source: rtpengine\nMaintainer: Test <test@example.org>\n\n"
                              "Package: rtpengine-daemon\nArchitecture: any\nDescription: stand-in\n",
            "debian/source/format": "3.0 (quilt)\n",
            "debian/patches/series": "fix.patch\n",
            "debian/patches/fix.patch": PATCH,
        }),
    }
    for name, data in files.items():
        (pool / name).write_bytes(data)
    head = (f"Format: 3.0 (quilt)\n%s: rtpengine\nBinary: rtpengine-daemon\nArchitecture: any\n"
            f"Version: {DEBIAN_VERSION}\nMaintainer: Test <test@example.org>\n")
    dsc = pool / f"rtpengine_{DEBIAN_VERSION}.dsc"
    dsc.write_text(head % "Source" + _checksums([pool / name for name in files]))
    return head % "Package" + "Directory: pool\n" + _checksums([dsc, *(pool / name for name in files)])


def _checksums(files: list[Path]) -> str:
    text = ""
    for field, algorithm in (("Files", "md5"), ("Checksums-Sha256", "sha256")):
        text += f"{field}:\n" + "".join(
            f" {hashlib.new(algorithm, f.read_bytes()).hexdigest()} {f.stat().st_size} {f.name}\n" for f in files)
    return text


def binary_package(work: Path, pool: Path, version: str = DEBIAN_VERSION, name: str = "rtpengine-daemon") -> Path:
    """A package without files in `pool`, made in `work`."""
    (work / "DEBIAN").mkdir(parents=True)
    (work / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
        "Maintainer: Test <test@example.org>\nDepends: libc6, perl\nDescription: stand-in, not RTPEngine\n")
    deb = pool / f"{name}_{version}_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", work, deb], check=True, capture_output=True)
    return deb


def stanza(deb: Path) -> str:
    """The paragraph of a package in pool/ for the index Packages."""
    control = subprocess.run(["dpkg-deb", "--field", deb], check=True, capture_output=True, text=True).stdout
    return f"{control}Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {sha256(deb)}\n"


def publish(directory: Path, home: Path, suite: str, source: str, binary: str, *, date: datetime | None = None,
            valid_until: datetime | None = None, detached: bool = False) -> None:
    """A suite with one component, main, of these indices, made at `date` (now), signed by the key in `home`.

    What was published before is replaced. `detached`: the signature is Release.gpg, there is no InRelease.
    """
    release = directory / "dists" / suite
    shutil.rmtree(release, ignore_errors=True)
    indices = {"main/source/Sources": source, "main/binary-amd64/Packages": binary}
    lines = ""
    for name, text in indices.items():
        file = release / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
        lines += f" {sha256(file)} {file.stat().st_size} {name}\n"
    (release / "Release").write_text(
        f"Suite: {suite}\nCodename: {suite}\nArchitectures: amd64\nComponents: main\n"
        f"Date: {_written(date or datetime.now(UTC))}\n"
        + (f"Valid-Until: {_written(valid_until)}\n" if valid_until else "") + f"SHA256:\n{lines}")
    words, name = (["--armor", "--detach-sign"], "Release.gpg") if detached else (["--clearsign"], "InRelease")
    gpg(home, *words, "--output", os.fspath(release / name), os.fspath(release / "Release"))


def _written(date: datetime) -> str:
    return date.strftime("%a, %d %b %Y %H:%M:%S UTC")


def gpg(home: Path, *arguments: str) -> bytes:
    """What gpg prints, with the keys in `home` and without asking for anything."""
    return subprocess.run(["gpg", "--homedir", home, "--batch", "--quiet", "--pinentry-mode", "loopback",
                           "--passphrase", "", *arguments], check=True, capture_output=True).stdout


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
