"""One ssh_config for each run: how every server of it is reached, by anybody (ssh_config(5)).

    ssh -F runs/latest/ssh_config server1             through the router's namespace
    ssh -F runs/latest/ssh_config server1-floating    by the floating address
    ssh -F runs/latest/ssh_config gateway-node1       the host in between, where there is one
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

from harness.access import keys
from harness.cloud import Gateway, Route, RouteKind, Server
from harness.cloud.gateway import as_root, options, quoted
from harness.errors import HostError
from harness.resources import Resource
from harness.run import Run, write_whole

_CONTROL_PERSIST = 600
_LONGEST_SOCKET = 108 - 1 - len(".XXXXXXXXXXXXXXXX")
"""sun_path of unix(7) with its final zero; ssh binds to the name with a random ending first."""

_COMMON = """\
    Port 22
    IdentityFile {identity}
    IdentitiesOnly yes
    IdentityAgent none
    PreferredAuthentications publickey
    UserKnownHostsFile {known_hosts}
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    UpdateHostKeys no
    HostKeyAlgorithms ssh-ed25519
    # The hybrid key exchange that newer clients prefer costs an emulated server most of a second.
    KexAlgorithms ^curve25519-sha256
    BatchMode yes
    ConnectTimeout 10
    ServerAliveInterval 5
    ServerAliveCountMax 6
    ControlMaster auto
    ControlPersist {persist}
    LogLevel ERROR
"""


def path(run: Run) -> Path:
    return run.directory / "ssh_config"


def floating(server: Server) -> str:
    """The alias by which a server is reached at its floating address."""
    return f"{server.name}-floating"


def write(run: Run, servers: Sequence[Server]) -> Path:
    """Write runs/<id>/ssh_config for all `servers` of the run; returns its path.

    Masters of shared connections have their sockets in a directory of their own below /tmp: directory and
    processes are in the run's journal. Raises HostError where the directory is somebody else's.
    """
    control = _control_directory(run)
    blocks = []
    for server in servers:
        # The way to the floating address starts where its router is not: from the host's own network.
        ways = {server.name: server.routes[0]}
        if server.floating_ip:
            ways[floating(server)] = next((r for r in server.routes if r.kind is RouteKind.FLOATING_IP),
                                          Route(RouteKind.FLOATING_IP, server.floating_ip))
        blocks += [_block(run, alias, server, route, control) for alias, route in ways.items()]
    gateways = list(dict.fromkeys(r.gateway for server in servers for r in server.routes if r.gateway))
    blocks += [_gateway_block(gateway, control) for gateway in gateways]
    head = f"# Every server of run {run.id}: ssh -F {os.path.relpath(path(run))} <server>\n"
    common = _COMMON.format(identity=_quoted(run.directory / "ssh_key"), persist=_CONTROL_PERSIST,
                            known_hosts=_quoted(keys.known_hosts(run)))
    everything_else = " ".join(["*", *(f"!{gateway_alias(g)}" for g in gateways)])
    write_whole(path(run), "\n".join([head, *blocks, f"Host {everything_else}\n{common}"]))
    return path(run)


def gateway_alias(gateway: Gateway) -> str:
    """The alias by which the host in between is reached."""
    return "gateway-" + re.sub(r"[^A-Za-z0-9.-]", "-", gateway.host)


def names_of(server: Server) -> list[str]:
    """What a server's host key is pinned for: its aliases, then its addresses."""
    addresses = [server.internal_ip, server.floating_ip]
    return [server.name, floating(server), *dict.fromkeys(a for a in addresses if a)]


def aliases(run: Run) -> list[str]:
    """The aliases that the run's ssh_config has; none where it isn't written yet."""
    text = path(run).read_text(encoding="utf-8") if path(run).exists() else ""
    return [line.split()[1] for line in text.splitlines() if line.startswith("Host ") and not line.startswith("Host *")]


def _block(run: Run, alias: str, server: Server, route: Route, control: Path) -> str:
    lines = [f"Host {alias}", f"    HostName {route.address}", f"    HostKeyAlias {alias}", f"    User {server.user}",
             f"    ControlPath {_socket(control, alias)}"]
    if proxy := _proxy(run, route):
        lines.append(f"    ProxyCommand {proxy}")
    return "\n".join(lines) + "\n"


def _proxy(run: Run, route: Route) -> str:
    """The command whose standard input and output are the connection to port %p of %h; empty: none is needed.

    It has a session of its own: a shared connection outlives the command that opened it, and with that command
    its whole process group is ended (process.end_group).
    """
    through = "setsid "
    if route.gateway:
        config = shlex.quote(os.fspath(path(run).resolve())).replace("%", "%%")
        through += f"ssh -F {config} {gateway_alias(route.gateway)} "
    if route.kind is RouteKind.NAMESPACE:
        return through + " ".join(as_root(route.gateway, ["ip", "netns", "exec", route.namespace, "nc", "%h", "%p"]))
    return f"{through}-W [%h]:%p" if route.gateway else ""


def _gateway_block(gateway: Gateway, control: Path) -> str:
    alias = gateway_alias(gateway)
    lines = [f"Host {alias}", *(f"    {key} {value}" for key, value in options(gateway).items()),
             f"    ControlPath {_socket(control, alias)}", "    ControlMaster auto",
             f"    ControlPersist {_CONTROL_PERSIST}"]
    return "\n".join(lines) + "\n"


def _socket(control: Path, alias: str) -> Path:
    name = control / alias
    if len(os.fspath(name)) <= _LONGEST_SOCKET:
        return name
    return control / hashlib.sha256(alias.encode()).hexdigest()[:16]


def _control_directory(run: Run) -> Path:
    # The project may lie deep, a socket's name may not be long: hence /tmp, and a name that follows from the run's.
    digest = hashlib.sha256(os.fspath(run.directory).encode()).hexdigest()[:16]
    directory = Path("/tmp", f"dialtone-{digest}")
    with contextlib.suppress(FileNotFoundError):
        state = directory.lstat()
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.geteuid() or state.st_mode & 0o77:
            raise HostError(f"{directory} is there and is not this run's",
                            hint=f"look whose it is: ls -ld {directory}")
    known = {(r.kind, r.name) for r in run.journal.outstanding()}
    for kind in ("path", "process"):
        # ssh names a master process "ssh: <ControlPath> [mux]": the directory is in it.
        if (kind, str(directory)) not in known:
            run.journal.creating(Resource(kind, str(directory)))
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory


def _quoted(file: Path) -> str:
    return quoted(os.fspath(file.resolve()))
