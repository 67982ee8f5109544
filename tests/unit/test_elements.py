"""The elements as files: what diskimage-builder would pass over in silence, and what a reader expects."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT

ELEMENTS = PROJECT / "elements"
NAMES = sorted(p.name for p in ELEMENTS.iterdir() if p.is_dir())
PHASES = ("root.d", "extra-data.d", "pre-install.d", "install.d", "post-install.d", "post-root.d", "finalise.d",
          "cleanup.d")


def not_executable(element: Path) -> list[str]:
    """Hooks that diskimage-builder skips: it runs only what has the run bit."""
    hooks = (f for phase in PHASES for f in (element / phase).glob("*") if f.is_file())
    return sorted(f.name for f in hooks if not os.access(f, os.X_OK))


def variables(element: Path) -> Iterator[str]:
    """The settings that an element gives a default to."""
    for file in (element / "environment.d").glob("*"):
        yield from re.findall(r"^export (DIB_[A-Z_]+)=\$\{\1:-", file.read_text(), re.MULTILINE)


def test_there_are_elements() -> None:
    assert {"voip-appliance", "conntrack", "rtpengine", "opensips"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_hook_has_its_run_bit(name: str) -> None:
    assert not_executable(ELEMENTS / name) == []


def test_a_hook_without_its_run_bit_is_found(tmp_path: Path) -> None:
    shutil.copytree(ELEMENTS / "conntrack", tmp_path / "conntrack")
    hook = next((tmp_path / "conntrack" / "install.d").iterdir())
    hook.chmod(0o644)
    assert not_executable(tmp_path / "conntrack") == [hook.name]


@pytest.mark.parametrize("name", NAMES)
def test_hooks_run_in_order_and_say_what_runs_them(name: str) -> None:
    for phase in PHASES:
        for hook in (ELEMENTS / name / phase).glob("*"):
            assert re.fullmatch(r"\d\d-[a-z0-9-]+", hook.name), "dib-run-parts runs names like 60-name"
            assert hook.read_text().startswith("#!/bin/bash\n"), hook


@pytest.mark.parametrize("name", NAMES)
def test_an_element_is_described(name: str) -> None:
    readme = (ELEMENTS / name / "README.rst").read_text()
    assert name in readme.splitlines()[:2], "a title of its own"
    for variable in variables(ELEMENTS / name):
        assert variable in readme, f"README.rst of {name} says nothing of {variable}"
    assert "RedHat" in readme, "which families were built and which only mapped"


@pytest.mark.parametrize("name", NAMES)
def test_every_package_is_mapped_for_both_families(name: str) -> None:
    families = json.loads((ELEMENTS / name / "pkg-map").read_text())["family"]
    wanted = set(re.findall(r"^([a-z0-9][a-z0-9.+-]*):", (ELEMENTS / name / "package-installs.yaml").read_text(), re.M))
    assert wanted and wanted <= set(families["debian"]) and wanted <= set(families["redhat"])


@pytest.mark.parametrize("name", NAMES)
def test_an_element_says_what_it_depends_on(name: str) -> None:
    assert (ELEMENTS / name / "element-deps").read_text().split()


def refused(name: str, **environment: str) -> str:
    """What the element's check of its settings says when it refuses them."""
    hook = next((ELEMENTS / name / "root.d").iterdir())
    files = [f for element in NAMES for f in sorted((ELEMENTS / element / "environment.d").iterdir())]
    script = "set -e; " + "; ".join(f". {f}" for f in files) + f"; exec bash {hook}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False,
                          env={"PATH": os.environ["PATH"], "DISTRO_NAME": "debian", "ARCH": "amd64", **environment})
    assert done.returncode == (1 if done.stderr else 0)
    return done.stderr.strip()


PROXY = {"DIB_OPENSIPS_VERSION": "4.0.1-1", "DIB_OPENSIPS_REPOSITORY": "file:/nowhere",
         "DIB_OPENSIPS_SUITE": "bookworm"}


