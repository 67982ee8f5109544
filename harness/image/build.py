"""An appliance's image: built by diskimage-builder, or taken from the cache where nothing that it depends on changed.

    <cache>/images/<appliance>-<key>/    complete because it was renamed into place
        image.qcow2  image.qcow2.sha256  build.log  manifest.json  sbom.cdx.json  image.json
    <runs>/<run id>/build.log            while it is built, and after a failure
    work/<run id>/ in the cache          what a running build writes; gone afterwards

The key covers the description, the elements' files, the kernel and the versions of the packages that the mirror has.
The mirror is asked again when the package lists are a day old, and with `force`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.appliance import Appliance
from harness.deadline import Deadline
from harness.errors import BuildError, DescriptionError, InspectError
from harness.image import base, builder, dib, loader, loops, manifest, pins, repository, sbom, signing, sources
from harness.image.apt import DAY, AptState, state_for
from harness.image.builder import Kernel
from harness.image.cached import prune, sha256, used
from harness.image.compile import Artifact, compile_artifact, packages_of, require
from harness.image.loader import Loader
from harness.image.mirrors import apt_mirrors
from harness.image.release import accepted
from harness.image.side_by_side import side_by_side
from harness.image.signing import Signer
from harness.image.sources import SourceChoice, fetch_first
from harness.process import CommandFailed, run_logged
from harness.resources import Resource
from harness.run import Run
from harness.settings import Settings

IMAGE = "image.qcow2"


@dataclass(frozen=True)
class Image:
    """A whole image on disk. `size` in octets; `source` says where RTPEngine came from, and why not from elsewhere.

    `loader` has the SHA-256 of UEFI's boot loader, by name of its files.
    """

    path: Path
    sha256: str
    size: int
    key: str
    kernel: str
    manifest: Path
    log: Path
    from_cache: bool
    source: dict[str, Any]
    loader: dict[str, str]
    notes: tuple[str, ...]

    @property
    def sbom(self) -> Path:
        """Its bill of materials."""
        return self.manifest.with_name(sbom.NAME)


def build(appliance: Appliance, settings: Settings, run: Run, say: Callable[[str], None], deadline: Deadline,
          force: bool = False) -> Image:
    """The image of `appliance`, from the cache where its inputs are unchanged (`force` builds it anyway).

    Raises DescriptionError, HostError (mirror, disk), BuildError.
    """
    state = _state(appliance, settings)
    state.refresh(deadline, older_than=0 if force else DAY)
    _note_age(state, run)
    aged = pins.aged(appliance, state, lambda: _state(appliance, settings, source_packages=True), deadline)
    run.facts["pins"] = [asdict(pin) | {"sentence": pin.sentence} for pin in aged]
    run.save()
    if not force:
        with contextlib.suppress(InspectError):
            kept = built(appliance, settings)
            if kept:
                used(kept.path.parent)
                return kept
    loops.sweep(settings.cache / "work")
    signer = _signer(settings) if appliance.rtpengine else None
    inputs = _inputs(appliance, settings, state)
    if appliance.rtpengine:
        builder.require_headers(state, inputs.kernel)
    choice = _choose(appliance, settings, run, say, deadline, state)
    with _work(settings, run) as work:
        uefi = loader.prepare(state, settings, run, deadline)
        task = _task(appliance, settings, inputs, choice, signer, uefi, state, run, work, say, deadline)
        _disk_image_create(task, say, deadline)
        image = _keep(task, settings, choice, inputs, uefi, state, say, deadline)
    prune(settings.cache / "images", prefix=f"{appliance.name}-", keep=3)
    for directory in ("base", "builder", "loader"):
        prune(settings.cache / directory, prefix=f"{appliance.release}-", keep=3)
    return image


def built(appliance: Appliance, settings: Settings) -> Image | None:
    """The image of the description as it is now, if it is in the cache. Asks no mirror.

    Raises InspectError where its file is damaged.
    """
    state = _state(appliance, settings)
    if not state.state():
        return None
    return _kept(_place(appliance, settings, _inputs(appliance, settings, state)), state)


def compiled(appliance: Appliance, settings: Settings, run: Run, say: Callable[[str], None], deadline: Deadline
             ) -> tuple[Kernel, Artifact]:
    """RTPEngine for the appliance's kernel of the day, without an image. Raises as build()."""
    state = packages_of_today(appliance, settings, deadline)
    _note_age(state, run)
    kernel = builder.kernel_of(state, appliance.kernel)
    signer = _signer(settings)
    builder.require_headers(state, kernel)
    choice = _choose(appliance, settings, run, say, deadline, state)
    if choice is None:
        raise DescriptionError(f"{appliance.name} has no kernel module of its own",
                               hint="modules are for appliances with a section rtpengine")
    return kernel, compile_artifact(appliance, choice, settings, run, say, deadline, state, signer)


