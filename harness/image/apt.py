"""Package lists of one release in a directory of their own: the host's lists and packages play no part.

What is kept in the directory:

    sources.list    the mirrors
    state/ cache/   apt's own
    status          an empty dpkg status: nothing is installed here
    refreshed       its time of change says when the lists were last fetched
    closures/       answers of closure(), by hash of lists and question
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import HostError
from harness.image.mirrors import AptMirrors, listed
from harness.image.release import Release, read
from harness.process import CommandFailed, Completed, run
from harness.run import write_whole

DAY = 24 * 3600.0
SNAPSHOT = r"\d{8}T\d{6}Z"
"""The time in a snapshot's address, as a pattern."""


class MirrorError(HostError):
    """The mirror can't be reached, or what it serves is not trusted by apt."""


class ExpiredMirror(MirrorError):
    """A Release file of the mirror is used after the date that it gives as its last."""


@dataclass(frozen=True)
class Offer:
    """A version of a package that a suite of the mirror has."""

    version: str
    suite: str


@dataclass(frozen=True)
class AptState:
    """apt for `release` and `architecture`, all its files below `directory`."""

    directory: Path
    mirrors: AptMirrors
    release: str
    architecture: str
    source_packages: bool = False

    @property
    def sources(self) -> str:
        return self.mirrors.sources(self.release, source_packages=self.source_packages)

    @property
    def options(self) -> list[str]:
        """apt's command line options that keep it inside `directory`. Signatures are checked as apt does."""
        at = self.directory
        values = {
            "Dir::State": f"{at}/state", "Dir::State::status": f"{at}/status", "Dir::Cache": f"{at}/cache",
            "Dir::Etc::SourceList": f"{at}/sources.list", "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null", "Dir::Etc::PreferencesParts": "/dev/null",
            "APT::Architecture": self.architecture, "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "root", "APT::Install-Recommends": "false", "Acquire::Languages": "none",
            "Acquire::Retries": "2", "Dir::Cache::pkgcache": "pkgcache.bin",
            "Dir::Cache::srcpkgcache": "srcpkgcache.bin", "#clear": "APT::Update::Post-Invoke-Success",
        }
        return [word for name, value in values.items() for word in ("-o", f"{name}={value}")]

    def refresh(self, deadline: Deadline, *, older_than: float = DAY) -> None:
        """Fetch the package lists where they are missing, `older_than` seconds, or expired by now.

        Raises MirrorError where the mirror is out of reach or apt does not trust it; ExpiredMirror where its Release
        file has expired and that is not accepted.
        """
        with self._locked():
            stamp = self.directory / "refreshed"
            sources = self.directory / "sources.list"
            same = sources.exists() and sources.read_text() == self.sources
            if (same and stamp.exists() and 0 <= time.time() - stamp.stat().st_mtime < older_than
                    and (self.mirrors.accept_expired or not any(r.expired(datetime.now(UTC)) for r in self.releases))):
                return
            for part in ("state/lists/partial", "cache/archives/partial", "closures"):
                (self.directory / part).mkdir(parents=True, exist_ok=True)
            (self.directory / "status").touch()
            stamp.unlink(missing_ok=True)
            write_whole(sources, self.sources)
            try:
                run(["apt-get", *self.options, "-q", "-o", "APT::Update::Error-Mode=any", "update"], deadline=deadline,
                    env=os.environ | {"LC_ALL": "C"})
            except CommandFailed as error:
                raise refusal(error.output) from error
            write_whole(stamp, self._lists_hash())

    @property
    def releases(self) -> list[Release]:
        """The dates of the suites whose lists were fetched last; none before the first refresh()."""
        return read(self.directory / "state/lists")

    @property
    def own_releases(self) -> list[Release]:
        """Those of `releases` that are Debian's, not of a further source of packages."""
        places = tuple(f"{listed(uri)}_dists_" for uri in (self.mirrors.main, self.mirrors.security))
        return [release for release in self.releases if release.list.startswith(places)]

    def state(self) -> str:
        """A hash over the package lists as they are now; empty before the first refresh()."""
        stamp = self.directory / "refreshed"
        return stamp.read_text() if stamp.exists() else ""

    def closure(self, packages: Sequence[str]) -> tuple[str, ...]:
        """`name version` of all that installing `packages` on an empty system would install, sorted.

        Raises HostError naming what the release does not have.
        """
        question = hashlib.sha256("\n".join([self.state(), *sorted(packages)]).encode()).hexdigest()[:24]
        kept = self.directory / "closures" / f"{question}.json"
        if kept.exists():
            return tuple(json.loads(kept.read_text()))
        try:
            text = self._apt("apt-get", "-s", "-q", "install", *sorted(packages)).stdout
        except CommandFailed as error:
            raise HostError(f"{self.release} can't install what is asked for: {reason(error.output)}",
                            excerpt="\n".join(complaints(error.output))) from error
        found = tuple(sorted(f"{m[1]} {m[2]}" for m in re.finditer(r"^Inst (\S+) \((\S+)", text, re.M)))
        write_whole(kept, json.dumps(found))
        return found

    def depends(self, package: str) -> list[str]:
        """Names in the Depends field of the candidate version of `package`; of alternatives the first."""
        text = self._apt("apt-cache", "show", "--no-all-versions", package).stdout
        field = re.search(r"^Depends: (.*)$", text, re.M)
        return names(field[1]) if field else []

    def offers(self, package: str) -> list[Offer]:
        """Versions of a binary package that the mirror has, the newest first."""
        text = self._apt("apt-cache", "madison", package).stdout
        return [Offer(m[1], m[2]) for m in re.finditer(r"^ *\S+ \| *(\S+) \| \S+ (\S+)/\S+ \S+ Packages", text, re.M)]

    def packages(self, prefix: str) -> list[str]:
        """Names that begin like this, in the order of the numbers in them; of some there may be no package."""
        found = self._apt("apt-cache", "pkgnames", prefix).stdout.split()
        return sorted(found, key=lambda name: [int(part) if part.isdigit() else 0 for part in re.split(r"(\d+)", name)])

    def package_hashes(self, packages: Sequence[str]) -> dict[tuple[str, str], str]:
        """SHA-256 of the .deb files that the mirror has of `packages`, by name and version."""
        text = self._apt("apt-cache", "show", *packages, check=False).stdout
        found = (dict(re.findall(r"^(Package|Version|SHA256): (\S+)$", part, re.M)) for part in text.split("\n\n"))
        return {(f["Package"], f["Version"]): f["SHA256"] for f in found if len(f) == 3}

    def source_hashes(self, package: str) -> dict[tuple[str, str], str]:
        """SHA-256 of the .dsc files that the mirror has of the source package, by its name and version."""
        text = self._apt("apt-cache", "showsrc", "--only-source", package, check=False).stdout
        found = {}
        for part in text.split("\n\n"):
            version = re.search(r"^Version: (\S+)$", part, re.M)
            digest = re.search(r"^Checksums-Sha256: *\n(?: .*\n)*? ([0-9a-f]{64}) \d+ \S+\.dsc$", part, re.M)
            if version and digest:
                found[package, version[1]] = digest[1]
        return found

    def apt_get(self, *arguments: str, deadline: Deadline, cwd: Path) -> Completed:
        """Run apt-get with this state in directory `cwd`. Raises as run()."""
        return run(["apt-get", *self.options, "-q", *arguments], deadline=deadline, cwd=cwd)

    def _apt(self, program: str, *arguments: str, check: bool = True) -> Completed:
        with self._locked():
            return run([program, *self.options, *arguments], check=check)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _lists_hash(self) -> str:
        total = hashlib.sha256()
        for file in sorted((self.directory / "state/lists").glob("*_Packages*")):
            total.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
        return total.hexdigest()


