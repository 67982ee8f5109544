"""The node's root: a Debian system with all packages of the cloud, made once and kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import BuildError, HostError
from harness.image import builder
from harness.image.apt import AptState, state_for
from harness.image.cached import making, prune, used
from harness.image.mirrors import apt_mirrors
from harness.process import run
from harness.settings import Settings
from harness.testcloud.place import Place

RELEASE = "bookworm"
"""The last release whose Neutron has the linuxbridge driver, which needs no kernel module that may be missing."""
ARCHITECTURE = "amd64"

PACKAGES = (
    "keystone", "glance-api", "placement-api", "nova-api", "nova-conductor", "nova-scheduler", "nova-compute",
    # What needs the smallest emulator: nova-compute-qemu depends on those of all architectures.
    "nova-compute-kvm",
    "neutron-server", "neutron-linuxbridge-agent", "neutron-l3-agent", "neutron-dhcp-agent", "neutron-metadata-agent",
    "mariadb-server", "rabbitmq-server", "memcached", "libvirt-daemon-system", "libvirt-clients",
    "qemu-system-x86", "qemu-utils", "uwsgi-core", "uwsgi-plugin-python3", "python3-pymysql", "python3-memcache",
    "iproute2", "iptables", "nftables", "ebtables", "ipset", "conntrack", "dnsmasq-base", "dnsmasq-utils", "haproxy",
    "iputils-arping", "iputils-ping", "netcat-openbsd", "tcpdump", "procps", "sudo", "openssh-server",
    # Nova makes config drives with it, and no package of Nova depends on it.
    "genisoimage",
)
VOLUMES = ("cinder-api", "cinder-scheduler", "cinder-volume")
"""What a cloud with volumes has besides."""

STACK = "stack"
"""The node's unprivileged user, who may enter network namespaces by sudo."""

_NO_DAEMONS = ('mkdir -p "$1/usr/sbin" && printf "#!/bin/sh\\nexit 101\\n" > "$1/usr/sbin/policy-rc.d" && '
               'chmod 755 "$1/usr/sbin/policy-rc.d"')
# The bytecode of all packages at once, by as many processes as there are processors: package by package it takes
# twice as long.
_COMPILE = 'chroot "$1" python3 -m compileall -q -j 0 /usr/lib/python3/dist-packages >/dev/null || true'
_USER = f'chroot "$1" useradd --create-home --shell /bin/bash --password "*" {STACK}'
_CLEAN = 'rm -rf "$1"/etc/ssh/ssh_host_* "$1"/var/lib/mysql/* "$1"/var/cache/apt/*.bin'

OPTIONS = (
    f"--setup-hook={_NO_DAEMONS}",
    "--dpkgopt=path-exclude=/usr/lib/python3/dist-packages/*/tests/*",
    "--dpkgopt=path-exclude=/usr/bin/py3compile",
    # Makes every Python that imports distutils load all of setuptools: a quarter of what a service needs to start.
    "--dpkgopt=path-exclude=/usr/lib/python3/dist-packages/distutils-precedence.pth",
    *(f"--customize-hook={hook}" for hook in (_COMPILE, _USER, _CLEAN)),
    "--skip=cleanup/apt,check/empty",
)


def packages(*, volumes: bool) -> tuple[str, ...]:
    return PACKAGES + VOLUMES if volumes else PACKAGES


def prepare(settings: Settings, place: Place, wanted: Sequence[str], deadline: Deadline, log: Path) -> Path:
    """The directory root-<key> of the versions of `wanted` that the mirror has now; from the cache where it is there.

    Raises HostError.
    """
    state = _state(settings)
    state.refresh(deadline)
    found = place.directory / f"root-{_key(state, wanted)}"
    if found.exists():
        return used(found)
    with making(found, place) as part:
        archive = part / "root.tar"
        try:
            # Made in memory where there is room, and then unpacked: dpkg waits for a disk after each of its steps.
            builder.debootstrap(archive, wanted, state, deadline, log, *OPTIONS)
            (part / "root").mkdir()
            run(["tar", "--extract", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--file", archive,
                 "--directory", part / "root"], deadline=deadline)
            archive.unlink()
        except BuildError as error:
            raise HostError(f"the test cloud's root can't be made: {error.message}", excerpt=error.excerpt,
                            hint=error.hint) from error
    prune(place.directory, prefix="root-", keep=2)
    return found


def _state(settings: Settings) -> AptState:
    return state_for(settings.cache, apt_mirrors(settings, RELEASE), RELEASE, ARCHITECTURE)


def _key(state: AptState, wanted: Sequence[str]) -> str:
    parts = [state.architecture, *OPTIONS, *state.closure(wanted)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
