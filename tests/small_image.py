"""A small tree, and a small qcow2 of it, in which every look of the inspection is green.

The kernel is an empty file, the daemon a shell, and systemd-analyze a script that has nothing to say: enough for
whatever reads files, nothing to boot.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import struct
import subprocess
import uuid
import zlib
from pathlib import Path

from harness.appliance import Appliance, ConntrackGoal, Rtpengine, ServerSize
from harness.conntrack import plan
from harness.image.software import PROXY_BUILT_IN

KERNEL = "6.1.0-99-cloud-amd64"
LIBRARIES = "usr/lib/x86_64-linux-gnu"
PROXY = "4.0.1-1"
CLOUD_INIT = ("cloud-init-stages", "cloud-init-local", "cloud-init", "cloud-config", "cloud-final")
PROGRAMS = {"BOOTX64.EFI": b"MZ shim", "grubx64.efi": b"MZ grub", "mmx64.efi": b"MZ MokManager"}
LOADER = {name: hashlib.sha256(content).hexdigest() for name, content in PROGRAMS.items()}
"""UEFI's boot loader: words in the place of programs."""
ROOT_UUID = "6d0f3b1c-8a4e-4a76-9d63-5b6f0f2c7a11"
_ESP_MIB = 2


def appliance() -> Appliance:
    """What the tree is an image of."""
    return Appliance(
        name="small", description="a small tree", release="bookworm", architecture="amd64",
        kernel="linux-image-cloud-amd64", elements=("voip-appliance", "conntrack", "rtpengine"), user="debian",
        datasources=("ConfigDrive", "OpenStack", "NoCloud"), server=ServerSize(memory=1024, cpus=1, disk=2), ports=(),
        checks=(), rtpengine=Rtpengine(version="10.5.3.5", sources=()), opensips=None,
        conntrack=ConntrackGoal(calls=5000),
        image_mirror="", image_security_mirror="", file=Path("appliances.yaml"), line=1)


def kernel_module(info: dict[str, str]) -> bytes:
    """An ELF file that holds a section .modinfo and nothing else."""
    content = b"".join(f"{key}={value}\0".encode() for key, value in info.items())
    names = b"\0.modinfo\0.shstrtab\0"
    section = struct.Struct("<IIQQQQIIQQ")
    sections = [(0,) * 10, (1, 1, 2, 0, 64, len(content), 0, 0, 1, 0),
                (10, 3, 0, 0, 64 + len(content), len(names), 0, 0, 1, 0)]
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 1, 62, 1, 0, 0, 64 + len(content) + len(names),
                         0, 64, 0, 0, section.size, len(sections), 2)
    return header + content + names + b"".join(section.pack(*s) for s in sections)


def _package(name: str, state: str = "install ok installed", version: str = "1.0-1", **fields: str) -> str:
    further = "".join(f"{field}:{value}\n" for field, value in fields.items())
    return (f"Package: {name}\nStatus: {state}\nArchitecture: amd64\nVersion: {version}\n{further}"
            f"Description: {name}\n more\n")


CHECKED = {"bin/true": "#!/bin/sh\n", "usr/share/bash/text": "of the package\n", "usr/share/bash/shared": "diverted\n"}
"""Files of the package bash whose checksums are kept; dpkg names the first by its way through the merged /usr."""
CONFFILE = ("etc/bash.bashrc", "# nothing\n")


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def owned(root: Path) -> None:
    """Let dpkg know what is in the tree now as files of the package bash, and one that was left out on purpose."""
    info = root / "var/lib/dpkg/info"
    info.mkdir(exist_ok=True)
    paths = {f"/{path.relative_to(root)}" for path in root.rglob("*") if path.is_symlink() or not path.is_dir()}
    left_out = "usr/share/man/man1/bash.1.gz"
    lines = sorted({"/.", *(paths - {"/usr/share/bash/shared.other"}), f"/{left_out}"})
    (info / "bash.list").write_text("".join(f"{line}\n" for line in lines))
    sums = {path: _md5(text) for path, text in CHECKED.items()} | {left_out: "0" * 32}
    (info / "bash.md5sums").write_text("".join(f"{checksum}  {path}\n" for path, checksum in sums.items()))
    (info / "other.list").write_text("/usr/share/bash/shared\n")
    (info / "other.md5sums").write_text(f"{_md5('of the other')}  usr/share/bash/shared\n")
    (root / "var/lib/dpkg/diversions").write_text("/usr/share/bash/shared\n/usr/share/bash/shared.other\nbash\n")


