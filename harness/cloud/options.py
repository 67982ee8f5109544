"""What Dialtone wants to know of a cloud besides how to log in: the key `dialtone` of a cloud in clouds.yaml."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from harness.cloud import Gateway, RouteKind
from harness.errors import DescriptionError


@dataclass(frozen=True)
class CloudOptions:
    """Every field can stand under `dialtone:` of a cloud in clouds.yaml; empty means "find out" or "make one".

    `network`: a network that is there, else network, subnet (`cidr`) and router of the run's own.
    `external_network`: where floating IPs come from; may stay empty where there is one only.
    `security_group`: a group that is there (only what is missing is added), else one of the run's own.
    `remote_prefix`: who is let in, at most; CIDR. `flavor`: else the smallest that fits.
    `image_url`: serves the cache's images/ directory; then Glance fetches from there (web-download).
    `volume`: boot from a volume. `route`: namespace, floating-ip or jump.
    `network_nodes`: where the namespaces are; empty means on this host.
    """

    external_network: str = ""
    network: str = ""
    cidr: str = "10.177.0.0/24"
    security_group: str = ""
    remote_prefix: str = "0.0.0.0/0"
    flavor: str = ""
    availability_zone: str = ""
    config_drive: bool = True
    volume: bool = False
    image_url: str = ""
    route: RouteKind = RouteKind.NAMESPACE
    network_nodes: tuple[Gateway, ...] = ()
    jump: Gateway | None = None


def parse(value: Any, cloud: str, file: str = "clouds.yaml") -> CloudOptions:
    """The options in `value`, as YAML gave it. Raises DescriptionError naming cloud and key."""
    where = f"{file}: clouds.{cloud}.dialtone"
    if value is None:
        return CloudOptions()
    data = dict(_mapping(value, where))
    _known(data, CloudOptions, where)
    for field in fields(CloudOptions):
        value = data.get(field.name, field.default)
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise DescriptionError(f"{where}.{field.name}: {value!r} is neither true nor false")
        if isinstance(field.default, str) and not isinstance(value, str):
            raise DescriptionError(f"{where}.{field.name}: {value!r} is no text")
    for name in ("cidr", "remote_prefix"):
        if name in data:
            data[name] = _cidr(data[name], f"{where}.{name}")
    if "route" in data:
        known = [kind.value for kind in RouteKind]
        if data["route"] not in known:
            raise DescriptionError(f"{where}.route: {data['route']!r} is no route", hint="known: " + ", ".join(known))
        data["route"] = RouteKind(data["route"])
    nodes = data.pop("network_nodes", [])
    if not isinstance(nodes, list):
        raise DescriptionError(f"{where}.network_nodes: is no list")
    jump = data.pop("jump", None)
    options = replace(
        CloudOptions(**data),
        network_nodes=tuple(_gateway(n, f"{where}.network_nodes[{i}]") for i, n in enumerate(nodes)),
        jump=None if jump is None else _gateway(jump, f"{where}.jump"))
    if options.route is RouteKind.JUMP and options.jump is None:
        raise DescriptionError(f"{where}.route: is jump, and {where}.jump is missing",
                               hint="jump: {host: bastion.example.net, user: me}")
    return options


def _gateway(value: Any, where: str) -> Gateway:
    data = dict(_mapping(value, where))
    _known(data, Gateway, where)
    if not isinstance(data.get("host"), str) or not data["host"]:
        raise DescriptionError(f"{where}.host: is missing")
    if not isinstance(data.get("port", 22), int) or isinstance(data.get("port", 22), bool):
        raise DescriptionError(f"{where}.port: {data['port']!r} is no port")
    for name in ("user", "identity_file", "known_hosts"):
        if not isinstance(data.get(name, ""), str):
            raise DescriptionError(f"{where}.{name}: {data[name]!r} is no text")
    for name in ("identity_file", "known_hosts"):
        if data.get(name):
            data[name] = str(Path(data[name]).expanduser())
    return Gateway(**data)


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise DescriptionError(f"{where}: is no mapping")
    return value


def _known(data: Mapping[str, Any], kind: type, where: str) -> None:
    known = [f.name for f in fields(kind)]
    for name in data:
        if name not in known:
            raise DescriptionError(f"{where}: unknown key {name!r}", hint="known: " + ", ".join(known))


def _cidr(text: str, where: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise DescriptionError(f"{where}: {error}", hint="like 203.0.113.0/24") from error
