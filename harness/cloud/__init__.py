"""One protocol for every cloud: upload, launch, look at and remove servers.

`local` (QEMU on this machine) imitates the shape of Neutron, so that a check is written once and reaches a
server of any cloud by the same route.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from harness.deadline import Deadline
from harness.resources import Remover
from harness.run import Run


class RouteKind(StrEnum):
    """How a server is reached."""

    NAMESPACE = "namespace"
    FLOATING_IP = "floating-ip"


@dataclass(frozen=True)
class Route:
    """A way to a server: `namespace` is set for NAMESPACE, then `address` is the internal one."""

    kind: RouteKind
    address: str
    namespace: str = ""


@dataclass(frozen=True)
class ServerSpec:
    """What to launch. `image` is a qcow2 file that is never written to; memory in MiB, disk in GiB."""

    name: str
    image: Path
    user: str
    public_key: str
    user_data: str
    memory: int
    cpus: int
    disk: int
    ports: Sequence[str] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Server:
    """A launched server. `name` is also its SSH alias; addresses are IPv4 in text form."""

    name: str
    id: str
    user: str
    internal_ip: str
    floating_ip: str
    routes: tuple[Route, ...]
    console_log: Path


class Cloud(Protocol):
    """Every method records what it makes in the run's journal before it makes it."""

    name: str

    @property
    def removers(self) -> Mapping[str, Remover]:
        """Removers for all the kinds of resource that this cloud journals."""

    def describe(self) -> str:
        """One phrase for people: `local (QEMU, TCG)`."""

    def launch(self, run: Run, spec: ServerSpec, deadline: Deadline) -> Server:
        """Start a server; return when it has an address, it need not be ready. Raises CloudError, HostError."""

    def servers(self, run: Run) -> Sequence[Server]:
        """The servers of a run that were launched and not removed, read back from the run's directory."""

    def alive(self, run: Run, server: Server) -> bool:
        """Whether the server's machine still runs (a crashed or powered-off one doesn't)."""

    def console(self, run: Run, server: Server) -> str:
        """Everything that the server has printed on its serial console so far."""