def tree(root: Path) -> Path:
    """Write the tree into the empty directory `root`."""
    for directory in ("etc/ssh", "root", "home", "tmp", "proc", "dev", "var/tmp", "var/lib/cloud", "var/log",
                      "usr/sbin", "run", "var/lib/apt/lists/partial", "usr/local/bin", "usr/share/bash",
                      f"{LIBRARIES}/xtables", "usr/lib64"):
        (root / directory).mkdir(parents=True)
    for link, target in {"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64", "sbin": "usr/sbin",
                         "usr/share/bash/link": "text",
                         "etc/resolv.conf": "../run/systemd/resolve/stub-resolv.conf"}.items():
        (root / link).symlink_to(target)
    conntrack = plan(ConntrackGoal(calls=5000), 1024)
    modules = f"usr/lib/modules/{KERNEL}"
    index = "extra/xt_RTPENGINE.ko: kernel/net/netfilter/x_tables.ko\nkernel/net/netfilter/x_tables.ko:\n"
    for path, text in {
        "boot/grub/grub.cfg": f"menuentry 'x' {{\n\tlinux /boot/vmlinuz-{KERNEL} root=LABEL=x quiet\n"
                              f"\tinitrd /boot/initrd.img-{KERNEL}\n}}\n",
        f"boot/vmlinuz-{KERNEL}": "", f"boot/initrd.img-{KERNEL}": "",
        f"{modules}/modules.dep": index, f"{modules}/modules.dep.bin": index,
        f"{modules}/kernel/net/netfilter/x_tables.ko": "",
        "var/lib/dpkg/status": "\n".join([_package(f"linux-image-{KERNEL}", "hold ok installed", "6.1.1-1"),
                                          _package("gcc", "deinstall ok config-files"), _package("gcc-12-base"),
                                          _package("bash", version="5.2.15-2", Conffiles=(
                                              f"\n /{CONFFILE[0]} {_md5(CONFFILE[1])}\n /etc/old {'0' * 32} obsolete")),
                                          ]),
        **{path.replace("bin/", "usr/bin/", 1): text for path, text in CHECKED.items()},
        "usr/share/bash/shared.other": "of the other", CONFFILE[0]: CONFFILE[1],
        "usr/bin/systemd-analyze": "#!/bin/sh\n",
        "etc/machine-id": "",
        "etc/passwd": "root:x:0:0:root:/root:/bin/bash\ndebian:x:1000:1000::/home/debian:/bin/bash\n",
        "etc/shadow": "root:!*:19000:0:99999:7:::\ndaemon:*:19000:0:99999:7:::\ndebian:!:19000:0:99999:7:::\n",
        "etc/apt/sources.list": "# no mirror\n",
        "etc/rtpengine/rtpengine.conf": "# relay\n[rtpengine]\ntable = 0\nno-fallback = true\nport-min = 30000\n"
                                        "listen-ng = 0.0.0.0:2223\nport-max = 40000\nlog-level = 6\n"
                                        "log-facility = local1\ntos = 184\nendpoint-learning = heuristic\n",
        "etc/rsyslog.d/30-rtpengine.conf": "local1.* -/var/log/rtpengine.log\n& stop\n",
        "etc/logrotate.d/rtpengine": "/var/log/rtpengine.log {\n    daily\n}\n",
        "etc/modules-load.d/rtpengine.conf": "xt_RTPENGINE\n",
        "etc/modules-load.d/conntrack.conf": "nf_conntrack\n",
        "etc/modprobe.d/conntrack.conf": f"options nf_conntrack hashsize={conntrack.buckets}\n",
        "etc/sysctl.d/60-conntrack.conf": "".join(f"{k} = {v}\n" for k, v in conntrack.sysctls.items()
                                                  if not k.endswith("_buckets")),
        "etc/cloud/cloud.cfg": "datasource_list: [None]\nusers: [default]\n",
        "etc/cloud/cloud.cfg.d/91_sources.cfg": "datasource_list: [ConfigDrive, OpenStack, NoCloud]\n",
        "usr/lib/systemd/system/ssh.service": "[Unit]\n", "usr/lib/systemd/system/rsyslog.service": "[Unit]\n",
        "usr/lib/systemd/system/redis-server.service": "[Unit]\n",
        "etc/systemd/system/rtpengine.service": "[Unit]\n",
        **{f"usr/lib/systemd/system/{name}.service": "[Unit]\n"
           for name in CLOUD_INIT},
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    for unit in ("ssh", "rsyslog", "rtpengine", *CLOUD_INIT):
        enable(root, f"{unit}.service")
    module = root / modules / "extra/xt_RTPENGINE.ko"
    module.parent.mkdir()
    module.write_bytes(kernel_module({"vermagic": f"{KERNEL} SMP mod_unload ", "depends": "x_tables"}))
    shutil.copy("/bin/sh", root / "usr/sbin/rtpengine")
    for library, place in (("libc.so.6", LIBRARIES), ("libz.so.1", f"{LIBRARIES}/xtables"),
                           ("ld-linux-x86-64.so.2", "usr/lib64")):
        shutil.copy(Path("/lib/x86_64-linux-gnu", library), root / place / library)
    (root / LIBRARIES / "xtables/libz.so.1").rename(root / LIBRARIES / "xtables/libxt_RTPENGINE.so")
    shutil.copy("/bin/sh", root / "usr/bin/sh")
    (root / "usr/bin/systemd-analyze").chmod(0o755)
    owned(root)
    return root


def add_proxy(root: Path, project: Path) -> None:
    """What makes a tree one with a SIP proxy; its configuration is the element's own, with its default settings."""
    modules = root / LIBRARIES / "opensips/modules"
    modules.mkdir(parents=True)
    values = {"MODULES": f"/{LIBRARIES}/opensips/modules", "PORT": "5060", "LOG_LEVEL": "3", "LOG_FACILITY": "LOCAL0",
              "SHARED_THRESHOLD": "80", "PRIVATE_THRESHOLD": "80", "PIKE_DENSITY": "100", "PIKE_SECONDS": "2",
              "FLAGS": ""}
    text = (project / "elements/opensips/opensips.cfg.in").read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    for module in set(re.findall(r'^loadmodule "(.*)"$', text, re.MULTILINE)) - set(PROXY_BUILT_IN):
        (modules / module).touch()
    status = root / "var/lib/dpkg/status"
    status.write_text("\n".join([status.read_text(), _package("opensips", version=PROXY),
                                 _package("opensips-http-modules", version=PROXY)]))
    for path, content in {
        "etc/opensips/opensips.cfg": text, "etc/opensips/relays": "", "etc/opensips/domains": "\n",
        "etc/systemd/system/opensips.service": "[Unit]\n",
        "etc/rsyslog.d/30-opensips.conf": "local0.* -/var/log/opensips.log\n& stop\n",
        "etc/logrotate.d/opensips": "/var/log/opensips.log {\n    daily\n}\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    enable(root, "opensips.service")
    owned(root)


def enable(root: Path, unit: str) -> None:
    """As `systemctl enable` does."""
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / unit).symlink_to(f"/etc/systemd/system/{unit}" if (root / "etc/systemd/system" / unit).exists()
                              else f"/usr/lib/systemd/system/{unit}")


def partitioned(raw: Path, *, size_mib: int) -> Path:
    """A raw disk with a GPT: a BIOS boot partition from 1 MiB on, a root partition from 2 MiB on, and at the end an EFI
    system partition."""
    sectors = size_mib * 2048
    system = sectors - 2048 * (1 + _ESP_MIB)
    entries = b"".join(
        struct.pack("<16s16sQQQ72s", uuid.UUID(kind).bytes_le, uuid.uuid4().bytes_le, first, last, 0,
                    name.encode("utf-16-le"))
        for kind, name, first, last in (("21686148-6449-6e6f-744e-656564454649", "BSP", 2048, 4095),
                                        ("0fc63daf-8483-4772-8e79-3d69d8477de4", "root", 4096, system - 1),
                                        ("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "ESP", system, sectors - 2049)))
    entries = entries.ljust(128 * 128, b"\0")
    disk = uuid.uuid4().bytes_le

    def header(here: int, other: int, table: int) -> bytes:
        def packed(checksum: int) -> bytes:
            return struct.pack("<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, checksum, 0, here, other, 34,
                               sectors - 34, disk, table, 128, 128, zlib.crc32(entries))

        return packed(zlib.crc32(packed(0)))

    with raw.open("wb") as file:
        file.truncate(size_mib * 2**20)
        for sector, content in ((0, bytes(446) + struct.pack("<B3sB3sII", 0, b"\0\2\0", 0xee, b"\xff" * 3, 1,
                                                             sectors - 1) + bytes(48) + b"\x55\xaa"),
                                (1, header(1, sectors - 1, 2)), (2, entries),
                                (sectors - 33, entries), (sectors - 1, header(sectors - 1, 1, sectors - 33))):
            file.seek(sector * 512)
            file.write(content)
    return raw


def disk(root: Path, raw: Path, *, size_mib: int = 64) -> Path:
    """A partitioned raw disk with `root` as an ext4 file system, and something in the place of boot loaders."""
    partitioned(raw, size_mib=size_mib)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-U", ROOT_UUID, "-d", root, "-E", f"offset={2 * 2**20},root_owner=0:0",
                    raw, f"{(size_mib - 3 - _ESP_MIB) * 1024}k"], check=True, capture_output=True)
    with raw.open("r+b") as file:
        for offset in (0, 2**20):
            file.seek(offset)
            file.write(b"\xeb\x63boot code")
    system = esp(raw, size_mib)
    mtools("mformat", system, "-T", str(_ESP_MIB * 2048), "::")
    mtools("mmd", system, "::/EFI", "::/EFI/BOOT", "::/EFI/debian")
    put(system, "EFI/debian/grub.cfg", f"search --fs-uuid --set=root {ROOT_UUID}\n".encode())
    for name, content in PROGRAMS.items():
        put(system, f"EFI/BOOT/{name}", content)
    return raw


def esp(raw: Path, size_mib: int = 64) -> str:
    """The EFI system partition of a raw disk of partitioned(), as mtools take it."""
    return f"{raw}@@{(size_mib - 1 - _ESP_MIB) * 2**20}"


def mtools(program: str, image: str, *arguments: str, content: bytes | None = None) -> None:
    subprocess.run([program, "-i", image, *arguments], input=content, check=True, capture_output=True,
                   env={**os.environ, "MTOOLS_SKIP_CHECK": "1"})


def put(image: str, path: str, content: bytes) -> None:
    """Write a file of a FAT file system anew."""
    mtools("mcopy", image, "-o", "-", f"::/{path}", content=content)


def qcow2(raw: Path, image: Path) -> Path:
    """A compressed qcow2 of a raw disk."""
    subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", raw, image],
                   check=True, capture_output=True)
    return image