def _signer(settings: Settings) -> Signer | None:
    """Who signs the module, once it was seen that he can. Raises DescriptionError, HostError."""
    signer = signing.signer(settings)
    if signer:
        signing.check(signer)
    return signer


def _note_age(state: AptState, run: Run) -> None:
    if expired := accepted(state.releases, datetime.now(UTC)):
        run.facts.setdefault("warnings", []).append(expired)
        run.save()


def packages_of_today(appliance: Appliance, settings: Settings, deadline: Deadline) -> AptState:
    """What the mirror has for the appliance, asked again where that is a day old. Raises MirrorError."""
    state = _state(appliance, settings)
    state.refresh(deadline)
    return state


@dataclass(frozen=True)
class _Inputs:
    """What an image depends on and is known before anything is built."""

    kernel: Kernel
    variables: Mapping[str, str]
    elements: Mapping[str, Path]
    packages: Sequence[str]
    hashes: Mapping[str, str]

    @property
    def key(self) -> str:
        parts = [asdict(self.kernel), dict(self.variables), dict(self.hashes)]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def _inputs(appliance: Appliance, settings: Settings, state: AptState) -> _Inputs:
    kernel = builder.kernel_of(state, appliance.kernel)
    variables = dib.settings_of(appliance, kernel)
    directories = (settings.project / "elements", dib.stock_directory())
    elements = dib.expand(dib.elements(appliance), directories)
    packages = [*base.packages(elements, variables, variables["DIB_VOIP_KERNEL_PACKAGE"], settings.cache)]
    if appliance.opensips:
        packages = repository.pinned([*packages, *appliance.opensips.packages], repository.pins(appliance, state))
    hashes = {name: dib.tree_hash(path) for name, path in elements.items() if path.parent == directories[0]}
    pins = [asdict(s) | {"line": 0} for s in (appliance.rtpengine.sources if appliance.rtpengine else ())]
    recipe = "".join(sha256(Path(__file__).with_name(name)) for name in ("dib.py", "base.py"))
    hashes |= {"diskimage-builder": dib.version(), "recipe": recipe, "sources": json.dumps(pins),
               "packages": _closure(state, packages), "loader": json.dumps(loader.versions(state))}
    if appliance.rtpengine and (signer := signing.signer(settings)):
        hashes["signer"] = signer.fingerprint
    return _Inputs(kernel, variables, elements, packages, hashes)


def _closure(state: AptState, packages: Sequence[str]) -> str:
    """Changes when installing `packages` would install another version of anything."""
    return hashlib.sha256("\n".join(state.closure(packages)).encode()).hexdigest()


def _choose(appliance: Appliance, settings: Settings, run: Run, say: Callable[[str], None], deadline: Deadline,
            state: AptState) -> SourceChoice | None:
    if not appliance.rtpengine:
        return None
    known = sources.kinds(lambda: state, lambda: _state(appliance, settings, source_packages=True))
    choice = fetch_first(appliance.rtpengine.sources, settings, run, say, deadline, known)
    require(choice.used, appliance.rtpengine.generation)
    return choice


