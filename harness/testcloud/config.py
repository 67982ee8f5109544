"""What the node is configured with: every file of it, from its addresses and its secrets. Pure.

The files lie in etc/ and volumes/ as templates (string.Template), by their path in the node.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from string import Template

from harness.errors import DescriptionError
from harness.settings import Settings
from harness.testcloud.root import STACK

TEMPLATES = Path(__file__).with_name("etc")
VOLUMES = Path(__file__).with_name("volumes")
"""A directory with what a node with volumes has besides, as it lies in the node."""
REGION = "RegionOne"
TUNNEL = IPv4Address("198.51.100.1")
"""End of the tunnels between hypervisors, of which there is one; an address for documentation (RFC 5737)."""

PORTS = {"ssh": 22, "identity": 5000, "compute": 8774, "placement": 8778, "volumev3": 8776,
         "image": 9292, "network": 9696}
"""What the host may reach of the node. The names are service types of the catalog, `ssh` apart."""
PATHS = {"identity": "/v3", "compute": "/v2.1", "volumev3": "/v3/%(project_id)s"}

QUIET = "amqp=WARN,sqlalchemy=WARN,urllib3=WARN,keystoneauth=WARN,oslo_messaging.rpc.client=ERROR"
"""Log levels of what tells nothing."""

LOGINS = {"compute": "nova", "network": "neutron", "image": "glance", "placement": "placement", "volumev3": "cinder"}
"""Services by their type in the catalog; they log in at Keystone with users of these names."""


@dataclass(frozen=True)
class Addresses:
    """`link` joins host and node; floating addresses come from `external`, the provider network."""

    link: IPv4Network
    external: IPv4Network

    @property
    def host(self) -> IPv4Address:
        return self.link[1]

    @property
    def node(self) -> IPv4Address:
        """Where all APIs and the node's SSH answer."""
        return self.link[2]

    @property
    def outside(self) -> IPv4Address:
        """The gateway of the provider network, in the node's namespace `outside`: the internet of this cloud."""
        return self.external[1]

    @property
    def bridge(self) -> IPv4Address:
        """The node's own address in the provider network: from here the host reaches floating addresses."""
        return self.external[2]

    def url(self, service: str) -> str:
        """The endpoint of a service type, as the catalog has it."""
        return f"http://{self.node}:{PORTS[service]}{PATHS.get(service, '')}"


@dataclass(frozen=True)
class Secrets:
    """Made once for a cloud. `admin`, `user` and `other` are the passwords of people's accounts."""

    database: str
    messaging: str
    service: str
    metadata: str
    admin: str
    user: str
    other: str

    @classmethod
    def generate(cls) -> Secrets:
        return cls(*(secrets.token_hex(16) for _ in fields(cls)))

    def __repr__(self) -> str:
        return "Secrets(...)"


@dataclass(frozen=True)
class File:
    """A file of the node; `owner` and `group` by name, `path` absolute."""

    path: str
    text: str
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"


@dataclass(frozen=True)
class SshIdentity:
    """Text of the node's private host key, and the public keys that may log in as its user."""

    host_key: str
    authorized: str


def addresses_of(settings: Settings) -> Addresses:
    """Raises DescriptionError where a setting is no network, or one that is too small."""
    link = _network("testcloud_link", settings.testcloud_link, 30, "198.19.255.0/30")
    external = _network("testcloud_external", settings.testcloud_external, 28, "198.19.0.0/24")
    if link.overlaps(external):
        raise DescriptionError(f"testcloud_link {link} and testcloud_external {external} overlap")
    return Addresses(link, external)


def _network(name: str, text: str, longest: int, example: str) -> IPv4Network:
    try:
        network = ip_network(text)
    except ValueError as error:
        raise DescriptionError(f"{name} is {text!r}: {error}", hint=f"it can be like {example}") from error
    if not isinstance(network, IPv4Network) or network.prefixlen > longest:
        raise DescriptionError(f"{name} is {text!r}", hint=f"it can be an IPv4 network like {example}, "
                                                           f"/{longest} or larger")
    return network


def logins(*, volumes: bool) -> dict[str, str]:
    """LOGINS of a cloud."""
    return {kind: user for kind, user in LOGINS.items() if volumes or kind != "volumev3"}


def render(addresses: Addresses, known: Secrets, ssh: SshIdentity, *, volumes: bool) -> list[File]:
    """Every file that is written into the node before its services start."""
    values = _values(addresses, known)
    places = [(TEMPLATES, TEMPLATES.parent), *([(VOLUMES, VOLUMES)] if volumes else [])]
    made = [_file("/" + str(path.relative_to(top)), Template(path.read_text()).substitute(values))
            for directory, top in places for path in sorted(directory.rglob("*")) if path.is_file()]
    return [*made, File("/etc/ssh/host_key", ssh.host_key, 0o600), File("/etc/ssh/authorized_keys", ssh.authorized)]


def _file(path: str, text: str) -> File:
    """A configuration with secrets can be read by the service that it is for."""
    directory = path.split("/")[2]
    if directory in {"keystone", "glance", "nova", "neutron", "placement", "rabbitmq", "cinder"}:
        group = directory
        return File(path, text, 0o640, group=group)
    mode = {"testcloud": 0o600, "sudoers.d": 0o440, "sbin": 0o755}.get(directory, 0o644)
    return File(path, text, mode)


def _values(addresses: Addresses, known: Secrets) -> Mapping[str, str]:
    values = {**asdict(known), "stack": STACK, "tunnel": str(TUNNEL), "quiet": QUIET,
              "node": str(addresses.node), "host": str(addresses.host), "outside": str(addresses.outside),
              "bridge": str(addresses.bridge), "link_prefix": str(addresses.link.prefixlen),
              "external_prefix": str(addresses.external.prefixlen),
              "ports": ", ".join(map(str, sorted(PORTS.values()))),
              "bus": f"rabbit://openstack:{known.messaging}@127.0.0.1:5672/"}
    return values | dict(_databases(known)) | dict(_logins(addresses, known))


def _databases(known: Secrets) -> Iterator[tuple[str, str]]:
    for name in ("keystone", "glance", "placement", "neutron", "nova", "nova_api", "cinder"):
        user = name.removesuffix("_api")
        yield f"db_{name}", (f"mysql+pymysql://{user}:{known.database}@localhost/{name}"
                             "?unix_socket=/run/mysqld/mysqld.sock&charset=utf8")


def _logins(addresses: Addresses, known: Secrets) -> Iterator[tuple[str, str]]:
    """Lines with which a service logs in, and the section with which it judges the tokens of others."""
    url = addresses.url("identity")
    for user in LOGINS.values():
        login = "\n".join((
            "auth_type = password", f"auth_url = {url}", f"username = {user}", f"password = {known.service}",
            "project_name = service", "user_domain_name = Default", "project_domain_name = Default"))
        yield f"login_{user}", login
        yield f"token_{user}", "\n".join((
            "[keystone_authtoken]", f"www_authenticate_uri = {url}", "memcached_servers = 127.0.0.1:11211",
            "service_token_roles_required = true", login))
