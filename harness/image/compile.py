"""RTPEngine's binaries for one kernel, compiled in a builder root, kept in the cache by all that they depend on.

    <cache>/compile/<key>/rtpengine.tar.zst    only paths below usr/
    <cache>/compile/<key>/artifact.json        what it is
    <cache>/compile/<key>/compile.log
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness.appliance import Appliance
from harness.deadline import Deadline
from harness.errors import BuildError, Fault
from harness.generation import Generation
from harness.image import builder, signing
from harness.image.apt import AptState, names
from harness.image.builder import Kernel
from harness.image.cached import making, sha256
from harness.image.contained import contained_in
from harness.image.signing import Signer
from harness.image.sources import FetchedSource, SourceChoice
from harness.process import CommandFailed, run, run_logged
from harness.run import Run
from harness.settings import Settings

ARTIFACT = "rtpengine.tar.zst"
XTABLES = "usr/lib/x86_64-linux-gnu/xtables"


@dataclass(frozen=True)
class Artifact:
    """An archive for the element rtpengine; `path` is the .tar.zst, `kernel` what `uname -r` says in the image.

    `packages` are those of the distribution that the daemon needs at run time.
    """

    path: Path
    sha256: str
    key: str
    kernel: str
    kernel_package: str
    version: str
    kind: str
    vermagic: str
    from_cache: bool
    seconds: float
    packages: tuple[str, ...]


def compile_artifact(appliance: Appliance, choice: SourceChoice, settings: Settings, run: Run,
                     say: Callable[[str], None], deadline: Deadline, state: AptState,
                     signer: Signer | None = None) -> Artifact:
    """Compile what `choice` holds for the appliance's kernel, or take it from the cache.

    Kinds with a whole source tree are compiled in all their parts, of `debian-packages` only the kernel module is;
    its daemon and iptables extension are the distribution's. The module is signed where there is a `signer`.
    Raises BuildError, HostError.
    """
    assert appliance.rtpengine
    generation = appliance.rtpengine.generation
    kernel = builder.kernel_of(state, appliance.kernel)
    source = choice.used
    module_only = source.spec.kind == "debian-packages"
    packages = [*(builder.MODULE_PACKAGES if module_only else
                  (*builder.ALL_PACKAGES, *generation.libraries[appliance.release])), kernel.headers]
    script = settings.project / "elements" / "rtpengine" / "compile" / "compile-rtpengine"
    key = _key(source, kernel, appliance, script, state.closure(packages), signer)
    place = settings.cache / "compile" / key
    kept = _kept(place)
    if kept:
        say(f"compiled for {kernel.release}, from cache")
        return kept
    begin = time.monotonic()
    log = run.directory / "compile.log"
    log.unlink(missing_ok=True)
    with making(place, run, replace=True) as part:
        say(f"builder root with headers of {kernel.release}")
        root = builder.prepare(packages, state, settings, run, deadline, log)
        say(f"compiling for {kernel.release}")
        stage = part / "stage"
        unpacked = tree(source, part, root, deadline, log)
        _make(root, script, unpacked, kernel, source.spec.version, generation, stage, module_only, deadline, log)
        if module_only:
            _binaries(part / "packages", generation, stage)
        needed = packages_of(source)
        if needed is None:
            needed = library_packages(root, _needed(root, generation, stage))
        module = stage / generation.module_path(kernel.release).lstrip("/")
        vermagic = _vermagic(module, kernel)
        if signer:
            say("signing the module")
            signing.sign(module, signer, deadline)
        made = Artifact(place / ARTIFACT, "", key, kernel.release, kernel.package, source.spec.version,
                        source.spec.kind, vermagic, False, round(time.monotonic() - begin, 1),
                        tuple(needed))
        _describe(stage, made, source, kernel)
        made = replace(made, sha256=_pack(stage, part / ARTIFACT, log, deadline))
        for leftover in ("stage", "tree", "packages"):
            shutil.rmtree(part / leftover, ignore_errors=True)
        facts = asdict(made) | {"path": ARTIFACT}
        (part / "artifact.json").write_text(json.dumps(facts, indent=1))
        shutil.copy(log, part / "compile.log")
    return made


def packages_of(source: FetchedSource) -> list[str] | None:
    """The packages that the daemon needs at run time, where the source says so before it is compiled; else None."""
    return daemon_packages(_depends(source.path)) if source.spec.kind == "debian-packages" else None


def _key(source: FetchedSource, kernel: Kernel, appliance: Appliance, script: Path, closure: tuple[str, ...],
         signer: Signer | None) -> str:
    if not script.exists():
        raise BuildError(f"{script} is missing", hint="the element rtpengine brings it")
    parts = [source.digest, source.spec.version, appliance.release, appliance.architecture, kernel.release,
             kernel.package, hashlib.sha256(script.read_bytes()).hexdigest(), *closure,
             *([signer.fingerprint] if signer else [])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _kept(place: Path) -> Artifact | None:
    """The artifact in the cache, if it is whole: its hash is compared."""
    try:
        facts = json.loads((place / "artifact.json").read_text())
        found = Artifact(**facts | {"path": place / ARTIFACT, "from_cache": True, "packages": tuple(facts["packages"])})
        return found if found.sha256 == sha256(found.path) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def tree(source: FetchedSource, part: Path, root: Path, deadline: Deadline, log: Path) -> Path:
    """The directory to compile: the source's own, the unpacked source package, or the module's of the packages."""
    if source.spec.kind == "debian-source":
        unpacked = part / "tree"
        unpacked.mkdir()
        unpack = "dpkg-source --no-check -x /mnt/source/*.dsc /tmp/tree && cp -R /tmp/tree/. /mnt/tree"
        _in_root(root, ["sh", "-c", unpack], deadline, log, "the source package can't be unpacked",
                 source=source.path, tree=unpacked)
        return unpacked
    if source.spec.kind == "debian-packages":
        for package in sorted(source.path.glob("*.deb")):
            run(["dpkg-deb", "--extract", package, part / "packages"], deadline=deadline)
        [found] = (part / "packages/usr/src").glob("rtpengine-*")
        return found
    return source.path


def require(source: FetchedSource, generation: Generation) -> None:
    """Raises BuildError unless `source` holds what a source of the generation is made of."""
    binary = source.spec.kind == "debian-packages"
    files = contents(source)
    wanted = (f"{generation.module}.c", "usr/bin/rtpengine", *([generation.extension] if generation.extension else []))
    missing = [name for name in (wanted if binary else generation.source)
               if not any(file == name or file.endswith(f"/{name}") for file in files)]
    if missing:
        raise BuildError(f"{source.spec.kind} {source.spec.version} holds no {', '.join(missing)}",
                         hint=f"a source of RTPEngine {generation} does: is it that version "
                              f"(appliances.yaml:{source.spec.line})?", fault=Fault.DESCRIPTION)


def contents(source: FetchedSource) -> set[str]:
    """Names of the files in a source as it was fetched: nothing is unpacked."""
    if source.spec.kind in ("git", "tarball"):
        return {path.relative_to(source.path).as_posix() for path in source.path.rglob("*")}
    archives = (path for path in source.path.glob("*.tar.*") if path.suffix != ".asc")
    listings = [*(["tar", "-tf", os.fspath(path)] for path in archives),
                *(["dpkg-deb", "--contents", os.fspath(path)] for path in source.path.glob("*.deb"))]
    return {line.rpartition(" ./")[2] for argv in listings for line in run(argv).stdout.splitlines()}


def _make(root: Path, script: Path, tree: Path, kernel: Kernel, version: str, generation: Generation, stage: Path,
          module_only: bool, deadline: Deadline, log: Path) -> None:
    stage.mkdir()
    argv = ["bash", "/mnt/compile", *(["--module-only"] if module_only else []),
            *([] if generation.extension else ["--no-extension"]), "--module", generation.module, "/mnt/source",
            kernel.release, version, "/mnt/stage"]
    _in_root(root, argv, deadline, log, f"RTPEngine {version} can't be compiled for {kernel.release}",
             compile=script, source=tree, stage=stage)


def _in_root(root: Path, argv: list[str], deadline: Deadline, log: Path, what: str, **binds: Path) -> None:
    try:
        run_logged(contained_in(root, argv, **binds), log, deadline=deadline)
    except CommandFailed as error:
        raise builder.failure(what, error, log) from error


def _binaries(packages: Path, generation: Generation, stage: Path) -> None:
    """The distribution's own binaries, where the element wants them."""
    for origin, target in (("usr/bin/rtpengine", _compiled(generation)[0]),
                           *((file, file) for file in (*_compiled(generation)[1:], "usr/bin/rtpengine-ctl"))):
        if (packages / origin).exists():
            (stage / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(packages / origin, stage / target)


def _compiled(generation: Generation) -> list[str]:
    """The programs and libraries of an artifact: the daemon, then the extension where there is one."""
    return ["usr/sbin/rtpengine", *([f"{XTABLES}/{generation.extension}"] if generation.extension else [])]


def _depends(packages: Path) -> list[str]:
    found: list[str] = []
    for package in sorted(packages.glob("rtpengine-daemon_*.deb")) + sorted(packages.glob("rtpengine-iptables_*.deb")):
        found += names(run(["dpkg-deb", "--field", package, "Depends"]).stdout.strip())
    return found


def daemon_packages(depends: list[str]) -> list[str]:
    """Of the dependencies of Debian's packages those that a running daemon needs: its libraries."""
    return sorted({name for name in depends if name.startswith("lib") and not name.endswith("-perl")})


def library_packages(root: Path, needed: set[str]) -> list[str]:
    """The packages of `root` (a Debian system) that hold the shared libraries `needed`.

    Raises BuildError where a library is in none.
    """
    owners: dict[str, str] = {}
    for listing in (root / "var/lib/dpkg/info").glob("*.list"):
        for line in listing.read_text().splitlines():
            name = line.rsplit("/", 1)[-1]
            if name in needed and re.match(r"(/usr)?/lib/", line):
                owners[name] = listing.name.removesuffix(".list").split(":")[0]
    homeless = needed - owners.keys()
    if homeless:
        raise BuildError(f"no package of the builder root holds {', '.join(sorted(homeless))}")
    return sorted(set(owners.values()))


def _needed(root: Path, generation: Generation, stage: Path) -> set[str]:
    """The shared libraries that the binaries in `stage` ask for (ELF NEEDED)."""
    files = [f"/mnt/stage/{name}" for name in _compiled(generation)]
    return set(re.findall(r"NEEDED +(\S+)", run(contained_in(root, ["objdump", "-p", *files], stage=stage)).stdout))


def _vermagic(module: Path, kernel: Kernel) -> str:
    """The version magic of a kernel module. Raises BuildError where it is not for `kernel`."""
    if not module.exists():
        raise BuildError(f"the compilation left no kernel module for {kernel.release}")
    found = re.search(rb"\0vermagic=([^\0]+)\0", b"\0" + module.read_bytes())
    vermagic = found[1].decode() if found else "none"
    if vermagic.split(" ")[0] != kernel.release:
        raise BuildError(f"{module.name} is for kernel {vermagic.split(' ')[0]}, the image has {kernel.release}",
                         hint="the builder root's headers are not the kernel's: remove .cache/builder")
    return vermagic


def _describe(stage: Path, made: Artifact, source: FetchedSource, kernel: Kernel) -> None:
    share = stage / "usr/share/rtpengine"
    share.mkdir(parents=True)
    facts = {"version": made.version, "kind": made.kind, "source": dict(source.hashes), "kernel": kernel.release,
             "kernel_package": f"{kernel.package} {kernel.version}", "vermagic": made.vermagic, "key": made.key}
    (share / "artifact.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    (share / "packages").write_text("".join(f"{name}\n" for name in made.packages))


def _pack(stage: Path, archive: Path, log: Path, deadline: Deadline) -> str:
    """Pack usr/ of `stage`, the same bytes for the same files; return the archive's SHA-256."""
    run_logged(["tar", "--directory", stage, "--sort=name", "--owner=0", "--group=0", "--numeric-owner",
                "--mtime=@0", "--zstd", "--create", "--file", archive, "usr"], log, deadline=deadline)
    return sha256(archive)
