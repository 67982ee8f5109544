"""An image of the appliance opensips, built and inspected: its packages are stand-ins and not OpenSIPS."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import host
from harness.deadline import Deadline
from harness.image import build, inspect
from harness.image.root import root_of
from harness.run import Run
from harness.settings import Settings
from tests.opensips_packages import VERSION, described, make_packages

pytestmark = [pytest.mark.root, pytest.mark.nightly]


def test_an_image_holds_the_pinned_packages_and_names_no_repository(real_settings: Settings, tmp_path: Path) -> None:
    host.prepare(real_settings, say=lambda text: None)
    appliance = described(make_packages(tmp_path / "packages"))
    run = Run.create(real_settings.runs, appliance.name, "local")
    try:
        image = build.build(appliance, real_settings, run, lambda text: None, Deadline(1200))
        findings = inspect.inspect(image.path, inspect.expectation(appliance, image.kernel, image.loader),
                                   lambda text: None, Deadline(300))
        with root_of(image.path, Deadline(120)) as root:
            assert f"Package: opensips\nStatus: install ok installed\nArchitecture: amd64\nVersion: {VERSION}\n" in \
                root.text("/var/lib/dpkg/status").replace("Maintainer: Test <test@example.org>\n", "")
            assert "opensips" in root.text("/etc/passwd")
        assert run.journal.outstanding() == []
    finally:
        run.unlock()
    assert [(f.title, f.expected, f.seen) for f in findings if f.outcome != "passed"] == []
    assert {"OpenSIPS in the described version", "opensips.cfg as described"} <= {f.title for f in findings}
    assert build.built(appliance, real_settings) == build.built(appliance, real_settings) is not None
