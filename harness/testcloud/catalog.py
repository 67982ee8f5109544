"""What the test cloud holds for its users: accounts, endpoints, flavors and the external network.

All of it is made where it is missing and left as it is where it is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openstack.config import OpenStackConfig
from openstack.connection import Connection

from harness.testcloud.config import REGION, Addresses, Secrets, logins

NETWORK = "public"
USER = "dialtone"
OTHER = "other"
"""Names of a project and of its only user, who is no administrator."""


@dataclass(frozen=True)
class Flavor:
    """Memory in MiB, disk in GiB."""

    name: str
    memory: int
    cpus: int
    disk: int


FLAVORS = (Flavor("m1.tiny", 512, 1, 3), Flavor("voip.small", 1024, 2, 4), Flavor("voip.large", 2048, 2, 8))


def connect(addresses: Addresses, project: str, user: str, password: str) -> Connection:
    """A connection that reads no configuration of this machine."""
    region = OpenStackConfig(load_yaml_config=False, load_envvars=False).get_one(
        region_name=REGION, api_timeout=60, auth={
            "auth_url": addresses.url("identity"), "username": user, "password": password, "project_name": project,
            "user_domain_name": "Default", "project_domain_name": "Default"})
    return Connection(config=region)


def clouds(addresses: Addresses, known: Secrets, dialtone: dict[str, Any]) -> dict[str, Any]:
    """The content of clouds.yaml; `dialtone` is what the harness wants to know besides. Pure."""
    def entry(project: str, user: str, password: str) -> dict[str, Any]:
        return {"region_name": REGION, "identity_api_version": "3", "dialtone": dialtone, "auth": {
            "auth_url": addresses.url("identity"), "username": user, "password": password, "project_name": project,
            "user_domain_name": "Default", "project_domain_name": "Default"}}

    return {"clouds": {"testcloud": entry(USER, USER, known.user),
                       "testcloud-admin": entry("admin", "admin", known.admin),
                       "testcloud-other": entry(OTHER, OTHER, known.other)}}


def accounts(cloud: Connection, addresses: Addresses, known: Secrets, *, volumes: bool) -> None:
    """Users, their projects and roles, and the catalog of services."""
    identity: Any = cloud.identity
    roles = {role.name: role for role in identity.roles()}
    for name in ("member", "service"):
        roles[name] = roles.get(name) or identity.create_role(name=name)
    service = _project(identity, "service")
    services = logins(volumes=volumes)
    for name in services.values():
        user = _user(identity, name, known.service, service)
        for role in ("admin", "service"):
            identity.assign_project_role_to_user(service, user, roles[role])
    for name, password in ((USER, known.user), (OTHER, known.other)):
        project = _project(identity, name)
        identity.assign_project_role_to_user(project, _user(identity, name, password, project), roles["member"])
    known_services = {s.type: s for s in identity.services()}
    endpoints = {(e.service_id, e.interface) for e in identity.endpoints()}
    for kind, name in services.items():
        entry = known_services.get(kind) or identity.create_service(name=name, type=kind)
        for interface in ("public", "internal", "admin"):
            if (entry.id, interface) not in endpoints:
                identity.create_endpoint(service_id=entry.id, interface=interface, url=addresses.url(kind),
                                         region_id=REGION)


def external_network(cloud: Connection, addresses: Addresses) -> None:
    """The network that floating addresses come from, for all projects."""
    network = cloud.network.find_network(NETWORK) or cloud.network.create_network(
        name=NETWORK, is_router_external=True, is_shared=False, provider_network_type="flat",
        provider_physical_network=NETWORK)
    if not network.subnet_ids:
        pool = {"start": str(addresses.external[10]), "end": str(addresses.external[-2])}
        cloud.network.create_subnet(
            name=NETWORK, network_id=network.id, ip_version=4, cidr=str(addresses.external),
            gateway_ip=str(addresses.outside), is_dhcp_enabled=False, allocation_pools=[pool])


def flavors(cloud: Connection) -> None:
    there = {flavor.name for flavor in cloud.compute.flavors()}
    for flavor in FLAVORS:
        if flavor.name not in there:
            made = cloud.compute.create_flavor(name=flavor.name, ram=flavor.memory, vcpus=flavor.cpus,
                                               disk=flavor.disk)
            # Else a guest waits for entropy that an emulated machine does not have.
            cloud.compute.create_flavor_extra_specs(made, {"hw_rng:allowed": "True"})


def _project(identity: Any, name: str) -> Any:
    return identity.find_project(name) or identity.create_project(name=name, domain_id="default")


def _user(identity: Any, name: str, password: str, project: Any) -> Any:
    return identity.find_user(name) or identity.create_user(
        name=name, password=password, domain_id="default", default_project_id=project.id)
