"""The node: a system of its own in namespaces of this host's kernel, and the link between both.

    host                                  node: network, mount, pid, uts and ipc namespaces
    dtc-…    198.19.255.1/30  ──veth──    uplink     198.19.255.2/30      APIs, SSH
      route to 198.19.0.0/24             br-ext     198.19.0.2/24       the provider network
                                            namespace outside  198.19.0.1/24
                                          qrouter-…, qdhcp-…              what Neutron makes

Whatever the node makes (processes, mounts, links, namespaces) is gone when its first process is, by the kernel's
hand. The host's end of the link goes with the other end, and the route with it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.cloud.routes import overlapping, routes
from harness.deadline import Deadline
from harness.errors import HostError
from harness.process import run
from harness.resources import REMOVERS, Resource, processes_with
from harness.testcloud import services
from harness.testcloud.config import Addresses, File
from harness.testcloud.place import Place
from harness.testcloud.services import Directory, Service

STOP = 15.0
"""Seconds that the node gets to end its services and write what they hold."""

INIT = Path(__file__).with_name("init.py")

# Paths are relative to the cloud's directory: an overlay's options have no way to quote every character.
# Volumes are on the host's own file system: what is mounted of it in the node has another device than its parent, by
# which Nova sees that it is mounted.
# What is not the network's own below /proc/sys is the host's, and stays as it is. pivot_root and not chroot, for
# `ip netns exec` wants a root that is a mount point.
_ENTER = """
set -eu
lower=$1; upper=$2; shift 2
mount -t overlay -o "lowerdir=$lower,upperdir=$upper/upper,workdir=$upper/work" overlay run/root
mkdir -p run/root/run
mount -t tmpfs -o mode=755 tmpfs run/root/run
mkdir -p run/root/run/testcloud run/root/run/netns run/root/run/host
mount --bind run run/root/run/testcloud
mount --bind logs run/root/run/testcloud/logs
if [ -d "$upper/volumes" ]; then
    mkdir -p run/root/srv/volumes
    mount --bind "$upper/volumes" run/root/srv/volumes
fi
cd run/root
mount -t proc proc proc
for part in kernel vm fs; do
    mount --bind proc/sys/$part proc/sys/$part
    mount -o remount,bind,ro proc/sys/$part
done
[ ! -e proc/sysrq-trigger ] || mount --bind /dev/null proc/sysrq-trigger
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755,size=1m tmpfs dev
mkdir dev/net dev/pts dev/shm
for name in null zero full random urandom tty net/tun; do
    : > dev/$name
    mount --bind /dev/$name dev/$name
done
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr
pivot_root . run/host
cd /
umount -l /run/host
rmdir /run/host
hostname testcloud
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 /usr/bin/python3 -I /run/testcloud/init.py "$@"
"""


def check_addresses(addresses: Addresses) -> None:
    """Raises HostError where a route of this host has one of the cloud's networks."""
    conflict = next(overlapping(routes(), addresses.link, addresses.external), None)
    if conflict:
        raise HostError(f"the test cloud's addresses overlap with what this host has: {conflict}",
                        hint="set testcloud_link or testcloud_external to a network that is free here, "
                             "like 198.19.254.0/30 or 198.19.128.0/24")


def start(place: Place, addresses: Addresses, lower: Sequence[Path], upper: Path, plan: Mapping[str, Any],
          deadline: Deadline) -> None:
    """Start a node whose system is `lower` (the first shadows the rest) with what is written in `upper`, as `plan()`
    has it.

    Returns when its first process runs and the link is there; services come up by and by. Raises HostError.
    """
    _prepare(place, upper, plan)
    place.journal.creating(Resource("process", place.token))
    relative = [os.path.relpath(p, place.directory) for p in (*lower, upper)]
    argv = ["unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--",
            "sh", "-c", _ENTER, place.token, ":".join(relative[:-1]), relative[-1], place.token]
    with (place.logs / "node.log").open("ab") as log, place.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        process = subprocess.Popen(argv, cwd=place.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                   start_new_session=True, pass_fds=[lock.fileno()])
    first = _first_process(process, place, deadline)
    place.note("node", {"pid": first, "started": time.time(), "link": place.link, "root": os.fspath(lower[-1])})
    _connect(place, addresses, first, deadline)


