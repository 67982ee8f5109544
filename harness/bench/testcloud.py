"""The test cloud, and what Dialtone does on it: the figures of docs/performance-cloud.md.

Peers: the `openstack` client of the test cloud's own packages, and openstacksdk's helpers. The test cloud is one of the
benchmark's own; it is thrown away with everything in it, also with what a peer left when it failed.
"""

from __future__ import annotations

import hashlib
import os
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import openstack

from harness import nightly
from harness.access import keys
from harness.appliance import Appliance
from harness.bench import figures, proxy
from harness.bench.figures import Row, Table, passed, timed
from harness.cloud import Cloud, ImageFile, RouteKind, ServerSpec, glance
from harness.cloud.api import Api
from harness.cloud.openstack import OpenStackCloud
from harness.cloud.ownership import owner
from harness.deadline import Deadline
from harness.errors import HostError
from harness.image.build import Image
from harness.image.contained import contained_in
from harness.process import run as run_command
from harness.progress import Progress
from harness.resources import REMOVERS, Resource
from harness.run import Run, State
from harness.settings import Settings
from harness.stages import Work
from harness.testcloud import catalog, root, status, up
from harness.testcloud.place import Place, place_of

SERVERS = 20
_PATIENCE = 900.0
"""Seconds for each of the things that are measured here."""
_GIB = 1 << 30


def bench(settings: Settings, appliance: Appliance, progress: Progress, *, boots: int, out: Path) -> int:
    """Take all figures, those of uploads and boots `boots` times; write `out`.json and `out`.md.

    Returns the exit code. Raises HostError where the test cloud of the project is up.
    """
    if place_of(settings).alive:
        raise HostError("the test cloud is up: what it does would be measured, too",
                        hint="./inv testcloud.down; what it holds is kept")
    return figures.measure(settings, appliance, progress, lambda work: _rows(work, boots),
                           Table("Performance on the test cloud", "./inv bench --cloud testcloud",
                                 "the test cloud (OpenStack of Debian 12, QEMU under TCG)"), out)


def _rows(work: Work, boots: int) -> Iterator[Row]:
    place = place_of(work.settings)
    # What runs in the cloud has its runs beside it: a run that outlived its cloud could never be removed.
    settings = replace(work.settings, cloud="testcloud", runs=work.settings.cache / "runs")
    image = work.build()
    with _cloud(work, place):
        yield from _ups(work, place)
        with environment(OS_CLIENT_CONFIG_FILE=os.fspath(place.clouds)):
            # By the outer run: what it makes on this host is found by `reap` whatever becomes of this one.
            replace(work, cloud=_opened(settings)).gate(image)
            yield _uploads(work, settings, place, image, boots)
            yield from _boots(work, settings, place, image, boots)
            yield _calls(work, settings)
            yield _reap(work, settings)
            yield Row("./inv nightly --cloud testcloud, caches warm", "s",
                      figures.night(work, settings, _opened(settings)).seconds, None, "", "200 s")


@contextmanager
def _cloud(work: Work, place: Place) -> Iterator[None]:
    """What brings the test cloud up inside may leave it up: it is in the run's journal, and taken down at the end."""
    with work.run.journal.passing(REMOVERS):
        work.run.journal.creating(Resource("link", place.link))
        work.run.journal.creating(Resource("process", place.token))
        try:
            yield
        finally:
            up.down(work.settings, work.progress.out)


@contextmanager
def environment(**values: str | None) -> Iterator[None]:
    """Environment variables inside the block; None takes one away."""
    before = {name: os.environ.get(name) for name in values}

    def put(wanted: Mapping[str, str | None]) -> None:
        for name, value in wanted.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    put(values)
    try:
        yield
    finally:
        put(before)


def _opened(settings: Settings) -> OpenStackCloud:
    return OpenStackCloud(settings, Api("testcloud", settings))


def _run(work: Work, settings: Settings, cloud: Cloud, stages: Callable[[Work], None], what: str) -> None:
    """`stages` as a run of its own. Raises HostError where it fails."""
    passed(nightly.conduct(settings, work.appliance, cloud, work.progress, stages, keep="never", quiet=True), what)


def _ups(work: Work, place: Place) -> Iterator[Row]:
    with place.working(), work.progress.stage("root"):
        wanted = root.packages(volumes=work.settings.testcloud_volumes)
        packages, _ = timed(lambda: root.prepare(work.settings, place, wanted,
                                                 Deadline(up.ROOT_SECONDS), place.directory / "root.log"))
    first, _ = timed(lambda: up.up(work.settings, work.progress))
    up.down(work.settings, work.progress.out)
    again, _ = timed(lambda: up.up(work.settings, work.progress, fresh=True))
    yield Row("the test cloud's root from nothing", "s", packages, None, "", "90 s")
    yield Row("test cloud up from a cached root: schemas, accounts, services, all agents alive", "s", first, None, "",
              "35 s")
    yield Row("test cloud up, schemas and accounts from the cache, too", "s", again, None, "", "")


