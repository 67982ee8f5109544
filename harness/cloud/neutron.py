"""Networks, security groups and floating IPs in Neutron (Network API v2).

Whatever is made bears the run's mark as its description from its creation on, so that it is found again whatever
happens next; tags are for people and come after.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from openstack.exceptions import BadRequestException, ConflictException

from harness.cloud import security
from harness.cloud.api import Api, Refused
from harness.cloud.capacity import Limit
from harness.cloud.router import INTERFACES, Interface
from harness.deadline import Deadline
from harness.errors import CloudError, DescriptionError
from harness.resources import Resource
from harness.run import Journal

KINDS = {"os-network": "network", "os-subnet": "subnet", "os-router": "router", "os-port": "port",
         "os-floating-ip": "ip", "os-security-group": "security_group",
         "os-security-group-rule": "security_group_rule"}
"""Kinds of resource by openstacksdk's noun. All have a description; rules and floating IPs have no name."""
NAMELESS = ("os-floating-ip", "os-security-group-rule")
_REMOVAL_ORDER = ("os-floating-ip", "os-port", "os-security-group-rule", "os-security-group", "os-router", "os-subnet",
                  "os-network")


@dataclass(frozen=True)
class Subnet:
    """Where servers are: `gateway` is the default gateway's address."""

    network: str
    id: str
    gateway: str
    cidr: str


