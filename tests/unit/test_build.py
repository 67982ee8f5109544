"""What a build depends on, and when its result is taken from the cache."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness import appliance as appliances
from harness.appliance import Appliance
from harness.deadline import Deadline
from harness.errors import BuildError, DescriptionError, Fault, HostError, InspectError
from harness.firmware import Firmware
from harness.image import base, build, builder, cached, compile, dib, loops
from harness.image.apt import AptState, Offer
from harness.image.builder import Kernel
from harness.image.mirrors import AptMirrors
from harness.image.release import Release
from harness.process import CommandFailed
from harness.run import Run
from harness.settings import Settings
from tests.unit.test_signing import pair

KERNEL = Kernel("6.1.0-56-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64", "6.1.192-2")
MIRRORS = AptMirrors("http://mirror.example/debian", "http://mirror.example/debian-security")


class Offering(AptState):
    """A mirror whose packages all have one version."""

    version = "1"

    def state(self) -> str:
        return "lists"

    def closure(self, packages: Sequence[str]) -> tuple[str, ...]:
        return (f"{KERNEL.package} {KERNEL.version}", *(f"{name} {self.version}" for name in packages))


@pytest.fixture
def settings(project: Path, tmp_path: Path) -> Settings:
    """The project's elements, copied so that a test may change them."""
    shutil.copytree(project / "elements", tmp_path / "elements")
    shutil.copy(project / "appliances.yaml", tmp_path)
    return Settings.load(tmp_path, environment={})


@pytest.fixture
def relay(settings: Settings) -> Appliance:
    return appliances.load(settings.appliances)["rtpengine"]