def _uploads(work: Work, settings: Settings, place: Place, image: Image, count: int) -> Row:
    """Both as whole processes, in turn."""
    cloud = _opened(settings)
    ours, theirs = [], []

    def stages(inner: Work) -> None:
        run = inner.run
        for _ in range(count):
            with run.journal.passing(cloud.removers), work.progress.stage("upload"):
                seconds, _ = timed(lambda: run_command(
                    _alone("upload", inner, os.fspath(run.directory)), env=_variables(settings),
                    cwd=settings.project, deadline=Deadline(_PATIENCE)))
                ours.append(seconds)
            with run.journal.passing(cloud.removers), work.progress.stage("client"):
                name = f"{run.id}-peer"
                run.journal.creating(Resource("os-image", name, {"cloud": cloud.name, "run": run.id}))
                seconds, _ = timed(partial(run_command, _client(place, image, name, owner(settings), run.id),
                                           deadline=Deadline(_PATIENCE)))
                theirs.append(seconds)
                _same(cloud.api, name, image)

    _run(work, settings, cloud, stages, "the upload")
    return Row(f"image upload, {image.size / 1e6:.0f} MB; ours compares the hash", "s", statistics.median(ours),
               statistics.median(theirs), "openstack image create", "at most 1 x")


def _client(place: Place, image: Image, name: str, mark: str, run_id: str) -> list[str]:
    """`openstack image create` from the packages of the test cloud, on this host's network."""
    home = place.directory / "home"
    home.mkdir(exist_ok=True)  # the client keeps there what it found out about itself
    return contained_in(
        Path(place.noted("node")["root"]),
        ["env", "HOME=/mnt/home", "OS_CLIENT_CONFIG_FILE=/mnt/clouds", "PYTHONDONTWRITEBYTECODE=1",
         "openstack", "--os-cloud", "testcloud", "image", "create", "--disk-format", "qcow2", "--file", "/mnt/image",
         "--property", f"dialtone_owner={mark}", "--property", f"dialtone_run={run_id}", name],
        image=image.path, clouds=place.clouds, home=home)


def _same(api: Api, name: str, image: Image) -> None:
    """Raises HostError where the peer did not send the whole image."""
    found = [i.hash_value for i in glance.listed(api, name) if i.status == "active"]
    if found != [glance.sha512(image.path)]:
        raise HostError(f"openstack image create did not make one image like {image.path}: its time says nothing")


def _boots(work: Work, settings: Settings, place: Place, image: Image, count: int) -> Iterator[Row]:
    cloud = _opened(settings)
    cloud.api.options = replace(cloud.api.options, route=RouteKind.FLOATING_IP)
    reached: list[float] = []
    memory: list[list[status.Process]] = []

    def stages(inner: Work) -> None:
        run = inner.run
        known = inner.upload(image)
        for number in range(count):
            with run.journal.passing(cloud.removers):
                [server] = inner.launch(known, f"boot{number}")
                ready = run.stages[-1].started + (run.stages[-1].seconds or 0.0)
                asked = run.journal.announced("os-server", f"{run.id}-{server.name}")
                reached.append(to_ssh(asked, ready, run.facts["server"]["timings"]))
                memory.append(list(status.processes(place.noted("node")["pid"])))

    _run(work, settings, cloud, stages, "the boot")
    yield Row("server asked for to an SSH command at its floating IP", "s", statistics.median(reached), None, "",
              "24 s")
    total, guest = statistics.median(map(pss, memory)), statistics.median(map(guests, memory))
    yield Row(f"memory of all its processes (PSS), {guest / _GIB:.1f} GiB of a guest included", "GiB", total / _GIB,
              None, "", "4 GiB with a guest of 1.1 GiB")


def to_ssh(asked: float, ready: float, timings: Mapping[str, float]) -> float:
    """Seconds from the request for a server (at `asked`) to the first command over SSH.

    `ready` is when the wait ended; `timings` are those of the wait, whose last is `ready`.
    """
    return ready - (timings["ready"] - timings["ssh"]) - asked


def pss(processes: list[status.Process]) -> int:
    """Octets."""
    return sum(p.memory for p in processes)


def guests(processes: list[status.Process]) -> int:
    """Octets of the guests' emulators."""
    return sum(p.memory for p in processes if p.command.startswith("qemu-system"))


