"""The relay's kernel module as Debian packages, for servers whose kernel is upgraded.

    <cache>/modules/<appliance>-<version of RTPEngine>/    a package repository for apt, of one directory
        rtpengine-module-<kernel>_<version>_<arch>.deb     one a kernel; brings the kernel and the module for it
        rtpengine-module-<flavour>_<kernel's version>_<arch>.deb    stands for the latest kernel's of a flavour
        Packages

The module is compiled as that of an image is. Its package makes the boot menu again: the kernel that was passed over
for want of a module is then the next to boot.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.appliance import Appliance
from harness.deadline import Deadline
from harness.image.apt import newer
from harness.image.build import compiled
from harness.image.builder import Kernel
from harness.image.cached import making, sha256
from harness.image.compile import Artifact
from harness.process import run as command
from harness.run import Run
from harness.settings import Settings

NAME = "rtpengine-module"

_AFTERWARDS = """#!/bin/sh
set -e
if [ -d /lib/modules/{kernel} ]; then
    depmod {kernel}
fi
update-grub
"""


@dataclass(frozen=True)
class Delivered:
    """A repository in `directory`, and the packages in it that are for `kernel`."""

    directory: Path
    kernel: str
    packages: tuple[str, str]


def deliver(appliance: Appliance, settings: Settings, run: Run, say: Callable[[str], None], deadline: Deadline
            ) -> Delivered:
    """Compile the module for the appliance's kernel of the day, and add it to the appliance's repository.

    Raises DescriptionError, BuildError, HostError.
    """
    kernel, artifact = compiled(appliance, settings, run, say, deadline)
    assert appliance.rtpengine
    place = settings.cache / "modules" / f"{appliance.name}-{appliance.version}"
    with making(place, run, replace=True) as part:
        if place.exists():
            shutil.copytree(place, part, dirs_exist_ok=True)
        say(f"packages for {kernel.release}")
        file = appliance.rtpengine.generation.module_path(kernel.release)
        add(_module(part / "tree", artifact, file, kernel, appliance.architecture), part, deadline)
        add(_meta(part / "tree", kernel, appliance.architecture), part, deadline)
        (part / "Packages").write_text(index(part))
    return Delivered(place, kernel.release, (f"{NAME}-{kernel.flavour}", f"{NAME}-{kernel.release}"))


def control(fields: Mapping[str, str]) -> str:
    """The control file of a binary package (deb-control(5)) with `fields` besides those that all of ours have."""
    common = {"Maintainer": "Dialtone <root@localhost>", "Section": "kernel", "Priority": "optional"}
    return "".join(f"{name}: {value}\n" for name, value in (*fields.items(), *common.items()))


def index(directory: Path) -> str:
    """What apt reads of the packages in `directory`: of several versions of one the latest only."""
    latest: dict[str, tuple[str, str]] = {}
    for file in sorted(directory.glob("*.deb")):
        said = command(["dpkg-deb", "--field", file]).stdout.strip()
        fields = dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)
        name, version = fields["Package"], fields["Version"]
        if name not in latest or newer(version, latest[name][0]):
            latest[name] = version, (f"{said}\nFilename: ./{file.name}\nSize: {file.stat().st_size}\n"
                                     f"SHA256: {sha256(file)}\n")
    return "\n".join(text for _, text in latest.values())


def _module(tree: Path, artifact: Artifact, file: str, kernel: Kernel, architecture: str) -> Path:
    tree.mkdir()
    command(["tar", "--directory", tree, "--zstd", "--extract", "--file", artifact.path, file.lstrip("/")])
    scripts = tree / "DEBIAN"
    scripts.mkdir()
    # A package of an exact version only: another daemon than the one that the module is of may not speak to it.
    (scripts / "control").write_text(control({
        "Package": f"{NAME}-{kernel.release}", "Version": artifact.version, "Architecture": architecture,
        "Depends": f"{kernel.package}, kmod, grub2-common",
        "Description": f"RTPEngine's kernel module for {kernel.release}"}))
    for name in ("postinst", "postrm"):
        script = scripts / name
        script.write_text(_AFTERWARDS.format(kernel=kernel.release))
        script.chmod(0o755)
    return tree


def _meta(tree: Path, kernel: Kernel, architecture: str) -> Path:
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(control({
        "Package": f"{NAME}-{kernel.flavour}", "Version": kernel.version, "Architecture": architecture,
        "Depends": f"{NAME}-{kernel.release}",
        "Description": "the latest kernel of its flavour for which there is RTPEngine's module"}))
    return tree


def add(tree: Path, into: Path, deadline: Deadline) -> None:
    """Make the directory `tree` a package in the directory `into`.

    Where the last of its version there has another content (the module is signed now) a number is added to the version,
    so that servers take it.
    """
    control_file = tree / "DEBIAN/control"
    text = control_file.read_text()
    name, version, architecture = (re.findall(rf"^{field}: (.*)$", text, re.MULTILINE)[0]
                                   for field in ("Package", "Version", "Architecture"))
    numbers = [int(found[1] or 0) for file in into.glob(f"{name}_*.deb")
               if (found := re.fullmatch(rf"{re.escape(version)}(?:\+(\d+))?", file.name.split("_")[1]))]
    last = max(numbers, default=0)
    for numbered in (f"{version}+{number}" if number else version for number in (last, last + 1)):
        control_file.write_text(text.replace(f"Version: {version}", f"Version: {numbered}"))
        built, place = tree.with_name("built.deb"), into / f"{name}_{numbered}_{architecture}.deb"
        # The same bytes for the same files, so that a server sees no change where there is none.
        command(["dpkg-deb", "--root-owner-group", "-Zxz", "--build", tree, built], deadline=deadline,
                env=os.environ | {"SOURCE_DATE_EPOCH": "0"})
        if not place.exists() or place.read_bytes() == built.read_bytes():
            break
    built.rename(place)
    shutil.rmtree(tree)
