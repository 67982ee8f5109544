"""diskimage-builder run for one appliance: its elements, its environment, its block device."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.appliance import Appliance
from harness.conntrack import plan
from harness.errors import DescriptionError
from harness.image import loops
from harness.image.builder import Kernel
from harness.image.compile import Artifact
from harness.image.contained import contained_with
from harness.image.mirrors import AptMirrors

STOCK_ELEMENTS = ("debian-minimal", "vm", "block-device-gpt")
"""What every image is made of besides the appliance's own elements. The stock element `base` is left out: it brings
what a relay has no use for (software-properties-common, open-iscsi)."""

SHIMS = Path(__file__).with_name("shims")


def stock_directory() -> Path:
    """Where diskimage-builder's own elements are."""
    return Path(str(importlib.metadata.distribution("diskimage-builder").locate_file("diskimage_builder/elements")))


@cache
def version() -> str:
    """diskimage-builder's version."""
    return importlib.metadata.version("diskimage-builder")


def elements(appliance: Appliance) -> list[str]:
    """The elements named on the command line of disk-image-create."""
    return [*STOCK_ELEMENTS, *appliance.elements]


def expand(names: Iterable[str], directories: Sequence[Path]) -> dict[str, Path]:
    """`names` and all that they depend on, with their directories; the first of `directories` that has one wins.

    What no directory has, an element must provide (element-provides), else DescriptionError is raised.
    """
    found: dict[str, Path] = {}
    provided: set[str] = set()
    todo = list(names)
    unknown: set[str] = set()
    while todo:
        name = todo.pop(0)
        if name in found or name in unknown:
            continue
        directory = next((d / name for d in directories if (d / name).is_dir()), None)
        if directory is None:
            unknown.add(name)
            continue
        found[name] = directory
        todo += _words(directory / "element-deps")
        provided |= set(_words(directory / "element-provides"))
    missing = unknown - provided
    if missing:
        raise DescriptionError(f"there is no element {', '.join(sorted(missing))}",
                               hint="looked in " + ", ".join(str(d) for d in directories))
    return found


def tree_hash(directory: Path) -> str:
    """SHA-256 over names, modes and contents of all files below `directory`."""
    total = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if "__pycache__" in path.parts or path.is_dir():
            continue
        content = bytes(path.readlink()) if path.is_symlink() else path.read_bytes()
        mode = "link" if path.is_symlink() else f"{path.stat().st_mode & 0o777:o}"
        total.update(f"{path.relative_to(directory)} {mode} {len(content)}\n".encode() + content)
    return total.hexdigest()


def settings_of(appliance: Appliance, kernel: Kernel) -> dict[str, str]:
    """The variables by which the appliance's description reaches the elements; nothing of this machine is in them."""
    variables = {
        "ARCH": appliance.architecture,
        "DIB_RELEASE": appliance.release,
        "DIB_VOIP_DATASOURCES": ", ".join(appliance.datasources),
        # The meta package brings the kernels that are to be followed.
        "DIB_VOIP_KERNEL_PACKAGE": kernel.package if appliance.kernel_held else appliance.kernel,
        "DIB_VOIP_KERNEL_HOLD": str(int(appliance.kernel_held)),
        "DIB_VOIP_IMAGE_MIRROR": appliance.image_mirror,
        "DIB_VOIP_IMAGE_SECURITY_MIRROR": appliance.image_security_mirror,
        "DIB_JOURNAL_SIZE": "16",
    }
    if appliance.conntrack:
        table = plan(appliance.conntrack, appliance.server.memory)
        own = ("net.netfilter.nf_conntrack_max", "net.netfilter.nf_conntrack_buckets")
        variables |= {
            "DIB_CONNTRACK_BUCKETS": str(table.buckets), "DIB_CONNTRACK_MAX": str(table.max),
            "DIB_CONNTRACK_SYSCTLS": " ".join(f"{k}={v}" for k, v in sorted(table.sysctls.items()) if k not in own),
        }
    relay = appliance.rtpengine
    if relay and appliance.conntrack and appliance.conntrack.stateless:
        variables["DIB_CONNTRACK_NOTRACK"] = f"{relay.port_min}-{relay.port_max}"
    if relay:
        variables |= {
            "DIB_RTPENGINE_TABLE": str(relay.table), "DIB_RTPENGINE_NO_FALLBACK": str(int(relay.no_fallback)),
            "DIB_RTPENGINE_PORT_MIN": str(relay.port_min), "DIB_RTPENGINE_PORT_MAX": str(relay.port_max),
            "DIB_RTPENGINE_LISTEN_NG": str(relay.ng_port), "DIB_RTPENGINE_LOG_LEVEL": str(relay.log_level),
            "DIB_RTPENGINE_LOG_FACILITY": relay.log_facility, "DIB_RTPENGINE_REDIS": relay.redis_endpoint,
            "DIB_RTPENGINE_MODULE": relay.generation.module, "DIB_RTPENGINE_EXTENSION": relay.generation.extension,
            "DIB_RTPENGINE_RULES": relay.generation.maker, "DIB_RTPENGINE_CHAIN": relay.generation.chain,
            "DIB_RTPENGINE_TOS": str(relay.tos), "DIB_RTPENGINE_ENDPOINT_LEARNING": relay.endpoint_learning,
        }
    proxy = appliance.opensips
    if proxy and proxy.repository:
        source = proxy.repository
        variables |= {
            "DIB_OPENSIPS_VERSION": proxy.version, "DIB_OPENSIPS_REPOSITORY": source.url,
            "DIB_OPENSIPS_SUITE": source.suite, "DIB_OPENSIPS_COMPONENTS": " ".join(source.components),
            "DIB_OPENSIPS_FINGERPRINT": source.fingerprint, "DIB_OPENSIPS_PACKAGES": " ".join(proxy.packages),
            "DIB_OPENSIPS_PORT": str(proxy.port), "DIB_OPENSIPS_RELAYS": " ".join(proxy.relays),
            "DIB_OPENSIPS_DOMAINS": " ".join(proxy.domains),
            "DIB_OPENSIPS_PIKE_DENSITY": str(proxy.pike_density), "DIB_OPENSIPS_PIKE_SECONDS": str(proxy.pike_seconds),
            "DIB_OPENSIPS_SHARED_MEMORY": str(proxy.shared_memory),
            "DIB_OPENSIPS_PRIVATE_MEMORY": str(proxy.private_memory),
            "DIB_OPENSIPS_SHARED_THRESHOLD": str(proxy.shared_threshold),
            "DIB_OPENSIPS_PRIVATE_THRESHOLD": str(proxy.private_threshold),
            "DIB_OPENSIPS_LOG_LEVEL": str(proxy.log_level), "DIB_OPENSIPS_LOG_FACILITY": proxy.log_facility,
        }
    return variables


