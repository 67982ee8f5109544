"""An image's configuration as the programs that read it at boot see it: drop-in directories merged in their order."""

from __future__ import annotations

import errno
import shlex
from typing import Any

import yaml

from harness import yamlfile
from harness.image.root import Root


def drop_ins(root: Root, directory: str, suffix: str = ".conf") -> list[str]:
    """Paths of the files that systemd reads for `directory` (such as "sysctl.d"), in its order.

    By name, wherever they lie; /etc hides a file of the same name elsewhere (sysctl.d(5), modules-load.d(5),
    modprobe.d(5)).
    """
    chosen: dict[str, str] = {}
    for parent in ("/etc", "/usr/local/lib", "/usr/lib"):
        for name in root.names(f"{parent}/{directory}"):
            if name.endswith(suffix):
                chosen.setdefault(name, f"{parent}/{directory}/{name}")
    return [path for _, path in sorted(chosen.items()) if root.exists(path)]


def _lines(root: Root, directory: str) -> list[str]:
    lines = [line.strip() for path in drop_ins(root, directory) for line in root.text(path).splitlines()]
    return [line for line in lines if line and line[0] not in "#;"]


def sysctls(root: Root) -> dict[str, str]:
    """Kernel settings by dotted name; of several values the one that is set last."""
    pairs = [line.lstrip("-").partition("=") for line in _lines(root, "sysctl.d") if "=" in line]
    return {key.strip().replace("/", "."): value.strip() for key, _, value in pairs}


def modules_loaded(root: Root) -> list[str]:
    """Kernel modules that systemd-modules-load loads at boot."""
    return _lines(root, "modules-load.d")


def module_options(root: Root, module: str) -> dict[str, str]:
    """Parameters that modprobe gives to `module`; of several values the last, as the kernel takes it."""
    words = [shlex.split(line) for line in _lines(root, "modprobe.d")]
    return {key: value for line in words if line[:2] == ["options", module]
            for key, _, value in (word.partition("=") for word in line[2:])}


def enabled_units(root: Root) -> list[str]:
    """Units that a target wants or requires and that are there and not masked, sorted."""
    wanted = {name for kind in (".wants", ".requires") for target in root.names("/etc/systemd/system")
              if target.endswith(kind) for name in root.names(f"/etc/systemd/system/{target}")}
    return sorted(name for name in wanted if _unit(root, name))


def _unit(root: Root, name: str) -> bool:
    template = name.partition("@")[0] + "@." + name.rpartition(".")[2] if "@" in name else name
    for candidate in dict.fromkeys((name, template)):
        for directory in ("/etc/systemd/system", "/usr/lib/systemd/system"):
            path = f"{directory}/{candidate}"
            if root.exists(path):
                return not _leads_to_null(root, path) and bool(root.read(path))
            if _leads_to_null(root, path):
                return False
    return False


def _leads_to_null(root: Root, path: str) -> bool:
    try:
        return root.link(path) == "/dev/null"
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise


def cloud_init(root: Root) -> dict[str, Any]:
    """cloud-init's system configuration, top-level keys only merged: later files win, as for lists in cloud-init.

    Raises ValueError where a file is no YAML; cloud-init would go on without it.
    """
    names = root.names("/etc/cloud/cloud.cfg.d")
    merged: dict[str, Any] = {}
    for path in ("/etc/cloud/cloud.cfg", *(f"/etc/cloud/cloud.cfg.d/{n}" for n in names if n.endswith(".cfg"))):
        try:
            content = yaml.load(root.text(path), Loader=yamlfile.Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is no YAML") from error
        if isinstance(content, dict):
            merged |= content
    return merged
