"""One protocol for every cloud: upload, launch, look at and remove servers.

`local` (QEMU on this machine) imitates the shape of Neutron, so that a check is written once and reaches a
server of any cloud by the same route.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from harness.cloud.ownership import Mark
from harness.deadline import Deadline
from harness.firmware import Firmware
from harness.resources import Remover, Resource
from harness.run import Run


class RouteKind(StrEnum):
    """How a server is reached."""

    NAMESPACE = "namespace"
    FLOATING_IP = "floating-ip"
    JUMP = "jump"


@dataclass(frozen=True)
class Gateway:
    """A host that SSH goes through: a network node with the routers' namespaces, or a jump host.

    Its host key must be in `known_hosts` (empty: the user's own file); `identity_file` empty: what ssh finds itself.
    """

    host: str
    user: str = ""
    port: int = 22
    identity_file: str = ""
    known_hosts: str = ""


@dataclass(frozen=True)
class Route:
    """A way to a server: `namespace` is set for NAMESPACE, on this host or on `gateway`; `gateway` is for JUMP, too.

    `address` is the floating one for FLOATING_IP, else the internal one.
    """

    kind: RouteKind
    address: str
    namespace: str = ""
    gateway: Gateway | None = None


@dataclass(frozen=True)
class Need:
    """What `count` servers need: each `memory` MiB, `cpus` processors and `disk` GiB."""

    memory: int
    cpus: int
    disk: int
    count: int = 1


@dataclass(frozen=True)
class ImageFile:
    """An image to be uploaded: a qcow2 file; `virtual_size` in octets, `min_ram` in MiB, hashes in hexadecimal."""

    path: Path
    appliance: str
    sha256: str
    manifest_sha256: str
    virtual_size: int
    min_ram: int
    firmware: Firmware = Firmware.BIOS


@dataclass(frozen=True)
class ServerSpec:
    """What to launch. `image` is what upload() returned; memory in MiB, disk in GiB."""

    name: str
    image: str
    user: str
    public_key: str
    user_data: str
    memory: int
    cpus: int
    disk: int
    ports: Sequence[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    firmware: Firmware = Firmware.BIOS


@dataclass(frozen=True)
class Server:
    """A launched server. `name` is also its SSH alias; addresses are in text form, `internal_ipv6` empty without one.

    `datasource` is the data source that the cloud offers it, by cloud-init's name (ConfigDrive, OpenStack); empty
    where that is not known. `firmware` is what it was to be started by.
    """

    name: str
    id: str
    user: str
    internal_ip: str
    floating_ip: str
    routes: tuple[Route, ...]
    console_log: Path
    datasource: str = ""
    internal_ipv6: str = ""
    firmware: Firmware = Firmware.BIOS

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Server:
        """Raises ValueError, KeyError or TypeError for what to_json() didn't write."""
        data = json.loads(text)
        routes = tuple(Route(RouteKind(r["kind"]), r["address"], r["namespace"],
                             Gateway(**r["gateway"]) if r["gateway"] else None) for r in data["routes"])
        return cls(**{**data, "routes": routes, "console_log": Path(data["console_log"]),
                      "firmware": Firmware(data.get("firmware", Firmware.BIOS))})


Say = Callable[[str], None]
"""Shows what is done now."""


class Cloud(Protocol):
    """Every method records what it makes in the run's journal before it makes it."""

    name: str
    uploads: bool
    """Whether images have to be sent to it."""

    @property
    def calls(self) -> Mapping[str, int]:
        """Requests to its APIs so far, by HTTP method; empty for a cloud without any."""

    @property
    def removers(self) -> Mapping[str, Remover]:
        """Removers for all the kinds of resource that this cloud journals."""

    def describe(self) -> str:
        """One phrase for people: `local (QEMU, TCG)`."""

    def look(self, need: Need, deadline: Deadline) -> str:
        """Whether the cloud takes what is needed, in a phrase; makes nothing. Raises CloudError, DescriptionError."""

    def upload(self, run: Run, image: ImageFile, deadline: Deadline, say: Say) -> str:
        """Make the image known to the cloud; what it is called there. Raises CloudError."""

    def launch(self, run: Run, specs: Sequence[ServerSpec], deadline: Deadline) -> list[Server]:
        """Start servers; return when they have addresses, they need not be ready. Raises CloudError, HostError."""

    def servers(self, run: Run) -> Sequence[Server]:
        """The servers of a run that were launched and not removed, read back from the run's directory."""

    def marked(self) -> Iterator[tuple[Mark, Resource]]:
        """What this checkout made in the cloud's APIs, whatever its run, in the order in which it is to be removed."""

    def alive(self, run: Run, server: Server) -> bool:
        """Whether the server's machine still runs (a crashed or powered-off one doesn't)."""

    def console(self, run: Run, server: Server) -> str:
        """Everything that the server has printed on its serial console so far; it is in its log, too."""

    def console_url(self, server: Server) -> str:
        """Where a browser shows the console; empty where there is no such place. Raises CloudError."""
