"""Bring the test cloud up, take it down, say how it is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

import keystoneauth1.exceptions
import openstack.exceptions
import yaml
from openstack.connection import Connection

from harness import host
from harness.deadline import Deadline
from harness.errors import CloudError, ExitCode, HostError
from harness.image.cached import making, prune, used
from harness.process import run
from harness.progress import Progress
from harness.run import write_whole
from harness.settings import Settings
from harness.testcloud import catalog, node, root, services, status
from harness.testcloud.config import Addresses, Secrets, SshIdentity, addresses_of, render
from harness.testcloud.place import Place, place_of
from harness.testcloud.services import Service

T = TypeVar("T")

ROOT_SECONDS = 1800.0
UP_SECONDS = 600.0
"""How long the packages, and the services, may take on a busy machine."""


@dataclass(frozen=True)
class Base:
    """What a state lies on: names of directories beside it, and what is written in its databases."""

    root: str
    seed: str
    link: str
    external: str
    volumes: bool = False


def up(settings: Settings, progress: Progress, *, fresh: bool = False) -> None:
    """Bring the cloud up from the cache, or look whether it is up; `fresh` throws away what it held.

    Raises HostError, CloudError; then nothing runs any more, and the logs are still there.
    """
    place, addresses = place_of(settings), addresses_of(settings)
    with place.working():
        known = place.noted("node")
        if place.alive and known and known.get("ready") and not fresh:
            _kept(settings, place, addresses)
            progress.line("the test cloud is up already; its services: ./inv testcloud.status")
            return
        with progress.stage("host"):
            host.prepare(settings, say=progress.detail)
        node.clean(place)
        node.check_addresses(addresses)
        if fresh:
            shutil.rmtree(place.state, ignore_errors=True)
        base = _kept(settings, place, addresses) or _new(settings, place, addresses, progress)
        with _stopped_on_failure(place):
            _start(place, addresses, base, progress)


def down(settings: Settings, out: TextIO) -> None:
    """Take the cloud down. What it holds is kept for the next start. Raises HostError where something remains."""
    place = place_of(settings)
    with place.working():
        was = place.alive
        node.clean(place)
    print("the test cloud is down" if was else "the test cloud was not up", file=out)


def report(settings: Settings, out: TextIO) -> int:
    """Print a line for each service and agent. Returns the exit code: 0, or 7 where one is not well."""
    place, addresses = place_of(settings), addresses_of(settings)
    known = place.noted("node")
    if not place.alive or not known:
        print("the test cloud is not up: ./inv testcloud.up", file=out)
        return int(ExitCode.CLOUD)
    if not known.get("ready"):
        busy = place.busy
        print("the test cloud is being brought up" if busy else
              "the test cloud was left half up: ./inv testcloud.up begins again", file=out)
    base = _base(place)
    volumes = base.volumes if base else settings.testcloud_volumes
    lines = status.of_node(place, services.cloud(addresses, volumes=volumes))
    try:
        if base is None:
            raise FileNotFoundError("there is no state yet")
        lines += status.of_agents(_admin(addresses, _secrets(place.directory / base.seed)), known["started"],
                                  volumes=volumes)
    except (OSError, openstack.exceptions.SDKException, keystoneauth1.exceptions.ClientException) as error:
        lines.append(status.Line("agents", False, f"not known: {error}"[:100]))
    now = time.time()
    for line in lines:
        print(line.text(now), file=out)
    ill = [line.name for line in lines if not line.well]
    print(f"not well: {', '.join(ill)}; logs: {place.logs}" if ill else
          f"well; clouds: {place.clouds}, logs: {place.logs}", file=out)
    return int(ExitCode.CLOUD if ill or not known.get("ready") else ExitCode.PASSED)


def _base(place: Place) -> Base | None:
    """What the kept state lies on, as it was noted; None where there is no state."""
    file = place.state / "base.json"
    return Base(**json.loads(file.read_text())) if file.exists() else None


def _kept(settings: Settings, place: Place, addresses: Addresses) -> Base | None:
    """The same. Raises HostError where it can't be used."""
    base = _base(place)
    if base is None:
        shutil.rmtree(place.state, ignore_errors=True)
        return None
    if not all((place.directory / name).is_dir() for name in (base.root, base.seed)):
        raise HostError("the state of the test cloud lies on packages that are not in the cache any more",
                        hint="./inv testcloud.up --fresh throws it away and begins anew")
    if (base.link, base.external) != (str(addresses.link), str(addresses.external)):
        raise HostError(f"the state of the test cloud has other addresses: {base.link}, {base.external}",
                        hint="set testcloud_link and testcloud_external back, or ./inv testcloud.up --fresh")
    if base.volumes != settings.testcloud_volumes:
        raise HostError(f"the state of the test cloud is one with{'' if base.volumes else 'out'} volumes",
                        hint="set testcloud_volumes back, or ./inv testcloud.up --fresh")
    for name in (base.root, base.seed):
        used(place.directory / name)
    return base


