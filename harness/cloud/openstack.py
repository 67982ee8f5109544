"""The cloud `openstack`: any entry of clouds.yaml, by openstacksdk.

    runs/<id>/<server>/server.json   what the server is and how it is reached
                      /console.log   its console, as far as it was fetched

What a run makes is named <run id>[-<server>] and bears the run's mark; docs/openstack.md lists it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.cloud import (
    Gateway,
    ImageFile,
    Need,
    Route,
    RouteKind,
    Say,
    Server,
    ServerSpec,
    capacity,
    cinder,
    gateway,
    glance,
    neutron,
    nova,
    router,
    security,
)
from harness.cloud.api import Api
from harness.cloud.neutron import Neutron, Subnet
from harness.cloud.ownership import Mark, find, owner
from harness.cloud.removal import Removal
from harness.deadline import Deadline
from harness.errors import CloudError, DescriptionError
from harness.resources import REMOVERS, Remover, Resource
from harness.run import Run, write_whole
from harness.settings import Settings

_BUILDING = 2.0
_NAMESPACE = 60.0
"""Seconds that an agent may take to make a router's namespace."""
_STAND_IN = 20.0
"""Seconds after which DHCP's namespace will do, where the router's has not come up."""
_ADVERTISED = "rtpengine_advertised"
"""Key of a server's metadata: the address that a relay on it tells to callers."""
_LOOKING = 2.0
"""Seconds between two requests for a server's state or console: one request serves everybody who asks meanwhile."""