@dataclass(frozen=True)
class Build:
    """One run of disk-image-create: `base` is the directory of the base root, `work` holds all that is written besides
    `output` (without .qcow2). `files` are further variables: those that name files of this machine."""

    appliance: Appliance
    variables: Mapping[str, str]
    elements_path: Path
    mirrors: AptMirrors
    artifact: Artifact | None
    files: Mapping[str, Path]
    base: Path
    work: Path
    output: Path
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """The whole environment; of this process's own only what reaches a proxy or names certificates is passed."""
        passed = {name: value for name, value in os.environ.items()
                  if name.lower() in _PASSED or name in {"SSL_CERT_FILE", "SSL_CERT_DIR"}}
        own = {
            "HOME": os.fspath(self.work), "USER": "root", "LANG": "C.UTF-8",
            "PATH": f"{SHIMS}:{Path(sys.executable).parent}:{_PATH}",
            "ELEMENTS_PATH": os.fspath(self.elements_path),
            "TMP_DIR": os.fspath(self.temporary), "DIB_NO_TMPFS": "1",
            "DIB_IMAGE_CACHE": os.fspath(self.base), "DIB_DEBIAN_USE_DEBOOTSTRAP_CACHE": "1",
            "DIB_APT_LOCAL_CACHE": "0", "DIB_LOCKFILES": os.fspath(self.work / "locks"),
            # All packages are in the base root: apt is given no mirror to ask.
            "DIB_APT_SOURCES_CONF": "base:# every package is in the base root",
            "DIB_DISTRIBUTION_MIRROR": self.mirrors.main, "DIB_DEBIAN_SECURITY_MIRROR": self.mirrors.security,
            "DIB_BLOCK_DEVICE_CONFIG": json.dumps(block_device(self.image_directory)),
        }
        if self.artifact:
            own["DIB_RTPENGINE_ARTIFACT"] = os.fspath(self.artifact.path)
        own |= {name: os.fspath(path) for name, path in self.files.items()}
        return passed | own | dict(self.variables)

    @property
    def temporary(self) -> Path:
        return self.work / "tmp"

    @property
    def image_directory(self) -> Path:
        """Where the raw image is; the journal has it as a loop device."""
        return self.temporary / loops.image_directory(self.work.name)

    @property
    def argv(self) -> list[str]:
        return contained_with(self.temporary, [
            "sh", "-c", _PREPARE, "prepare", self.image_directory,
            Path(sys.executable).parent / "disk-image-create", "-n", "-a", self.appliance.architecture, "-t", "qcow2",
            "--qemu-img-options", "compression_type=zstd", "-o", self.output, *elements(self.appliance)])


_PASSED = {"http_proxy", "https_proxy", "ftp_proxy", "no_proxy"}
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Links in /dev/mapper are gone with the namespaces.
_PREPARE = """
set -eu
mkdir -p /dev/mapper
mount -t tmpfs tmpfs /dev/mapper
mkdir "$1"
shift
exec "$@"
"""


def block_device(directory: Path) -> list[object]:
    """One GPT disk, as image0.raw in `directory`: a partition for each firmware's boot loader, and the root's.

    The EFI system partition has no file system here, for diskimage-builder would mount it: voip-appliance fills it.
    """
    root = {"name": "root", "flags": ["boot"], "size": "100%",
            "mkfs": {"type": "ext4", "mount": {"mount_point": "/",
                                               "fstab": {"options": "defaults", "fsck-passno": 1}}}}
    boot = {"name": "BSP", "type": "EF02", "size": "8MiB"}
    efi = {"name": "ESP", "type": "EF00", "size": "16MiB"}
    # diskimage-builder looks for the name image0
    return [{"local_loop": {"name": "image0", "directory": os.fspath(directory)}},
            {"partitioning": {"base": "image0", "label": "gpt", "partitions": [boot, efi, root]}}]


def _words(file: Path) -> list[str]:
    if not file.exists():
        return []
    lines = (line.split("#")[0] for line in file.read_text(encoding="utf-8").splitlines())
    return [word for line in lines for word in line.split()]
