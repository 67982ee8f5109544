"""A kernel upgrade never ends kernel forwarding unseen: which kernel is booted, and a real upgrade on a server."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from harness import appliance as appliances_file
from harness import host
from harness.appliance import Appliance
from harness.deadline import Deadline
from harness.errors import BuildError, Fault
from harness.image import build, builder, module, signing
from harness.image.builder import Kernel
from harness.levels import Level
from harness.run import Run
from harness.settings import Settings
from tests.conftest import PROJECT
from tests.real_server import Booted, work_in
from tests.small_image import kernel_module

pytestmark = pytest.mark.root

PROGRAM = PROJECT / "elements/voip-appliance/voip-appliance-root/usr/libexec/voip-appliance/kernel-to-boot"
META = "linux-image-cloud-amd64"
MODULE = "xt_RTPENGINE"
OLD, NEW = "6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64"


def installed(root: Path, kernel: str, module_for: str | None) -> None:
    """A kernel, and the relay's module where it is `module_for` one."""
    (root / "boot").mkdir(exist_ok=True)
    (root / f"boot/vmlinuz-{kernel}").touch()
    directory = root / "lib/modules" / kernel
    (directory / "extra").mkdir(parents=True)
    (directory / "modules.builtin").write_text("kernel/net/netfilter/nf_conntrack.ko\n")
    (directory / "modules.builtin.modinfo").write_bytes(b"nf_conntrack.license=GPL\0nf_conntrack.file=x\0")
    if module_for:
        (directory / f"extra/{MODULE}.ko").write_bytes(kernel_module({"vermagic": f"{module_for} SMP mod_unload "}))
    subprocess.run(["depmod", "-b", root, kernel], check=True, capture_output=True)


def chosen(root: Path) -> tuple[str, str]:
    done = subprocess.run(["sh", PROGRAM, root], capture_output=True, text=True, check=True)
    return done.stdout.strip(), done.stderr.strip()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "etc/modules-load.d"
    directory.mkdir(parents=True)
    for name, wanted in (("rtpengine", MODULE), ("conntrack", "nf_conntrack")):
        (directory / f"{name}.conf").write_text(f"# loaded at boot\n{wanted}\n")
    installed(tmp_path, OLD, OLD)
    return tmp_path


@pytest.mark.parametrize(("module_for", "boots"), [(NEW, NEW), (None, OLD), (OLD, OLD)])
def test_a_kernel_is_booted_once_it_has_its_module(root: Path, module_for: str | None, boots: str) -> None:
    installed(root, NEW, module_for)
    said = "" if boots == NEW else f"kernel {NEW} is not started: it has no module {MODULE}"
    assert chosen(root) == (boots, said)


@pytest.fixture(scope="module")
def signer(tmp_path_factory: pytest.TempPathFactory) -> signing.Signer:
    directory = tmp_path_factory.mktemp("signer")
    key, certificate = directory / "key.pem", directory / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate,
                    "-subj", "/CN=a key of a test", "-days", "9"], check=True, capture_output=True)
    return signing.Signer(os.fspath(key), certificate, "")


@pytest.mark.parametrize(("on", "signed", "boots"), [(True, True, NEW), (True, False, OLD), (False, False, NEW)])
def test_under_secure_boot_a_module_that_is_not_signed_is_none(root: Path, signer: signing.Signer, on: bool,
                                                               signed: bool, boots: str) -> None:
    variable = root / "sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
    variable.parent.mkdir(parents=True)
    variable.write_bytes(bytes([6, 0, 0, 0, on]))
    installed(root, NEW, NEW)
    for kernel in (OLD, *([NEW] if signed else [])):
        signing.sign(root / f"lib/modules/{kernel}/extra/{MODULE}.ko", signer, Deadline(60))
    said = "" if boots == NEW else f"kernel {NEW} is not started: it has no signed module {MODULE}"
    assert chosen(root) == (boots, said)


def test_without_a_need_for_modules_the_newest_is_booted(root: Path) -> None:
    (root / "etc/modules-load.d/rtpengine.conf").unlink()
    installed(root, NEW, None)
    assert chosen(root) == (NEW, "")


