"""Commands in mount and process-id namespaces of their own: when they end, however they end, their mounts and
processes are gone with them (unshare(1), namespaces(7))."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

UNSHARE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--")

TMPFS_NEEDS = 4 << 30
"""Octets of memory to be available before temporary files lie in it; a build takes about 1.5 GB."""

# $1 is a directory for temporary files: in memory where $2 says so, gone with the namespaces.
_TEMPORARY = """
set -eu
mkdir -p "$1"
[ "$2" != tmpfs ] || mount -t tmpfs -o mode=1777 tmpfs "$1"
export TMPDIR="$1"
shift 2
exec "$@"
"""

# The root is never written to: what a command needs to write lies on file systems of these namespaces.
_ENTER = """
set -eu
root=$1; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -t tmpfs tmpfs "$root/mnt"
while [ "$1" != -- ]; do
    target=$root/mnt/$1
    if [ -d "$2" ]; then mkdir "$target"; else : > "$target"; fi
    mount --bind "$2" "$target"
    shift 2
done
shift
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C "$@"
"""

# As above, for a file system that is mounted nowhere yet. systemd's programs want a /run of their own, and as process 1
# they would write to the kernel's log what they have to say: so that is the shell.
_ENTER_DEVICE = """
set -eu
root=/mnt
mount -t ext4 -o ro,noload,nosuid "$1" "$root"; shift
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
for place in tmp run; do mount -t tmpfs -o mode=1777 tmpfs "$root/$place"; done
ended=0
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp LC_ALL=C chroot "$root" "$@" || ended=$?
exit $ended
"""


def contained(argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """`argv` in namespaces of its own."""
    return [*UNSHARE, *(os.fspath(a) for a in argv)]


def contained_with(temporary: Path, argv: Sequence[str | os.PathLike[str]]) -> list[str]:
    """`argv` in namespaces of its own with `temporary` as its TMPDIR, in memory where there is enough."""
    kind = "tmpfs" if _memory() >= TMPFS_NEEDS else "disk"
    return contained(["sh", "-c", _TEMPORARY, "temporary", temporary, kind, *argv])


def contained_in(root: Path, argv: Sequence[str], **binds: Path) -> list[str]:
    """`argv` inside `root` (a directory with a system in it); every one of `binds` appears there as /mnt/<name>."""
    pairs = [word for name, path in binds.items() for word in (name, os.fspath(path))]
    return contained(["sh", "-c", _ENTER, "enter", os.fspath(root), *pairs, "--", *argv])


def contained_on(device: str, argv: Sequence[str]) -> list[str]:
    """`argv` inside the system on a block device with ext4, which is not written to."""
    return contained(["sh", "-c", _ENTER_DEVICE, "enter", device, *argv])


def _memory() -> int:
    """Octets of memory that are available (proc(5), meminfo)."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    return int(found[1]) * 1024 if found else 0