@pytest.fixture
def state(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Offering:
    offering = Offering(settings.cache / "apt", MIRRORS, "bookworm", "amd64")
    monkeypatch.setattr(build, "_state", lambda *_, **__: offering)
    return offering


def key(relay: Appliance, settings: Settings, state: AptState) -> str:
    return build._inputs(relay, settings, state).key


def test_the_key_is_stable(relay: Appliance, settings: Settings, state: Offering) -> None:
    assert key(relay, settings, state) == key(relay, settings, state)


def test_the_key_changes_with_what_the_image_depends_on(
        relay: Appliance, settings: Settings, state: Offering, monkeypatch: pytest.MonkeyPatch) -> None:
    assert relay.rtpengine and relay.conntrack
    before = key(relay, settings, state)
    source = replace(relay.rtpengine.sources[0], sha256="0" * 64)
    changed = [
        replace(relay, datasources=("NoCloud",)),
        replace(relay, kernel_upgrades="follow"),
        replace(relay, image_mirror="http://mirror.example/debian"),
        replace(relay, elements=("voip-appliance", "rtpengine"), conntrack=None),
        replace(relay, conntrack=replace(relay.conntrack, calls=4000)),
        replace(relay, conntrack=replace(relay.conntrack, stateless=True)),
        replace(relay, rtpengine=replace(relay.rtpengine, table=1)),
        replace(relay, rtpengine=replace(relay.rtpengine, sources=(source,))),
    ]
    keys = [key(other, settings, state) for other in changed]
    file = settings.project / "elements/conntrack/install.d/60-conntrack"
    mode = file.stat().st_mode
    file.chmod(mode & ~0o111)
    keys.append(key(relay, settings, state))
    file.chmod(mode)
    assert key(relay, settings, state) == before
    file.write_text(file.read_text() + "\n# changed\n")
    keys.append(key(relay, settings, state))
    monkeypatch.setattr(Offering, "version", "2")
    keys.append(key(relay, settings, state))
    assert len({before, *keys}) == 1 + len(keys)


def test_a_comment_elsewhere_in_the_description_changes_nothing(
        relay: Appliance, settings: Settings, state: Offering) -> None:
    moved = replace(relay, description="other words", line=99, checks=("tests/mine",))
    assert key(moved, settings, state) == key(relay, settings, state)


@pytest.fixture
def signed(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a key and its certificate."""
    key, certificate = pair(tmp_path, "owner")
    return replace(settings, signing_key=str(key), signing_certificate=str(certificate))


def test_a_signed_image_is_another_one_by_the_same_packages(
        relay: Appliance, settings: Settings, signed: Settings, state: Offering) -> None:
    plain, other = (build._inputs(relay, chosen, state) for chosen in (settings, signed))
    assert plain.key != other.key
    assert plain.packages == other.packages
    assert key(replace(relay, server=replace(relay.server, firmware=Firmware.UEFI)), settings, state) == plain.key


@pytest.mark.parametrize("making", [build.build, build.compiled], ids=["an image", "a module"])
def test_a_key_that_does_not_fit_ends_the_build_before_it_begins(
        making: Callable[..., object], relay: Appliance, signed: Settings, state: Offering, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Offering, "refresh", lambda *_, **__: None)
    _, other = pair(tmp_path, "other")
    run = Run.create(tmp_path / "runs", "rtpengine", "local")
    with pytest.raises(DescriptionError, match="don't belong together"):
        making(relay, replace(signed, signing_certificate=str(other)), run, lambda text: None, Deadline(60))
    assert run.journal.outstanding() == []


@pytest.fixture
def kept(relay: Appliance, settings: Settings, state: Offering) -> Path:
    """An image in the cache, as a build leaves it."""
    inputs = build._inputs(relay, settings, state)
    place = build._place(relay, settings, inputs)
    place.mkdir(parents=True)
    image = place / build.IMAGE
    image.write_bytes(b"QFI\xfb" + os.urandom(5000))
    packages = [*inputs.packages, "libssl3"]
    (place / "sbom.cdx.json").touch()
    (place / "image.json").write_text(json.dumps({
        "path": build.IMAGE, "sha256": build.sha256(image), "size": 5004, "key": inputs.key, "kernel": KERNEL.release,
        "manifest": "manifest.json", "log": "build.log", "from_cache": False, "source": {}, "loader": {},
        "notes": ["a note"],
        "stat": build._stat(image), "packages": packages, "closure": build._closure(state, packages)}))
    return image


def test_an_unchanged_image_is_taken_from_the_cache(relay: Appliance, settings: Settings, kept: Path) -> None:
    found = build.built(relay, settings)
    assert found and found.path == kept and found.from_cache and found.notes == ("a note",)


def test_an_image_without_its_bill_of_materials_is_built_again(relay: Appliance, settings: Settings, kept: Path
                                                               ) -> None:
    kept.with_name("sbom.cdx.json").unlink()
    assert build.built(relay, settings) is None


def test_a_touched_but_equal_image_is_taken(relay: Appliance, settings: Settings, kept: Path) -> None:
    os.utime(kept, (0, 0))
    assert build.built(relay, settings)


@pytest.mark.parametrize("size", [5004, 5000])
def test_a_damaged_image_is_never_taken(relay: Appliance, settings: Settings, kept: Path, size: int) -> None:
    before = kept.stat()
    with kept.open("r+b") as file:
        file.seek(100)
        file.write(b"damage")
        file.truncate(size)
    os.utime(kept, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(InspectError, match="is damaged"):
        build.built(relay, settings)


def test_a_newer_version_of_one_package_makes_another_image(
        relay: Appliance, settings: Settings, state: Offering, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build._kept(kept.parent, state)
    before = state.closure
    monkeypatch.setattr(Offering, "closure", lambda self, packages: tuple(
        line.replace("libssl3 1", "libssl3 2") for line in before(packages)))
    assert build._kept(kept.parent, state) is None


def test_no_suites_dates_are_lost_where_another_repository_has_its_name(
        state: Offering, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 11, 28, tzinfo=UTC)
    old = now - timedelta(days=9)
    monkeypatch.setattr(Offering, "releases", [
        Release("bookworm", old, old, "mirror.example_debian_dists_bookworm"),
        Release("bookworm", now, None, "packages.example_x_dists_bookworm")])
    found = build._dates(state, now)
    assert {name: facts.get("expired", "") for name, facts in found.items()} == {
        "bookworm": "9 days", "bookworm (packages.example_x_dists_bookworm)": ""}


def test_elements_are_expanded_like_diskimage_builder_does(project: Path) -> None:
    found = dib.expand(["debian-minimal", "vm", "block-device-gpt", "voip-appliance"],
                       [project / "elements", dib.stock_directory()])
    assert {"dpkg", "package-installs", "bootloader", "voip-appliance"} <= found.keys()
    assert found["voip-appliance"].parent == project / "elements"


def test_an_unknown_element_is_named(project: Path) -> None:
    with pytest.raises(DescriptionError, match="no element asterisk"):
        dib.expand(["vm", "block-device-gpt", "asterisk"], [project / "elements", dib.stock_directory()])


def test_packages_are_read_as_diskimage_builder_does(relay: Appliance, settings: Settings, state: Offering) -> None:
    packages = build._inputs(relay, settings, state).packages
    assert KERNEL.package in packages and "conntrack" in packages and "python3" in packages
    assert "linux-image-amd64" not in packages
    assert "rtpengine-libraries" not in packages


@pytest.mark.parametrize(("table", "names"), [
    ({}, ["x"]), ({"default": {"x": ""}}, []),
    ({"default": {"x": "d"}, "family": {"debian": {"x": "f g"}}}, ["f", "g"]),
    ({"family": {"debian": {"x": "f"}}, "distro": {"debian": {"x": "d"}}}, ["d"]),
    ({"release": {"debian": {"trixie": {"x": "t"}}}, "default": {"x": "d"}}, ["d"]),
    ({"family": {"redhat": {"x": "r"}}}, ["x"]),
])
def test_package_maps(table: dict[str, object], names: list[str]) -> None:
    assert base.mapped("x", table, "bookworm") == names


def test_the_key_of_a_base_root_is_the_same_in_every_checkout(tmp_path: Path) -> None:
    here, there = (tmp_path / name / "01-hook" for name in ("here", "there"))
    for hook in (here, there):
        hook.parent.mkdir()
        hook.write_text("true\n")
    found = base.key(["amd64", "apt 2.6"], [here], {"ARCH": "amd64"})
    assert base.key(["amd64", "apt 2.6"], [there], {"ARCH": "amd64"}) == found
    there.write_text("false\n")
    others = [base.key(["amd64", "apt 2.6"], [there], {"ARCH": "amd64"}),
              base.key(["amd64", "apt 2.7"], [here], {"ARCH": "amd64"}),
              base.key(["amd64", "apt 2.6"], [here], {"ARCH": "arm64"}), base.key(["amd64", "apt 2.6"], [], {})]
    assert len({found, *others}) == 5


def test_the_conntrack_plan_reaches_the_element(relay: Appliance) -> None:
    variables = dib.settings_of(relay, KERNEL)
    assert variables["DIB_CONNTRACK_MAX"] == variables["DIB_CONNTRACK_BUCKETS"] == "40448"
    assert "nf_conntrack_max" not in variables["DIB_CONNTRACK_SYSCTLS"]
    assert "net.netfilter.nf_conntrack_udp_timeout_stream=120" in variables["DIB_CONNTRACK_SYSCTLS"].split()


def test_the_relays_ports_reach_the_element_where_they_are_not_tracked(relay: Appliance) -> None:
    assert relay.conntrack
    assert "DIB_CONNTRACK_NOTRACK" not in dib.settings_of(relay, KERNEL)
    variables = dib.settings_of(replace(relay, conntrack=replace(relay.conntrack, stateless=True)), KERNEL)
    assert (variables["DIB_CONNTRACK_NOTRACK"], variables["DIB_CONNTRACK_MAX"]) == ("30000-40000", "1024")


def test_the_exact_kernel_of_a_meta_package(state: Offering) -> None:
    assert builder.kernel_of(state, "linux-image-cloud-amd64") == KERNEL


def test_a_meta_package_with_a_number_in_its_name_is_no_kernel(
        state: Offering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Offering, "closure", lambda self, packages: (
        "linux-image-6.12-cloud-amd64 6.12.117-1", "linux-image-6.12.117+deb12-cloud-amd64 6.12.117-1"))
    assert builder.kernel_of(state, "linux-image-6.12-cloud-amd64").release == "6.12.117+deb12-cloud-amd64"


def test_a_kernel_that_is_followed_comes_by_its_meta_package(
        relay: Appliance, settings: Settings, state: Offering) -> None:
    following = replace(relay, kernel_upgrades="follow")
    held, free = (dib.settings_of(one, KERNEL) for one in (relay, following))
    names = ("DIB_VOIP_KERNEL_PACKAGE", "DIB_VOIP_KERNEL_HOLD")
    assert [held[name] for name in names] == [KERNEL.package, "1"]
    assert [free[name] for name in names] == [relay.kernel, "0"]
    assert relay.kernel in build._inputs(following, settings, state).packages
    assert relay.kernel not in build._inputs(relay, settings, state).packages


def test_a_kernel_without_headers_is_a_mistake_of_the_description(
        state: Offering, monkeypatch: pytest.MonkeyPatch) -> None:
    there = [f"linux-{part}-6.1.0-{number}" for part in ("headers", "image")
             for number in ("55-cloud-amd64", "56-amd64", "56-common")] + ["linux-headers-6.1.0-57-cloud-amd64"]
    monkeypatch.setattr(Offering, "packages", lambda self, prefix: [n for n in there if n.startswith(prefix)])
    monkeypatch.setattr(Offering, "offers", lambda self, package: [Offer("1", "bookworm")] * (package in there))
    with pytest.raises(BuildError, match=f"bookworm has no {KERNEL.headers}: no module") as error:
        builder.require_headers(state, KERNEL)
    assert error.value.fault is Fault.DESCRIPTION
    assert error.value.hint == "kernels that have headers: linux-image-6.1.0-55-cloud-amd64"
    there.append(KERNEL.headers)
    builder.require_headers(state, KERNEL)


def test_a_package_without_kernel_is_a_mistake_of_the_description(
        state: Offering, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Offering, "closure", lambda self, packages: ("linux-image-amd64-signed-template 1",))
    with pytest.raises(BuildError, match="brings no kernel") as error:
        builder.kernel_of(state, "linux-image-amd64-signed-template")
    assert error.value.fault is Fault.DESCRIPTION


@pytest.mark.parametrize(("package", "there", "kind"), [
    ("linux-image-nosuch", ["linux-image-cloud-amd64", "linux-image-6.1.0-55-cloud-amd64"], BuildError),
    ("linux-image-cloud-amd64", ["linux-image-cloud-amd64"], HostError),  # something that it depends on is missing
    ("linux-image-cloud-amd64", [], HostError)])  # a mirror without any kernel
def test_a_kernel_package_that_is_not_there_is_a_mistake_of_the_description(
        state: Offering, monkeypatch: pytest.MonkeyPatch, package: str, there: list[str],
        kind: type[BuildError | HostError]) -> None:
    def nothing(self: Offering, packages: Sequence[str]) -> tuple[str, ...]:
        raise HostError("bookworm can't install what is asked for")

    monkeypatch.setattr(Offering, "closure", nothing)
    monkeypatch.setattr(Offering, "packages", lambda self, prefix: [n for n in there if n.startswith(prefix)])
    monkeypatch.setattr(Offering, "offers", lambda self, name: [Offer("1", "bookworm")] * (name in there))
    with pytest.raises(kind) as error:
        builder.kernel_of(state, package)
    if kind is BuildError:
        assert str(error.value).splitlines()[0] == "bookworm has no package linux-image-nosuch"
        assert (error.value.fault, error.value.hint) == (
            Fault.DESCRIPTION, "kernel: one of linux-image-cloud-amd64, or an exact package")


@pytest.mark.parametrize(("output", "kind", "fault"), [
    ("tar: x: Cannot write: No space left on device", HostError, Fault.HOST),
    ("E: Failed to fetch http://mirror.example/x  Could not connect", BuildError, Fault.HOST),
    ("ERROR: rtpengine: the artifact is for kernel 5", BuildError, Fault.IMAGE),
])
def test_whose_fault_a_failed_step_is(tmp_path: Path, output: str, kind: type[Exception], fault: Fault) -> None:
    error = builder.failure("the image can't be built", CommandFailed(["x"], 1, f"first\n{output}"), tmp_path / "log")
    assert isinstance(error, kind) and error.fault is fault
    assert output.split(":")[-1].strip() in (error.excerpt or "")
    assert str(tmp_path / "log") in (error.hint or "")


def module(vermagic: bytes) -> bytes:
    return b"\x7fELF\0license=GPL\0vermagic=" + vermagic + b"\0name=x\0"


def test_vermagic_of_a_module(tmp_path: Path) -> None:
    file = tmp_path / "xt_RTPENGINE.ko"
    file.write_bytes(module(b"6.1.0-56-cloud-amd64 SMP mod_unload "))
    assert compile._vermagic(file, KERNEL) == "6.1.0-56-cloud-amd64 SMP mod_unload "
    file.write_bytes(module(b"6.1.0-55-cloud-amd64 SMP mod_unload "))
    with pytest.raises(BuildError, match=r"is for kernel 6.1.0-55-cloud-amd64, the image has 6.1.0-56-cloud-amd64"):
        compile._vermagic(file, KERNEL)


def test_of_the_distributions_dependencies_only_libraries_are_needed() -> None:
    depends = ["iptables", "sysvinit-utils", "libavcodec59", "libc6", "perl", "libconfig-tiny-perl", "dkms"]
    assert compile.daemon_packages(depends) == ["libavcodec59", "libc6"]


def test_the_packages_of_libraries(tmp_path: Path) -> None:
    info = tmp_path / "var/lib/dpkg/info"
    info.mkdir(parents=True)
    (info / "zlib1g:amd64.list").write_text("/lib/x86_64-linux-gnu/libz.so.1\n/usr/share/doc/zlib1g\n")
    (info / "libssl3:amd64.list").write_text("/usr/lib/x86_64-linux-gnu/libssl.so.3\n")
    (info / "decoy.list").write_text("/opt/libz.so.1\n")
    assert compile.library_packages(tmp_path, {"libz.so.1", "libssl.so.3"}) == ["libssl3", "zlib1g"]
    with pytest.raises(BuildError, match=r"libnone.so.1"):
        compile.library_packages(tmp_path, {"libnone.so.1"})


def test_whose_build_a_backing_file_is_of(tmp_path: Path) -> None:
    assert loops._token(tmp_path / "r1/tmp/x.raw", tmp_path) == "r1"
    assert loops._token(Path("/dialtone-r2/image0.raw"), tmp_path) == "r2"
    assert loops._token(Path("/home/somebody/disk.raw"), tmp_path) is None


def test_the_password_of_a_proxy_is_in_no_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "apt.conf").write_text('Acquire::http::Proxy "http://me:hush@192.0.2.1:3128";\n')
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    told: list[str] = []

    def run_logged(argv: list[str], log: Path, **_: object) -> None:
        assert "hush" not in str(argv)
        for word in map(str, argv):
            if word.startswith("--aptopt=/"):
                file = Path(word.partition("=")[2])
                told.append(file.read_text())
                assert file.stat().st_mode & 0o77 == 0

    monkeypatch.setattr(builder, "run_logged", run_logged)
    state = AptState(tmp_path, MIRRORS, "bookworm", "amd64")
    builder.debootstrap(tmp_path / "root", ["hello"], state, Deadline(60), tmp_path / "log")
    assert told == ['Acquire::http::Proxy "http://me:hush@192.0.2.1:3128";\n']
    assert not (tmp_path / "proxies.conf").exists()


def test_a_loop_device_that_somebody_else_has_detached_is_let_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "attached", lambda: {"loop250": Path("/another/image0.raw")})
    loops.detach("loop250", Path("/dialtone-r1/image0.raw"))


def test_a_build_is_alive_while_its_lock_is_held(tmp_path: Path) -> None:
    assert not loops.alive(tmp_path)
    with loops.lock(tmp_path):
        assert loops.alive(tmp_path)
    assert not loops.alive(tmp_path)


def test_only_what_is_old_and_beyond_the_newest_is_pruned(tmp_path: Path) -> None:
    others = ["a-b-oldest", "a-oldest.part-run", "b-oldest"]
    for age, name in enumerate(["a-new", "a-old", "a-older", *others]):
        (tmp_path / name).mkdir()
        os.utime(tmp_path / name, (1_000_000 - age, 1_000_000 - age))
    (tmp_path / "a-fresh").mkdir()
    cached.prune(tmp_path, keep=2, prefix="a-")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a-fresh", "a-new", *others])
    cached.prune(tmp_path, keep=0, prefix="a-")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["a-fresh", *others])
