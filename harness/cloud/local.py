"""The cloud `local`: QEMU on this machine, behind a router like Neutron's.

    runs/<id>/router/                DHCP's configuration and log
    runs/<id>/<server>/server.json   what the server is
                      /port.json     its place in the network
                      /console.log   its serial console
                      /qemu.log      what QEMU itself had to say
                      /variables.fd  with UEFI: what the firmware remembers
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from harness.cloud import (
    ImageFile,
    Need,
    Route,
    RouteKind,
    Say,
    Server,
    ServerSpec,
    accelerator,
    configdrive,
    dhcp,
    disk,
    egress,
    qemu,
    uefi,
)
from harness.cloud import network as networks
from harness.cloud.accelerator import Accelerator
from harness.cloud.network import Network, Port
from harness.cloud.ownership import Mark, owner
from harness.deadline import Deadline
from harness.errors import CloudError, DescriptionError
from harness.process import CommandFailed, CommandMissing
from harness.process import run as run_command
from harness.resources import REMOVERS, Remover, Resource, processes_with
from harness.run import Run, write_whole
from harness.settings import Settings

PROGRAMS = ("ip", "nft", "sysctl", dhcp.PROGRAM, configdrive.PROGRAM, disk.PROGRAM, qemu.PROGRAM)
"""What this cloud runs on the host; Debian: iproute2 nftables procps dnsmasq-base genisoimage qemu-utils
qemu-system-x86, and slirp4netns where `egress` is set."""

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")


@dataclass(frozen=True)
class _Record:
    """What server.json and port.json hold."""

    server: Server
    port: Port
    token: str


class LocalCloud:
    """Implements harness.cloud.Cloud."""

    name = "local"
    uploads = False

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._accelerator: Accelerator | None = None

    @property
    def calls(self) -> Mapping[str, int]:
        return {}

    @property
    def removers(self) -> Mapping[str, Remover]:
        return REMOVERS

    @property
    def accelerator(self) -> Accelerator:
        """What runs the guests. Raises HostError where nothing does."""
        if self._accelerator is None:
            self._accelerator = accelerator.choose(self._settings)
        return self._accelerator

    def describe(self) -> str:
        try:
            return f"local (QEMU, {self.accelerator.name.upper()})"
        except CommandMissing:
            return "local (QEMU)"

    def look(self, need: Need, deadline: Deadline) -> str:
        """This host is looked at by harness.host."""
        return self.describe()

    def upload(self, run: Run, image: ImageFile, deadline: Deadline, say: Say) -> str:
        """The image's own file: a server's disk lies over it."""
        return os.fspath(image.path)

    def launch(self, run: Run, specs: Sequence[ServerSpec], deadline: Deadline) -> list[Server]:
        """Start servers; they have their addresses and their QEMU runs when this returns.

        Raises CloudError, HostError, and DescriptionError for a name that can't be one or is there already.
        """
        return [self._launch(run, spec, deadline) for spec in specs]

    def _launch(self, run: Run, spec: ServerSpec, deadline: Deadline) -> Server:
        if not _NAME.fullmatch(spec.name):
            raise DescriptionError(f"{spec.name!r} can't name a server",
                                   hint="small letters, digits and hyphens, a letter first")
        for program in PROGRAMS:
            if shutil.which(program) is None:
                raise CommandMissing(program)
        chosen = self.accelerator
        directory = run.directory / spec.name
        try:
            directory.mkdir(mode=0o750)
        except FileExistsError:
            raise DescriptionError(f"run {run.id} has a server {spec.name} already") from None
        root = directory / "disk.qcow2"
        disk.create(Path(spec.image), root, spec.disk, self._settings.cache, run.journal, deadline)
        network = self._network(run)
        with _allocating(run):
            record = self._place(run, network, spec, deadline)
        server = record.server
        mac = network.mac(record.port.number)
        drive = directory / "config.iso"
        for path in (drive, configdrive.tree(drive), directory / qemu.MONITOR, directory / qemu.CONSOLE):
            run.journal.creating(Resource("path", os.fspath(path)))
        content = configdrive.files(configdrive.Instance(
            server.id, spec.name, spec.public_key, spec.user_data, mac, network.router, server.internal_ip,
            server.internal_ipv6, server.floating_ip, metadata=spec.metadata))
        configdrive.write(content, drive, deadline)
        machine = qemu.Machine(
            token=record.token, uuid=server.id, accelerator=chosen.name,
            cpu=self._settings.cpu or qemu.CPU[chosen.name], cpus=spec.cpus, memory=spec.memory, disk=root,
            config_drive=drive, tap=network.tap(record.port), mac=mac, console_log=server.console_log,
            log=directory / "qemu.log", uefi=self._uefi(run, spec, directory, deadline))
        run.journal.creating(Resource("process", record.token))
        _start(machine, network, directory, deadline)
        return server

    def _uefi(self, run: Run, spec: ServerSpec, directory: Path, deadline: Deadline) -> qemu.Uefi | None:
        named = self._settings.signing_certificate
        return uefi.prepare(spec.firmware, directory, run.journal, self._settings.project / named if named else None,
                            deadline)

    def servers(self, run: Run) -> Sequence[Server]:
        """The servers of a run that were launched and not removed."""
        launched = {r.name for r in run.journal.outstanding() if r.kind == "process"}
        records = [_load(path) for path in run.directory.glob("*/server.json")]
        return [r.server for r in sorted(records, key=lambda r: r.port.number) if r.token in launched]

    def marked(self) -> Iterator[tuple[Mark, Resource]]:
        """Everything of this cloud is on this host, where the reaper looks itself."""
        return iter(())

    def console_url(self, server: Server) -> str:
        """None: the console is on this host."""
        return ""

    def alive(self, run: Run, server: Server) -> bool:
        """Whether the server's QEMU runs."""
        return bool(processes_with(self._token(run, server.name)))

    def console(self, run: Run, server: Server) -> str:
        """Everything that the server has printed on its serial console so far."""
        try:
            return server.console_log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return ""

    def reset(self, run: Run, server: Server, deadline: Deadline) -> None:
        """Reset the machine, as its reset button would. Raises CloudError."""
        qemu.execute(run.directory / server.name / qemu.MONITOR, "system_reset", deadline)

    def power_off(self, run: Run, server: Server, deadline: Deadline) -> None:
        """Pull the machine's plug and wait until it is off. Raises CloudError."""
        qemu.execute(run.directory / server.name / qemu.MONITOR, "quit", deadline)
        while self.alive(run, server):
            if deadline.expired:
                raise CloudError(f"{server.name} is not off after {deadline.seconds:.0f} s")
            time.sleep(0.02)

    def _network(self, run: Run) -> Network:
        external = networks.external_network(self._settings.floating_cidr)
        return Network(Mark(owner(self._settings), run.id), external)

    def _token(self, run: Run, name: str) -> str:
        return f"{Mark(owner(self._settings), run.id)}{name}:"

    def _place(self, run: Run, network: Network, spec: ServerSpec, deadline: Deadline) -> _Record:
        """Give a server its place in the run's network, which is made with the first server."""
        ports = sorted((_load(path).port for path in run.directory.glob("*/server.json")), key=lambda p: p.number)
        if Resource("namespace", network.namespace) not in run.journal.outstanding():
            self._make_network(run, network, deadline)
        number = ports[-1].number + 1 if ports else 0
        if number >= networks.CAPACITY:
            raise CloudError(f"run {run.id} has {number} servers, all that its network holds")
        identity = uuid.uuid4()
        port = Port(number, networks.allocate_floating_ip(network, identity.int), tuple(spec.ports))
        networks.plug(network, [*ports, port], deadline, egress=self._settings.egress)
        internal, floating = str(port.internal_ip), str(port.floating_ip)
        version6 = [str(port.internal_ipv6)] if networks.has_ipv6() else []
        server = Server(
            name=spec.name, id=str(identity), user=spec.user, internal_ip=internal, floating_ip=floating,
            routes=(Route(RouteKind.NAMESPACE, internal, network.namespace), Route(RouteKind.FLOATING_IP, floating),
                    *(Route(RouteKind.NAMESPACE, address, network.namespace) for address in version6)),
            console_log=run.directory / spec.name / "console.log", datasource="ConfigDrive",
            internal_ipv6="".join(version6), firmware=spec.firmware)
        record = _Record(server, port, self._token(run, spec.name))
        _save(run, record)
        return record

    def _make_network(self, run: Run, network: Network, deadline: Deadline) -> None:
        directory = run.directory / "router"
        directory.mkdir(mode=0o750, exist_ok=True)
        networks.create(network, run.journal, deadline, egress=self._settings.egress)
        if self._settings.egress:
            egress.start(network, directory, run.journal, deadline)
        dhcp.start(network, directory, run.journal, deadline, egress.RESOLVER if self._settings.egress else "")


