"""What this machine must have for building, booting and testing: said in one list, installed where that is allowed.

Programs are looked for where they would be run from, not in the package system's records, so that a machine that
has them another way is fine, and so that looking takes milliseconds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from harness.cloud import accelerator, qemu, uefi
from harness.deadline import Deadline
from harness.errors import ExitCode, HostError
from harness.image import signing
from harness.process import CommandFailed, Completed, run, run_logged
from harness.settings import Settings

NEEDED_DISK = 6_000_000_000
"""Octets free in the cache for one appliance: builder root, raw image, qcow2, package caches."""
NEEDED_MEMORY = 2_000_000_000
"""Octets available for one server of 1 GiB beside a build."""

_SEARCH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
_LOOP_CTL_GET_FREE = 0x4C82  # linux/loop.h


class Purpose(StrEnum):
    """What the machine is wanted for. `unit` needs no root; `tests` is everything that `run` and `unit` need."""

    RUN = "run"
    UNIT = "unit"
    TESTS = "tests"


@dataclass(frozen=True)
class Package:
    """A Debian package and what of it is used: programs by name, files by absolute path."""

    name: str
    gives: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Those of `gives` that are not on this machine."""
        return tuple(thing for thing in self.gives if not _is_there(thing))


@dataclass(frozen=True)
class HostFinding:
    """One line of `./inv host`. `outcome` is passed, failed, or note (slower or smaller, but it works)."""

    title: str
    outcome: str
    seen: str
    hint: str = ""


_RUN = (
    Package("ca-certificates", ("/etc/ssl/certs/ca-certificates.crt",)),
    Package("debian-archive-keyring", ("/usr/share/keyrings/debian-archive-keyring.gpg",)),
    Package("debootstrap", ("debootstrap",)),
    Package("dnsmasq-base", ("dnsmasq",)),
    Package("e2fsprogs", ("mkfs.ext4", "e2fsck")),
    Package("gdisk", ("sgdisk",)),
    Package("genisoimage", ("genisoimage",)),
    Package("git", ("git",)),
    Package("gnupg", ("gpg",)),
    Package("iproute2", ("ip",)),
    Package("kmod", ("depmod", "modinfo")),
    Package("mmdebstrap", ("mmdebstrap",)),
    Package("mount", ("mount", "losetup")),
    Package("mtools", ("mformat", "mcopy")),
    Package("netcat-openbsd", ("nc",)),
    Package("nftables", ("nft",)),
    Package("openssh-client", ("ssh", "ssh-keygen")),
    Package("ovmf", tuple(f"{uefi.OVMF}/{name}" for parts in (uefi.CODE, uefi.VARIABLES) for name in parts.values())),
    Package("procps", ("sysctl",)),
    Package("qemu-system-x86", ("qemu-system-x86_64",)),
    Package("qemu-utils", ("qemu-img",)),
    Package("util-linux", ("partx", "unshare", "flock")),
    Package("xz-utils", ("xz",)),
    Package("zstd", ("zstd",)),
)
_SIGNING = (Package("openssl", ("openssl",)),)
_TOKEN = (Package("libengine-pkcs11-openssl", (signing.ENGINE,)),)
_EGRESS = (Package("slirp4netns", ("slirp4netns",)),)
_UNIT = (Package("git", ("git",)), Package("kmod", ("depmod", "modinfo")), Package("shellcheck", ("shellcheck",)),
         *_SIGNING)
_TESTS = (Package("chromium", ("chromium",)), Package("softhsm2", ("softhsm2-util",)), *_TOKEN)


def requirements(settings: Settings, purpose: Purpose) -> tuple[Package, ...]:
    """The Debian packages that `purpose` needs with these settings, each once."""
    wanted = list(_UNIT) if purpose is Purpose.UNIT else list(_RUN)
    if purpose is Purpose.TESTS:
        wanted += [*_UNIT, *_EGRESS, *_TESTS]
    elif settings.egress and purpose is Purpose.RUN:
        wanted += _EGRESS
    if settings.signing_key:
        wanted += [*_SIGNING, *(_TOKEN if signing.in_token(settings.signing_key) else ())]
    return tuple(dict.fromkeys(wanted))