def _new(settings: Settings, place: Place, addresses: Addresses, progress: Progress) -> Base:
    """An empty state on the packages of today and their seed."""
    with progress.stage("root"):
        known = {p.name for p in place.directory.glob("root-*")}
        wanted = root.packages(volumes=settings.testcloud_volumes)
        made = root.prepare(settings, place, wanted, Deadline(ROOT_SECONDS), place.directory / "root.log")
        progress.detail("from cache" if made.name in known else f"{len(wanted)} packages and what they need")
    with progress.stage("seed"):
        key = hashlib.sha256("\n".join((made.name, _recipe(settings, addresses))).encode()).hexdigest()[:12]
        seed = place.directory / f"seed-{key}"
        if seed.exists():
            progress.detail("from cache")
            used(seed)
        else:
            with making(seed, place) as part, _stopped_on_failure(place):
                _sow(settings, place, addresses, made / "root", part, progress)
            prune(place.directory, prefix="seed-", keep=2)
    place.state.mkdir(mode=0o700)
    if settings.testcloud_volumes:
        (place.state / "volumes").mkdir()
    base = Base(made.name, seed.name, str(addresses.link), str(addresses.external), settings.testcloud_volumes)
    write_whole(place.state / "base.json", json.dumps(asdict(base)))
    return base


def _recipe(settings: Settings, addresses: Addresses) -> str:
    """Changes when a seed would be made otherwise."""
    blank = Secrets(*("-" for _ in Secrets.__dataclass_fields__))
    files = render(addresses, blank, SshIdentity("", ""), volumes=settings.testcloud_volumes)
    code = [Path(module.__file__ or "").read_text() for module in (catalog, services)]
    return json.dumps([[asdict(f) for f in files], code])


def _sow(settings: Settings, place: Place, addresses: Addresses, system: Path, part: Path,
         progress: Progress) -> None:
    """Make a seed at `part`: a node that only makes databases and accounts, and stops."""
    part.chmod(0o700)
    known = Secrets.generate()
    write_whole(part / "secrets.json", json.dumps(asdict(known)), mode=0o600)
    volumes = settings.testcloud_volumes
    wanted = services.seed(addresses, known, volumes=volumes)
    plan = node.plan(render(addresses, known, SshIdentity("", ""), volumes=volumes), wanted,
                     services.directories(volumes=volumes))
    deadline = Deadline(UP_SECONDS)
    node.start(place, addresses, [system], part, plan, deadline)

    def accounts() -> None:
        _ready(place, ["keystone"], wanted, deadline)
        catalog.accounts(_admin(addresses, known), addresses, known, volumes=volumes)

    with _meanwhile(accounts) as made:
        _ready(place, [s.name for s in wanted], wanted, deadline, progress.detail)
        for future in made:
            _asked("accounts and catalog can't be made", place, future.result)
    node.stop(place)
    shutil.rmtree(part / "work", ignore_errors=True)
    progress.detail("databases, schemas, accounts")


def _start(place: Place, addresses: Addresses, base: Base, progress: Progress) -> None:
    known = _secrets(place.directory / base.seed)
    wanted = services.cloud(addresses, volumes=base.volumes)
    deadline = Deadline(UP_SECONDS)
    with progress.stage("start"):
        ssh = _ssh_identity(place, addresses)
        lower = [place.directory / base.seed / "upper", place.directory / base.root / "root"]
        plan = node.plan(render(addresses, known, ssh, volumes=base.volumes), wanted,
                         services.directories(volumes=base.volumes))
        node.start(place, addresses, lower, place.state, plan, deadline)
        admin = _admin(addresses, known)

        def network() -> None:
            _ready(place, ["neutron-server"], wanted, deadline)
            catalog.external_network(admin, addresses)

        def flavors() -> None:
            _ready(place, ["nova-api"], wanted, deadline)
            catalog.flavors(admin)

        with _meanwhile(network, flavors) as made:
            _ready(place, [s.name for s in wanted], wanted, deadline, progress.detail)
            for future in made:
                _asked("the external network and flavors can't be made", place, future.result)
        progress.detail(f"{len(wanted)} services")
    with progress.stage("agents"):
        _agents(place, admin, wanted, base, deadline, progress)
    _write_clouds(place, addresses, known)
    place.note("node", {**place.noted("node"), "ready": time.time()})
    progress.line(f"the test cloud is up; log in with {place.clouds}")


