"""The element opensips and its repository for real: apt, its signatures and its pins, on a small Debian system.

The packages are stand-ins and not OpenSIPS (tests/opensips_packages.py): no registry here carries OpenSIPS.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from harness import appliance as appliances_file
from harness import host
from harness.appliance import Appliance
from harness.deadline import Deadline
from harness.errors import DescriptionError
from harness.image import builder, dib, repository
from harness.image.apt import AptState, MirrorError, state_for
from harness.image.mirrors import AptMirrors, apt_mirrors
from harness.run import Run
from harness.settings import Settings
from tests import opensips_packages
from tests.conftest import PROJECT
from tests.opensips_packages import REFUSED, SUITE, VERSION, VERSIONS, Packages, make_packages

pytestmark = pytest.mark.root

ELEMENT = PROJECT / "elements/opensips"
SYSTEM = ("adduser", "logrotate", "rsyslog", "systemd")
"""What an image has before the element's packages are installed."""

# As diskimage-builder runs a hook: in the image, the element's files below /tmp/in_target.d. $1 root, $2 a directory of
# the host that is seen inside, $3 the command.
_INSIDE = """
set -eu
mkdir -p "$1$2"
mount --bind "$2" "$1$2"
mount --rbind /dev "$1/dev"
mount -t proc proc "$1/proc"
exec chroot "$1" bash -euc "$3"
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    return make_packages(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """A repository of another key."""
    return make_packages(tmp_path_factory.mktemp("other"))


@pytest.fixture(scope="module")
def system(real_settings: Settings) -> Path:
    """A Debian system without OpenSIPS, from the project's cache; not to be changed."""
    host.prepare(real_settings, say=lambda text: None)
    run = Run.create(real_settings.runs, "opensips", "local")
    try:
        state = state_for(real_settings.cache, apt_mirrors(real_settings), "bookworm", "amd64")
        state.refresh(Deadline(300))
        return builder.prepare(SYSTEM, state, real_settings, run, Deadline(600), run.directory / "system.log")
    finally:
        run.unlock()


@dataclass
class Image:
    """An image in the making, at `root`: the element's hooks are run on it one phase after the other."""

    root: Path
    packages: Packages
    element: Path = ELEMENT
    settings: dict[str, str] = field(default_factory=dict)

    def phase(self, name: str) -> subprocess.CompletedProcess[str]:
        """Run the hooks of a phase until one fails."""
        [hook] = (self.element / name).iterdir()
        if name in {"root.d", "extra-data.d"}:
            return self._run(["bash", "-c", f"{self._sourced(self.element)}; exec {hook}"])
        return self.inside(f"{self._sourced(Path('/tmp/in_target.d'))}; exec /tmp/in_target.d/{name}/{hook.name}")

    def through(self, *names: str) -> None:
        for name in names:
            done = self.phase(name)
            assert done.returncode == 0, f"{name}\n{done.stdout}{done.stderr}"

    def inside(self, script: str) -> subprocess.CompletedProcess[str]:
        shutil.copytree(self.element, self.root / "tmp/in_target.d", dirs_exist_ok=True)
        return self._run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _INSIDE, "inside",
                          self.root, self.packages.path, script])

    def text(self, path: str) -> str:
        return (self.root / path).read_text()

    def _sourced(self, element: Path) -> str:
        return "; ".join(["set -e", *(f". {element / f.relative_to(self.element)}"
                                      for f in (self.element / "environment.d").iterdir())])

    def _run(self, argv: list[str | os.PathLike[str]] | list[str]) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{dib.SHIMS}:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "TMP_MOUNT_PATH": os.fspath(self.root),
            "DIB_OPENSIPS_VERSION": VERSION, "DIB_OPENSIPS_REPOSITORY": self.packages.url, "DIB_OPENSIPS_SUITE": SUITE,
            "DIB_OPENSIPS_KEY": os.fspath(self.packages.key), "DIB_OPENSIPS_FINGERPRINT": self.packages.fingerprint}
        return subprocess.run(argv, capture_output=True, text=True, check=False, env=environment | self.settings)


