"""A package repository besides Debian's: the key that signs it, as apt takes it, and which of its versions is meant.

    <cache>/keys/<fingerprint>.gpg    the key alone, in the form that apt reads
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from harness.appliance import Appliance, PackageRepository
from harness.errors import DescriptionError
from harness.image.apt import AptState
from harness.image.mirrors import Entry
from harness.process import CommandFailed, run

PACKAGE = "opensips"


def entry(appliance: Appliance, repository: PackageRepository, cache: Path) -> Entry:
    """The repository as apt's source, with its key in `cache`. Raises DescriptionError where the key is another."""
    # Files are copied (sources.list(5)): dpkg, in the root that is made, does not see where they are on this machine.
    url = re.sub("^file:", "copy:", repository.url)
    return Entry(url, (repository.suite,), repository.components, _keyring(appliance, repository, cache))


def required(appliance: Appliance) -> PackageRepository:
    """The repository that the appliance's software comes from. Raises DescriptionError where none is named."""
    assert appliance.opensips
    if appliance.opensips.repository is None:
        raise DescriptionError(
            f"{_place(appliance, appliance.opensips.line)}: repository is missing: OpenSIPS is in no release of Debian",
            hint="write url, suite, components, key and fingerprint of its project's package repository there "
                 "(docs/opensips.md)")
    return appliance.opensips.repository


def pins(appliance: Appliance, state: AptState) -> dict[str, str]:
    """The exact version of each package that comes from the repository, by name, as apt installs them together.

    Raises DescriptionError where the repository does not have that version.
    """
    assert appliance.opensips
    version = appliance.opensips.version
    names = (PACKAGE, f"{PACKAGE}-http-modules", *appliance.opensips.packages)
    for name in names:
        offered = [offer.version for offer in state.offers(name)]
        if version not in offered:
            repository = required(appliance)
            raise DescriptionError(
                f"{_place(appliance, repository.line)}: {repository.url} {repository.suite} has no {name} {version}",
                hint="it has: " + (", ".join(dict.fromkeys(offered)) or "none"))
    return dict.fromkeys(names, version)


def pinned(packages: Sequence[str], versions: dict[str, str]) -> list[str]:
    """`packages` with the version that is meant, as apt-get takes it (name=version), sorted."""
    return sorted(f"{name}={versions[name]}" if name in versions else name for name in packages)


def _keyring(appliance: Appliance, repository: PackageRepository, cache: Path) -> Path:
    place = f"{_place(appliance, repository.line)}.repository.key"
    if not repository.key.is_file():
        raise DescriptionError(f"{place}: there is no file {repository.key}",
                               hint="the file with the public key that signs the repository")
    with tempfile.TemporaryDirectory() as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet"]
        try:
            shown = run([*gpg, "--with-colons", "--show-keys", repository.key]).stdout
            run([*gpg, "--import", repository.key])
        except CommandFailed as error:
            raise DescriptionError(f"{place}: {repository.key} holds no OpenPGP key", excerpt=error.excerpt) from error
        found = fingerprints(shown)
        if found != [repository.fingerprint]:
            raise DescriptionError(f"{place}: {repository.key} holds the key {', '.join(found)}",
                                   hint=f"trusted is {repository.fingerprint} alone (repository.fingerprint)")
        keyring = cache / "keys" / f"{repository.fingerprint}.gpg"
        keyring.parent.mkdir(parents=True, exist_ok=True)
        part = keyring.with_suffix(f".{os.getpid()}")
        run([*gpg, "--yes", "--output", part, "--export", repository.fingerprint])
        part.chmod(0o644)
        part.replace(keyring)
    return keyring


def fingerprints(shown: str) -> list[str]:
    """Those of the primary keys, in what `gpg --with-colons` prints: each is in the record after the key's own."""
    records = [line.split(":") for line in shown.splitlines()]
    return [after[9] for key, after in pairwise(records) if key[0] == "pub" and after[0] == "fpr"]


def _place(appliance: Appliance, line: int) -> str:
    return f"{appliance.file.name}:{line}: appliances.{appliance.name}.opensips"
