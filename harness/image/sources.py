"""Where RTPEngine comes from: four kinds of source, each pinned by hash, each kept in the cache by its hash.

    <cache>/sources/<kind>-<hash>/    one source, complete because it was renamed into place

What is in it: git and tarball the tree, debian-source the .dsc and the files it names (unpacked, with its patches
applied, by dpkg-source in the builder root), debian-packages the .deb files.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import tarfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Protocol

from harness.appliance import SourceSpec
from harness.deadline import Deadline
from harness.errors import BuildError, Fault
from harness.image.apt import AptState, MirrorError, reason
from harness.image.cached import making, sha256
from harness.process import CommandFailed, CommandTimedOut, run
from harness.run import Run
from harness.settings import Settings


class NotToBeHad(Exception):
    """A source can't be had here and now: the next one is tried. The text is the reason."""


@dataclass(frozen=True)
class FetchedSource:
    """`hashes` maps what was compared (commit, a file's name) to its hash; `path` is the directory in the cache."""

    spec: SourceSpec
    path: Path
    hashes: Mapping[str, str]

    @property
    def digest(self) -> str:
        """One hash over all of `hashes` and the kind."""
        return digest(self.spec)


@dataclass(frozen=True)
class SourceChoice:
    """The source that is used, and those named before it with the reason why each could not be had."""

    used: FetchedSource
    skipped: tuple[tuple[SourceSpec, str], ...] = ()


class Kind(Protocol):
    """One kind of source."""

    def pins(self, spec: SourceSpec) -> Mapping[str, str]:
        """What is compared, and the hash it must have."""

    def fetch(self, spec: SourceSpec, into: Path, deadline: Deadline) -> None:
        """Fetch and verify into the empty directory `into`. Raises NotToBeHad, and BuildError for a wrong hash."""


@dataclass(frozen=True)
class Git:
    """A tag of a repository whose commit is pinned. Only that commit is fetched, without history."""

    def pins(self, spec: SourceSpec) -> Mapping[str, str]:
        return {"commit": spec.commit}

    def fetch(self, spec: SourceSpec, into: Path, deadline: Deadline) -> None:
        repository = into / ".repository"
        git = ["git", "-C", os.fspath(repository)]
        run(["git", "init", "--quiet", "--bare", repository])
        try:
            run([*git, "fetch", "--quiet", "--depth", "1", spec.url, f"refs/tags/{spec.tag}"], deadline=deadline,
                env=os.environ | self._quiet)
        except (CommandFailed, CommandTimedOut) as error:
            said = error.output if isinstance(error, CommandFailed) else error.message
            raise NotToBeHad(_git_reason(said, spec)) from error
        commit = run([*git, "rev-parse", "FETCH_HEAD^{commit}"]).stdout.strip()
        compare(f"tag {spec.tag} of {spec.url}", spec.commit, commit, spec, what="commit")
        archive = into / ".archive.tar"
        run([*git, "archive", "--output", archive, commit])
        run(["tar", "-C", into, "--no-same-owner", "-xf", archive])
        archive.unlink()
        shutil.rmtree(repository)

    # Nobody is there to answer a question, and a repository on this machine may belong to another user.
    _quiet: ClassVar[Mapping[str, str]] = {
        "GIT_TERMINAL_PROMPT": "0", "GIT_SSH_COMMAND": "ssh -oBatchMode=yes", "LC_ALL": "C",
        "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*",
    }


@dataclass(frozen=True)
class Tarball:
    """An archive by URL or path, pinned by its SHA-256; its single top directory, if it has one, is left out."""

    def pins(self, spec: SourceSpec) -> Mapping[str, str]:
        return {spec.url.rsplit("/", 1)[-1]: spec.sha256}

    def fetch(self, spec: SourceSpec, into: Path, deadline: Deadline) -> None:
        archive = into / ".archive"
        if "://" in spec.url:
            _download(spec.url, archive, deadline)
        else:
            try:
                shutil.copyfile(spec.url, archive)
            except OSError as error:
                raise NotToBeHad(f"{spec.url}: {error.strerror}") from error
        compare(spec.url, spec.sha256, sha256(archive), spec)
        try:
            run(["tar", "-C", into, "--no-same-owner", "-xf", archive], deadline=deadline)
        except CommandFailed as error:
            raise BuildError(f"{spec.url} has the right SHA-256 but tar can't unpack it", excerpt=error.output,
                             fault=Fault.DESCRIPTION) from error
        archive.unlink()
        entries = list(into.iterdir())
        if len(entries) == 1 and entries[0].is_dir():
            top = entries[0].rename(into / ".top")
            for entry in list(top.iterdir()):
                entry.rename(into / entry.name)
            top.rmdir()