class OpenStackCloud:
    """Implements harness.cloud.Cloud."""

    uploads = True

    def __init__(self, settings: Settings, api: Api) -> None:
        self._settings = settings
        self.name = api.name
        self.api = api
        self._running = nova.Listing(api, _LOOKING)
        self._consoles: dict[str, float] = {}

    @property
    def calls(self) -> Mapping[str, int]:
        return dict(self.api.counts)

    @property
    def removers(self) -> Mapping[str, Remover]:
        """For one pass: what they list is listed once."""
        return {**REMOVERS, **Removal(self.api).removers}

    def describe(self) -> str:
        return f"{self.name} (OpenStack{', ' + self.api.region if self.api.region else ''})"

    def look(self, need: Need, deadline: Deadline) -> str:
        """Whether the cloud takes what is needed; makes nothing. Raises CloudError with the quota's figures."""
        self.api.ready()
        flavor = self._flavor(need)
        options = self.api.options
        more = {"servers": need.count, "processors": flavor.cpus * need.count,
                "MiB of memory": flavor.memory * need.count, "ports": need.count, "floating IPs": need.count}
        if not options.network:
            # A router takes two ports of the project's: its interface, and DHCP's beside it.
            more |= {"networks": 1, "subnets": 1, "routers": 1, "ports": need.count + 2}
        if not options.security_group:
            more["security groups"] = 1
        if options.volume:
            more |= {"volumes": need.count, "GiB of volumes": need.disk * need.count}
        project = str(self.api.get("login", lambda: self.api.sdk.current_project_id))
        limits = [*nova.quota(self.api), *neutron.quota(self.api, project),
                  *(cinder.quota(self.api) if options.volume else ())]
        short = capacity.shortages(limits, more)
        if short:
            raise CloudError(f"{self.name}: the quota is too small: {'; '.join(short)}",
                             hint="`./inv reap` removes what dead runs left; else ask for more")
        return f"flavor {flavor.name}"

    def upload(self, run: Run, image: ImageFile, deadline: Deadline, say: Say) -> str:
        """The image's id in Glance; sent there unless an image with the same hash is there."""
        mine = owner(self._settings)
        file = glance.file_of(image.path, image.sha256, image.appliance, mine, run.id,
                              manifest_sha256=image.manifest_sha256, min_disk=glance.min_disk(image.virtual_size),
                              min_ram=image.min_ram, firmware=image.firmware)
        run.journal.creating(Resource("os-image", file.name, {"cloud": self.name, "run": run.id, "owner": mine}))
        url = glance.url_of(self.api.options.image_url, image.path)
        uploaded = glance.upload(self.api, file, run.id, url, say, deadline)
        run.facts["cloud"] = {**self._facts(), "image_id": uploaded.id}
        say(f"{file.name}, the same hash is there" if uploaded.reused else f"{file.name}, hash compared")
        return uploaded.id

    def launch(self, run: Run, specs: Sequence[ServerSpec], deadline: Deadline) -> list[Server]:
        """Start servers; they are ACTIVE and have their addresses when this returns. Raises CloudError.

        What they share (network, security group, key pair) is made once, and they are waited for together.
        """
        for spec in specs:
            self._directory(run, spec.name)
        options = self.api.options
        network = self._neutron(run)
        external = network.external_network(options.external_network)
        subnet = (network.named_network(options.network) if options.network
                  else network.own_network(external, options.cidr, deadline))
        key_pair = self._key_name(run.id)
        run.journal.creating(Resource("os-key-pair", key_pair, {"cloud": self.name}))
        nova.import_key_pair(self.api, key_pair, specs[0].public_key, deadline)
        ports = network.ports([spec.name for spec in specs], subnet, self._group(network, specs, deadline), deadline)
        flavor = self._flavor(Need(specs[0].memory, specs[0].cpus, specs[0].disk, len(specs)))
        addresses = [network.floating_ip(spec.name, external, str(port.id), deadline)
                     for spec, port in zip(specs, ports, strict=True)]
        requested = []
        for spec, port, floating in zip(specs, ports, addresses, strict=True):
            name = f"{run.id}-{spec.name}"
            run.journal.creating(Resource("os-server", name, {"cloud": self.name, "run": run.id}))
            attributes = self._attributes(run, spec, flavor, key_pair, str(port.id), floating)
            identity = nova.create_server(self.api, name, attributes, spec.user_data, deadline)
            requested.append((spec, identity, str(port.fixed_ips[0]["ip_address"]), floating))
        network.tag()
        place = self._place(run, network, subnet, deadline) if options.route is RouteKind.NAMESPACE else None
        servers = [self._server(run, *given, place) for given in requested]
        found = nova.wait_active(self.api, run.id, [f"{run.id}-{spec.name}" for spec in specs], deadline, _BUILDING,
                                 specs[0].firmware)
        run.facts.setdefault("cloud", self._facts()).update(
            server_id=", ".join(s.id for s in servers), hypervisor=", ".join(dict.fromkeys(s.host for s in found)),
            flavor=flavor.name, config_drive=options.config_drive)
        return servers

    def _directory(self, run: Run, name: str) -> None:
        try:
            (run.directory / name).mkdir(mode=0o750)
        except FileExistsError:
            raise DescriptionError(f"run {run.id} has a server {name} already") from None

    def _group(self, network: Neutron, specs: Sequence[ServerSpec], deadline: Deadline) -> str:
        options = self.api.options
        rules = security.wanted([port for spec in specs for port in spec.ports], options.remote_prefix)
        if options.security_group:
            return network.named_group(options.security_group, rules, deadline)
        return network.own_group(rules, deadline)

    def _server(self, run: Run, spec: ServerSpec, identity: str, internal: str, floating: str,
                place: tuple[str, Gateway | None] | None) -> Server:
        """The server as it is read back by servers(); its ways, the wanted one first."""
        options = self.api.options
        routes = [Route(RouteKind.FLOATING_IP, floating)]
        if place:
            routes.insert(0, Route(RouteKind.NAMESPACE, internal, *place))
        elif options.route is RouteKind.JUMP:
            routes.insert(0, Route(RouteKind.JUMP, internal, gateway=options.jump))
        directory = run.directory / spec.name
        server = Server(name=spec.name, id=identity, user=spec.user, internal_ip=internal, floating_ip=floating,
                        routes=tuple(routes), console_log=directory / "console.log",
                        datasource="ConfigDrive" if options.config_drive else "OpenStack", firmware=spec.firmware)
        write_whole(directory / "server.json", server.to_json())
        return server

    def servers(self, run: Run) -> Sequence[Server]:
        """The servers of a run that were launched and not removed."""
        launched = {r.name for r in run.journal.outstanding() if r.kind == "os-server"}
        found = [Server.from_json(path.read_text(encoding="utf-8"))
                 for path in sorted(run.directory.glob("*/server.json"))]
        return [s for s in found if f"{run.id}-{s.name}" in launched]

    def alive(self, run: Run, server: Server) -> bool:
        """Whether Nova says that the server runs. Raises CloudError with Nova's own words for ERROR."""
        return any(s.id == server.id and s.status in ("ACTIVE", "BUILD", "REBOOT", "HARD_REBOOT")
                   for s in self._running.states(run.id))

    def console(self, run: Run, server: Server) -> str:
        """Everything that the server has printed on its console so far, and that Nova still has; kept in its log."""
        log = server.console_log
        known = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if time.monotonic() - self._consoles.get(server.id, 0.0) < _LOOKING:
            return known
        text = merged(known, nova.console_log(self.api, server.id))
        self._consoles[server.id] = time.monotonic()
        if text != known:
            write_whole(log, text)
        return text

    def console_url(self, server: Server) -> str:
        """Where a browser shows the server's console. Raises CloudError where the cloud offers none."""
        return nova.console_url(self.api, server.id)

    def move_floating_ip(self, run: Run, source: Server, target: Server) -> None:
        """Give the floating IP of `source` to `target`, whose own is let go first (a port has one)."""
        network = self._neutron(run)
        port = network.port_id(target.name)
        network.move_floating_ip(target.floating_ip, None)
        network.move_floating_ip(source.floating_ip, None)
        network.move_floating_ip(source.floating_ip, port)

    def marked(self) -> Iterator[tuple[Mark, Resource]]:
        """Everything in the cloud that this checkout made, in the order in which it is to be removed."""
        mine = owner(self._settings)
        for name, run in nova.of_owner(self.api, mine):
            yield Mark(mine, run), Resource("os-server", name, {"cloud": self.name, "run": run})
        for kind, name, description in neutron.of_owner(self.api, f"dialtone:{mine}:"):
            mark = find(description)
            if mark:
                yield mark, Resource(kind, name, {"cloud": self.name, "mark": str(mark)})
        for name in nova.key_pairs(self.api, f"-{mine}"):
            run = name.removesuffix(f"-{mine}")
            yield Mark(mine, run), Resource("os-key-pair", name, {"cloud": self.name})
        for image in glance.of_owner(self.api, mine):
            for run in glance.users(image, mine):
                yield Mark(mine, run), Resource("os-image", str(image.name), {
                    "cloud": self.name, "run": run, "owner": mine})

    def _attributes(self, run: Run, spec: ServerSpec, flavor: capacity.Flavor, key_pair: str, port: str,
                    floating: str) -> dict[str, Any]:
        options = self.api.options
        # A relay that is reached at its floating address has to tell callers that one.
        advertised = {_ADVERTISED: floating} if options.route is RouteKind.FLOATING_IP else {}
        attributes: dict[str, Any] = {
            "flavor_id": flavor.id, "key_name": key_pair, "networks": [{"port": port}],
            "config_drive": options.config_drive,
            "metadata": {nova.OWNER: owner(self._settings), nova.RUN: run.id, **advertised, **spec.metadata}}
        if options.availability_zone:
            attributes["availability_zone"] = options.availability_zone
        if options.volume:
            attributes |= {"image_id": "", "block_device_mapping": [{
                "uuid": spec.image, "source_type": "image", "destination_type": "volume", "volume_size": spec.disk,
                "boot_index": 0, "delete_on_termination": True}]}
        else:
            attributes["image_id"] = spec.image
        return attributes

    def _place(self, run: Run, network: Neutron, subnet: Subnet, deadline: Deadline) -> tuple[str, Gateway | None]:
        """The namespace from which the subnet is reached, and the host that it is on (None: this one).

        Waits until it is there. Raises CloudError at the deadline, and where the router is on standby only.
        """
        chosen = router.choose(network.routers_of(subnet), subnet.gateway)
        nodes: Sequence[Gateway | None] = self.api.options.network_nodes or (None,)
        hosts = network.hosts_of(chosen.router) if chosen else []
        limit, patience = deadline.within(_NAMESPACE), Deadline(_STAND_IN)
        while True:
            places = [gateway.look(node, router.candidates(chosen, subnet.network), deadline) for node in nodes]
            found = router.locate(places, chosen, subnet.network, patient=not patience.expired)
            if not isinstance(found, str):
                number, name = found
                run.facts.setdefault("cloud", self._facts()).update(
                    namespace=name, network_host=hosts[0] if hosts else places[number].host)
                return name, nodes[number]
            if limit.expired:
                raise CloudError(f"{self.name}: {found}", hint="network_nodes in clouds.yaml, or another route: "
                                 "docs/openstack.md" + (f"; its agents are on {', '.join(hosts)}" if hosts else ""))
            time.sleep(0.5)

    def _flavor(self, need: Need) -> capacity.Flavor:
        return capacity.choose(nova.flavors(self.api), need, self.api.options.flavor)

    def _neutron(self, run: Run) -> Neutron:
        return Neutron(self.api, run.journal, str(Mark(owner(self._settings), run.id)), run.id)

    def _key_name(self, run_id: str) -> str:
        # A key pair has nothing but its name to say whose it is.
        return f"{run_id}-{owner(self._settings)}"

    def _facts(self) -> dict[str, Any]:
        return {"name": self.name, "region": self.api.region}


def merged(known: str, fetched: str) -> str:
    """A console's log with what was fetched now, which may begin later than the log: Nova keeps the last 100 KiB."""
    if fetched.startswith(known):
        return fetched
    tail = known[-400:]
    at = fetched.rfind(tail)
    if tail and at >= 0:
        return known + fetched[at + len(tail):]
    return known + fetched