def test_a_module_that_no_kernel_has_leaves_a_system_that_boots(root: Path) -> None:
    (root / "etc/modules-load.d/other.conf").write_text("nowhere\n")
    installed(root, NEW, NEW)
    kernel, said = chosen(root)
    assert kernel == NEW
    assert said.splitlines() == [f"kernel {OLD} is not started: it has no module nowhere",
                                 f"no kernel has all modules that are loaded at boot: {NEW} is started"]


def test_a_module_that_no_kernel_has_lets_none_without_the_relays_be_booted(root: Path) -> None:
    (root / "etc/modules-load.d/other.conf").write_text("nowhere\n")
    installed(root, NEW, None)
    kernel, said = chosen(root)
    assert kernel == OLD
    assert said.splitlines() == [f"kernel {NEW} is not started: it has no module nowhere {MODULE}",
                                 f"no kernel has all modules that are loaded at boot: {OLD} is started"]


def test_no_kernel_at_all_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "boot").mkdir()
    done = subprocess.run(["sh", PROGRAM, tmp_path], capture_output=True, text=True)
    assert done.returncode == 1 and "there is no kernel" in done.stderr


def test_of_a_package_the_latest_version_is_offered(tmp_path: Path) -> None:
    for version in ("6.1.9-1", "6.1.10-1"):
        (tmp_path / "tree/DEBIAN").mkdir(parents=True)
        (tmp_path / "tree/DEBIAN/control").write_text(module.control({
            "Package": "a-module", "Version": version, "Architecture": "amd64", "Description": "a module"}))
        subprocess.run(["dpkg-deb", "--build", tmp_path / "tree", tmp_path], check=True, capture_output=True)
        shutil.rmtree(tmp_path / "tree")
    file = tmp_path / "a-module_6.1.10-1_amd64.deb"
    index = module.index(tmp_path)
    assert re.findall(r"^(?:Version|Filename|Size): (.*)$", index, re.M) == [
        "6.1.10-1", f"./{file.name}", str(file.stat().st_size)]


def added(tree: Path, into: Path, content: str) -> list[str]:
    """What is in the directory `into` with one more package of version 1-1."""
    (tree / "DEBIAN").mkdir(parents=True, exist_ok=True)
    (tree / "DEBIAN/control").write_text(module.control({
        "Package": "a-module", "Version": "1-1", "Architecture": "amd64", "Description": "a module"}))
    (tree / "module").write_text(content)
    module.add(tree, into, Deadline(60))
    return sorted(file.name for file in into.iterdir())


def test_a_package_of_another_content_has_a_higher_version(tmp_path: Path) -> None:
    into = tmp_path / "into"
    into.mkdir()
    first, second, third = (f"a-module_1-1{number}_amd64.deb" for number in ("", "+1", "+2"))
    assert added(tmp_path / "tree", into, "unsigned") == [first]
    (tmp_path / "later").mkdir()
    assert added(tmp_path / "later/tree", into, "unsigned") == [first]
    for _ in range(2):
        assert added(tmp_path / "tree", into, "signed") == sorted([first, second])
    assert added(tmp_path / "tree", into, "unsigned") == sorted([first, second, third])
    assert "Version: 1-1+2\n" in module.index(into)


@dataclass(frozen=True)
class Upgrade:
    """Two kernels of the release that have headers, `new` the one that the meta package stands for now."""

    appliance: Appliance
    settings: Settings
    old: Kernel
    new: Kernel


@pytest.fixture(scope="module")
def upgrade(real_settings: Settings, real_appliance: Appliance, tmp_path_factory: pytest.TempPathFactory) -> Upgrade:
    """An appliance of the last kernel but one, described in a file of its own."""
    host.prepare(real_settings, say=lambda text: None)
    state = build.packages_of_today(real_appliance, real_settings, Deadline(300))
    new = builder.kernel_of(state, META)
    same = [name.replace("headers", "image", 1) for name in state.packages("linux-headers-6.1.")
            if re.fullmatch(r"linux-headers-\d\S*-\d+-cloud-amd64", name)]
    old = builder.kernel_of(state, same[same.index(new.package) - 1])
    file = tmp_path_factory.mktemp("described") / "appliances.yaml"
    described = yaml.safe_load(real_settings.appliances.read_text())["appliances"][real_appliance.name]
    described |= {"kernel": old.package, "checks": [os.fspath(PROJECT / "tests/appliance")]}
    file.write_text(yaml.safe_dump({"appliances": {real_appliance.name: described}}))
    return Upgrade(appliances_file.load(file)[real_appliance.name], replace(real_settings, appliances=file), old, new)


