"""Packages named like those of OpenSIPS, in a signed repository on this machine. They are not OpenSIPS.

What they hold proves that a pinned version comes from a repository of a known key, and that a configuration is written
and judged: the program only looks whether every file that the configuration names is there.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import appliance as appliances_file
from harness.appliance import Appliance, PackageRepository
from harness.image.software import PROXY_BUILT_IN
from tests.conftest import PROJECT
from tests.stand_in import gpg, make_key, publish, stanza

VERSION = "4.0.1-1"
VERSIONS = ("4.0.0-1", VERSION, "4.1.0-1")
"""What the repository has: a newer one than the pinned, too."""
SUITE = "bookworm"
MODULES = "usr/lib/x86_64-linux-gnu/opensips/modules"
HTTP = ("httpd.so", "mi_http.so")
REFUSED = "stand-in, not OpenSIPS: no module"

_PROGRAM = """#!/bin/sh
# A stand-in, not OpenSIPS.
config=
while [ $# -gt 0 ]; do
    case $1 in
    -V) echo "version: opensips @VERSION@ (a stand-in, not OpenSIPS)"; exit 0 ;;
    -f) config=$2; shift ;;
    esac
    shift
done
mpath=$(sed -n 's/^mpath="\\(.*\\)"$/\\1/p' "$config")
for module in $(sed -n 's/^loadmodule "\\(.*\\)"$/\\1/p' "$config"); do
    case $module in proto_udp.so | proto_tcp.so) continue ;; esac
    [ -e "$mpath$module" ] || { echo "stand-in, not OpenSIPS: no module $module" >&2; exit 255; }
done
for part in $(sed -n 's/^include_file "\\(.*\\)"$/\\1/p' "$config"); do
    [ -e "$part" ] || { echo "stand-in, not OpenSIPS: no file $part" >&2; exit 255; }
done
! grep -n '@[A-Z_]*@' "$config" >&2
"""
_POSTINST = """#!/bin/sh
set -e
adduser --quiet --system --group --disabled-password --shell /bin/false --home /run/opensips opensips
"""


@dataclass(frozen=True)
class Packages:
    """A repository at `path`; `key` is the file with its public key, `fingerprint` that key's."""

    path: Path
    key: Path
    fingerprint: str

    @property
    def url(self) -> str:
        return f"file:{self.path}"


def described(packages: Packages) -> Appliance:
    """The project's appliance, its packages from this repository."""
    plain = appliances_file.load(PROJECT / "appliances.yaml")["opensips"]
    assert plain.opensips
    source = PackageRepository(packages.url, SUITE, ("main",), packages.key, packages.fingerprint, 7)
    return replace(plain, opensips=replace(plain.opensips, version=VERSION, repository=source))


def make_packages(directory: Path) -> Packages:
    """The repository, with files of no content in the place of the modules that the element's configuration loads."""
    template = (PROJECT / "elements/opensips/opensips.cfg.in").read_text()
    modules = sorted(set(re.findall(r'^loadmodule "(.*)"$', template, re.MULTILINE)) - set(PROXY_BUILT_IN))
    home = make_key(directory / "gnupg")
    key = directory / "key.asc"
    key.write_bytes(gpg(home, "--armor", "--export"))
    pool = directory / "pool"
    pool.mkdir()
    index = "\n".join(stanza(deb) for version in VERSIONS for deb in (
        _package(directory, "opensips", version, [m for m in modules if m not in HTTP]),
        _package(directory, "opensips-http-modules", version, HTTP)))
    publish(directory, home, SUITE, "", index)
    shown = gpg(home, "--with-colons", "--list-keys").decode()
    subprocess.run(["gpgconf", "--homedir", home, "--kill", "gpg-agent"], check=False)
    return Packages(directory, key, next(line.split(":")[9] for line in shown.splitlines() if line.startswith("fpr:")))


def _package(directory: Path, name: str, version: str, modules: Sequence[str]) -> Path:
    work = directory / f"{name}_{version}"
    files = {f"{MODULES}/{module}": "" for module in modules}
    if name == "opensips":
        files |= {"usr/sbin/opensips": _PROGRAM.replace("@VERSION@", version.split("-")[0]),
                  "etc/opensips/opensips.cfg": "# a stand-in, not OpenSIPS\n", "DEBIAN/postinst": _POSTINST}
    files["DEBIAN/control"] = (f"Package: {name}\nVersion: {version}\nArchitecture: amd64\n"
                               "Maintainer: Test <test@example.org>\nDescription: stand-in, not OpenSIPS\n")
    for path, text in files.items():
        file = work / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755 if path in {"usr/sbin/opensips", "DEBIAN/postinst"} else 0o644)
    deb = directory / "pool" / f"{name}_{version}_amd64.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", os.fspath(work), os.fspath(deb)], check=True,
                   capture_output=True)
    return deb