def _calls(work: Work, settings: Settings) -> Row:
    """Ours launches and waits for all servers together; so does the peer, as far as its helpers can."""
    admin: Any = Api("testcloud-admin", settings).sdk
    admin.compute.create_flavor(name="empty", ram=64, vcpus=1, disk=1)
    counts: list[int] = []

    def stages(inner: Work) -> None:
        run = inner.run
        public = keys.create(run).public
        known = inner.cloud.upload(run, _empty(settings), Deadline(_PATIENCE), work.progress.detail)
        with work.progress.stage("servers"), _counted() as seen:
            cloud = _opened(settings)
            specs = [ServerSpec(f"server{number}", known, "debian", public, "#cloud-config\n", 64, 1, 1)
                     for number in range(SERVERS)]
            with run.journal.passing(cloud.removers):
                cloud.launch(run, specs, Deadline(_PATIENCE))
            work.progress.detail(f"{len(seen)} API calls")
            if sum(cloud.calls.values()) != len(seen):
                raise HostError(f"Dialtone counted {sum(cloud.calls.values())} calls, the proxy saw {len(seen)}")
            counts.append(len(seen))
        with work.progress.stage("sdk"), _counted() as seen:
            _with_the_sdk(f"{run.id}-peer", known, public)
            work.progress.detail(f"{len(seen)} API calls")
            counts.append(len(seen))
        for method in ("POST", "DELETE"):
            if (count := sum(line.startswith(f"{method} ") and "/floatingips" in line for line in seen)) != SERVERS:
                raise HostError(f"openstacksdk sent {method} for {count} floating IPs, not for {SERVERS}")

    _run(work, settings, _opened(settings), stages, f"launching {SERVERS} servers")
    ours, theirs = counts
    return Row(f"API calls to launch, watch and remove {SERVERS} servers", "calls", ours, theirs,
               "openstacksdk: create_server, wait_for_server, delete_server", "at most 0.2 x")


@contextmanager
def _counted() -> Iterator[list[str]]:
    """The requests of every connection that is opened inside."""
    with proxy.serving(proxy.Proxy, proxy.Handler) as counting, environment(
            http_proxy=counting.address, no_proxy=None, NO_PROXY=None):
        yield counting.seen


def _empty(settings: Settings) -> ImageFile:
    """An image with nothing on it: all that a guest has to do here is to be there."""
    path = settings.cache / "empty.qcow2"
    run_command(["qemu-img", "create", "-q", "-f", "qcow2", path, "1M"])
    return ImageFile(path, "empty", hashlib.sha256(path.read_bytes()).hexdigest(), "0" * 64, 1 << 20, 64)


def _with_the_sdk(prefix: str, image: str, public_key: str) -> None:
    """What launch() and removal make and remove, as openstacksdk's own helpers do it."""
    sdk: Any = openstack.connect(cloud="testcloud")
    external = sdk.get_network(catalog.NETWORK)
    network = sdk.create_network(prefix)
    subnet = sdk.create_subnet(network.id, cidr="10.177.0.0/24", subnet_name=prefix, enable_dhcp=True)
    router = sdk.create_router(prefix, ext_gateway_net_id=external.id)
    sdk.add_router_interface(router, subnet_id=subnet.id)
    group = sdk.create_security_group(prefix, "a peer in a benchmark")
    sdk.create_security_group_rule(group.id, port_range_min=22, port_range_max=22, protocol="tcp")
    sdk.create_security_group_rule(group.id, protocol="icmp")
    sdk.create_keypair(prefix, public_key)
    asked = [sdk.create_server(f"{prefix}{number}", image=image, flavor="empty", network=network.id, key_name=prefix,
                               security_groups=[prefix], config_drive=True) for number in range(SERVERS)]
    there = [sdk.wait_for_server(server, timeout=_PATIENCE) for server in asked]
    for server in there:
        sdk.delete_server(server.id, wait=True, delete_ips=True, timeout=_PATIENCE)
    sdk.delete_keypair(prefix)
    sdk.remove_router_interface(router, subnet_id=subnet.id)
    for delete, thing in ((sdk.delete_router, router), (sdk.delete_network, network),
                          (sdk.delete_security_group, group)):
        delete(thing.id)


def _reap(work: Work, settings: Settings) -> Row:
    """A run is killed when its server is ACTIVE; then `reap` as a whole process."""
    with work.progress.stage("die"):
        died = run_command(_alone("die", work), env=_variables(settings), cwd=settings.project, check=False,
                           deadline=Deadline(_PATIENCE))
        run = Run.open(settings.runs / "latest")
        if died.returncode != -signal.SIGKILL or not run.dead:
            raise HostError("the run that was to be killed ended otherwise", excerpt=died.stdout)
        work.progress.detail(f"{len(run.journal.outstanding())} resources left")
    with work.progress.stage("reap"):
        seconds, done = timed(lambda: run_command(
            [sys.executable, "-P", "-m", "harness.cli", "--search-root", settings.project, "reap"],
            env=_variables(settings), cwd=settings.project, deadline=Deadline(_PATIENCE)))
    if Run.open(run.directory).state is not State.DONE:
        raise HostError("reap did not remove everything", excerpt=done.stdout)
    return Row("./inv reap after a SIGKILL, one server and all that belongs to it", "s", seconds, None, "", "10 s")


def _alone(what: str, work: Work, *more: str) -> list[str]:
    return [sys.executable, "-P", "-m", "harness.bench.alone", what, os.fspath(work.settings.project),
            work.appliance.name, *more]


def _variables(settings: Settings) -> dict[str, str]:
    """The environment of a process that works with `settings`."""
    return {**os.environ, "DIALTONE_CLOUD": settings.cloud, "DIALTONE_CACHE": os.fspath(settings.cache),
            "DIALTONE_RUNS": os.fspath(settings.runs)}
