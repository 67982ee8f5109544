"""Looks for what must not be in an image: an identity, a secret, a state, or a trace of its build."""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator

from harness.image.finding import Check, Expectation, Seen, equal, few, none_of
from harness.image.packages import installed
from harness.image.root import Root

_AGAIN = "./inv build --force builds it again; elements/voip-appliance cleans up in cleanup.d"


def _homes(root: Root) -> list[str]:
    return ["/root", *(f"/home/{name}" for name in root.names("/home"))]


def host_keys(root: Root, expect: Expectation) -> Seen:
    found = [f"/etc/ssh/{name}" for name in root.names("/etc/ssh") if name.startswith("ssh_host_")]
    return none_of("SSH host key", found, hint="every server would have the same key; " + _AGAIN)


def machine_id(root: Root, expect: Expectation) -> Seen:
    content = root.text("/etc/machine-id")
    return equal("an empty file", repr(content.strip()) if content else "an empty file",
                 hint="every server would have the same identity, and the same DHCP lease; " + _AGAIN)


def instance_data(root: Root, expect: Expectation) -> Seen:
    found = [path for top in ("/var/lib/cloud", "/run/cloud-init") for path in root.files(top)]
    found += [f"/var/log/{name}" for name in root.names("/var/log") if name.startswith("cloud-init")]
    return none_of("data of a cloud-init run", found, hint="cloud-init would take the first boot for a later one")


def passwords(root: Root, expect: Expectation) -> Seen:
    found = []
    for line in root.text("/etc/shadow").splitlines():
        user, hashed = [*line.split(":"), ""][:2]
        if not hashed.startswith(("!", "*")):
            found.append(f"{user} (empty)" if not hashed else user)
    found += [f"{line.split(':')[0]} (in /etc/passwd)" for line in root.text("/etc/passwd").splitlines()
              if line.split(":")[1:2] != ["x"]]
    return none_of("account with a password", found, hint="anybody who has the image has the password")


def keys_of_users(root: Root, expect: Expectation) -> Seen:
    found = [f"{home}/.ssh/{name}" for home in _homes(root) for name in root.names(f"{home}/.ssh")
             if name.startswith(("authorized_keys", "id_")) and root.lstat(f"{home}/.ssh/{name}").st_size > 0]
    return none_of("authorized or private key", found, hint="cloud-init brings the keys of each server")


def histories(root: Root, expect: Expectation) -> Seen:
    found = [f"{home}/{name}" for home in _homes(root) for name in root.names(home)
             if name.endswith(("_history", ".lesshst", ".viminfo"))]
    return none_of("history of a shell or editor", found)


def apt_leftovers(root: Root, expect: Expectation) -> Seen:
    found = [path for path in root.files("/var/lib/apt/lists") if not path.endswith("/lock")]
    found += [path for path in root.files("/var/cache/apt") if path.endswith((".deb", ".bin"))]
    return none_of("package list or package file of apt", found, hint="they only make the image larger; " + _AGAIN)


def build_leftovers(root: Root, expect: Expectation) -> Seen:
    found = [path for top in ("/tmp", "/var/tmp", "/etc/dib-manifests", "/usr/lib/diskimage-builder",
                              "/usr/share/pkg-map") for path, _ in root.walk(top)]
    found += [f"/usr/local/{place}/{name}" for place in ("bin", "sbin") for name in root.names(f"/usr/local/{place}")]
    # policy-rc.d(8) keeps services from starting while packages are installed, and afterwards too if it stays.
    found += [path for path in ("/usr/sbin/policy-rc.d", "/etc/resolv.conf.ORIG", "/in_target.d") if root.exists(path)]
    return none_of("leftover of the build", found, hint=_AGAIN)


_COMPILERS = re.compile(
    r"^((gcc|g\+\+|cpp|clang)(-\d+)?(-x86-64-linux-gnu)?|make|dkms|build-essential|dpkg-dev|libc6-dev|linux-libc-dev"
    r"|linux-headers-.*|linux-kbuild-.*|rtpengine-kernel-dkms)$")