def copy_of(system: Path, root: Path) -> Path:
    subprocess.run(["cp", "-a", "--reflink=auto", system, root], check=True)
    (root / "usr/share/pkg-map").mkdir(parents=True)
    shutil.copy(ELEMENT / "pkg-map", root / "usr/share/pkg-map/opensips")
    return root


@pytest.fixture(scope="module")
def bare_root(system: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of(system, tmp_path_factory.mktemp("bare") / "root")


@pytest.fixture(scope="module")
def full_root(system: Path, packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the packages, as diskimage-builder installs what package-installs.yaml names."""
    image = Image(copy_of(system, tmp_path_factory.mktemp("full") / "root"), packages)
    image.through("root.d", "extra-data.d", "pre-install.d")
    done = image.inside("apt-get -q -y install opensips opensips-http-modules")
    assert done.returncode == 0, done.stdout + done.stderr
    return image.root


@pytest.fixture
def bare(bare_root: Path, packages: Packages) -> Image:
    """An image without the packages. What one test leaves in it is written anew by the next."""
    return Image(bare_root, packages)


@pytest.fixture
def image(full_root: Path, packages: Packages) -> Image:
    """An image with the packages; likewise."""
    return Image(full_root, packages)


def test_the_element_makes_a_proxy_of_the_pinned_version(image: Image) -> None:
    image.settings = {"DIB_OPENSIPS_RELAYS": "192.0.2.5:2223 [2001:db8::5]:2223", "DIB_OPENSIPS_PORT": "5070",
                      "DIB_OPENSIPS_PIKE_DENSITY": "30", "DIB_OPENSIPS_PRIVATE_THRESHOLD": "5",
                      "DIB_OPENSIPS_DOMAINS": "sip.example.org", "DIB_OPENSIPS_LOG_FACILITY": "local3"}
    image.through("install.d", "post-install.d")
    shown = image.inside("dpkg-query --show opensips opensips-http-modules; id -un opensips").stdout
    assert shown.split() == ["opensips", VERSION, "opensips-http-modules", VERSION, "opensips"]
    written = image.text("etc/opensips/opensips.cfg")
    for line in ("socket=udp:*:5070", "socket=tcp:*:5070", "syslog_facility=LOG_LOCAL3", "event_pkg_threshold=5",
                 'modparam("pike", "reqs_density_per_unit", 30)', 'include_file "/run/opensips/server.cfg"',
                 'modparam("mi_datagram", "socket_name", "udp:127.0.0.1:8080")'):
        assert line in written.splitlines()
    assert "@" not in written
    assert image.text("etc/rsyslog.d/30-opensips.conf").startswith("local3.* -/var/log/opensips.log\n")
    assert image.text("etc/default/opensips").splitlines()[1:] == ["S_MEMORY=64", "P_MEMORY=8"]
    wants = image.root / "etc/systemd/system/multi-user.target.wants"
    assert (wants / "opensips.service").is_symlink() and (wants / "rsyslog.service").is_symlink()
    assert not (image.root / "run/opensips").exists(), "what belongs to a server is no part of the image"
    left = [path for path in (image.root / "etc/apt").rglob("*") if "opensips" in path.name]
    assert left == [] and not (image.root / "usr/share/keyrings/opensips.gpg").exists()


def test_a_server_is_told_its_relays_domains_and_subscribers_at_boot(image: Image) -> None:
    image.through("install.d")
    settings = "mkdir -p /run/opensips; /usr/libexec/opensips/server-settings && cat /run/opensips/server.cfg"
    assert image.inside(settings).stdout == 'modparam("cfgutils", "shvset", "relays=i:0")\n'
    for name, text in {"relays": "192.0.2.5:2223\n\n# spare\n[2001:db8::5]:2223 \n", "domains": "sip.example.org\n",
                       "subscriptions": "E_PIKE_BLOCKED udp:192.0.2.9:9999\nE_CALL_REFUSED  virtual:FAILOVER tcp:a:1 "
                                        "udp:b:2\n"}.items():
        (image.root / "etc/opensips" / name).write_text(text)
    assert image.inside(settings).stdout.splitlines() == [
        'modparam("cfgutils", "shvset", "relays=i:2")',
        'modparam("rtpengine", "rtpengine_sock", "udp:192.0.2.5:2223 udp:[2001:db8::5]:2223")',
        "alias=udp:sip.example.org:5060", "alias=tcp:sip.example.org:5060", "startup_route {",
        '    subscribe_event("E_PIKE_BLOCKED", "udp:192.0.2.9:9999");',
        '    subscribe_event("E_CALL_REFUSED", "virtual:FAILOVER tcp:a:1 udp:b:2");', "}"]


@pytest.mark.parametrize(("name", "line", "wanted"), [
    ("relays", "192.0.2.5", "ADDRESS:PORT"), ("relays", "192.0.2.5:2223\") evil", "ADDRESS:PORT"),
    ("domains", "sip example", "a host name"), ("subscriptions", "E_PIKE_BLOCKED", "EVENT SOCKET"),
    ("subscriptions", "E_X udp:a:1\"); exit", "EVENT SOCKET")])
def test_a_wrong_line_is_named_with_its_file(bare: Image, name: str, line: str, wanted: str) -> None:
    place = bare.root / "etc/opensips"
    shutil.rmtree(place, ignore_errors=True)
    for directory in (place, bare.root / "run/opensips"):
        directory.mkdir(exist_ok=True)
    (place / "opensips.cfg").write_text("socket=udp:*:5060\n")
    (place / name).write_text(f"# comment\n{line}\n")
    done = bare.inside("/tmp/in_target.d/opensips-root/usr/libexec/opensips/server-settings")
    assert done.returncode == 1 and f"/etc/opensips/{name}: '{line}' is not {wanted}" in done.stderr
    assert not (bare.root / "run/opensips/server.cfg").exists()


def refused(done: subprocess.CompletedProcess[str]) -> str:
    """The one line by which a hook ended."""
    assert done.returncode == 1
    [line] = [line for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    return line


def test_a_key_of_another_fingerprint_is_refused_before_anything_is_built(bare: Image, other: Packages) -> None:
    bare.settings = {"DIB_OPENSIPS_KEY": os.fspath(other.key)}
    assert refused(bare.phase("root.d")) == (f"ERROR: opensips: {other.key} holds the key {other.fingerprint}, and "
                                             f"{bare.packages.fingerprint} alone is trusted")


def test_a_file_with_a_further_key_is_refused(bare: Image, other: Packages, tmp_path: Path) -> None:
    both = tmp_path / "both.asc"
    both.write_bytes(bare.packages.key.read_bytes() + other.key.read_bytes())
    bare.settings = {"DIB_OPENSIPS_KEY": os.fspath(both)}
    assert f"{other.fingerprint}, and {bare.packages.fingerprint} alone is trusted" in refused(bare.phase("root.d"))


def test_a_file_without_a_key_is_refused(bare: Image) -> None:
    bare.settings = {"DIB_OPENSIPS_KEY": "/etc/hostname"}
    assert refused(bare.phase("root.d")) == "ERROR: opensips: /etc/hostname holds no OpenPGP key"


def test_a_repository_that_another_key_signed_is_refused(bare: Image, other: Packages) -> None:
    bare.settings = {"DIB_OPENSIPS_KEY": os.fspath(other.key), "DIB_OPENSIPS_FINGERPRINT": other.fingerprint}
    bare.through("root.d", "extra-data.d")
    done = bare.phase("pre-install.d")
    assert f"apt does not take the repository {bare.packages.url} {SUITE}" in refused(done)
    assert "NO_PUBKEY" in done.stdout + done.stderr


def test_a_version_that_is_not_there_is_named_with_those_there_are(bare: Image) -> None:
    bare.settings = {"DIB_OPENSIPS_VERSION": "4.0.9-1"}
    bare.through("root.d", "extra-data.d")
    assert refused(bare.phase("pre-install.d")) == (f"ERROR: opensips: {bare.packages.url} {SUITE} has no opensips "
                                                    f"4.0.9-1; it has: {' '.join(reversed(VERSIONS))}")


def test_another_version_in_the_base_root_is_refused(image: Image) -> None:
    """As where a base root was made of other packages."""
    image.settings = {"DIB_OPENSIPS_VERSION": "4.0.0-1"}
    assert f"opensips {VERSION} where 4.0.0-1 is pinned" in refused(image.phase("install.d"))


def test_a_configuration_that_opensips_refuses_ends_the_build(image: Image, tmp_path: Path) -> None:
    image.element = Path(shutil.copytree(ELEMENT, tmp_path / "opensips"))
    template = image.element / "opensips.cfg.in"
    template.write_text(template.read_text().replace('loadmodule "tm.so"', 'loadmodule "tmm.so"'))
    done = image.phase("install.d")
    assert f"OpenSIPS {VERSION} refuses its configuration" in refused(done)
    assert f"{REFUSED} tmm.so" in done.stderr


@pytest.fixture
def described(packages: Packages) -> Appliance:
    return opensips_packages.described(packages)


Asked = Callable[..., AptState]


@pytest.fixture
def asked(described: Appliance, packages: Packages, tmp_path: Path) -> Asked:
    """asked(**changes): package lists fetched from the repository, of which something is described otherwise."""
    def state(**changes: object) -> AptState:
        assert described.opensips and described.opensips.repository
        source = replace(described.opensips.repository, **changes)
        entry = repository.entry(described, source, tmp_path / "cache")
        empty = AptMirrors(packages.url, packages.url, entry.keyring, (entry,))
        found = Lists(tmp_path / "lists", empty, "bookworm", "amd64")
        found.refresh(Deadline(60))
        return found

    return state


class Lists(AptState):
    """Of the repository alone: Debian's mirrors play no part."""

    @property
    def sources(self) -> str:
        return self.mirrors.sources(self.release).splitlines(keepends=True)[-1]


def test_apt_is_asked_for_exactly_the_pinned_version(described: Appliance, asked: Asked) -> None:
    state = asked()
    names = repository.pinned(["opensips", "opensips-http-modules"], repository.pins(described, state))
    assert names == [f"opensips-http-modules={VERSION}", f"opensips={VERSION}"]
    assert state.closure(names) == (f"opensips {VERSION}", f"opensips-http-modules {VERSION}")
    assert state.closure(["opensips"]) == (f"opensips {VERSIONS[-1]}",), "without the pin it would be the newest"


def test_the_description_is_told_where_it_is_wrong(described: Appliance, asked: Asked, other: Packages) -> None:
    place = "appliances.yaml:7: appliances.opensips.opensips.repository.key"
    assert described.opensips
    for changes, said in (({"key": Path("/nowhere")}, f"{place}: there is no file /nowhere"),
                          ({"key": Path("/etc/hostname")}, f"{place}: /etc/hostname holds no OpenPGP key"),
                          ({"key": other.key}, f"{place}: {other.key} holds the key {other.fingerprint}")):
        with pytest.raises(DescriptionError) as error:
            asked(**changes)
        assert error.value.message == said
    with pytest.raises(MirrorError, match="package lists can't be fetched"):
        asked(key=other.key, fingerprint=other.fingerprint)
    wrong = replace(described, opensips=replace(described.opensips, version="4.0.9-1"))
    with pytest.raises(DescriptionError, match=r"yaml:7: .* has no opensips 4.0.9-1") as error:
        repository.pins(wrong, asked())
    assert error.value.hint == f"it has: {', '.join(reversed(VERSIONS))}"


def test_without_a_repository_the_build_says_what_to_write() -> None:
    plain = appliances_file.load(PROJECT / "appliances.yaml")["opensips"]
    with pytest.raises(DescriptionError, match="repository is missing") as error:
        repository.required(plain)
    assert "url, suite, components, key and fingerprint" in (error.value.hint or "")
