"""The node's services as data: what runs, as whom, after what, and when it is ready. Pure.

They are started by init.py. What needs nothing of each other starts at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from harness.testcloud.config import REGION, Addresses, Secrets


@dataclass(frozen=True)
class Service:
    """A daemon, or (`once`) a command that is ready when it has ended well.

    `ready` says how a daemon is asked: `tcp HOST:PORT` (it accepts), `http URL` (it answers), `path P` (it is there),
    `log TEXT` (its log has it); all of them must hold, and without one it is ready as soon as it runs. `graceful`:
    given time to write what it holds when the node stops; the others are stateless and are not asked.
    """

    name: str
    argv: tuple[str, ...]
    needs: tuple[str, ...] = ()
    ready: tuple[str, ...] = ()
    user: str = "root"
    once: bool = False
    graceful: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Directory:
    """A directory that a package leaves to its unit to make, or that we give a service."""

    path: str
    owner: str = "root"
    mode: int = 0o755


TOPICS = ("q-plugin", "q-l3-plugin", "q-reports-plugin")
"""Queues on which Neutron's server hears its agents."""

DIRECTORIES = (
    Directory("/run/mysqld", "mysql"), Directory("/run/sshd"), Directory("/run/lock", mode=0o1777),
    *(Directory(f"/var/lib/glance/{name}", "glance", 0o750) for name in ("images", "staging", "tasks")),
    Directory("/var/lib/nova/instances", "nova"), Directory("/var/lib/nova/lock", "nova", 0o750),
    Directory("/var/lib/neutron/lock", "neutron", 0o750),
)

VOLUME_DIRECTORIES = (
    Directory("/srv/volumes", "cinder"), Directory("/var/lib/cinder/lock", "cinder", 0o750),
    Directory("/var/lib/cinder/conversion", "cinder", 0o750),
)
"""Of a node with volumes. They are files in the first: who runs guests has to get there."""

ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "PYTHONWARNINGS": "ignore",
               # One arena: the green threads of a Python service don't contend for memory.
               "MALLOC_ARENA_MAX": "1", "OS_CLIENT_CONFIG_FILE": "/dev/null"}


def directories(*, volumes: bool) -> tuple[Directory, ...]:
    return DIRECTORIES + VOLUME_DIRECTORIES if volumes else DIRECTORIES


def base(addresses: Addresses) -> tuple[Service, ...]:
    """What everything else stands on."""
    return (
        Service("network", ("sh", "/etc/testcloud/network"), once=True),
        Service("mariadb", ("mariadbd", "--user=mysql"), ready=("path /run/mysqld/mysqld.sock",), graceful=True),
        Service("rabbitmq", ("rabbitmq-server",), ("network",), ("tcp 127.0.0.1:5672",), "rabbitmq", graceful=True,
                environment={"HOME": "/var/lib/rabbitmq", "ERL_EPMD_ADDRESS": "127.0.0.1"}),
        Service("memcached", ("memcached", "-u", "memcache", "-l", "127.0.0.1", "-m", "32", "-U", "0"),
                ready=("tcp 127.0.0.1:11211",)),
        Service("virtlogd", ("virtlogd",), ready=("path /run/libvirt/virtlogd-sock",)),
        Service("libvirtd", ("libvirtd",), ("virtlogd",), ready=("path /run/libvirt/libvirt-sock",)),
        Service("keystone", _uwsgi(addresses, "identity", "/usr/bin/keystone-wsgi-public"),
                ("network", "mariadb", "memcached"), (f"http {addresses.url('identity')}",), "keystone"),
    )


def cloud(addresses: Addresses, *, volumes: bool) -> tuple[Service, ...]:
    """The whole cloud, from a seed that has schemas and catalog.

    A service that only answers needs nobody. One that asks as it starts needs whom it asks: a message for a queue
    that is not there yet is lost, and its sender waits a minute for the answer.
    """
    neutron = ("--config-file", "/etc/neutron/neutron.conf", "--config-file")
    plugins = "/etc/neutron/plugins/ml2"
    stored = ("network", "mariadb")
    asking = ("keystone", "placement", "rabbitmq")
    joined = "log Join ServiceGroup membership for this service"

    def agent(name: str, configuration: str) -> Service:
        return Service(name, (f"neutron-{name}", *neutron, configuration), ("neutron-server", "keystone"),
                       user="neutron")

    return (
        *base(addresses),
        Service("sshd", ("/usr/sbin/sshd", "-D", "-e", "-f", "/etc/ssh/sshd_testcloud"), ("network",),
                (f"tcp {addresses.node}:22",)),
        Service("placement", _uwsgi(addresses, "placement", "/usr/bin/placement-api"), stored,
                (f"http {addresses.url('placement')}",), "placement"),
        Service("neutron-server", ("neutron-server", *neutron, f"{plugins}/ml2_conf.ini"), stored,
                (f"http {addresses.url('network')}", *(f"log Queue.declare: {topic}" for topic in TOPICS)), "neutron"),
        Service("nova-conductor", ("nova-conductor",), (*stored, *asking), (f"{joined} conductor",), "nova"),
        Service("nova-scheduler", ("nova-scheduler",), (*stored, *asking), (f"{joined} scheduler",), "nova"),
        Service("nova-compute", ("nova-compute",), (*asking, "nova-conductor", "libvirtd"),
                (f"{joined} compute",), "nova"),
        Service("nova-api", ("nova-api",), stored, (f"http http://{addresses.node}:8774/",), "nova"),
        agent("linuxbridge-agent", f"{plugins}/linuxbridge_agent.ini"),
        agent("l3-agent", "/etc/neutron/l3_agent.ini"),
        agent("dhcp-agent", "/etc/neutron/dhcp_agent.ini"),
        agent("metadata-agent", "/etc/neutron/metadata_agent.ini"),
        Service("glance-api", ("glance-api", "--config-file", "/etc/glance/glance-api.conf"), stored,
                (f"http {addresses.url('image')}/",), "glance"),
        *(_volumes(addresses) if volumes else ()),
    )


