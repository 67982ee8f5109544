"""The base root: a system with all packages of an image, made in one pass and unpacked by every build of it.

    <cache>/base/<release>-<key>/debootstrap-debian-<release>-<arch>.tar.gz    the name that diskimage-builder looks for

diskimage-builder finds its packages installed already, so that a changed element costs no package installation.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.errors import DescriptionError
from harness.image import builder
from harness.image.apt import AptState
from harness.image.cached import making, used
from harness.process import CommandFailed, run
from harness.run import Run, write_whole
from harness.settings import Settings

DEBIAN_MINIMAL = ("apt", "busybox", "gnupg2", "python3", "sudo", "systemd-sysv", "tzdata")
"""What diskimage-builder's debian-minimal installs from a script and not from a package list."""


def packages(elements: Mapping[str, Path], variables: Mapping[str, str], kernel: str, cache: Path) -> list[str]:
    """The packages that `elements` (name and directory) install on Debian, sorted; `kernel` is the kernel's package.

    diskimage-builder's own tool reads the lists; the answer is kept in `cache`. Raises DescriptionError.
    """
    files = ("package-installs.yaml", "package-installs.json", "pkg-map")
    lists = [name + "".join(_text(path / file) for file in files) for name, path in sorted(elements.items())]
    key = hashlib.sha256(("\n".join(lists) + json.dumps(dict(variables), sort_keys=True)).encode()).hexdigest()[:16]
    kept = cache / "packages" / f"{key}.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, json.dumps(_squash(elements, variables, kept.with_suffix(".part"))))
    phases = json.loads(kept.read_text())
    wanted = {(name, element) for phase in phases.values() for name, element in phase.get("install", [])}
    kernels = {f"linux-image-{variables['ARCH']}": kernel}
    return sorted({kernels.get(real, real) for name, element in wanted
                   for real in mapped(name, _map(elements[element]), variables["DIB_RELEASE"])} | set(DEBIAN_MINIMAL))


def mapped(name: str, table: Mapping[str, Any], release: str) -> list[str]:
    """What a package is called in Debian `release`, by an element's pkg-map; none, one or several names."""
    releases = table.get("release", {}).get("debian", {})
    groups = (releases.get(release, {}), *(table.get(kind, {}).get("debian", {}) for kind in ("distro", "family")))
    for names in (*groups, table.get("default", {})):
        if name in names:
            return str(names[name]).split()
    return [name]


def _squash(elements: Mapping[str, Path], variables: Mapping[str, str], out: Path) -> Any:
    """Run package-installs-squash with the variables that the elements' environment.d sets."""
    tool = elements["package-installs"] / "bin" / "package-installs-squash"
    environment = sorted((f for d in elements.values() for f in d.glob("environment.d/*")), key=lambda f: f.name)
    script = ["set -ae", *(f". {shlex.quote(os.fspath(f))}" for f in environment),
              shlex.join(["exec", sys.executable, os.fspath(tool), "--elements", " ".join(elements), "--path",
                          ":".join(dict.fromkeys(os.fspath(d.parent) for d in elements.values())), os.fspath(out)])]
    base = {"PATH": os.environ.get("PATH", os.defpath), "DISTRO_NAME": "debian", "LC_ALL": "C"}
    try:
        run(["bash", "-c", "\n".join(script)], env=base | dict(variables))
        return json.loads(out.read_text())
    except CommandFailed as error:
        raise DescriptionError("the package lists of the elements can't be read", excerpt=error.output,
                               hint="package-installs.yaml of " + ", ".join(elements)) from error
    finally:
        out.unlink(missing_ok=True)


def prepare(names: Sequence[str], elements: Sequence[Path], variables: Mapping[str, str], state: AptState,
            settings: Settings, current: Run, deadline: Deadline, log: Path) -> Path:
    """The directory with the base root's archive, for DIB_IMAGE_CACHE; made where it isn't in the cache.

    `elements` are our own: their pre-install.d runs before the packages are installed, as in the image.
    Raises BuildError, HostError.
    """
    hooks = sorted((f for d in elements for f in d.glob("pre-install.d/*")), key=lambda f: f.name)
    told = {name: variables[name] for name in ("ARCH", "DIB_RELEASE")}
    place = settings.cache / "base" / f"{state.release}-{key([state.architecture, *state.closure(names)], hooks, told)}"
    archive = f"debootstrap-debian-{state.release}-{state.architecture}.tar.gz"
    if (place / archive).exists():
        return used(place)
    with making(place, current, replace=True) as part:
        tar = part / "root.tar"
        builder.debootstrap(tar, names, state, deadline, log, *_hooks(hooks, told))
        # not compressed in spite of its name: see shims/gzip
        tar.rename(part / archive)
    return place


def key(contents: Sequence[str], hooks: Sequence[Path], variables: Mapping[str, str]) -> str:
    """Stands for a base root in the cache: of these packages, made with these scripts, wherever their directory is."""
    told = _hooks([Path(hook.name) for hook in hooks], variables)
    return hashlib.sha256("\n".join(["tar", *contents, *told, *map(_text, hooks)]).encode()).hexdigest()[:12]


def _hooks(scripts: Sequence[Path], variables: Mapping[str, str]) -> Iterator[str]:
    """mmdebstrap's options: the scripts before the packages; nothing of mmdebstrap's own configuration stays."""
    environment = shlex.join(["env", *(f"{k}={v}" for k, v in variables.items())])
    for script in scripts:
        yield (f'--essential-hook=cp {shlex.quote(os.fspath(script))} "$1/tmp/hook" && '
               f'chroot "$1" {environment} bash /tmp/hook && rm "$1/tmp/hook"')
    yield ('--customize-hook=rm -rf "$1/etc/apt/sources.list" "$1/etc/apt/sources.list.d" '
           '"$1/etc/apt/apt.conf.d/99mmdebstrap" "$1/etc/dpkg/dpkg.cfg.d/99mmdebstrap"')


def _map(element: Path) -> Mapping[str, Any]:
    text = _text(element / "pkg-map")
    table: dict[str, Any] = json.loads(text) if text else {}
    return table


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.exists() else ""