def _ready(place: Place, names: Sequence[str], wanted: Sequence[Service], deadline: Deadline,
           say: Callable[[str], None] = lambda text: None) -> None:
    """Wait until the named services are ready. Raises CloudError as soon as any service has died."""
    while True:
        seen: Mapping[str, Any] = place.noted("services") or {}
        for service in wanted:
            entry = seen.get(service.name)
            if entry and entry["ended"] and (not service.once or entry["code"]):
                raise CloudError(f"{service.name} of the test cloud died ({status.ending(entry['code'])})",
                                 excerpt=node.tail(place.logs / f"{service.name}.log"),
                                 hint=f"all logs: {place.logs}")
        waiting = [name for name in names if not (seen.get(name) or {}).get("ready")]
        if not waiting:
            return
        if not place.alive:
            raise HostError("the node of the test cloud ended", excerpt=node.tail(place.logs / "node.log"),
                            hint=f"all logs: {place.logs}")
        if deadline.expired:
            raise CloudError(f"not ready after {deadline.seconds:.0f} s: {', '.join(waiting)}",
                             excerpt=node.tail(place.logs / f"{waiting[0]}.log"), hint=f"all logs: {place.logs}")
        say(f"{len(names) - len(waiting)} of {len(names)} ready; waiting for {waiting[0]}")
        time.sleep(0.1)


def _agents(place: Place, admin: Connection, wanted: Sequence[Service], base: Base, deadline: Deadline,
            progress: Progress) -> None:
    """Wait until every agent has reported and there is a hypervisor to launch on."""
    since = place.noted("node")["started"]
    while True:
        _ready(place, [], wanted, deadline)
        lines = _asked("the agents can't be listed", place,
                       lambda: status.of_agents(admin, since, volumes=base.volumes))
        ill = [line for line in lines if not line.well]
        if not ill:
            progress.detail("all alive")
            return
        if deadline.expired:
            raise CloudError(f"not alive after {deadline.seconds:.0f} s: {', '.join(line.name for line in ill)}",
                             hint=f"all logs: {place.logs}")
        progress.detail("waiting for " + ", ".join(line.name for line in ill))
        time.sleep(0.5)


def _asked(what: str, place: Place, question: Callable[[], T]) -> T:
    """The answer of an API. Raises CloudError."""
    try:
        return question()
    except (openstack.exceptions.SDKException, keystoneauth1.exceptions.ClientException) as error:
        raise CloudError(f"{what}: {error}", hint=f"all logs: {place.logs}") from error


def _admin(addresses: Addresses, known: Secrets) -> Connection:
    return catalog.connect(addresses, "admin", "admin", known.admin)


def _secrets(seed: Path) -> Secrets:
    return Secrets(**json.loads((seed / "secrets.json").read_text()))


def _ssh_identity(place: Place, addresses: Addresses) -> SshIdentity:
    """The node's host key and the key that may log in there, made once for a state; known_hosts pins the former."""
    for name in ("host_key", "stack_key"):
        if not (place.state / f"{name}.pub").exists():
            (place.state / name).unlink(missing_ok=True)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{root.STACK}@testcloud",
                 "-f", place.state / name], stdin="")
    public = (place.state / "host_key.pub").read_text().split()[:2]
    write_whole(place.state / "known_hosts", f"{addresses.node} {' '.join(public)}\n")
    return SshIdentity((place.state / "host_key").read_text(), (place.state / "stack_key.pub").read_text())


def _write_clouds(place: Place, addresses: Addresses, known: Secrets) -> None:
    access = {"host": str(addresses.node), "user": root.STACK, "identity_file": os.fspath(place.state / "stack_key"),
              "known_hosts": os.fspath(place.state / "known_hosts")}
    options = {"external_network": catalog.NETWORK, "network_nodes": [access]}
    write_whole(place.clouds, yaml.safe_dump(catalog.clouds(addresses, known, options), sort_keys=False), mode=0o600)


@contextmanager
def _meanwhile(*work: Callable[[], None]) -> Iterator[list[Future[None]]]:
    """Do `work` in threads. They are not waited for when the block fails: they end when the node does."""
    pool = ThreadPoolExecutor(len(work))
    try:
        yield [pool.submit(each) for each in work]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _stopped_on_failure(place: Place) -> Iterator[None]:
    try:
        yield
    except BaseException:
        node.stop(place)
        raise