@dataclass(frozen=True)
class DebianSource:
    """The distribution's source package: apt checks the chain of signatures, the pin is of the .dsc.

    The .dsc lists the hashes of the other files, which apt compares too.
    """

    apt: Callable[[], AptState]

    def pins(self, spec: SourceSpec) -> Mapping[str, str]:
        return {f"{spec.package}_{spec.version}.dsc": spec.sha256}

    def fetch(self, spec: SourceSpec, into: Path, deadline: Deadline) -> None:
        try:
            state = self.apt()
            state.refresh(deadline)
            state.apt_get("source", "--download-only", f"{spec.package}={spec.version}", deadline=deadline, cwd=into)
        except MirrorError as error:
            raise NotToBeHad(error.message) from error
        except (CommandFailed, CommandTimedOut) as error:
            raise NotToBeHad(_apt_reason(error)) from error
        _own_copies(into)
        descriptions = list(into.glob("*.dsc"))
        if len(descriptions) != 1:
            raise NotToBeHad(f"apt fetched no .dsc of {spec.package} {spec.version}")
        compare(descriptions[0].name, spec.sha256, sha256(descriptions[0]), spec)


@dataclass(frozen=True)
class DebianPackages:
    """Binary packages of the distribution: fetched and checked by apt, and each compared with its pin."""

    apt: Callable[[], AptState]

    def pins(self, spec: SourceSpec) -> Mapping[str, str]:
        return dict(spec.packages or {})

    def fetch(self, spec: SourceSpec, into: Path, deadline: Deadline) -> None:
        wanted = self.pins(spec)
        try:
            state = self.apt()
            state.refresh(deadline)
            state.apt_get("download", *(f"{name}={spec.version}" for name in wanted), deadline=deadline, cwd=into)
        except MirrorError as error:
            raise NotToBeHad(error.message) from error
        except (CommandFailed, CommandTimedOut) as error:
            raise NotToBeHad(_apt_reason(error)) from error
        _own_copies(into)
        for name, pin in wanted.items():
            files = list(into.glob(f"{name}_*.deb"))
            if len(files) != 1:
                raise NotToBeHad(f"apt fetched no package {name} {spec.version}")
            compare(files[0].name, pin, sha256(files[0]), spec)


def kinds(binary: Callable[[], AptState], source: Callable[[], AptState]) -> dict[str, Kind]:
    """The kinds by name; `binary` and `source` give apt's state with the lists that the kind needs."""
    return {"git": Git(), "tarball": Tarball(), "debian-source": DebianSource(source),
            "debian-packages": DebianPackages(binary)}


def fetch_first(specs: Sequence[SourceSpec], settings: Settings, run: Run, say: Callable[[str], None],
                deadline: Deadline, known: Mapping[str, Kind]) -> SourceChoice:
    """The first of `specs` that can be had, from the cache or fetched.

    Raises BuildError where a hash is not the pinned one (never passed over), and where none can be had.
    """
    skipped: list[tuple[SourceSpec, str]] = []
    for spec in specs:
        kind = known[spec.kind]
        say(f"source {spec.kind} {spec.version}")
        place = settings.cache / "sources" / f"{spec.kind}-{digest(spec)[:24]}"
        if not place.exists():
            try:
                with making(place, run) as part:
                    kind.fetch(spec, part, deadline)
            except NotToBeHad as why:
                skipped.append((spec, str(why)))
                continue
        return SourceChoice(FetchedSource(spec, place, kind.pins(spec)), tuple(skipped))
    raise BuildError("none of the sources can be had: "
                     + "; ".join(f"{spec.kind} {spec.version}: {why}" for spec, why in skipped),
                     hint="name another source in appliances.yaml, or check the mirror and the network",
                     fault=Fault.HOST)


