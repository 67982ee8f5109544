"""Roots: small Debian systems with some packages, a compiler and one kernel's headers say, kept in the cache.

    <cache>/builder/<release>-<key>/root    complete because it was renamed into place
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import BuildError, Fault, HostError
from harness.image.apt import AptState
from harness.image.cached import making, used
from harness.image.contained import contained_with
from harness.process import CommandFailed, run, run_logged
from harness.run import Run, write_whole
from harness.settings import Settings

MODULE_PACKAGES = ("gcc", "make")
"""What compiling the kernel module needs besides the headers."""

ALL_PACKAGES = (*MODULE_PACKAGES, "dpkg-dev", "patch", "pkg-config", "gperf")
"""What compiling all of RTPEngine needs besides the headers and the libraries of its generation."""


@dataclass(frozen=True)
class Kernel:
    """`release` is what `uname -r` says in the image, `package` its exact package."""

    release: str
    package: str
    version: str

    @property
    def headers(self) -> str:
        return f"linux-headers-{self.release}"

    @property
    def flavour(self) -> str:
        """What its meta package is named after, like cloud-amd64."""
        return _flavour(self.headers)


def kernel_of(state: AptState, package: str) -> Kernel:
    """The kernel that `package` (linux-image-cloud-amd64, or an exact one) stands for now.

    Raises BuildError, HostError.
    """
    try:
        brought = state.closure([package])
    except HostError as error:
        kernels = [name for name in state.packages("linux-image-")
                   if not _exact(name) and not name.endswith(("-dbg", "-template")) and state.offers(name)]
        if not kernels or package in kernels or state.offers(package):
            raise
        raise BuildError(f"{state.release} has no package {package}", fault=Fault.DESCRIPTION,
                         hint=f"kernel: one of {', '.join(kernels)}, or an exact package") from error
    for line in brought:
        name, version = line.split(" ")
        if found := _exact(name):
            return Kernel(found[1], name, version)
    raise BuildError(f"the package {package} brings no kernel of {state.release}", fault=Fault.DESCRIPTION,
                     hint="a kernel package is named like linux-image-cloud-amd64")


def _exact(package: str) -> re.Match[str] | None:
    # not linux-image-6.12-cloud-amd64, which stands for the latest of a series
    return re.fullmatch(r"linux-image-(\d+\.\d+\.\S*)", package)


def require_headers(state: AptState, kernel: Kernel) -> None:
    """Raises BuildError where the release has no headers of `kernel`: no module can be compiled for it."""
    if state.offers(kernel.headers):
        return
    same = [name.replace("headers", "image", 1) for name in state.packages("linux-headers-")
            if _flavour(name) == _flavour(kernel.headers)]
    having = ", ".join(name for name in same if state.offers(name)) or "none"
    raise BuildError(f"{state.release} has no {kernel.headers}: no module can be compiled for {kernel.package}",
                     fault=Fault.DESCRIPTION, hint=f"kernels that have headers: {having}")


def _flavour(package: str) -> str:
    found = re.search(r"-\d+\.\d+\.\S*?\d-([a-z]\S*)$", package)
    return found[1] if found else ""


def prepare(packages: Sequence[str], state: AptState, settings: Settings, current: Run, deadline: Deadline,
            log: Path) -> Path:
    """A root with exactly the versions of `packages` that the release has now; from the cache where there.

    Raises BuildError, or HostError where the disk is full.
    """
    closure = state.closure(packages)
    key = hashlib.sha256("\n".join(("root", state.architecture, *closure)).encode()).hexdigest()[:12]
    place = settings.cache / "builder" / f"{state.release}-{key}"
    if place.exists():
        return used(place) / "root"
    with making(place, current) as part:
        debootstrap(part / "root", packages, state, deadline, log)
    return place / "root"


def debootstrap(into: Path, packages: Sequence[str], state: AptState, deadline: Deadline, log: Path,
                *options: str) -> None:
    """Make the smallest system of the release with `packages` at `into`: a directory, or a .tar file.

    Temporary files lie beside it. Raises BuildError, HostError.
    """
    sources, proxies = into.with_name("sources.list"), into.with_name("proxies.conf")
    sources.write_text(state.sources)
    write_whole(proxies, _proxies(), mode=0o600)
    argv = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--architectures={state.architecture}",
            f"--aptopt={proxies}", "--aptopt=APT::Install-Recommends \"false\"", "--aptopt=Acquire::Languages \"none\"",
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude=/usr/share/{d}/*" for d in ("doc", "man", "locale")),
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            *options, f"--include={','.join(packages)}", state.release, os.fspath(into), os.fspath(sources)]
    temporary = into.with_name("temporary")
    try:
        run_logged(contained_with(temporary, argv), log, deadline=deadline)
    except CommandFailed as error:
        raise failure(f"a system with {len(packages)} packages can't be made", error, log) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        sources.unlink()
        proxies.unlink()


def failure(what: str, error: CommandFailed, log: Path) -> BuildError | HostError:
    """The error for a failed step: this host's fault where its disk is full or its mirror out of reach."""
    lines = [line for line in error.output.splitlines() if re.search(r"ERROR|error:|^E:|\bE: ", line)][-6:]
    excerpt = "\n".join(lines or error.output.splitlines()[-8:])
    if "No space left on device" in error.output:
        return HostError(f"{what}: the disk is full", excerpt=excerpt, hint=f"make room; the whole log: {log}")
    unknown = re.search(r"Unable to locate package (\S+)|Package '(\S+)' has no installation candidate", error.output)
    if unknown:
        return BuildError(f"{what}: there is no package {unknown[1] or unknown[2]}", excerpt=excerpt,
                          hint=f"an element's packages must be in its package-installs.yaml; the whole log: {log}")
    unreachable = re.search(r"Could not (resolve|connect)|Failed to fetch|Unable to connect|Temporary failure",
                            error.output)
    return BuildError(what, excerpt=excerpt, hint=f"the whole log: {log}",
                      fault=Fault.HOST if unreachable else Fault.IMAGE)


def _proxies() -> str:
    """What this host's apt was told about proxies goes for the builder root too; a password may be in it."""
    dump = run(["apt-config", "dump"]).stdout
    return "".join(f"{line}\n" for line in re.findall(r'^Acquire::https?::\S* ".+";$', dump, re.M))