@pytest.mark.parametrize(("name", "environment", "said"), [
    ("conntrack", {}, ""),
    ("conntrack", {"DIB_CONNTRACK_MAX": "many"}, "DIB_CONNTRACK_MAX is 'many'"),
    ("conntrack", {"DIB_CONNTRACK_BUCKETS": "10"}, "1024 at least"),
    ("conntrack", {"DIB_CONNTRACK_SYSCTLS": "net.ipv4.ip_forward=1"}, "is not net.netfilter.nf_conntrack_NAME"),
    ("conntrack", {"DIB_CONNTRACK_SYSCTLS": "net.netfilter.nf_conntrack_max=1"}, "has its own variable"),
    ("conntrack", {"DIB_CONNTRACK_NOTRACK": "30000-40000"}, ""),
    ("conntrack", {"DIB_CONNTRACK_NOTRACK": "40000-30000"}, "UDP ports like 30000-40000 are needed"),
    ("conntrack", {"DIB_CONNTRACK_NOTRACK": "30000"}, "UDP ports like 30000-40000 are needed"),
    ("conntrack", {"DIB_CONNTRACK_NOTRACK": "1-99999"}, "UDP ports like 30000-40000 are needed"),
    ("rtpengine", {}, "DIB_RTPENGINE_ARTIFACT is not set"),
    ("rtpengine", {"DIB_RTPENGINE_ARTIFACT": "/nowhere"}, "there is no file /nowhere"),
    ("rtpengine", {"DIB_RTPENGINE_TABLE": "64"}, "a number from -1 to 63"),
    ("rtpengine", {"DIB_RTPENGINE_PORT_MIN": "40000"}, "is empty"),
    ("rtpengine", {"DIB_RTPENGINE_REDIS": "127.0.0.1:6379"}, "HOST:PORT/DATABASE is needed"),
    ("rtpengine", {"DIB_RTPENGINE_TOS": "256"}, "a number from 0 to 255"),
    ("rtpengine", {"DIB_RTPENGINE_ENDPOINT_LEARNING": "on"}, "delayed, immediate, off or heuristic is needed"),
    ("rtpengine", {"DIB_RTPENGINE_RULES": "nobody"}, "unit or daemon is needed"),
    ("rtpengine", {"DIB_RTPENGINE_MODULE": "../x"}, "a module's name is needed"),
    ("rtpengine", {"DIB_RTPENGINE_EXTENSION": ""}, "iptables makes no rule without it"),
    ("rtpengine", {"DIB_RTPENGINE_RULES": "daemon"}, "the name of the daemon's chain is needed"),
    ("rtpengine", {"DIB_RTPENGINE_RULES": "daemon", "DIB_RTPENGINE_CHAIN": "a; b"}, "the name of the daemon's chain"),
    ("rtpengine", {"DIB_RTPENGINE_EXTENSION": "", "DIB_RTPENGINE_RULES": "daemon",
                   "DIB_RTPENGINE_CHAIN": "rtpengine_{table}"}, "DIB_RTPENGINE_ARTIFACT is not"),
    ("opensips", {}, "DIB_OPENSIPS_VERSION is ''"),
    ("opensips", {"DIB_OPENSIPS_VERSION": "3.4.5-1"}, "a package version of OpenSIPS 3.6 or 4 is needed"),
    ("opensips", PROXY | {"DIB_OPENSIPS_REPOSITORY": "packages.example.org"}, "the address (http, https or file)"),
    ("opensips", PROXY | {"DIB_OPENSIPS_SUITE": ""}, "a suite of the repository is needed"),
    ("opensips", PROXY | {"DIB_OPENSIPS_COMPONENTS": "ma;in"}, "components of the suite are needed"),
    ("opensips", PROXY | {"DIB_OPENSIPS_PACKAGES": "opensips-x mc"}, "names like opensips-rabbitmq-modules"),
    ("opensips", PROXY | {"DIB_OPENSIPS_PORT": "80"}, "a number from 1024 to 65535"),
    ("opensips", PROXY | {"DIB_OPENSIPS_SHARED_THRESHOLD": "101"}, "a number from 0 to 100"),
    ("opensips", PROXY | {"DIB_OPENSIPS_RELAYS": "192.0.2.5"}, "ADDRESS:PORT of a relay's ng protocol is needed"),
    ("opensips", PROXY | {"DIB_OPENSIPS_DOMAINS": "a/b"}, "a host name or an IPv4 address is needed"),
    ("opensips", PROXY, "DIB_OPENSIPS_KEY is not set"),
    ("opensips", PROXY | {"DIB_OPENSIPS_KEY": "/nowhere"}, "there is no file /nowhere"),
    ("opensips", PROXY | {"DIB_OPENSIPS_KEY": "/etc/hostname", "DIB_OPENSIPS_FINGERPRINT": "12"},
     "40 hexadecimal digits"),
    ("voip-appliance", {}, ""),
    ("voip-appliance", {"DISTRO_NAME": "fedora"}, "only debian can be built"),
    ("voip-appliance", {"DIB_VOIP_KERNEL_PACKAGE": "vmlinuz"}, "a package linux-image-... is needed"),
    ("voip-appliance", {"DIB_VOIP_IMAGE_MIRROR": "ftp:/x"}, "an http(s) URL is needed"),
])
def test_wrong_settings_are_refused_before_anything_is_built(name: str, environment: dict[str, str],
                                                             said: str) -> None:
    answer = refused(name, **environment)
    assert said in answer
    assert answer.count("\n") == 0, "one line"
    assert not answer or answer.startswith(f"ERROR: {name}: ")