def patches(source: FetchedSource) -> dict[str, str]:
    """The patches that dpkg-source applies to a source package: SHA-256 by path, in their order; else none.

    Raises BuildError where one is named and not there.
    """
    archives = sorted(source.path.glob("*.debian.tar.*")) if source.spec.kind == "debian-source" else []
    if not archives:
        return {}
    directory = "debian/patches"
    with tarfile.open(archives[0]) as tar:
        files = {member.name.removeprefix("./"): member for member in tar.getmembers() if member.isfile()}

        def content(name: str) -> bytes:
            file = tar.extractfile(files[name]) if name in files else None
            if file is None:
                raise BuildError(f"{archives[0].name} has no {name}", fault=Fault.DESCRIPTION,
                                 hint="its debian/patches/series names it: the source package is broken")
            return file.read()

        if f"{directory}/series" not in files:
            return {}
        # A name may be followed by options of quilt(1).
        named = (line.split()[0] for line in content(f"{directory}/series").decode().splitlines()
                 if line.strip() and not line.startswith("#"))
        return {f"{directory}/{name}": hashlib.sha256(content(f"{directory}/{name}")).hexdigest() for name in named}


def digest(spec: SourceSpec) -> str:
    """SHA-256 over the kind and all pins: names the source in the cache."""
    parts = [spec.kind, spec.commit, spec.sha256, *(f"{k}={v}" for k, v in sorted((spec.packages or {}).items()))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def compare(where: str, expected: str, got: str, spec: SourceSpec, *, what: str = "SHA-256") -> None:
    """Raise BuildError where what is `where` has another hash than the pinned one."""
    if got != expected:
        raise BuildError(f"{where} is not what was pinned: {what} expected {expected}, got {got}",
                         hint=f"find out why it changed before you pin the new {what} (appliances.yaml:{spec.line})",
                         fault=Fault.DESCRIPTION)


def _own_copies(directory: Path) -> None:
    """Of a mirror on this machine (file:) apt makes links to its files; what is kept must not change with them."""
    for link in [p for p in directory.iterdir() if p.is_symlink()]:
        target = link.resolve()
        link.unlink()
        shutil.copyfile(target, link)


def _download(url: str, to: Path, deadline: Deadline) -> None:
    try:
        with urllib.request.urlopen(url, timeout=min(60.0, deadline.remaining)) as answer, to.open("wb") as out:
            while chunk := answer.read(1 << 20):
                out.write(chunk)
                if deadline.expired:
                    raise NotToBeHad(f"{url}: not fetched within {deadline.seconds:.0f} s")
            # Reading in parts, http.client takes a connection that was cut for the end (http.client.HTTPResponse.read).
            if missing := getattr(answer, "length", None):
                raise NotToBeHad(f"{url}: ended before its end: {missing} octets are missing")
    except urllib.error.HTTPError as error:
        raise NotToBeHad(f"{url}: {error.code} {error.reason}") from error
    except NO_ANSWER as error:
        raise NotToBeHad(f"{url}: {cause(error)}") from error


NO_ANSWER: Final = (OSError, ValueError, http.client.HTTPException)
"""What urllib raises where an address can't be asked, or something else than a web server answers."""


def cause(error: Exception) -> str:
    """The reason of one of NO_ANSWER, in one line."""
    reason = getattr(error, "reason", None) or error
    if isinstance(reason, http.client.BadStatusLine) and not isinstance(reason, OSError):
        return f"what answers there is no web server: {str(reason).strip()[:80]!r}"
    return str(getattr(reason, "strerror", None) or reason)


def _git_reason(output: str, spec: SourceSpec) -> str:
    lines = [line.removeprefix("fatal: ") for line in output.splitlines() if line.strip()]
    if any("find remote ref" in line for line in lines):
        return f"{spec.url} has no tag {spec.tag}"
    return f"{spec.url}: {lines[0] if lines else 'git said nothing'}"


def _apt_reason(error: CommandFailed | CommandTimedOut) -> str:
    if isinstance(error, CommandTimedOut):
        return error.message
    refused = re.search(r"Failed to fetch \S*/(\S+)\s+(\d{3}\s+[A-Za-z ]+)", error.output)
    if refused:
        return f"the mirror answers {re.sub(r' +', ' ', refused[2]).strip()} for {urllib.parse.unquote(refused[1])}"
    return reason(error.output)