def prepare(settings: Settings, *, purpose: Purpose = Purpose.RUN, install: bool = False,
            say: Callable[[str], None]) -> None:
    """Make sure that this machine can do `purpose`: install what is missing, then look at the rest.

    Missing packages are installed where this is root, or by sudo where `install` asks for it. Raises HostError
    naming everything that is still missing.
    """
    lacking = _lacking(settings, purpose)
    if lacking and (install or os.geteuid() == 0):
        install_packages(settings, lacking, say)
    failed = [f for f in check(settings, purpose) if f.outcome == "failed"]
    if failed:
        raise HostError("; ".join(f"{f.title}: {f.seen}" for f in failed),
                        hint="\n  ".join(f.hint for f in failed if f.hint) or None)


def report(settings: Settings, *, install: bool, out: TextIO) -> int:
    """Print a line for each thing that this machine must have. Returns the exit code: 0, or 3 where one is missing."""
    lacking = _lacking(settings, Purpose.RUN)
    if install and lacking:
        install_packages(settings, lacking, lambda text: print(f"  {text}", file=out, flush=True))
    findings = check(settings, Purpose.RUN)
    if os.geteuid() == 0 and _is_there(qemu.PROGRAM):
        findings.append(_acceleration(settings))
    for finding in findings:
        mark = {"passed": "", "note": "", "failed": "MISSING  "}[finding.outcome]
        print(f"  {finding.title:<20} {mark}{finding.seen}", file=out)
        if finding.outcome != "passed" and finding.hint:
            print(f"  {'':<20} {finding.hint}", file=out)
    failed = sum(f.outcome == "failed" for f in findings)
    print("ready" if not failed else f"{failed} missing (exit 3: this host)", file=out)
    return int(ExitCode.HOST if failed else ExitCode.PASSED)


def check(settings: Settings, purpose: Purpose) -> list[HostFinding]:
    """Everything that `purpose` needs of this machine, one finding each; what can't be tried yet is left out."""
    findings = [_packages(requirements(settings, purpose))]
    if purpose is Purpose.UNIT:
        return findings
    whole = findings[0].outcome == "passed"
    findings += [_root(), _disk(settings.cache), _memory()]
    if os.geteuid() == 0:
        findings.append(_loop_devices())
        if whole:
            findings.append(_networks())
    return findings


def install_packages(settings: Settings, packages: Sequence[Package], say: Callable[[str], None]) -> None:
    """Install with apt-get, as root or by sudo; the package lists are fetched only where they turn out to be needed.

    Everything that apt prints is in .cache/apt-install.log. Raises HostError where a package can't be installed.
    """
    names = [p.name for p in packages]
    log = settings.cache / "apt-install.log"
    deadline = Deadline(1800)

    def apt(*arguments: str) -> Completed:
        def show(line: str) -> None:
            if line.startswith("Setting up "):
                say(f"installing {line.split()[2].split(':')[0]}")

        # sudo clears the environment, hence env after it.
        root = () if os.geteuid() == 0 else ("sudo", "-n")
        return run_logged([*root, "env", "DEBIAN_FRONTEND=noninteractive", *arguments], log, deadline=deadline,
                          on_line=show)

    install = ("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300", "--no-install-recommends", "install", *names)
    say(f"installing {len(names)} packages")
    try:
        try:
            apt(*install)
        except CommandFailed:
            say("fetching the package lists")
            apt("dpkg", "--configure", "-a")
            apt("apt-get", "-q", "-o", "DPkg::Lock::Timeout=300", "update")
            apt(*install)
    except CommandFailed as error:
        complaints = [line for line in error.output.splitlines() if line.startswith(("E:", "W:", "sudo:"))]
        raise HostError(f"packages can't be installed: {', '.join(names)}", excerpt="\n".join(complaints[-6:]),
                        hint=f"the whole log: {log}") from error
    for package in packages:
        if package.missing:
            raise HostError(f"the package {package.name} is installed, and {package.missing[0]} is not there",
                            hint=f"the whole log: {log}")