def compilers(root: Root, expect: Expectation) -> Seen:
    found = [f"package {p.name}" for p in installed(root) if _COMPILERS.match(p.name)]
    found += [path for name in ("gcc", "cc", "make") if root.exists(path := f"/usr/bin/{name}")]
    found += [f"/usr/src/{name}" for name in root.names("/usr/src") if name.startswith("linux-headers-")]
    found += [path for kernel in root.names("/usr/lib/modules")
              if root.exists(path := f"/usr/lib/modules/{kernel}/build/Makefile")]
    return none_of("compiler or kernel header", found, hint="the image takes binaries only; see harness/image/compile")


def mirrors(root: Root, expect: Expectation) -> Seen:
    named = ", ".join(expect.mirrors) or "none"
    used = dict.fromkeys(_mirrors(root))
    strange = [url for url in used if url not in expect.mirrors]
    return Seen(not strange, f"mirrors that the appliance names: {named}", ", ".join(used) or "none",
                hint="appliances.yaml names mirrors of the image in image_mirrors; others are the build host's")


def _mirrors(root: Root) -> Iterator[str]:
    for path in ["/etc/apt/sources.list", *root.files("/etc/apt/sources.list.d")]:
        if root.exists(path):
            text = "\n".join(line for line in root.text(path).splitlines() if not line.lstrip().startswith("#"))
            # One-line style has the address after the options, deb822 style in URIs (sources.list(5)).
            for line in re.findall(r"^\s*(?:deb|deb-src)\s+(?:\[[^]]*\]\s*)?(\S+)", text, re.MULTILINE):
                yield line.rstrip("/")
            for line in re.findall(r"^URIs:((?:[^\n]|\n[ \t])*)", text, re.MULTILINE | re.IGNORECASE):
                yield from (url.rstrip("/") for url in line.split())
    for path in ["/etc/apt/apt.conf", *root.files("/etc/apt/apt.conf.d")]:
        if root.exists(path):
            yield from (f"proxy {url}" for url in
                        re.findall(r"^[^/#\n]*proxy[^\"'\n]*[\"']([^\"']+)", root.text(path), re.I | re.M))


def resolver(root: Root, expect: Expectation) -> Seen:
    link = "/etc/resolv.conf"
    wanted = "/run/systemd/resolve/"
    copies = [f"/etc/{name}" for name in root.names("/etc") if "resolv.conf" in name and f"/etc/{name}" != link]
    if not stat.S_ISLNK(root.lstat(link).st_mode):
        copies.append(link)
    servers = [f"{server} in {path}" for path in copies if stat.S_ISREG(root.lstat(path).st_mode)
               for server in re.findall(r"^\s*nameserver\s+(\S+)", root.text(path), re.MULTILINE)]
    if servers or link in copies:
        return Seen(False, f"no name server; {link} a link into {wanted}", few(servers) or "a file", hint=_AGAIN)
    return Seen(wanted.lstrip("/") in root.link(link), f"a link into {wanted}", root.link(link), hint=_AGAIN)


_KNOWN_SETUID = frozenset({
    "chfn", "chsh", "dbus-daemon-launch-helper", "fusermount3", "gpasswd", "mount", "newgrp", "passwd", "ping",
    "pkexec", "polkit-agent-helper-1", "ssh-keysign", "su", "sudo", "umount",
})


def setuid(root: Root, expect: Expectation) -> Seen:
    found = [path for top in ("/usr", "/opt", "/srv", "/var", "/root", "/home", "/etc")
             for path, status in root.walk(top)
             if stat.S_ISREG(status.st_mode) and status.st_mode & stat.S_ISUID
             and not (path.startswith("/usr/") and path.rsplit("/", 1)[1] in _KNOWN_SETUID)]
    return none_of("set-user-id program besides the known ones", found,
                   hint="remove the bit, or add the program to harness/image/hygiene.py with a reason")


CHECKS = (
    Check("no SSH host keys", host_keys),
    Check("machine-id is empty", machine_id),
    Check("no cloud-init instance data", instance_data),
    Check("no password is set", passwords),
    Check("no keys of users", keys_of_users),
    Check("no shell history", histories),
    Check("no package lists or archives", apt_leftovers),
    Check("no leftovers of the build", build_leftovers),
    Check("no compiler, no kernel headers", compilers),
    Check("no mirror of the build host", mirrors),
    Check("no name server of the build host", resolver),
    Check("set-user-id programs are the known ones", setuid),
)