class Neutron:
    """The network service of `api` for one run: `mark` describes what it makes, `journal` has it before."""

    def __init__(self, api: Api, journal: Journal, mark: str, prefix: str) -> None:
        self.api, self.journal, self.mark, self.prefix = api, journal, mark, prefix
        self._untagged: list[Any] = []

    def external_network(self, name: str) -> str:
        """The id of the network called `name` that floating IPs come from, else the only one. Raises CloudError."""
        found = listed(self.api, "os-network", is_router_external=True)
        named = [n for n in found if not name or name in (n.name, n.id)]
        if len(named) == 1:
            return str(named[0].id)
        names = ", ".join(sorted(n.name for n in found)) or "none"
        if name:
            raise DescriptionError(f"{self.api.name} has no external network {name!r}", hint=f"there are: {names}")
        raise CloudError(f"{self.api.name} has {'no' if not found else 'several'} external networks",
                         hint=f"external_network in clouds.yaml; there are: {names}")

    def named_network(self, name: str) -> Subnet:
        """The first IPv4 subnet of a network that is there. Raises DescriptionError."""
        found = [n for n in listed(self.api, "os-network") if name in (n.name, n.id)]
        if len(found) != 1:
            raise DescriptionError(f"{self.api.name} has {'no' if not found else 'more than one'} network {name!r}",
                                   hint="network in clouds.yaml: its name or id")
        subnets = [s for s in listed(self.api, "os-subnet", network_id=found[0].id) if s.ip_version == 4]
        if not subnets:
            raise DescriptionError(f"the network {name} has no IPv4 subnet")
        return _subnet(subnets[0])

    def own_network(self, external: str, cidr: str, deadline: Deadline) -> Subnet:
        """Network, subnet, and a router to `external`; those of the run where they are there already."""
        network = self._one("os-network", "", {}, deadline)
        subnet = self._one("os-subnet", "", {"network_id": network.id, "ip_version": 4, "cidr": cidr}, deadline)
        router = self._one("os-router", "", {"external_gateway_info": {"network_id": external}}, deadline)
        self.journal.creating(Resource("os-router-interface", self.prefix, self._data()))

        def interface() -> Any:
            return next(iter(interfaces(self.api, router.id, network.id)), None)

        def join() -> Any:
            try:
                return self.api.sdk.network.add_interface_to_router(router, subnet=subnet.id)
            except (BadRequestException, ConflictException):
                # What was asked twice is refused the second time.
                if (there := interface()) is None:
                    raise
                return there

        if interface() is None:
            self.api.create("the router's interface", interface, join, deadline)
        return _subnet(subnet)

    def own_group(self, rules: Sequence[security.Rule], deadline: Deadline) -> str:
        """The id of a security group of the run's own with exactly `rules` besides what lets everything out."""
        group = self._one("os-security-group", "", {}, deadline)
        self._let_in(group, rules, deadline, journalled=False)
        return str(group.id)

    def named_group(self, name: str, rules: Sequence[security.Rule], deadline: Deadline) -> str:
        """The id of a group that is there; of `rules` only what it lacks is added. Raises DescriptionError."""
        found = [g for g in listed(self.api, "os-security-group") if name in (g.name, g.id)]
        if len(found) != 1:
            raise DescriptionError(f"{self.api.name} has {'no' if not found else 'more than one'} security group "
                                   f"{name!r}", hint="security_group in clouds.yaml: its name or id")
        self._let_in(found[0], rules, deadline, journalled=True)
        return str(found[0].id)

    def _let_in(self, group: Any, rules: Sequence[security.Rule], deadline: Deadline, *,
                journalled: bool) -> None:
        """`journalled`: each rule is to be taken back on its own, the group stays."""
        for rule in security.missing(rules, _rules(group)):
            description = f"{self.mark} {rule}"
            if journalled:
                self.journal.creating(Resource("os-security-group-rule", description, self._data()))
            try:
                self._make("os-security-group-rule", f"rule {rule}", {"description": description},
                           security.to_api(rule, group.id, description), deadline)
            except Refused as error:
                # Neutron knows a rule by what it lets in: another run may have added it since the group was listed.
                now = [r for g in listed(self.api, "os-security-group") if g.id == group.id for r in _rules(g)]
                if error.status != 409 or security.missing([rule], now):
                    raise

    def ports(self, names: Sequence[str], subnet: Subnet, group: str, deadline: Deadline) -> list[Any]:
        """Ports in the subnet, in the order of `names` (openstack.network.v2.port.Port); made by one request."""
        wanted = [f"{self.prefix}-{name}" for name in names]
        for name in wanted:
            self.journal.creating(Resource("os-port", name, self._data()))
        known = {p.name: p for p in listed(self.api, "os-port", description=self.mark)}
        lacking = [{"name": name, "description": self.mark, "network_id": subnet.network,
                    "fixed_ips": [{"subnet_id": subnet.id}], "security_groups": [group]}
                   for name in wanted if name not in known]

        def find() -> list[Any] | None:
            made = [p for p in listed(self.api, "os-port", description=self.mark) if p.name not in known]
            return made if len(made) == len(lacking) else None

        if lacking:
            made = self.api.create(f"{len(lacking)} ports", find,
                                   lambda: list(self.api.sdk.network.create_ports(lacking)), deadline)
            self._untagged.extend(made)
            known |= {p.name: p for p in made}
        return [known[name] for name in wanted]

    def floating_ip(self, name: str, external: str, port: str, deadline: Deadline) -> str:
        """An address of the external network that is translated to `port`; one of the run's where it has it already.

        Raises CloudError, which has the reason where the subnet has no router to that network.
        """
        description = f"{self.mark} {name}"
        self.journal.creating(Resource("os-floating-ip", description, self._data()))
        made = self._make("os-floating-ip", f"a floating IP for {name}", {"description": description}, {
            "floating_network_id": external, "port_id": port, "description": description}, deadline)
        self._untagged.append(made)
        return str(made.floating_ip_address)

    def port_id(self, name: str) -> str:
        """The id of the run's port called `name`. Raises CloudError."""
        found = listed(self.api, "os-port", name=f"{self.prefix}-{name}", description=self.mark)
        if not found:
            raise CloudError(f"{self.api.name} has no port {self.prefix}-{name}")
        return str(found[0].id)

    def move_floating_ip(self, address: str, port: str | None) -> None:
        """Associate a floating IP with another port, or with none."""
        found = listed(self.api, "os-floating-ip", floating_ip_address=address)
        if not found:
            raise CloudError(f"{self.api.name} has no floating IP {address}")
        self.api.get(f"moving {address}", lambda: self.api.sdk.network.update_ip(found[0], port_id=port))

    def routers_of(self, subnet: Subnet) -> list[Interface]:
        """Every router with an interface in the subnet."""
        ports = [p for p in listed(self.api, "os-port", network_id=subnet.network)
                 if p.device_owner in INTERFACES and any(f["subnet_id"] == subnet.id for f in p.fixed_ips)]
        # A router of another project is seen by its port only: it can't be asked whether it has a gateway.
        external = {r.id: bool(r.external_gateway_info) for r in listed(self.api, "os-router")}
        return [Interface(p.device_id, next(f["ip_address"] for f in p.fixed_ips if f["subnet_id"] == subnet.id),
                          external.get(p.device_id, False)) for p in ports]

    def hosts_of(self, router: str) -> list[str]:
        """Hosts whose agents have the router, the active one first; empty where only an operator may know."""
        try:
            agents = self.api.get("the router's agents",
                                  lambda: list(self.api.sdk.network.routers_hosting_l3_agents(router)))
        except Refused as error:
            if error.status in (403, 404):
                return []
            raise
        return [a.host for a in sorted(agents, key=lambda a: getattr(a, "ha_state", None) == "standby")]

    def tag(self) -> None:
        """Tag what was made with `dialtone` and the run's id."""
        for thing in self._untagged:
            self.api.get("tags", partial(self.api.sdk.network.set_tags, thing, ["dialtone", self.prefix]))
        self._untagged.clear()

    def _one(self, kind: str, name: str, body: Mapping[str, Any], deadline: Deadline) -> Any:
        """The run's one resource of that name: journaled, then found or made."""
        full = f"{self.prefix}-{name}" if name else self.prefix
        self.journal.creating(Resource(kind, full, self._data()))
        found = listed(self.api, kind, name=full, description=self.mark)
        if found:
            return found[0]
        made = self._make(kind, f"{kind.removeprefix('os-')} {full}", {"name": full, "description": self.mark},
                          {**body, "name": full, "description": self.mark}, deadline)
        self._untagged.append(made)
        return made

    def _make(self, kind: str, what: str, query: Mapping[str, str], body: Mapping[str, Any],
              deadline: Deadline) -> Any:
        return self.api.create(what, lambda: next(iter(listed(self.api, kind, **query)), None),
                               lambda: getattr(self.api.sdk.network, f"create_{KINDS[kind]}")(**body), deadline)

    def _data(self) -> dict[str, str]:
        return {"cloud": self.api.name, "mark": self.mark}


