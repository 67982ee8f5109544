"""What integration tests share that boot the real thing: one image, built once, and servers of it.

The image lies in the project's own cache, so that it is built only where an input changed; every test has its runs
in a temporary directory. All of it is lazy: a test that asks for none of it pays nothing.
"""

from __future__ import annotations

import io
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import appliance as appliances_file
from harness import host
from harness.appliance import Appliance
from harness.cloud.api import Api
from harness.cloud.local import LocalCloud
from harness.deadline import Deadline
from harness.image import builder, gpt
from harness.image.apt import state_for
from harness.image.build import Image
from harness.image.mirrors import apt_mirrors
from harness.progress import Progress
from harness.run import Run
from harness.settings import Settings
from harness.testcloud import up
from harness.testcloud.place import Place, place_of
from tests import cloud_inventory
from tests.conftest import PROJECT
from tests.real_server import Booted, server_of, work_in

APPLIANCE = "rtpengine"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The test cloud's tests come last: it takes memory and time from all others while it is up."""
    items.sort(key=lambda item: "testcloud" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def real_settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """The project's settings and cache, with a temporary directory of runs."""
    return Settings.load(PROJECT, runs=os.fspath(tmp_path_factory.mktemp("real") / "runs"))


@pytest.fixture(scope="session")
def real_appliance(real_settings: Settings) -> Appliance:
    return appliances_file.select(appliances_file.load(real_settings.appliances), APPLIANCE)


@pytest.fixture(scope="session")
def real_image(real_settings: Settings, real_appliance: Appliance) -> Image:
    """The appliance's image as the project builds it now."""
    host.prepare(real_settings, say=lambda text: None)
    with work_in(real_settings, real_appliance) as work:
        return work.build()


@pytest.fixture(scope="session")
def real_disk(real_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The image's disk as a raw file, to be copied."""
    disk = tmp_path_factory.mktemp("disk") / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-W", real_image.path, disk], check=True)
    yield disk
    disk.unlink()


@pytest.fixture
def altered(real_disk: Path, real_image: Image, tmp_path: Path) -> Iterator[Callable[[str], Image]]:
    """altered(script): the image with what a script of bash changed in its root file system, its working directory.

    The file system is mounted in a namespace that ends with the script, so that nothing stays mounted or attached.
    """
    disk = tmp_path / "altered.raw"
    with real_disk.open("rb") as file:
        partition = gpt.read(file).root
    assert partition

    def alter(script: str) -> Image:
        subprocess.run(["cp", "--sparse=always", real_disk, disk], check=True)
        point = tmp_path / "root"
        point.mkdir(exist_ok=True)
        options = f"loop,offset={partition.offset},sizelimit={partition.size}"
        done = subprocess.run(
            ["unshare", "--mount", "bash", "-euc",
             f'mount -o {options} "$1" "$2"; (cd "$2"; {script}); umount "$2"', "bash", disk, point],
            capture_output=True, text=True)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        image = tmp_path / "altered.qcow2"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk, image], check=True)
        return replace(real_image, path=image)

    yield alter
    disk.unlink(missing_ok=True)


@pytest.fixture
def booted(real_appliance: Appliance, tmp_path: Path) -> Callable[[Image], AbstractContextManager[Booted]]:
    """booted(image): a server of the image that is ready, in a run of its own; removed at the end, nothing left."""
    settings = Settings.load(PROJECT, runs=os.fspath(tmp_path / "runs"), cache=os.fspath(tmp_path / "cache"),
                             accelerator=_accelerator())
    return lambda image: server_of(settings, real_appliance, image)


@pytest.fixture(scope="module")
def server(real_settings: Settings, real_appliance: Appliance, real_image: Image) -> Iterator[Booted]:
    """One running server for all tests of a module."""
    with work_in(real_settings, real_appliance) as work:
        yield Booted(work, work.launch(work.upload(real_image))[0])


@pytest.fixture(scope="module")
def opensips_server(real_settings: Settings) -> Iterator[Booted]:
    """One running server of the appliance `opensips`, where the description says where its packages are."""
    appliance = appliances_file.select(appliances_file.load(real_settings.appliances), "opensips")
    assert appliance.opensips
    if appliance.opensips.repository is None:
        pytest.skip("the description does not say where OpenSIPS's packages are")
    host.prepare(real_settings, say=lambda text: None)
    with work_in(real_settings, appliance) as work:
        image = work.build()
        work.inspect(image)
        yield Booted(work, work.launch(work.upload(image))[0])


@pytest.fixture(scope="session")
def debian_root(real_settings: Settings) -> Callable[[Sequence[str]], Path]:
    """debian_root(packages): a root of Debian 12 with these packages, from the cache where it has one."""
    def prepared(packages: Sequence[str]) -> Path:
        host.prepare(real_settings, say=lambda text: None)
        run = Run.create(real_settings.runs, "root", "local")
        try:
            state = state_for(real_settings.cache, apt_mirrors(real_settings, "bookworm"), "bookworm", "amd64")
            state.refresh(Deadline(300))
            return builder.prepare(packages, state, real_settings, run, Deadline(900), run.directory / "root.log")
        finally:
            run.unlock()

    return prepared


@pytest.fixture(scope="session")
def testcloud(real_settings: Settings) -> Iterator[Place]:
    """The test cloud of the project's cache, up and well. One that is up already is used, and left as it is."""
    place = place_of(real_settings)
    was = place.alive
    up.up(real_settings, Progress(io.StringIO()), fresh=not was)
    yield place
    if not was:
        up.down(real_settings, io.StringIO())


@pytest.fixture(scope="session")
def cloudy(testcloud: Place, real_settings: Settings) -> Settings:
    """The project's settings while the test cloud is up."""
    sdk: Any = Api("testcloud-admin", real_settings).sdk
    for project in sdk.identity.projects():
        # Neutron makes a project's default group when the project is first looked at.
        assert list(sdk.network.security_groups(project_id=project.id))
    return real_settings


@pytest.fixture
def before(cloudy: Settings) -> Iterator[None]:
    """The whole cloud, every project of it, is as it was when the test ends."""
    with cloud_inventory.unchanged(cloudy):
        yield


def _accelerator() -> str:
    """What the project's cache remembers of this machine, to spare each test the probe."""
    return LocalCloud(Settings.load(PROJECT)).accelerator.name