@contextmanager
def _allocating(run: Run) -> Iterator[None]:
    """One at a time gets its place in a run's network."""
    with (run.directory / "allocation.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _start(machine: qemu.Machine, network: Network, directory: Path, deadline: Deadline) -> None:
    """Start QEMU in the router's namespace, and see that it runs. Raises CloudError with QEMU's own words."""
    argv = ["ip", "netns", "exec", network.namespace, *qemu.command(machine)]
    try:
        run_command(argv, deadline=deadline, cwd=directory)
        status: dict[str, Any] | None = qemu.execute(directory / qemu.MONITOR, "query-status", deadline)
    except (CommandFailed, CloudError) as error:
        said = _text(machine.log) + (error.output if isinstance(error, CommandFailed) else "")
        raise CloudError("QEMU does not start the server", excerpt=said.strip() or error.message,
                         hint=f"its log: {machine.log}") from error
    if status is None or status.get("status") != "running":
        raise CloudError(f"the server ended at once ({(status or {}).get('status', 'gone')})",
                         excerpt=_text(machine.log).strip() or None, hint=f"its log: {machine.log}")


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _save(run: Run, record: _Record) -> None:
    port = record.port
    directory = run.directory / record.server.name
    write_whole(directory / "port.json", json.dumps({
        "number": port.number, "floating_ip": str(port.floating_ip), "ports": list(port.ports),
        "token": record.token}, indent=1))
    write_whole(directory / "server.json", record.server.to_json())  # last: it says that the place is taken


def _load(path: Path) -> _Record:
    data = json.loads(path.with_name("port.json").read_text(encoding="utf-8"))
    return _Record(Server.from_json(path.read_text(encoding="utf-8")),
                   Port(data["number"], IPv4Address(data["floating_ip"]), tuple(data["ports"])), data["token"])
