"""Whether the files of packages are as their packages brought them, and what is there that no package brought.

Read as dpkg reads it (dpkg(1), --verify and --search): /var/lib/dpkg/info/*.md5sums and *.list, the checksums of
configuration files in /var/lib/dpkg/status, and diversions. MD5 finds what a build or a disk broke, no attacker.
"""

from __future__ import annotations

import hashlib
import re
import stat
from collections.abc import Iterable, Iterator, Sequence

from harness.image.finding import Check, Expectation, Seen, few
from harness.image.root import Root
from harness.known import KnownFile, unexpected
from harness.units import many

_INFO = "/var/lib/dpkg/info"
_NO_CHECKSUM = ("newconffile", "remove-on-upgrade")


def intact(root: Root, expect: Expectation) -> Seen:
    """Whether everything that packages brought is there, and every file whose checksum dpkg knows has it."""
    place = _Place(root)
    there = {path for path, _ in root.walk("/")}
    listed = dict(_listed(root, place))
    missing = [path for path in listed if path not in there]
    changed = {path: package for package, path, checksum in _checksums(root, place)
               if path in there and not _has(root, path, checksum)}
    away, unused = unexpected(missing, expect.known.missing)
    other, useless = unexpected(changed, expect.known.changed)
    found = [*(f"{path} of {changed[path]} is changed" for path in sorted(other)),
             *(f"{path} of {listed[path]} is missing" for path in sorted(away))]
    return Seen(not found, "all as their packages brought them, but for what known/ names",
                few(found) if found else f"{many(len(listed), 'path')}, {len(missing):,} left out on purpose",
                hint="./inv build --force builds it again; what an element does on purpose is named in "
                     "known/<element>.yaml, under changed or missing, with a reason",
                note=_unused([*unused, *useless]))


def _has(root: Root, path: str, checksum: str) -> bool:
    try:
        return hashlib.md5(root.read(path), usedforsecurity=False).hexdigest() == checksum
    except (FileNotFoundError, IsADirectoryError):
        return False  # a link to nowhere, a directory


def unowned(root: Root, expect: Expectation) -> Seen:
    """Whether every file and link is of a package, or known."""
    place = _Place(root)
    owned = {path for path, _ in _listed(root, place)}
    alone = sorted(path for path, status in root.walk("/") if not stat.S_ISDIR(status.st_mode) and path not in owned)
    strange, unused = unexpected(alone, expect.known.unowned)
    return Seen(not strange, "only what known/ names", few(strange) if strange else f"{len(alone):,}, all known",
                hint="known/<element>.yaml names what an element makes: under unowned, with a reason; nothing else is "
                     "to be in an image", note=_unused(unused))


def _unused(entries: Sequence[KnownFile]) -> str:
    return f"nothing is there any more of {few(map(str, entries))}: take the line away" if entries else ""


class _Place:
    """Where a file of a package is in the tree: behind the links of a merged /usr, aside where it is diverted."""

    def __init__(self, root: Root) -> None:
        self._merged = {f"/{name}": f"/usr/{name}" for name in root.names("/")
                        if stat.S_ISLNK(root.lstat(f"/{name}").st_mode) and root.link(f"/{name}") == f"usr/{name}"}
        self.diverted: dict[str, str] = {}
        self._by: dict[str, str] = {}
        lines = root.text("/var/lib/dpkg/diversions").splitlines() if root.exists("/var/lib/dpkg/diversions") else []
        for path, aside, package in zip(lines[::3], lines[1::3], lines[2::3], strict=True):
            self.diverted[self.of(path)] = self.of(aside)
            self._by[self.of(path)] = package

    def of(self, path: str) -> str:
        """The links themselves stay what they are: a package may bring them."""
        top, slash, rest = path[1:].partition("/")
        return f"{self._merged.get(f'/{top}', f'/{top}')}/{rest}" if slash else path

    def of_package(self, path: str, package: str) -> str:
        here = self.of(path)
        return here if self._by.get(here, package) == package else self.diverted[here]


def _listed(root: Root, place: _Place) -> Iterator[tuple[str, str]]:
    """Path and package of everything that packages brought, directories too."""
    for name in root.names(_INFO):
        package, _, kind = name.rpartition(".")
        if kind == "list":
            package = package.partition(":")[0]
            yield from ((place.of_package(path, package), package)
                        for path in root.text(f"{_INFO}/{name}").splitlines() if path != "/.")


def _checksums(root: Root, place: _Place) -> Iterator[tuple[str, str, str]]:
    """Package, path and MD5 in hexadecimal digits."""
    for name in root.names(_INFO):
        package, _, kind = name.rpartition(".")
        if kind == "md5sums":
            package = package.partition(":")[0]
            for line in root.text(f"{_INFO}/{name}").splitlines():
                checksum, _, path = line.partition("  ")
                yield package, place.of_package(f"/{path}", package), checksum
    for paragraph in root.text("/var/lib/dpkg/status").split("\n\n"):
        package_line = re.search(r"^Package: (\S+)", paragraph, re.MULTILINE)
        files = re.search(r"^Conffiles:\n((?: .*(?:\n|$))+)", paragraph, re.MULTILINE)
        if package_line and files and re.search(r"^Status: \S+ \S+ installed$", paragraph, re.MULTILINE):
            package = package_line[1]
            yield from ((package, place.of_package(path, package), checksum)
                        for path, checksum in _configuration(files[1].splitlines()))


def _configuration(lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        path, checksum, *flags = line.split()
        if checksum not in _NO_CHECKSUM and not {"obsolete", "remove-on-upgrade"} & set(flags):
            yield path, checksum


CHECKS = (
    Check("package files are intact", intact),
    Check("files that no package owns are known", unowned),
)