def state_for(cache: Path, mirrors: AptMirrors, release: str, architecture: str, *,
              source_packages: bool = False) -> AptState:
    """The state below `cache` for these mirrors; other mirrors get another."""
    found = AptState(cache, mirrors, release, architecture, source_packages)
    name = hashlib.sha256(found.sources.encode()).hexdigest()[:12]
    return AptState(cache / "apt" / f"{release}-{architecture}-{name}", mirrors, release, architecture, source_packages)


_OTHERS = ("mirrors come from this machine's apt configuration; dialtone.toml can name others: mirror, "
           "security_mirror")


def refusal(output: str) -> MirrorError:
    """What it means that `apt-get update` failed, printing `output`."""
    early = re.search(r"Release file for (\S+) is not valid yet \(invalid for another ([^)]+)\)", output)
    if early:
        return MirrorError(f"the mirror is ahead of this machine's clock: {early[1]} is valid in {early[2]}",
                           hint="set the clock (timedatectl), or name another mirror in dialtone.toml")
    late = re.findall(r"Release file for (\S+) is expired \(invalid since ([^)]+)\)", output)
    if late:
        return ExpiredMirror("the mirror is too old: " + ", ".join(f"{file} expired {age} ago" for file, age in late),
                             hint='name another in dialtone.toml, or accept it there: expired_mirrors = "accept"')
    gone = re.search(rf"The repository '(\S+/{SNAPSHOT}/?) (\S+) Release' (?:does not have|no longer has)", output)
    if gone:
        return MirrorError(f"the snapshot {gone[1]} has no {gone[2]} (any more)", excerpt="\n".join(complaints(output)),
                           hint="name one that is there in dialtone.toml (mirror, security_mirror): with another time, "
                                "or a mirror without one")
    return MirrorError("the package lists can't be fetched: " + reason(output), excerpt="\n".join(complaints(output)),
                       hint=_OTHERS)


def names(field: str) -> list[str]:
    """Package names of a dependency field (deb-control(5)); of alternatives the first, versions left out."""
    return [re.split(r"[\s(:|]", part.strip(), maxsplit=1)[0] for part in field.split(",") if part.strip()]


def newer(left: str, right: str) -> bool:
    """Whether Debian version `left` is later than `right` (deb-version(7))."""
    return run(["dpkg", "--compare-versions", left, "gt", right], check=False).returncode == 0


def complaints(output: str) -> list[str]:
    """apt's errors and warnings in `output`, each once, at most six."""
    found = [line for line in output.splitlines() if line.startswith(("E:", "W:", "Err:", "  "))]
    return list(dict.fromkeys(found))[:6]


def reason(output: str) -> str:
    """The first error of apt as one sentence."""
    for line in output.splitlines():
        if line.startswith("E: "):
            return re.sub(r"\s+", " ", line.removeprefix("E: ")).strip()
    last = output.strip().splitlines()
    return last[-1].strip() if last else "apt said nothing"
