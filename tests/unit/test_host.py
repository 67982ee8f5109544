import io
import os
from pathlib import Path

import pytest

from harness import host
from harness.errors import HostError
from harness.host import Package, Purpose
from harness.settings import Settings

APT = """#!/bin/sh
# Stands in for apt-get: knows a package only after `update`, and gives it a program.
echo "$DEBIAN_FRONTEND $*" >>{log}
case "$*" in
    *update*) touch {lists} ;;
    *broken*) echo "E: Unable to locate package broken" >&2; exit 100 ;;
    *install*)
        [ -e {lists} ] || {{ echo "E: Package 'thing' has no installation candidate" >&2; exit 100; }}
        echo "Setting up thing:amd64 (1.0) ..."
        printf '#!/bin/sh\\n' >{bin}/dialtone-thing && chmod +x {bin}/dialtone-thing ;;
esac
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(tmp_path, {})


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts a stand-in for apt-get and dpkg first in PATH; returns the file that has its calls."""
    programs = tmp_path / "bin"
    programs.mkdir()
    log = tmp_path / "calls"
    for name, text in (("apt-get", APT.format(log=log, lists=tmp_path / "lists", bin=programs)),
                       ("dpkg", f'#!/bin/sh\necho "dpkg $*" >>{log}\n')):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(host, "_SEARCH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(host.os, "geteuid", lambda: 0)
    return log


THING = Package("thing", ("dialtone-thing",))


def test_what_is_there_and_what_is_not(tmp_path):
    there = tmp_path / "file"
    package = Package("some", ("sh", "no-such-program", str(there), "/no/such/file"))
    assert package.missing == ("no-such-program", str(there), "/no/such/file")
    there.touch()
    assert package.missing == ("no-such-program", "/no/such/file")


def test_each_package_is_named_once_and_tests_need_all_the_rest(settings):
    lists = {p: host.requirements(settings, p) for p in Purpose}
    for packages in lists.values():
        names = [p.name for p in packages]
        assert len(set(names)) == len(names) and all(p.gives for p in packages)
    assert set(lists[Purpose.RUN]) | set(lists[Purpose.UNIT]) < set(lists[Purpose.TESTS])


def test_a_way_out_needs_a_package_more(tmp_path):
    plain = host.requirements(Settings.load(tmp_path, {}), Purpose.RUN)
    egress = host.requirements(Settings.load(tmp_path, {"DIALTONE_EGRESS": "true"}), Purpose.RUN)
    assert {p.name for p in egress} - {p.name for p in plain} == {"slirp4netns"}


def test_signing_needs_openssl_and_a_token_its_engine(tmp_path):
    plain = {p.name for p in host.requirements(Settings.load(tmp_path, {}), Purpose.RUN)}
    for key, more in (("module.key", {"openssl"}), ("pkcs11:token=x", {"openssl", "libengine-pkcs11-openssl"})):
        signing = host.requirements(Settings.load(tmp_path, {}, signing_key=key), Purpose.RUN)
        assert {p.name for p in signing} - plain == more


def test_ovmf_that_is_missing_is_named(settings, monkeypatch, tmp_path):
    [ovmf] = [p for p in host.requirements(settings, Purpose.RUN) if p.name == "ovmf"]
    lacking = Package("ovmf", tuple(f"{tmp_path}/{Path(file).name}" for file in ovmf.gives))
    monkeypatch.setattr(host, "_RUN", (lacking,))
    monkeypatch.setattr(host.os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match=r"ovmf \(for .*/OVMF_CODE_4M\.fd\)") as caught:
        host.prepare(settings, say=print)
    assert "apt-get install --no-install-recommends ovmf" in str(caught.value)


def test_who_is_not_root_is_told_what_to_install(settings, monkeypatch):
    monkeypatch.setattr(host, "_RUN", (Package("bash", ("sh",)), THING))
    monkeypatch.setattr(host.os, "geteuid", lambda: 1000)
    with pytest.raises(HostError) as caught:
        host.prepare(settings, say=print)
    assert "thing (for dialtone-thing)" in caught.value.message and "bash" not in caught.value.message
    assert "this is not root" in caught.value.message
    assert "sudo apt-get install --no-install-recommends thing\n" in str(caught.value) + "\n"


def test_unit_tests_need_neither_root_nor_disk(settings, monkeypatch):
    monkeypatch.setattr(host, "_UNIT", (Package("bash", ("sh",)),))
    monkeypatch.setattr(host, "NEEDED_DISK", 10**18)
    monkeypatch.setattr(host.os, "geteuid", lambda: 1000)
    host.prepare(settings, purpose=Purpose.UNIT, say=print)


def test_lists_are_fetched_only_where_they_are_needed(settings, apt):
    said: list[str] = []
    host.install_packages(settings, [THING], said.append)
    calls = apt.read_text().splitlines()
    assert [c.split()[-1] for c in calls] == ["thing", "-a", "update", "thing"]
    assert all(c.startswith("noninteractive ") for c in calls if "install" in c)
    assert "--no-install-recommends" in calls[0]
    assert said == ["installing 1 packages", "fetching the package lists", "installing thing"]
    host.install_packages(settings, [THING], said.append)
    assert len(apt.read_text().splitlines()) == len(calls) + 1
    log = (settings.cache / "apt-install.log").read_text()
    assert "no installation candidate" in log and "Setting up thing:amd64" in log


def test_root_gets_the_missing_packages_installed(settings, apt, monkeypatch):
    monkeypatch.setattr(host, "_UNIT", (THING,))
    host.prepare(settings, purpose=Purpose.UNIT, say=print)
    assert not THING.missing
    before = apt.read_text()
    host.prepare(settings, purpose=Purpose.UNIT, say=print)
    assert apt.read_text() == before, "nothing is missing any more, apt isn't asked"


def test_a_package_that_no_mirror_has_is_named(settings, apt):
    with pytest.raises(HostError) as caught:
        host.install_packages(settings, [Package("broken", ("dialtone-broken",))], print)
    assert "packages can't be installed: broken" in str(caught.value)
    assert "E: Unable to locate package broken" in str(caught.value)
    assert "apt-install.log" in str(caught.value)


def test_a_package_that_gives_not_what_it_should_is_named(settings, apt):
    with pytest.raises(HostError, match="thing is installed, and dialtone-other is not there"):
        host.install_packages(settings, [Package("thing", ("dialtone-other",))], print)


@pytest.mark.parametrize(("limit", "title"), [("NEEDED_DISK", "disk"), ("NEEDED_MEMORY", "memory")])
def test_too_little_room_is_a_finding(settings, monkeypatch, limit, title):
    monkeypatch.setattr(host, limit, 0)
    outcome = {f.title: f.outcome for f in host.check(settings, Purpose.RUN)}
    assert outcome[title] == "passed"
    monkeypatch.setattr(host, limit, 10**18)
    finding = {f.title: f for f in host.check(settings, Purpose.RUN)}[title]
    assert finding.outcome == "failed" and finding.hint and "1000000000 GB are needed" in finding.seen


def test_disk_is_looked_at_where_the_cache_will_be(tmp_path):
    settings = Settings.load(tmp_path, {"DIALTONE_CACHE": "not/yet/there"})
    assert "disk" in {f.title for f in host.check(settings, Purpose.RUN) if f.outcome == "passed"}


def test_the_report_counts_what_is_missing(settings, monkeypatch):
    monkeypatch.setattr(host, "_RUN", (THING,))
    monkeypatch.setattr(host.os, "geteuid", lambda: 1000)
    out = io.StringIO()
    assert host.report(settings, install=False, out=out) == 3
    lines = out.getvalue().splitlines()
    assert lines[0].split(maxsplit=2) == ["packages", "MISSING", "thing (for dialtone-thing)"]
    assert lines[1].strip() == "sudo apt-get install --no-install-recommends thing"
    assert lines[-1] == "2 missing (exit 3: this host)"


@pytest.mark.root
def test_a_kernel_without_what_networks_need_is_named(settings, monkeypatch):
    assert {f.outcome for f in host.check(settings, Purpose.RUN) if f.title == "networks"} == {"passed"}
    monkeypatch.setattr(host, "_NETWORK_PROBE", "ip link add probe0 type no-such-kind")
    finding = next(f for f in host.check(settings, Purpose.RUN) if f.title == "networks")
    assert finding.outcome == "failed" and "Unknown device type" in finding.seen


def test_networks_are_tried_only_with_the_programs_for_it(settings, monkeypatch):
    monkeypatch.setattr(host.os, "geteuid", lambda: 0)
    monkeypatch.setattr(host, "_networks", lambda: host.HostFinding("networks", "failed", "tried"))
    monkeypatch.setattr(host, "_RUN", (Package("bash", ("sh",)),))
    assert "networks" in {f.title for f in host.check(settings, Purpose.RUN)}
    monkeypatch.setattr(host, "_RUN", (THING,))
    assert "networks" not in {f.title for f in host.check(settings, Purpose.RUN)}