def _task(appliance: Appliance, settings: Settings, inputs: _Inputs, choice: SourceChoice | None,
          signer: Signer | None, uefi: Loader, state: AptState, run: Run, work: Path, say: Callable[[str], None],
          deadline: Deadline) -> dib.Build:
    """Compile, and make the base root: at the same time where the packages are known before the compilation."""
    output = work / "output"
    for directory in (output, work / "locks"):
        directory.mkdir()
    log = run.directory / "build.log"
    log.unlink(missing_ok=True)
    own = [path for path in inputs.elements.values() if path.parent == settings.project / "elements"]

    def compiled(limit: Deadline) -> Artifact | None:
        return compile_artifact(appliance, choice, settings, run, say, limit, state, signer) if choice else None

    def root(limit: Deadline, needed: Sequence[str]) -> Path:
        return base.prepare([*inputs.packages, *needed], own, inputs.variables, state, settings, run, limit,
                            log)

    before = packages_of(choice.used) if choice else []
    if before is None:
        artifact = compiled(deadline)
        directory = root(deadline, artifact.packages if artifact else ())
    else:
        needed = before
        directory, artifact = side_by_side(lambda limit: root(limit, needed), compiled, deadline)
    return dib.Build(appliance, inputs.variables, settings.project / "elements", state.mirrors, artifact,
                     _files(appliance, uefi), directory, work, output / IMAGE.removesuffix(".qcow2"), log)


def _files(appliance: Appliance, uefi: Loader) -> dict[str, Path]:
    """Variables of the elements that name files of this machine besides the artifact."""
    files = {"DIB_VOIP_EFI": uefi.directory}
    if appliance.opensips:
        files["DIB_OPENSIPS_KEY"] = repository.required(appliance).key
    return files


def _disk_image_create(task: dib.Build, say: Callable[[str], None], deadline: Deadline) -> None:
    say("disk-image-create")
    try:
        run_logged(task.argv, task.log, deadline=deadline, env=task.environment, cwd=task.work,
                   on_line=lambda line: _phase(line, say))
    except CommandFailed as error:
        raise builder.failure("the image can't be built", error, task.log) from error
    if not task.output.with_name(IMAGE).exists():
        raise BuildError("disk-image-create ended well but left no image", hint=f"the whole log: {task.log}")


def _phase(line: str, say: Callable[[str], None]) -> None:
    """Show where diskimage-builder is: it names each hook that it runs, and the conversion at the end."""
    hooks = re.search(r"dib-run-parts Running \S*/([a-z-]+)\.d/", line)
    if hooks:
        say(hooks[1])
    elif "Converting image" in line:
        say("qemu-img")


def _keep(task: dib.Build, settings: Settings, choice: SourceChoice | None, inputs: _Inputs, uefi: Loader,
          state: AptState, say: Callable[[str], None], deadline: Deadline) -> Image:
    """Describe the finished image and rename its directory into the cache."""
    say("manifest")
    place = _place(task.appliance, settings, inputs)
    output = task.output.parent
    file = output / IMAGE
    elements = {name: digest for name, digest in inputs.hashes.items() if name in inputs.elements}
    extra = {"appliance": task.appliance.name, "source": _source(choice), "elements": elements,
             "diskimage_builder": dib.version(), "variables": dict(inputs.variables), "loader": dict(uefi.versions),
             "artifact": {"key": task.artifact.key, "sha256": task.artifact.sha256} if task.artifact else {},
             "mirrors": _dates(state, datetime.now(UTC))}
    if "signer" in inputs.hashes and (signer := signing.signer(settings)):
        extra["signer"] = {"sha256": signer.fingerprint, "certificate": signer.text}
    described = manifest.write(file, output / "manifest.json", extra, deadline)
    if described.kernel != inputs.kernel.release:
        raise BuildError(f"the image has kernel {described.kernel or 'none'}, not {inputs.kernel.release}",
                         hint="an element installs another kernel package")
    _compare_vermagic(described, inputs.kernel)
    sbom.write(output / "manifest.json")
    (output / f"{IMAGE}.sha256").write_text(f"{described.sha256}  {IMAGE}\n")
    packages = [*inputs.packages, *(task.artifact.packages if task.artifact else ())]
    image = Image(place / IMAGE, described.sha256, described.size, inputs.key, inputs.kernel.release,
                  place / "manifest.json", place / "build.log", False, _source(choice),
                  dict(uefi.hashes), _notes(choice))
    facts = asdict(image) | {name: getattr(image, name).name for name in ("path", "manifest", "log")}
    facts |= {"stat": _stat(file), "packages": packages, "closure": _closure(state, packages)}
    shutil.copy(task.log, output / "build.log")
    (output / "image.json").write_text(json.dumps(facts, indent=1))
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(task.work / "old")
    output.rename(place)
    return image