def _volumes(addresses: Addresses) -> tuple[Service, ...]:
    needs = ("network", "mariadb", "rabbitmq")
    return (
        Service("cinder-api", _uwsgi(addresses, "volumev3", "/usr/bin/cinder-wsgi"), needs,
                (f"http http://{addresses.node}:8776/",), "cinder"),
        Service("cinder-scheduler", ("cinder-scheduler",), needs, user="cinder"),
        Service("cinder-volume", ("cinder-volume",), needs, user="cinder"),
    )


def seed(addresses: Addresses, known: Secrets, *, volumes: bool) -> tuple[Service, ...]:
    """Databases, schemas and the first account: what a seed is made with. Three chains, for there is little memory
    that they share and two processors are common."""
    bootstrap = ["keystone-manage", "bootstrap", "--bootstrap-region-id", REGION]
    for kind in ("admin", "internal", "public"):
        bootstrap += [f"--bootstrap-{kind}-url", addresses.url("identity")]
    neutron = ("neutron-db-manage", "--config-file", "/etc/neutron/neutron.conf",
               "--config-file", "/etc/neutron/plugins/ml2/ml2_conf.ini", "upgrade", "heads")
    started = {s.name: s for s in base(addresses)}

    def once(name: str, argv: tuple[str, ...], needs: str, user: str, **environment: str) -> Service:
        return Service(name, argv, tuple(needs.split()), user=user, once=True, environment=environment)

    def after(name: str, needs: str) -> Service:
        service = started[name]
        return replace(service, needs=(*service.needs, *needs.split()))

    return (
        *(started[name] for name in ("network", "rabbitmq", "memcached", "virtlogd", "libvirtd")),
        once("database-directory", ("mariadb-install-db", "--user=mysql", "--skip-test-db",
                                    "--auth-root-authentication-method=socket"), "", "root"),
        after("mariadb", "database-directory"),
        once("databases", ("sh", "-c", "mariadb </etc/testcloud/databases.sql"), "mariadb", "root"),
        once("keystone-keys", ("keystone-manage", "fernet_setup", "--keystone-user", "keystone",
                               "--keystone-group", "keystone"), "", "root"),
        once("keystone-schema", ("keystone-manage", "db_sync"), "databases", "keystone"),
        once("keystone-bootstrap", tuple(bootstrap), "keystone-schema keystone-keys", "keystone",
             OS_BOOTSTRAP_PASSWORD=known.admin),
        after("keystone", "keystone-bootstrap"),
        once("glance-schema", ("glance-manage", "db_sync"), "keystone-bootstrap", "glance"),
        once("placement-schema", ("placement-manage", "db", "sync"), "glance-schema", "placement"),
        once("neutron-schema", neutron, "databases", "neutron"),
        once("nova-api-schema", ("nova-manage", "api_db", "sync"), "databases", "nova"),
        once("nova-cell0", ("nova-manage", "cell_v2", "map_cell0"), "nova-api-schema", "nova"),
        once("nova-schema", ("nova-manage", "db", "sync"), "nova-cell0", "nova"),
        once("nova-cell1", ("nova-manage", "cell_v2", "create_cell", "--name", "cell1"), "nova-schema", "nova"),
        *((once("volume-database", ("sh", "-c", "mariadb </etc/testcloud/volumes.sql"), "mariadb", "root"),
           once("cinder-schema", ("cinder-manage", "db", "sync"), "volume-database placement-schema", "cinder"))
          if volumes else ()),
        # libvirt asks QEMU what it can, which takes seconds, and keeps the answer.
        once("capabilities", ("sh", "-c", "virsh -q capabilities && virsh -q domcapabilities --virttype qemu "
                                          "&& virsh -q domcapabilities --virttype qemu --machine q35"),
             "libvirtd", "root"),
    )


def _uwsgi(addresses: Addresses, service: str, program: str) -> tuple[str, ...]:
    """A WSGI program behind uwsgi. It does not keep connections: clients that reuse one would see it reset."""
    port = addresses.url(service).split("/")[2]
    return ("uwsgi", "--plugin", "python3", "--master", "--processes", "1", "--threads", "4", "--die-on-term",
            "--buffer-size", "65535", "--add-header", "Connection: close", "--log-master", "--disable-logging",
            "--http-socket", port, "--wsgi-file", program)