def _lacking(settings: Settings, purpose: Purpose) -> list[Package]:
    return [p for p in requirements(settings, purpose) if p.missing]


def _is_there(thing: str) -> bool:
    return Path(thing).exists() if thing.startswith("/") else shutil.which(thing, path=_SEARCH) is not None


def _packages(needed: Sequence[Package]) -> HostFinding:
    lacking = [p for p in needed if p.missing]
    if not lacking:
        return HostFinding("packages", "passed", f"all {len(needed)} are there")
    command = "apt-get install --no-install-recommends " + " ".join(p.name for p in lacking)
    return HostFinding("packages", "failed", ", ".join(f"{p.name} (for {p.missing[0]})" for p in lacking),
                       command if os.geteuid() == 0 else f"sudo {command}")


def _root() -> HostFinding:
    if os.geteuid() == 0:
        return HostFinding("root", "passed", "yes")
    return HostFinding("root", "failed", "this is not root; images and networks are made as root", "sudo ./inv ...")


def _disk(cache: Path) -> HostFinding:
    existing = next(p for p in (cache, *cache.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    seen = f"{free / 1e9:.1f} GB free in {cache} ({NEEDED_DISK / 1e9:.0f} GB are needed)"
    return HostFinding("disk", "passed" if free >= NEEDED_DISK else "failed", seen,
                       "free some room, or set `cache` in dialtone.toml to a directory on another disk")


def _memory() -> HostFinding:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    return HostFinding("memory", "passed" if available >= NEEDED_MEMORY else "failed",
                       f"{available / 1e9:.1f} GB available ({NEEDED_MEMORY / 1e9:.0f} GB are needed)",
                       "end something else that needs much memory")


def _loop_devices() -> HostFinding:
    try:
        with Path("/dev/loop-control").open("rb") as control:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        if not Path(f"/dev/loop{number}").exists():
            raise FileNotFoundError(2, f"the kernel offers loop{number}, /dev has no such node")
    except OSError as error:
        return HostFinding("loop devices", "failed", error.strerror or str(error),
                           "modprobe loop; in a container: give it /dev/loop-control and /dev/loop0 to loop7")
    return HostFinding("loop devices", "passed", f"/dev/loop{number} is free")


_NETWORK_PROBE = """
ip link add probe0 type bridge
ip link add probe1 type veth peer name probe2
ip tuntap add dev probe3 mode tap
nft 'add table ip probe; add chain ip probe out { type nat hook postrouting priority 100; }'
nft 'add rule ip probe out masquerade'
"""


def _networks() -> HostFinding:
    """Makes what a local cloud's network is made of, in a network namespace that ends with the probe."""
    try:
        run(["unshare", "--net", "sh", "-e", "-c", _NETWORK_PROBE], deadline=Deadline(20),
            env={**os.environ, "PATH": _SEARCH})
    except HostError as error:
        seen = error.excerpt.splitlines()[-1] if error.excerpt else error.message
        return HostFinding("networks", "failed", seen,
                           "the kernel needs network namespaces, bridge, veth, tun and NAT: modprobe them, and in a "
                           "container give it /dev/net/tun and CAP_NET_ADMIN")
    return HostFinding("networks", "passed", "namespace, bridge, veth, tap and NAT work")


def _acceleration(settings: Settings) -> HostFinding:
    try:
        chosen = accelerator.choose(settings)
    except HostError as error:
        return HostFinding("acceleration", "failed", error.message, error.hint or "")
    if chosen.name == "tcg":
        return HostFinding("acceleration", "note", f"none: guests are emulated, several times slower ({chosen.why})",
                           "turn on virtualisation in the firmware, or nested virtualisation in the hypervisor")
    return HostFinding("acceleration", "passed", f"{chosen.name}: {chosen.why}")