@pytest.fixture
def run(real_settings: Settings) -> Iterator[Run]:
    current = Run.create(real_settings.runs, "modules", "local")
    yield current
    current.unlock()


@pytest.mark.nightly
def test_a_kernel_without_headers_is_refused_before_anything_is_built(upgrade: Upgrade, run: Run) -> None:
    state = build.packages_of_today(upgrade.appliance, upgrade.settings, Deadline(300))
    headers = set(state.packages("linux-headers-"))
    bare = next(name for name in state.packages("linux-image-6.1.") if name.endswith("-cloud-amd64")
                and name.replace("image", "headers", 1) not in headers)
    with pytest.raises(BuildError, match=f"bookworm has no linux-headers-.*: no module .* for {bare}") as error:
        build.build(replace(upgrade.appliance, kernel=bare), upgrade.settings, run, lambda text: None, Deadline(60))
    assert error.value.fault is Fault.DESCRIPTION
    assert upgrade.new.package in (error.value.hint or "")


@pytest.fixture(scope="module")
def delivered(upgrade: Upgrade, tmp_path_factory: pytest.TempPathFactory) -> module.Delivered:
    """The module for the new kernel, as `./inv module` makes it."""
    current = Run.create(upgrade.settings.runs, "modules", "local")
    try:
        return module.deliver(replace(upgrade.appliance, kernel=META), upgrade.settings, current, lambda text: None,
                              Deadline(1200))
    finally:
        current.unlock()


@pytest.mark.nightly
def test_the_module_is_a_package_that_brings_its_kernel(delivered: module.Delivered, upgrade: Upgrade,
                                                        tmp_path: Path) -> None:
    assert delivered.kernel == upgrade.new.release
    index = (delivered.directory / "Packages").read_text()
    own = next(part for part in index.split("\n\n") if part.startswith(f"Package: {delivered.packages[1]}\n"))
    assert f"Depends: {upgrade.new.package}," in own
    file = re.search(r"^Filename: (\S+)$", own, re.M)
    assert file
    deb = delivered.directory / file[1]
    subprocess.run(["dpkg-deb", "--extract", deb, tmp_path], check=True)
    path = tmp_path / f"usr/lib/modules/{delivered.kernel}/extra/{MODULE}.ko"
    assert b"vermagic=" + delivered.kernel.encode() + b" " in path.read_bytes()
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()] == [path.relative_to(tmp_path)]


FORWARDED = "test_ten_calls or test_forwarded_by or test_next_kernel or test_kernel_held or test_upgrade_keeps"


