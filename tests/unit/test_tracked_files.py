"""What no file of the repository may hold: hosts of package registries, and paths of one machine."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from harness.image.mirrors import entries

COMMON = {Path(p) for p in ("/", "/home", "/media", "/mnt", "/opt", "/root", "/srv", "/tmp", "/usr/src", "/var/tmp")}
"""Directories that a text may well name, though a checkout may lie right in one of them."""


def _files(project: Path) -> Iterator[tuple[Path, str]]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=project, capture_output=True, text=True, check=True).stdout
    for name in names.split("\0")[:-1]:
        path = project / name
        if path.is_file() and not path.is_symlink():
            yield path, path.read_text(encoding="utf-8", errors="replace")


def _found(project: Path, pattern: re.Pattern[str]) -> list[str]:
    return [f"{path.relative_to(project)}:{number}: {line.strip()[:120]}" for path, text in _files(project)
            for number, line in enumerate(text.splitlines(), 1) if pattern.search(line)]


def _registries() -> set[str]:
    """Hosts that apt and pip of this machine fetch packages from."""
    hosts = {urlsplit(entry.uri).hostname for entry in entries()}
    for file in (Path("/etc/pip.conf"), Path("/etc/xdg/pip/pip.conf")):
        if file.exists():
            hosts |= {urlsplit(url).hostname for url in re.findall(r"https?://\S+", file.read_text())}
    return {host for host in hosts if host and "." in host} - {"localhost", "127.0.0.1"}


def test_no_registry_is_named(project):
    hosts = _registries()
    if not hosts:
        pytest.skip("apt and pip of this machine name no host")
    assert _found(project, re.compile("|".join(map(re.escape, sorted(hosts))))) == []


def test_the_lock_pins_every_package_and_names_no_place(project):
    lock = (project / "requirements.lock").read_text()
    assert "://" not in lock and not re.search(r"^\s*-(?!-hash=)", lock, re.MULTILINE)
    requirements = [line for line in lock.splitlines() if re.match(r"[a-z]", line)]
    assert len(requirements) > 20
    assert [line for line in requirements if not re.fullmatch(r"[a-z0-9-]+==\S+ \\", line)] == []
    assert lock.count("--hash=sha256:") >= len(requirements)


def test_no_path_of_one_machine_is_named(project):
    places = {place for place in (project, project.parent, Path.home()) if place not in COMMON}
    pattern = "|".join(re.escape(f"{place}/") for place in sorted(places))
    if places:
        assert _found(project, re.compile(r"(?<![\w.~$}>)/-])(?:" + pattern + ")")) == []


def test_scripts_can_be_run(project):
    """dib-run-parts skips a script without its run bit in silence; git keeps the bit."""
    modes = subprocess.run(["git", "ls-files", "--stage"], cwd=project, capture_output=True, text=True, check=True)
    lost = []
    for line in modes.stdout.splitlines():
        mode, name = line.split()[0], line.split("\t")[1]
        path = project / name
        if mode == "100644" and path.is_file() and path.read_bytes()[:2] == b"#!":
            lost.append(name)
    assert lost == []
