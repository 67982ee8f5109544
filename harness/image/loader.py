"""UEFI's boot loader as Debian signs it: shim and GRUB, taken out of their packages.

    <cache>/loader/<release>-<key>/    BOOTX64.EFI (shim) grubx64.efi (GRUB) mmx64.efi (MokManager)

The packages are not installed in the image: what their dependencies bring there would weigh more than the loader, and
be of no use, for grub-install cannot run where the EFI system partition is not mounted.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import BuildError, Fault
from harness.image.apt import AptState, reason
from harness.image.cached import making, sha256, used
from harness.process import CommandFailed, run
from harness.run import Run
from harness.settings import Settings

PACKAGES = ("grub-efi-amd64-signed", "shim-helpers-amd64-signed", "shim-signed")
_FILES = {
    "BOOTX64.EFI": "usr/lib/shim/shimx64.efi.signed",
    "grubx64.efi": "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed",
    "mmx64.efi": "usr/lib/shim/mmx64.efi.signed",
}


@dataclass(frozen=True)
class Loader:
    """`directory` holds the programs, `hashes` their SHA-256 by name, `versions` those of the packages."""

    directory: Path
    hashes: Mapping[str, str]
    versions: Mapping[str, str]


def versions(state: AptState) -> dict[str, str]:
    """The packages' versions that the release has now. Raises HostError."""
    closure = dict(line.split(" ") for line in state.closure(PACKAGES))
    return {name: closure[name] for name in PACKAGES}


def prepare(state: AptState, settings: Settings, current: Run, deadline: Deadline) -> Loader:
    """The loader of the release, from the cache or fetched; apt checks the packages' signatures. Raises BuildError."""
    wanted = versions(state)
    key = hashlib.sha256("\n".join(f"{n} {v}" for n, v in wanted.items()).encode()).hexdigest()[:12]
    place = settings.cache / "loader" / f"{state.release}-{key}"
    if not place.exists():
        with making(place, current) as part:
            _fetch(wanted, state, part, deadline)
    return Loader(used(place), {name: sha256(place / name) for name in _FILES}, wanted)


def _fetch(wanted: Mapping[str, str], state: AptState, into: Path, deadline: Deadline) -> None:
    packages = into / "packages"
    packages.mkdir()
    try:
        state.apt_get("download", *(f"{name}={version}" for name, version in wanted.items()), deadline=deadline,
                      cwd=packages)
        for package in sorted(packages.glob("*.deb")):
            run(["dpkg-deb", "--extract", package, packages / "tree"], deadline=deadline)
    except CommandFailed as error:
        raise BuildError(f"UEFI's boot loader can't be had: {reason(error.output)}", excerpt=error.excerpt,
                         hint="it is in " + ", ".join(PACKAGES), fault=Fault.HOST) from error
    for name, origin in _FILES.items():
        try:
            (packages / "tree" / origin).rename(into / name)
        except FileNotFoundError:
            raise BuildError(f"{', '.join(f'{n} {v}' for n, v in wanted.items())} hold no {origin}",
                             hint=f"the packages of {state.release} are laid out otherwise: "
                                  f"{os.path.relpath(__file__)}") from None
    shutil.rmtree(packages)
