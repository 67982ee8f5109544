"""The manifest of an image: what it is made of, and from what, as JSON beside the image; and how two differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.errors import InspectError
from harness.image import configuration, elf
from harness.image.packages import Package, installed
from harness.image.root import Root, root_of, virtual_size
from harness.run import write_whole


@dataclass(frozen=True)
class Module:
    """A kernel module that is not of the kernel's package. `srcversion` is empty where the kernel builds none."""

    name: str
    path: str
    vermagic: str
    srcversion: str
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`image` is the file's name; `size` and `virtual_size` in octets; `kernel` as in uname -r.

    `sysctls` are those that files in the image set at boot, `units` those that are enabled, `extra` what the builder
    says besides: sources and elements with their hashes, versions of tools.
    """

    image: str
    size: int
    virtual_size: int
    sha256: str
    kernel: str
    modules: tuple[Module, ...]
    packages: tuple[Package, ...]
    sysctls: Mapping[str, str]
    units: tuple[str, ...]
    extra: Mapping[str, Any]


def write(image: Path, out: Path, extra: Mapping[str, Any], deadline: Deadline) -> Manifest:
    """Describe the qcow2 file `image` in the JSON file `out`. `extra` holds JSON values; its keys stand beside ours.

    Needs root. Raises InspectError where the image cannot be read, HostError where this host cannot.
    """
    with image.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    with root_of(image, deadline) as root:
        manifest = Manifest(
            image=image.name,
            size=image.stat().st_size,
            virtual_size=virtual_size(image, deadline),
            sha256=digest,
            kernel=", ".join(n.removeprefix("vmlinuz-") for n in root.names("/boot") if n.startswith("vmlinuz-")),
            modules=tuple(_modules(root)),
            packages=installed(root),
            sysctls=configuration.sysctls(root),
            units=tuple(configuration.enabled_units(root)),
            extra=extra,
        )
    ours = asdict(manifest)
    write_whole(out, json.dumps(ours.pop("extra") | ours, indent=1))
    return manifest


def read(path: Path) -> Manifest:
    """The manifest in `path`. Raises InspectError where there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Manifest)} - {"extra"}
        return Manifest(**{k: data[k] for k in known - {"modules", "packages", "units"}},
                        modules=tuple(Module(**m) for m in data["modules"]),
                        packages=tuple(Package(**p) for p in data["packages"]), units=tuple(data["units"]),
                        extra={k: v for k, v in data.items() if k not in known})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InspectError(f"{path} is no manifest of an image: {error}",
                           hint="./inv build --force writes it again") from error


def _modules(root: Root) -> list[Module]:
    found = []
    for kernel in root.names("/usr/lib/modules"):
        for directory in ("extra", "updates"):
            for path in root.files(f"/usr/lib/modules/{kernel}/{directory}"):
                if path.endswith(".ko"):
                    found.append(_module(root, path))
    return sorted(found, key=lambda m: m.path)


def _module(root: Root, path: str) -> Module:
    with root.open(path) as file:
        try:
            info = elf.modinfo(file)
        except elf.NotElf as error:
            raise InspectError(f"{path} in the image: {error}", hint="./inv build --force builds it again") from error
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Module(path.rsplit("/", 1)[1].removesuffix(".ko"), path, info.get("vermagic", "").strip(),
                  info.get("srcversion", ""), digest)


@dataclass(frozen=True)
class Change:
    """One difference of two images. `part` is image, kernel, module, package, sysctl, unit, or a key of `extra`.

    `before` is empty for what came, `after` for what went.
    """

    part: str
    name: str
    before: str
    after: str


def diff(before: Manifest, after: Manifest) -> list[Change]:
    """What changed, by part and name; nothing for two manifests of equal images."""
    old, new = _facts(before), _facts(after)
    return [Change(*key, old.get(key, ""), new.get(key, "")) for key in sorted(old.keys() | new.keys())
            if old.get(key, "") != new.get(key, "")]


def _facts(manifest: Manifest) -> dict[tuple[str, str], str]:
    facts = {
        ("image", "sha256"): manifest.sha256,
        ("image", "size"): str(manifest.size),
        ("image", "virtual size"): str(manifest.virtual_size),
        ("kernel", "release"): manifest.kernel,
        **{("module", m.name): f"{m.sha256} for {m.vermagic}" for m in manifest.modules},
        **{("sysctl", key): value for key, value in manifest.sysctls.items()},
        **{("unit", name): "enabled" for name in manifest.units},
    }
    for package in manifest.packages:
        key = ("package", package.name)
        text = f"{package.version} {package.architecture}" + (" (held)" if package.held else "")
        facts[key] = f"{facts[key]}, {text}" if key in facts else text
    for part, value in manifest.extra.items():
        for name, text in (value.items() if isinstance(value, Mapping) else [("", value)]):
            facts[part, str(name)] = text if isinstance(text, str) else json.dumps(text, sort_keys=True)
    return facts