@dataclass(frozen=True)
class Guest:
    """A server of the old kernel, with the meta package of the time when that was the latest."""

    booted: Booted
    upgrade: Upgrade

    def following(self) -> Guest:
        """The same server, described with kernel_upgrades: follow."""
        file = self.upgrade.settings.appliances
        document = yaml.safe_load(file.read_text())
        document["appliances"][self.upgrade.appliance.name]["kernel_upgrades"] = "follow"
        file.write_text(yaml.safe_dump(document))
        work = replace(self.booted.work, appliance=appliances_file.load(file)[self.upgrade.appliance.name])
        return Guest(replace(self.booted, work=work), self.upgrade)

    def root(self, script: str) -> str:
        """What it prints; installing a kernel takes minutes where the processor is emulated."""
        ssh = ["ssh", "-F", self.booted.work.run.directory / "ssh_config", self.booted.server.name]
        done = subprocess.run([*ssh, "sudo -n env DEBIAN_FRONTEND=noninteractive bash -eu"], input=script,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
        print(f"$ {script}\n{done.stdout}")
        assert done.returncode == 0
        return done.stdout

    def send(self, *files: Path) -> None:
        """Add packages to the repository on the server."""
        config = self.booted.work.run.directory / "ssh_config"
        subprocess.run(["scp", "-q", "-F", config, *files, f"{self.booted.server.name}:/srv/offered/"], check=True,
                       timeout=300)

    def forwards(self, kernel: str) -> None:
        """This kernel runs, ten calls have their media forwarded by its module, and nothing else is red."""
        assert self.root("uname -r").strip() == kernel
        results = self.booted.results("-k", FORWARDED, level=Level.ACCEPTANCE)
        print(*(f"{r.id.rsplit('::', 1)[-1]}: {r.outcome} {r.seen or r.message}" for r in results), sep="\n")
        assert [r.id for r in results if r.red] == []
        assert "test_forwarded_by_module" in {r.id.rsplit("::", 1)[-1] for r in results if r.outcome == "passed"}

    def reboot(self) -> None:
        assert self.booted.work.reboot(self.booted.server) is None

    def red(self) -> set[str]:
        return set(self.booted.red("-k", "test_kernel_held or test_upgrade_keeps or test_next_kernel"))


@pytest.fixture(scope="module")
def packages(upgrade: Upgrade, delivered: module.Delivered, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """before/: the meta package of the old kernel; after/: the new kernel and its meta package; module/: its module."""
    directory = tmp_path_factory.mktemp("packages")
    state = build.packages_of_today(upgrade.appliance, upgrade.settings, Deadline(300))
    for name in ("before", "after"):
        (directory / name).mkdir()
    state.apt_get("download", upgrade.new.package, META, deadline=Deadline(600), cwd=directory / "after")
    tree = directory / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(module.control({
        "Package": META, "Version": f"{upgrade.old.version}~", "Architecture": "amd64",
        "Depends": upgrade.old.package, "Description": "the latest kernel of its time"}))
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, directory / "before"], check=True)
    for name in ("before", "after"):
        (directory / name / "Packages").write_text(module.index(directory / name))
    shutil.copytree(delivered.directory, directory / "module")
    return directory


@pytest.fixture(scope="module")
def guest(upgrade: Upgrade, packages: Path) -> Iterator[Guest]:
    with work_in(upgrade.settings, upgrade.appliance) as work:
        image = work.build()
        work.inspect(image)
        server = Guest(Booted(work, work.launch(work.upload(image))[0]), upgrade)
        server.root("mkdir -m 777 /srv/offered; echo 'deb [trusted=yes] file:/srv/offered ./' "
                    ">/etc/apt/sources.list.d/offered.list")
        server.send(*(packages / "before").iterdir())
        server.root(f"apt-get -q update; apt-get -q -y install {META}; apt-mark hold {META}")
        yield server


UPGRADE = "apt-get -q update; apt-get -q -y full-upgrade"


@pytest.mark.guest
@pytest.mark.nightly
def test_a_real_upgrade_with_media_in_the_kernel(guest: Guest, packages: Path) -> None:
    """Held: nothing changes. Followed: without a module the old kernel is booted, with it the new one."""
    old, new = guest.upgrade.old.release, guest.upgrade.new.release
    guest.forwards(old)
    guest.send(*(packages / "after").iterdir())
    assert "Setting up linux-image" not in guest.root(UPGRADE)
    guest.reboot()
    guest.forwards(old)

    guest.root(f"apt-mark unhold {META} linux-image-{old}")
    assert guest.red() == {"test_kernel_held", "test_upgrade_keeps_kernel"}

    guest = guest.following()
    assert guest.red() == set()
    assert f"kernel {new} is not started: it has no module {MODULE}" in guest.root(UPGRADE)
    assert guest.root(f"dpkg-query -W -f '${{db:Status-Status}}' linux-image-{new}") == "installed"
    guest.forwards(old)
    guest.root(f"cp -p /boot/grub/grub.cfg /run; sed -i s/{old}/{new}/ /boot/grub/grub.cfg")
    assert guest.red() == {"test_next_kernel_has_module"}
    guest.root("cp -p /run/grub.cfg /boot/grub/")
    guest.reboot()
    guest.forwards(old)

    guest.send(*(packages / "module").glob("*.deb"))
    meta = f"{module.NAME}-cloud-amd64"
    both = guest.root(f"cat >>/srv/offered/Packages <<'END'\n\n{(packages / 'module/Packages').read_text()}END\n"
                      f"apt-get -q update; apt-get -q -y install {meta}; cat /boot/grub/grub.cfg")
    assert f"vmlinuz-{new} " in both and f"vmlinuz-{old} " not in both
    guest.reboot()
    guest.forwards(new)