def of_owner(api: Api, mark_prefix: str) -> list[tuple[str, str, str]]:
    """Kind, name (or description) and description of everything whose description begins with `mark_prefix`.

    In the order in which it is to be removed.
    """
    found = []
    for kind in _REMOVAL_ORDER:
        for entry in listed(api, kind):
            description = entry.description or ""
            if description.startswith(mark_prefix):
                if kind == "os-router":
                    found.append(("os-router-interface", str(entry.name), description))
                found.append((kind, description if kind in NAMELESS else str(entry.name), description))
    return found


def quota(api: Api, project: str) -> list[Limit]:
    """What the project uses of its network quota; nothing where the cloud doesn't tell."""
    try:
        found = api.get("the network quota", lambda: api.sdk.network.get_quota(project, details=True))
    except Refused as error:
        if error.status in (403, 404):
            return []
        raise
    names = {"networks": "networks", "subnets": "subnets", "routers": "routers", "ports": "ports",
             "floating_ips": "floating IPs", "security_groups": "security groups"}
    details = {what: getattr(found, key) for key, what in names.items()}
    return [Limit(what, int(d["used"]) + int(d.get("reserved", 0)), int(d["limit"]))
            for what, d in details.items() if isinstance(d, dict)]


def interfaces(api: Api, router: str, network: str | None = None) -> list[Any]:
    query = {"device_id": router} | ({"network_id": network} if network else {})
    return [p for p in listed(api, "os-port", **query) if p.device_owner in INTERFACES]


def _rules(group: Any) -> list[security.Rule]:
    return [r for r in map(security.from_api, group.security_group_rules) if r]


def _subnet(entry: Any) -> Subnet:
    return Subnet(entry.network_id, entry.id, entry.gateway_ip or "", entry.cidr)


def listed(api: Api, kind: str, **query: Any) -> list[Any]:
    # The first use of a service logs in: that can fail like any request.
    return api.get(f"the {KINDS[kind].replace('_', ' ')}s",
                   lambda: list(getattr(api.sdk.network, f"{KINDS[kind]}s")(**query)))
