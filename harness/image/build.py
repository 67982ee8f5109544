"""An appliance's image: built by diskimage-builder, or taken from the cache where nothing that it depends on changed.

    <cache>/images/<appliance>-<key>/    complete because it was renamed into place
        image.qcow2  image.qcow2.sha256  build.log  manifest.json  image.json
    <cache>/work/<run id>/               what a running build writes; gone afterwards

The key covers the description, the elements' files, the kernel and the versions of the packages that the mirror has.
The mirror is asked again when the package lists are a day old, and with `force`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from harness.appliance import Appliance
from harness.deadline import Deadline
from harness.errors import BuildError
from harness.image import builder, dib, loops, sources
from harness.image.apt import DAY, AptState, state_for
from harness.image.builder import Kernel
from harness.image.compile import Artifact, compile_artifact
from harness.image.contained import contained
from harness.image.mirrors import apt_mirrors
from harness.image.sources import SourceChoice, fetch_first, security_note
from harness.process import CommandFailed, run_logged
from harness.resources import Resource
from harness.run import Run
from harness.settings import Settings

IMAGE = "image.qcow2"


@dataclass(frozen=True)
class Image:
    """A whole image on disk. `size` in octets; `source` says where RTPEngine came from, and why not from elsewhere."""

    path: Path
    sha256: str
    size: int
    key: str
    kernel: str
    manifest: Path
    log: Path
    from_cache: bool
    source: dict[str, Any]
    notes: tuple[str, ...]


def build(appliance: Appliance, settings: Settings, run: Run, say: Callable[[str], None], deadline: Deadline,
          force: bool = False) -> Image:
    """The image of `appliance`, from the cache where its inputs are unchanged (`force` builds it anyway).

    Raises DescriptionError, HostError (mirror, disk), BuildError.
    """
    state = _state(appliance, settings)
    state.refresh(deadline, older_than=0 if force else DAY)
    if not force:
        kept = built(appliance, settings)
        if kept:
            return kept
    loops.sweep(settings.cache / "work")
    inputs = _inputs(appliance, settings, state)
    choice, artifact = _rtpengine(appliance, settings, run, say, deadline, state)
    with _work(settings, run) as work:
        image = _disk_image_create(appliance, settings, inputs, artifact, work, say, deadline)
        return _keep(image, appliance, settings, choice, inputs, work)


def built(appliance: Appliance, settings: Settings) -> Image | None:
    """The image of the description as it is now, if it is in the cache and undamaged. Asks no mirror."""
    state = _state(appliance, settings)
    if not state.state():
        return None
    return _kept(_place(appliance, settings, _inputs(appliance, settings, state)))


@dataclass(frozen=True)
class _Inputs:
    kernel: Kernel
    variables: dict[str, str]
    hashes: dict[str, str]

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps([asdict(self.kernel), self.variables, self.hashes],
                                         sort_keys=True).encode()).hexdigest()[:12]


def _inputs(appliance: Appliance, settings: Settings, state: AptState) -> _Inputs:
    kernel = builder.kernel_of(state, appliance.kernel)
    directories = (settings.project / "elements", dib.stock_directory())
    own = {name: dib.tree_hash(path) for name, path in dib.expand(dib.elements(appliance), directories).items()
           if path.parent == directories[0]}
    pins = json.dumps([asdict(s) | {"line": 0} for s in (appliance.rtpengine.sources if appliance.rtpengine else ())])
    hashes = own | {"diskimage-builder": dib.version(), "elements": " ".join(dib.elements(appliance)),
                    "sources": pins, "packages": state.state()}
    return _Inputs(kernel, dib.settings_of(appliance, kernel), hashes)


def _rtpengine(appliance: Appliance, settings: Settings, run: Run, say: Callable[[str], None], deadline: Deadline,
               state: AptState) -> tuple[SourceChoice | None, Artifact | None]:
    if not appliance.rtpengine:
        return None, None
    known = sources.kinds(lambda: state, lambda: _state(appliance, settings, source_packages=True))
    choice = fetch_first(appliance.rtpengine.sources, settings, run, say, deadline, known)
    return choice, compile_artifact(appliance, choice, settings, run, say, deadline, state)


def _disk_image_create(appliance: Appliance, settings: Settings, inputs: _Inputs, artifact: Artifact | None,
                       work: Path, say: Callable[[str], None], deadline: Deadline) -> Path:
    """Run disk-image-create; the finished directory, still below `work`."""
    output = work / "output"
    for directory in (output, work / "locks"):
        directory.mkdir()
    cache = settings.cache / "dib"
    cache.mkdir(exist_ok=True)
    task = dib.Build(appliance, inputs.variables, settings.project / "elements", _state(appliance, settings).mirrors,
                     artifact, cache, work, output / IMAGE.removesuffix(".qcow2"))
    log = output / "build.log"
    say("disk-image-create")
    try:
        run_logged(contained(task.argv), log, deadline=deadline, env=task.environment, cwd=work,
                   on_line=lambda line: _phase(line, say))
    except CommandFailed as error:
        raise builder.failure("the image can't be built", error, log) from error
    if not (output / IMAGE).exists():
        raise BuildError("disk-image-create ended well but left no image", hint=f"the whole log: {log}")
    return output


def _phase(line: str, say: Callable[[str], None]) -> None:
    """Show where diskimage-builder is: it names each directory of hooks, and the conversion at the end."""
    if "Running hooks from" in line:
        say(line.rsplit("/", 1)[-1].removesuffix(".d"))
    elif "Entering phase" in line or "Converting image" in line:
        say("qemu-img")


def _keep(output: Path, appliance: Appliance, settings: Settings, choice: SourceChoice | None, inputs: _Inputs,
          work: Path) -> Image:
    """Describe the finished image and rename it into the cache."""
    place = _place(appliance, settings, inputs)
    file = output / IMAGE
    digest = _sha256(file)
    (output / f"{IMAGE}.sha256").write_text(f"{digest}  {IMAGE}\n")
    image = Image(place / IMAGE, digest, file.stat().st_size, inputs.key, inputs.kernel.release,
                  place / "manifest.json", place / "build.log", False, _source(choice),
                  _notes(appliance, settings, choice))
    facts = asdict(image) | {name: getattr(image, name).name for name in ("path", "manifest", "log")}
    (output / "image.json").write_text(json.dumps(facts | {"stat": _stat(file)}, indent=1))
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.exists():
        place.rename(work / "old")
    output.rename(place)
    return image


def _kept(place: Path) -> Image | None:
    """The image at `place`; None where there is none or its file is not what was built."""
    try:
        facts = json.loads((place / "image.json").read_text())
        unchanged = facts.pop("stat")
        found = Image(**facts)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    file = place / found.path
    try:
        whole = _stat(file) == unchanged or _sha256(file) == found.sha256
    except OSError:
        return None
    if not whole:
        return None
    return replace(found, path=file, manifest=place / found.manifest, log=place / found.log, from_cache=True,
                   notes=tuple(found.notes))


def _source(choice: SourceChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    used = choice.used
    return {"kind": used.spec.kind, "version": used.spec.version, "hashes": dict(used.hashes),
            "skipped": [{"kind": s.kind, "version": s.version, "reason": why} for s, why in choice.skipped],
            "fetched": time.strftime("%Y-%m-%d %H:%M", time.gmtime(used.path.stat().st_mtime)) + " UTC"}


def _notes(appliance: Appliance, settings: Settings, choice: SourceChoice | None) -> tuple[str, ...]:
    if choice is None:
        return ()
    used = choice.used.spec
    notes = [f"RTPEngine {used.version} is from {used.kind}, not from {spec.kind}: {why}"
             for spec, why in choice.skipped]
    offers = _state(appliance, settings).offers(sources.DISTRIBUTION_PACKAGE)
    old = security_note(used, appliance.release, offers)
    return (*notes, *([old] if old else []))


def _state(appliance: Appliance, settings: Settings, *, source_packages: bool = False) -> AptState:
    return state_for(settings.cache, apt_mirrors(settings, appliance.release), appliance.release,
                     appliance.architecture, source_packages=source_packages)


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
    except BaseException:
        if (work / "output/build.log").exists():  # what the error's hint points to
            shutil.copy(work / "output/build.log", run.directory / "build.log")
        raise
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


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
