"""Every look at the root file system is green on a good tree, and one defect turns exactly one of them red."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from harness.appliance import Opensips, Rtpengine
from harness.deadline import Deadline
from harness.image import inspect, ownership
from harness.image.finding import expectation
from harness.image.root import Root
from harness.image.signing import Signer, sign
from harness.known import Known, KnownFile
from harness.results import Finding
from tests import small_image
from tests.conftest import PROJECT
from tests.small_image import KERNEL, LIBRARIES
from tests.unit.test_signing import pair

Defect = Callable[[Path], object]
INTACT, KNOWN = (check.title for check in ownership.CHECKS)
expected = partial(expectation, kernel=KERNEL, loader=small_image.LOADER)
EXPECT = expected(small_image.appliance())


def write(path: str, text: str) -> Defect:
    def defect(root: Path) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    return defect


def append(path: str, text: str) -> Defect:
    return lambda root: (root / path).write_text((root / path).read_text() + text)


def change(path: str, old: str, new: str) -> Defect:
    def defect(root: Path) -> None:
        text = (root / path).read_text()
        assert old in text
        (root / path).write_text(text.replace(old, new))

    return defect


def remove(path: str) -> Defect:
    return lambda root: (root / path).unlink()


def module_for(kernel: str) -> Defect:
    return lambda root: (root / f"usr/lib/modules/{KERNEL}/extra/xt_RTPENGINE.ko").write_bytes(
        small_image.kernel_module({"vermagic": f"{kernel} SMP mod_unload "}))


def mask(unit: str) -> Defect:
    def defect(root: Path) -> None:
        path = root / "etc/systemd/system" / unit
        path.unlink(missing_ok=True)
        path.symlink_to("/dev/null")

    return defect


STATUS = "var/lib/dpkg/status"
RTPENGINE_CONF = "etc/rtpengine/rtpengine.conf"
WANTS = "etc/systemd/system/multi-user.target.wants"
NOTRACK = write("etc/conntrack/notrack.rules", "*raw\n-A PREROUTING -p udp -m udp --dport 30000:40000 -j CT --notrack\n"
                "-A OUTPUT -p udp -m udp --sport 30000:40000 -j CT --notrack\nCOMMIT\n")

DEFECTS: list[tuple[str, str, Defect]] = [
    ("exactly one kernel", "a second kernel", write("boot/vmlinuz-6.1.0-98-cloud-amd64", "")),
    ("the boot menu starts that kernel", "another kernel's entry",
     append("boot/grub/grub.cfg", "menuentry y {\n\tlinux /boot/vmlinuz-6.1.0-98-cloud-amd64\n}\n")),
    ("the boot menu starts that kernel", "no initrd", remove(f"boot/initrd.img-{KERNEL}")),
    ("the boot menu starts that kernel", "no menu", remove("boot/grub/grub.cfg")),
    ("kernel packages are held as described", "not held", change(STATUS, "hold ok installed", "install ok installed")),
    ("modules of that kernel only", "another tree", write("usr/lib/modules/6.1.0-98-cloud-amd64/modules.dep", "")),
    ("units are enabled", "unit not enabled", remove(f"{WANTS}/rtpengine.service")),
    ("units are enabled", "unit masked", mask("rtpengine.service")),
    ("units are enabled", "unit missing", remove("etc/systemd/system/rtpengine.service")),
    ("cloud-init is enabled", "a stage not enabled", remove(f"{WANTS}/cloud-config.service")),
    ("cloud-init is enabled", "switched off", write("etc/cloud/cloud-init.disabled", "")),
    ("cloud-init data sources as described", "wrong order",
     write("etc/cloud/cloud.cfg.d/95_other.cfg", "datasource_list: [NoCloud, ConfigDrive, OpenStack]\n")),
    ("cloud-init data sources as described", "file is no YAML", write("etc/cloud/cloud.cfg.d/95_other.cfg", "a: [b\n")),
    ("configuration is root's alone to change", "mode 0666", lambda root: (root / "etc/passwd").chmod(0o666)),
    ("the relay's module is for that kernel", "other vermagic", module_for("6.1.0-98-cloud-amd64")),
    ("the relay's module is for that kernel", "module missing",
     remove(f"usr/lib/modules/{KERNEL}/extra/xt_RTPENGINE.ko")),
    ("the relay's module is for that kernel", "module is no ELF file",
     write(f"usr/lib/modules/{KERNEL}/extra/xt_RTPENGINE.ko", "no module")),
    ("modprobe finds the relay's module", "no depmod",
     change(f"usr/lib/modules/{KERNEL}/modules.dep", "extra/xt_RTPENGINE.ko:", "#")),
    ("modprobe finds the relay's module", "index not made again",
     change(f"usr/lib/modules/{KERNEL}/modules.dep.bin", "extra/xt_RTPENGINE.ko:", "#")),
    ("modprobe finds the relay's module", "dependency missing",
     remove(f"usr/lib/modules/{KERNEL}/kernel/net/netfilter/x_tables.ko")),
    ("the relay's module is loaded at boot", "not named", remove("etc/modules-load.d/rtpengine.conf")),
    ("the relay's programs are in place", "no extension", remove(f"{LIBRARIES}/xtables/libxt_RTPENGINE.so")),
    ("the relay's programs are in place", "daemon not to execute",
     lambda root: (root / "usr/sbin/rtpengine").chmod(0o644)),
    ("their shared libraries are in place", "a library missing", remove(f"{LIBRARIES}/libc.so.6")),
    ("Redis as described", "enabled, not asked for", lambda root: small_image.enable(root, "redis-server.service")),
    ("rtpengine.conf as described", "table -1", change(RTPENGINE_CONF, "table = 0", "table = -1")),
    ("rtpengine.conf as described", "another ng port", change(RTPENGINE_CONF, ":2223", ":2222")),
    ("rtpengine.conf as described", "a Redis", append(RTPENGINE_CONF, "redis = 127.0.0.1:6379/1\n")),
    ("rtpengine.conf as described", "an option of old manuals", append(RTPENGINE_CONF, "redis-db = 1\n")),
    ("rtpengine.conf as described", "another endpoint learning",
     change(RTPENGINE_CONF, "endpoint-learning = heuristic", "endpoint-learning = delayed")),
    ("rtpengine.conf as described", "another TOS", change(RTPENGINE_CONF, "tos = 184", "tos = 0")),
    ("rtpengine.conf as described", "no section", write(RTPENGINE_CONF, "table = 0\n")),
    ("the relay logs to its own file", "no rule", remove("etc/rsyslog.d/30-rtpengine.conf")),
    ("the relay logs to its own file", "another facility",
     change("etc/rsyslog.d/30-rtpengine.conf", "local1", "local2")),
    ("the relay's log is rotated", "no rule", remove("etc/logrotate.d/rtpengine")),
    ("nf_conntrack is loaded before its settings", "not named", remove("etc/modules-load.d/conntrack.conf")),
    ("conntrack hash size as planned", "another size", change("etc/modprobe.d/conntrack.conf", "=40448", "=16384")),
    ("conntrack hash size as planned", "no parameter", remove("etc/modprobe.d/conntrack.conf")),
    ("conntrack settings as planned", "a later file says otherwise",
     write("usr/lib/sysctl.d/99-other.conf", "net.netfilter.nf_conntrack_max=262144\n")),
    ("conntrack settings as planned", "a key missing",
     change("etc/sysctl.d/60-conntrack.conf", "net.netfilter.nf_conntrack_udp_timeout = 30\n", "")),
    ("UDP ports without connection tracking as described", "some, not asked for",
     lambda root: [write("etc/systemd/system/conntrack-notrack.service", "[Unit]\n")(root), NOTRACK(root),
                   small_image.enable(root, "conntrack-notrack.service")]),
    ("no SSH host keys", "a key", write("etc/ssh/ssh_host_ed25519_key", "x")),
    ("machine-id is empty", "an identity", write("etc/machine-id", "0123456789abcdef0123456789abcdef\n")),
    ("machine-id is empty", "uninitialized", write("etc/machine-id", "uninitialized\n")),
    ("machine-id is empty", "no file", remove("etc/machine-id")),
    ("no cloud-init instance data", "an instance", write("var/lib/cloud/instances/i-1/user-data.txt", "x")),
    ("no cloud-init instance data", "a log", write("var/log/cloud-init.log", "x")),
    ("no password is set", "a hash", change("etc/shadow", "debian:!:", "debian:$y$j9T$abc:")),
    ("no password is set", "an empty one", change("etc/shadow", "debian:!:", "debian::")),
    ("no password is set", "in passwd", change("etc/passwd", "debian:x:", "debian::")),
    ("no keys of users", "authorized", write("root/.ssh/authorized_keys", "ssh-ed25519 AAAA x\n")),
    ("no keys of users", "private", write("home/debian/.ssh/id_ed25519", "x")),
    ("no shell history", "bash", write("root/.bash_history", "ls\n")),
    ("no package lists or archives", "a list", write("var/lib/apt/lists/mirror_dists_bookworm_InRelease", "x")),
    ("no package lists or archives", "an archive", write("var/cache/apt/archives/x_1_amd64.deb", "x")),
    ("no leftovers of the build", "in /tmp", write("tmp/in_target.d/x", "x")),
    ("no leftovers of the build", "services may not start", write("usr/sbin/policy-rc.d", "exit 101\n")),
    ("no leftovers of the build", "a build script", write("usr/local/bin/dib-init-system", "x")),
    ("no compiler, no kernel headers", "a package", append(STATUS, "\nPackage: make\nStatus: install ok installed\n"
                                                                   "Architecture: amd64\nVersion: 4.3\n")),
    ("no compiler, no kernel headers", "a compiler", write("usr/bin/gcc", "x")),
    ("no compiler, no kernel headers", "headers", write("usr/src/linux-headers-6.1.0-99-common/Makefile", "x")),
    ("no mirror of the build host", "one line", write("etc/apt/sources.list.d/x.list",
                                                      "deb [arch=amd64] http://mirror.invalid/debian bookworm main\n")),
    ("no mirror of the build host", "deb822", write("etc/apt/sources.list.d/x.sources",
                                                    "Types: deb\nURIs: http://mirror.invalid/debian\n")),
    ("no mirror of the build host", "a proxy", write("etc/apt/apt.conf.d/90proxy",
                                                     'Acquire::http::Proxy "http://proxy.invalid:3128";\n')),
    ("no name server of the build host", "a file",
     lambda root: [remove("etc/resolv.conf")(root), write("etc/resolv.conf", "nameserver 192.0.2.1\n")(root)]),
    ("no name server of the build host", "a copy", write("etc/.resolv.conf.bak", "nameserver 192.0.2.1\n")),
    ("no name server of the build host", "no file", remove("etc/resolv.conf")),
    ("set-user-id programs are the known ones", "another",
     lambda root: [write("usr/bin/mysu", "x")(root), (root / "usr/bin/mysu").chmod(0o4755)]),
    (INTACT, "another content", append("usr/share/bash/text", "x")),
    (INTACT, "a file away", remove("usr/share/bash/text")),
    (INTACT, "a link away", remove("usr/share/bash/link")),
    (INTACT, "behind a link of the merged /usr", append("usr/bin/true", "x")),
    (INTACT, "a file that is diverted", append("usr/share/bash/shared.other", "x")),
    (INTACT, "a file that diverts another", append("usr/share/bash/shared", "x")),
    (INTACT, "configuration", append("etc/bash.bashrc", "x")),
    (INTACT, "a directory in its place", lambda root: [remove("usr/share/bash/text")(root),
                                                       (root / "usr/share/bash/text").mkdir()]),
    (KNOWN, "a file", write("usr/lib/strange/file", "")),
    (KNOWN, "a link", lambda root: (root / "etc/strange").symlink_to("passwd")),
]


PROXY_CFG = "etc/opensips/opensips.cfg"
PROXY_DEFECTS: list[tuple[str, str, Defect]] = [
    ("units are enabled", "proxy not enabled", remove(f"{WANTS}/opensips.service")),
    ("OpenSIPS in the described version", "another",
     change(STATUS, "Package: opensips\nStatus: install ok installed\nArchitecture: amd64\nVersion: 4.0.1-1",
            "Package: opensips\nStatus: install ok installed\nArchitecture: amd64\nVersion: 4.0.0-1")),
    ("OpenSIPS in the described version", "no MI over HTTP",
     change(STATUS, "Package: opensips-http-modules\nStatus: install ok installed",
            "Package: opensips-http-modules\nStatus: deinstall ok config-files")),
    ("opensips.cfg as described", "another port", change(PROXY_CFG, "socket=tcp:*:5060", "socket=tcp:*:5070")),
    ("opensips.cfg as described", "another threshold",
     change(PROXY_CFG, "event_pkg_threshold=80", "event_pkg_threshold=0")),
    ("opensips.cfg as described", "MI for everybody", change(PROXY_CFG, "udp:127.0.0.1:8080", "udp:0.0.0.0:8080")),
    ("opensips.cfg as described", "MI by HTTP for everybody", change(PROXY_CFG, '"ip", "127.0.0.1"', '"ip", "*"')),
    ("opensips.cfg as described", "pike lets more pass",
     change(PROXY_CFG, '"reqs_density_per_unit", 100', '"reqs_density_per_unit", 9999')),
    ("opensips.cfg as described", "a relay", write("etc/opensips/relays", "192.0.2.5:2223\n")),
    ("opensips.cfg as described", "a domain", write("etc/opensips/domains", "sip.example.org\n")),
    ("every module that opensips.cfg loads is in place", "one missing",
     remove(f"{LIBRARIES}/opensips/modules/event_stream.so")),
    ("the proxy logs to its own file", "no rule", remove("etc/rsyslog.d/30-opensips.conf")),
    ("the proxy's log is rotated", "no rule", remove("etc/logrotate.d/opensips")),
]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_image.tree(tmp_path_factory.mktemp("good"))


@pytest.fixture
def tree(good: Path, tmp_path: Path) -> Path:
    return shutil.copytree(good, tmp_path / "tree", symlinks=True)


def look(tree: Path, expect: inspect.Expectation | None = None) -> list[Finding]:
    descriptor = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    try:
        return list(inspect.contents(Root(descriptor), expect or EXPECT))
    finally:
        os.close(descriptor)


def red(findings: list[Finding]) -> list[str]:
    return [f"{f.title}: {f.seen}" for f in findings if f.outcome != "passed"]


def test_a_good_tree_is_green(good: Path) -> None:
    findings = look(good)
    assert red(findings) == []
    assert len({f.title for f in findings}) == len(findings)
    assert all(f.expected and f.seen for f in findings)


@pytest.mark.parametrize(("title", "defect"), [pytest.param(t, d, id=f"{t}: {name}") for t, name, d in DEFECTS])
def test_a_defect_turns_one_line_red(tree: Path, title: str, defect: Defect) -> None:
    defect(tree)
    if title not in (INTACT, KNOWN):
        small_image.owned(tree)
    failed = [f for f in look(tree) if f.outcome != "passed"]
    assert [f.title for f in failed] == [title]
    assert failed[0].seen and failed[0].seen != failed[0].expected


@pytest.fixture
def proxy(tree: Path) -> Path:
    small_image.add_proxy(tree, PROJECT)
    return tree


WITH_PROXY = expected(replace(small_image.appliance(), opensips=Opensips(small_image.PROXY)))


def test_a_good_tree_with_a_proxy_is_green(proxy: Path) -> None:
    findings = look(proxy, WITH_PROXY)
    assert red(findings) == []
    assert {f.title for f in findings} == {title for title, _, _ in (*DEFECTS, *PROXY_DEFECTS)}


@pytest.mark.parametrize(("title", "defect"), [pytest.param(t, d, id=f"{t}: {n}") for t, n, d in PROXY_DEFECTS])
def test_a_defect_of_the_proxy_turns_one_line_red(proxy: Path, title: str, defect: Defect) -> None:
    defect(proxy)
    small_image.owned(proxy)
    failed = [f for f in look(proxy, WITH_PROXY) if f.outcome != "passed"]
    assert [f.title for f in failed] == [title]
    assert failed[0].seen and failed[0].seen != failed[0].expected


def test_every_look_has_a_defect(good: Path) -> None:
    assert {f.title for f in look(good)} == {title for title, _, _ in DEFECTS}


def test_all_red_lines_are_reported(tree: Path) -> None:
    for _, _, defect in (DEFECTS[0], DEFECTS[4], DEFECTS[-1]):
        defect(tree)
    assert len(red(look(tree))) == 3


def test_strange_files_are_named_and_where_they_would_be_known(tree: Path) -> None:
    append("usr/share/bash/text", "x")(tree)
    remove("usr/bin/true")(tree)
    write("etc/strange.conf", "")(tree)
    found = {f.title: f for f in look(tree)}
    assert found[INTACT].seen == "/usr/share/bash/text of bash is changed, /usr/bin/true of bash is missing"
    assert found[KNOWN].seen == "/etc/strange.conf"
    assert all("known/<element>.yaml" in found[title].hint for title in (INTACT, KNOWN))


def test_what_is_known_is_green_and_what_is_gone_is_a_note(tree: Path) -> None:
    append("usr/share/bash/text", "x")(tree)
    remove("usr/bin/true")(tree)
    write("etc/strange.conf", "")(tree)

    def of(*patterns: str, optional: bool = False) -> tuple[KnownFile, ...]:
        return tuple(KnownFile(pattern, "because", "known/a.yaml:7", optional) for pattern in patterns)

    man = of("/usr/share/man/*")
    known = Known(missing=(*man, *of("/usr/bin/t*")), changed=of("/usr/share/*/text", "/etc/away"),
                  unowned=of("/var/lib/dpkg/info/*", "/var/lib/dpkg/diversions", "/etc/strange.*", "/etc/gone",
                             "/etc/gone-too"))
    found = {f.title: f for f in look(tree, replace(EXPECT, known=known))}
    paths = len((tree / "var/lib/dpkg/info/bash.list").read_text().splitlines())  # /. in it, the other package's not
    assert (found[INTACT].outcome, found[INTACT].seen) == ("passed", f"{paths} paths, 2 left out on purpose")
    assert found[INTACT].note == "nothing is there any more of /etc/away (known/a.yaml:7): take the line away"
    assert found[KNOWN].outcome == "passed", found[KNOWN]
    assert found[KNOWN].note == ("nothing is there any more of /etc/gone (known/a.yaml:7), "
                                 "/etc/gone-too (known/a.yaml:7): take the line away")
    optional = replace(known, changed=of("/usr/share/*/text"), unowned=(
        *of("/var/lib/dpkg/*", "/etc/strange.*"), *of("/etc/gone", optional=True)))
    assert [f.note for f in look(tree, replace(EXPECT, known=optional)) if f.note] == []


def test_what_the_appliance_asks_for_is_green(tree: Path) -> None:
    wanted = replace(small_image.appliance(), image_mirror="http://mirror.invalid/debian/",
                     rtpengine=Rtpengine(version="10.5.3.5", sources=(), table=-1, redis=True))
    write("etc/apt/sources.list", "deb http://mirror.invalid/debian bookworm main\n")(tree)
    small_image.enable(tree, "redis-server.service")
    change(RTPENGINE_CONF, "table = 0", "table = -1\nredis = 127.0.0.1:6379/1")(tree)
    remove("etc/modules-load.d/rtpengine.conf")(tree)
    small_image.owned(tree)
    assert red(look(tree, expected(wanted))) == []


def test_a_kernel_that_is_followed_is_not_held(tree: Path) -> None:
    following = expectation(replace(small_image.appliance(), kernel_upgrades="follow"), KERNEL, small_image.LOADER)
    assert f"kernel packages are held as described: held: linux-image-{KERNEL}" in red(look(tree, following))
    change(STATUS, "hold ok installed", "install ok installed")(tree)
    assert red(look(tree, following)) == []


def test_the_relays_ports_without_connection_tracking(tree: Path) -> None:
    plain = small_image.appliance()
    assert plain.conntrack
    wanted = replace(plain, conntrack=replace(plain.conntrack, stateless=True))
    title = "UDP ports without connection tracking as described"
    assert f"{title}: none" in red(look(tree, expected(wanted)))
    write("etc/systemd/system/conntrack-notrack.service", "[Unit]\n")(tree)
    small_image.enable(tree, "conntrack-notrack.service")
    NOTRACK(tree)
    assert not any(line.startswith(title) for line in red(look(tree, expected(wanted))))
    change("etc/conntrack/notrack.rules", "sport 30000:40000", "sport 30000:39999")(tree)
    assert f"{title}: 30000:40000, 30000:39999" in red(look(tree, expected(wanted)))


def test_an_appliance_without_relay_is_not_searched_for_one(tree: Path) -> None:
    plain = replace(small_image.appliance(), rtpengine=None, conntrack=None)
    for path in (f"usr/lib/modules/{KERNEL}/extra", "etc/rtpengine"):
        shutil.rmtree(tree / path)
    for unit in ("rtpengine", "rsyslog"):
        (tree / WANTS / f"{unit}.service").unlink()
    small_image.owned(tree)
    assert red(look(tree, expected(plain))) == []


def test_links_stay_inside_the_tree(tree: Path) -> None:
    (tree / "etc/shadow").unlink()
    (tree / "etc/shadow").symlink_to("/etc/passwd")
    (tree / "etc/outside").symlink_to("../../../../etc/hostname")
    descriptor = os.open(tree, os.O_PATH | os.O_DIRECTORY)
    root = Root(descriptor)
    assert root.read("/etc/shadow") == (tree / "etc/passwd").read_bytes()
    assert not root.exists("/etc/outside")
    assert root.link("/lib") == "usr/lib"
    with pytest.raises(FileNotFoundError):
        root.read("/etc/outside")
    with pytest.raises(OSError, match="is no link"):
        root.link("/etc")
    assert root.names("/nowhere") == [] == list(root.walk("/nowhere"))
    os.close(descriptor)


def test_a_module_is_signed_by_the_key_that_is_set(tree: Path, tmp_path: Path) -> None:
    key, certificate = pair(tmp_path, "owner")
    wanted = expected(small_image.appliance(), certificate=certificate)
    assert red(look(tree, wanted)) == ["the relay's module is signed: not so"]
    sign(tree / f"usr/lib/modules/{KERNEL}/extra/xt_RTPENGINE.ko", Signer(str(key), certificate, ""), Deadline(60))
    assert red(look(tree, wanted)) == []