def _prepare(place: Place, upper: Path, plan: Mapping[str, Any]) -> None:
    shutil.rmtree(place.run, ignore_errors=True)
    place.run.mkdir(mode=0o700)
    old = place.directory / "logs.previous"
    shutil.rmtree(old, ignore_errors=True)
    if place.logs.exists():
        place.logs.rename(old)
    place.logs.mkdir()
    for directory in (place.run / "root", place.run / "logs", upper / "upper", upper / "work"):
        directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(INIT, place.run / "init.py")
    place.note("plan", plan)


def plan(files: Sequence[File], wanted: Sequence[Service], directories: Sequence[Directory]) -> Mapping[str, Any]:
    """What init.py reads."""
    return {"directories": [asdict(d) for d in directories], "files": [asdict(f) for f in files],
            "services": [asdict(s) for s in wanted], "environment": services.ENVIRONMENT}


def _first_process(process: subprocess.Popen[bytes], place: Place, deadline: Deadline) -> int:
    """The host's number of the node's first process: the only child of unshare."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not deadline.expired:
        if process.poll() is not None:
            break
        found = children.read_text().split()
        if found:
            return int(found[0])
        time.sleep(0.01)
    raise HostError("the test cloud's node does not start", excerpt=tail(place.logs / "node.log"),
                    hint="it needs network, mount, pid, uts and ipc namespaces (root), and overlayfs")


def _connect(place: Place, addresses: Addresses, first: int, deadline: Deadline) -> None:
    link = place.link
    place.journal.creating(Resource("link", link))
    run(["ip", "-batch", "-"], deadline=deadline, stdin="\n".join((
        f"link add {link} type veth peer name uplink netns {first}",
        f"link set {link} alias {place.mark} addrgenmode none",
        f"address add {addresses.host}/{addresses.link.prefixlen} dev {link}",
        f"link set {link} up",
        f"route add {addresses.external} via {addresses.node} dev {link} src {addresses.host}")) + "\n")


def stop(place: Place) -> None:
    """End the node in order, then with force. Raises HostError where something of it remains."""
    known = place.noted("node")
    if known and place.alive and known["pid"] in processes_with(place.token):
        os.kill(known["pid"], signal.SIGTERM)
        _until(lambda: not place.alive)
    made = [r for r in place.journal.outstanding() if r.kind in {"process", "link"}]
    for resource in sorted(made, key=lambda r: r.kind, reverse=True):
        if resource.kind == "link":  # it goes with the namespace of its other end, a moment after the last process
            _until(lambda: not Path("/sys/class/net", place.link).exists())
        REMOVERS[resource.kind](resource)
        place.journal.gone(resource)
    if not _until(lambda: not place.alive):
        raise HostError("the node of the test cloud does not end", hint=f"look: fuser -v {place.lock}")
    shutil.rmtree(place.run, ignore_errors=True)


def clean(place: Place) -> None:
    """Remove everything that was made for the test cloud and is not to be kept. Raises the first error."""
    stop(place)
    for _, error in place.journal.remove_outstanding(REMOVERS):
        raise error
    place.journal.path.unlink(missing_ok=True)


def dead(place: Place) -> bool:
    """Whether a cloud was left half up, or half down, by somebody who died."""
    known = place.noted("node")
    whole = place.alive and bool(known and known.get("ready"))
    return not whole and not place.busy and bool(place.journal.outstanding())


def _until(condition: Callable[[], bool]) -> bool:
    """Wait STOP seconds at most; whether it came true."""
    deadline = Deadline(STOP)
    while not condition():
        if deadline.expired:
            return False
        time.sleep(0.02)
    return True


def tail(log: Path, lines: int = 12) -> str:
    """The end of a log, empty where there is none."""
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
