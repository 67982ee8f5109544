"""The bill of materials of the real image."""

from __future__ import annotations

import json

import pytest
from packageurl import PackageURL

from harness.errors import BuildError
from harness.image import manifest, sbom
from harness.image.build import Image

pytestmark = pytest.mark.root


def test_it_is_valid_and_names_all_that_the_manifest_has(real_image: Image) -> None:
    text, described = real_image.sbom.read_text(encoding="utf-8"), manifest.read(real_image.manifest)
    sbom.check(text)
    assert sbom.render(described) == text
    bom = json.loads(text)
    assert bom["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": real_image.sha256}]
    named = {(entry["name"], entry["version"]) for entry in bom["components"] if "purl" in entry}
    installed = {(package.name, package.version) for package in described.packages}
    assert named == installed | set(described.extra["loader"].items()) and len(installed) > 100
    urls = {PackageURL.from_string(entry["purl"]) for entry in bom["components"] if "purl" in entry}
    assert {(url.name, url.version) for url in urls} == named
    [relay] = [entry for entry in bom["components"] if entry["name"] == sbom.SOFTWARE]
    pinned = {entry["hashes"][0]["content"] for entry in relay["pedigree"]["ancestors"]}
    assert pinned == set(described.extra["source"]["hashes"].values())
    [module] = [entry for entry in bom["components"] if entry["type"] == "device-driver"]
    assert module["hashes"][0]["content"] == described.modules[0].sha256


def test_a_broken_one_of_it_is_red(real_image: Image) -> None:
    bom = json.loads(real_image.sbom.read_text(encoding="utf-8"))
    bom["components"][-1]["hashes"] = [{"alg": "SHA-256", "content": "none"}]
    with pytest.raises(BuildError, match="is not valid CycloneDX"):
        sbom.check(json.dumps(bom))