def _dates(state: AptState, now: datetime) -> dict[str, dict[str, str]]:
    """How old each suite is: Debian's by codename, which a suite of another source may have, too."""
    own = state.own_releases
    return {release.codename if release in own else f"{release.codename} ({release.list})": release.facts(now)
            for release in state.releases}


def _compare_vermagic(described: manifest.Manifest, kernel: Kernel) -> None:
    for module in described.modules:
        if module.vermagic.split(" ")[0] != kernel.release:
            raise BuildError(f"{module.name} in the image is for kernel {module.vermagic.split(' ')[0]}, "
                             f"the image has {kernel.release}", hint="./inv build --force compiles it again")


def _kept(place: Path, state: AptState) -> Image | None:
    """The image at `place`; None where there is none, or a package of it has a newer version. Raises InspectError."""
    try:
        facts = json.loads((place / "image.json").read_text())
        unchanged, packages, closure = (facts.pop(name) for name in ("stat", "packages", "closure"))
        found = Image(**facts)
        found = replace(found, path=place / found.path, manifest=place / found.manifest, log=place / found.log)
        file = found.path
        if not found.sbom.exists():
            return None
        whole = _stat(file) == unchanged or sha256(file) == found.sha256
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not whole:
        raise InspectError(f"{file} is damaged: it is not the file that was built",
                           hint=f"./inv build --appliance {place.name.rsplit('-', 1)[0]} builds it again")
    if _closure(state, packages) != closure:
        return None
    return replace(found, from_cache=True, notes=tuple(found.notes))


def _source(choice: SourceChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    used = choice.used
    return {"kind": used.spec.kind, "version": used.spec.version, "hashes": dict(used.hashes),
            **({"url": used.spec.url} if "://" in used.spec.url else {}), "patches": sources.patches(used),
            "skipped": [{"kind": s.kind, "version": s.version, "reason": why} for s, why in choice.skipped],
            "fetched": time.strftime("%Y-%m-%d %H:%M", time.gmtime(used.path.stat().st_mtime)) + " UTC"}


def _notes(choice: SourceChoice | None) -> tuple[str, ...]:
    if choice is None:
        return ()
    used = choice.used.spec
    return tuple(f"RTPEngine {used.version} is from {used.kind}, not from {spec.kind}: {why}"
                 for spec, why in choice.skipped)


def _state(appliance: Appliance, settings: Settings, *, source_packages: bool = False) -> AptState:
    mirrors = apt_mirrors(settings, appliance.release)
    if appliance.opensips:
        further = repository.entry(appliance, repository.required(appliance), settings.cache)
        mirrors = replace(mirrors, further=(further,))
    return state_for(settings.cache, mirrors, appliance.release, appliance.architecture,
                     source_packages=source_packages)


def _place(appliance: Appliance, settings: Settings, inputs: _Inputs) -> Path:
    return settings.cache / "images" / f"{appliance.name}-{inputs.key}"


@contextmanager
def _work(settings: Settings, run: Run) -> Iterator[Path]:
    """The build's own directory, held by a lock; it and its loop device are removed on every way out."""
    work = settings.cache / "work" / run.id
    directory = run.journal.creating(Resource("path", os.fspath(work)))
    work.mkdir(parents=True, exist_ok=True)
    loop = run.journal.creating(Resource("loop", os.fspath(work / "tmp" / loops.image_directory(work.name))))
    held = loops.lock(work)
    try:
        yield work
    finally:
        held.close()
        loops.sweep(work.parent)
        run.journal.gone(loop)
        shutil.rmtree(work)
        run.journal.gone(directory)


def _stat(file: Path) -> list[int]:
    """Changes whenever the file's content may have changed (inode(7): ctime can't be set back)."""
    found = file.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
