"""Where things are and which way to do them: from dialtone.toml, then the environment, then flags."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from harness.errors import DescriptionError
from harness.firmware import Firmware


@dataclass(frozen=True)
class Settings:
    """Every field can be set in dialtone.toml by its name and in the environment as DIALTONE_<NAME>.

    Paths are relative to the project; an empty string means "find out": the mirrors are then taken from this
    machine's own apt configuration, and so is whether they may be used when their Release file has expired; the
    accelerator is the best one that really boots a guest. `opensips_…` name an OpenSIPS that runs here, for tests and
    measurements. `signing_key` is a file or a PKCS#11 URI, its pass phrase is in `signing_passphrase`: file:PATH or
    env:NAME. `firmware` goes before what appliances.yaml has for servers.
    """

    project: Path
    appliances: Path = Path("appliances.yaml")
    runs: Path = Path("runs")
    cache: Path = Path(".cache")
    cloud: str = "local"
    mirror: str = ""
    security_mirror: str = ""
    expired_mirrors: str = ""
    accelerator: str = ""
    cpu: str = ""
    firmware: str = ""
    floating_cidr: str = "198.18.0.0/16"
    testcloud_link: str = "198.19.255.0/30"
    testcloud_external: str = "198.19.0.0/24"
    testcloud_volumes: bool = False
    egress: bool = False
    signing_key: str = ""
    signing_certificate: str = ""
    signing_passphrase: str = ""
    sip_root: str = ""
    opensips_mi: str = ""
    opensips_sip: str = ""
    opensips_restart: str = ""
    keep: str = "never"

    @classmethod
    def load(cls, project: Path, environment: Mapping[str, str] | None = None, **flags: str | None) -> Settings:
        """Read dialtone.toml below `project` (may be missing), DIALTONE_* and `flags` (None means not given).

        Raises DescriptionError for an unknown name or a value of the wrong type.
        """
        environment = os.environ if environment is None else environment
        known = {f.name for f in fields(cls)} - {"project"}
        values: dict[str, object] = {}
        file = project / "dialtone.toml"
        if file.exists():
            try:
                values |= tomllib.loads(file.read_text(encoding="utf-8"))
            except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
                raise DescriptionError(f"{file.name}: {error}") from error
            for name in values:
                if name not in known:
                    raise DescriptionError(f"{file.name}: unknown setting {name!r}",
                                           hint="known: " + ", ".join(sorted(known)))
        for name in environment:
            if name.startswith("DIALTONE_") and name.removeprefix("DIALTONE_").lower() not in known:
                raise DescriptionError(f"the environment has {name}, and there is no such setting",
                                       hint="known: " + ", ".join(f"DIALTONE_{n.upper()}" for n in sorted(known)))
        values |= {n: environment[f"DIALTONE_{n.upper()}"] for n in known if environment.get(f"DIALTONE_{n.upper()}")}
        values |= {n: v for n, v in flags.items() if v is not None}
        defaults = cls(project)
        typed: dict[str, Any] = {n: _as(type(getattr(defaults, n)), n, value) for n, value in values.items()}
        settings = replace(defaults, **typed)
        for name, choices in (("keep", KEEP), ("expired_mirrors", EXPIRED_MIRRORS), ("firmware", ("", *Firmware))):
            if (value := getattr(settings, name)) not in choices:
                raise DescriptionError(f"{name} is {value!r}", hint="it can be " + ", ".join(filter(None, choices)))
        return replace(settings, appliances=project / settings.appliances, runs=project / settings.runs,
                       cache=project / settings.cache)


KEEP = ("never", "failed", "always")
EXPIRED_MIRRORS = ("", "refuse", "accept")


def _as(kind: type, name: str, value: object) -> object:
    if kind is bool and isinstance(value, str):
        if value.lower() not in {"0", "1", "true", "false", "yes", "no"}:
            raise DescriptionError(f"{name} is {value!r}", hint="it can be true or false")
        return value.lower() in {"1", "true", "yes"}
    if isinstance(value, kind):
        return value
    if isinstance(value, str):
        return kind(value)
    what = {bool: "true or false", str: "text"}.get(kind, "path")
    raise DescriptionError(f"{name} is {value!r}, which is no {what}")
