"""The bill of materials: valid by the format's own schema, the same for the same manifest, nothing left out."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from packageurl import PackageURL

from harness.appliance import SourceSpec
from harness.errors import BuildError, Fault, InspectError
from harness.image import sbom, sources
from harness.image.manifest import Manifest, Module
from harness.image.packages import Package
from harness.image.sources import FetchedSource

VERSION = "10.5.3.5-1+deb12u1"
PATCHES = {"debian/patches/CVE-2025-53399.patch": "4" * 64, "debian/patches/more fix.patch": "5" * 64}
SOURCES: dict[str, dict[str, Any]] = {
    "debian-source": {"hashes": {f"rtpengine_{VERSION}.dsc": "3" * 64}, "patches": PATCHES},
    "debian-packages": {"hashes": {"rtpengine-daemon": "3" * 64, "rtpengine-kernel-dkms": "6" * 64}},
    "git": {"hashes": {"commit": "7" * 40}, "url": "https://example.org/rtpengine.git"},
    "tarball": {"hashes": {"mr10.5.3.5.tar.gz": "3" * 64}, "url": "https://example.org/mr10.5.3.5.tar.gz"},
    "none": {},
}


def image(kind: str = "debian-source", **changes: Any) -> Manifest:
    source = {"kind": kind, "version": VERSION, "fetched": "today", **SOURCES[kind]} if SOURCES[kind] else {}
    plain = Manifest(
        image="image.qcow2", size=150_000_000, virtual_size=2**30, sha256="0" * 64, kernel="6.1.0-56-cloud-amd64",
        modules=(Module("xt_RTPENGINE", "/usr/lib/modules/x/extra/xt_RTPENGINE.ko", "6.1.0-56 SMP", "", "2" * 64),),
        packages=(Package("bash", "5.2.15-2+b13", "amd64", False), Package("tzdata", "1:2026a~x-1", "all", False),
                  Package("opensips", "4.0.1-1", "amd64", False)),
        sysctls={}, units=(),
        extra={"appliance": "relay", "diskimage_builder": "3.43.0", "elements": {"rtpengine": "1" * 64},
               "source": source, "artifact": {"key": "k", "sha256": "8" * 64},
               "variables": {"DIB_RELEASE": "bookworm"}})
    return replace(plain, **changes)


def document(made: Manifest) -> dict[str, Any]:
    text = sbom.render(made)
    sbom.check(text)
    found: dict[str, Any] = json.loads(text)
    return found


def component(made: Manifest, name: str) -> dict[str, Any]:
    [found] = [entry for entry in document(made)["components"] if entry["name"] == name]
    return dict(found)


@pytest.mark.parametrize("kind", SOURCES)
def test_it_is_valid_for_every_kind_of_source(kind: str) -> None:
    assert document(image(kind))["specVersion"] == "1.6"


def test_the_same_manifest_gives_the_same_file_and_another_another() -> None:
    first, second, other = document(image()), document(image()), document(image(sha256="9" * 64))
    assert first == second and "timestamp" not in first["metadata"]
    assert first["serialNumber"] != other["serialNumber"]
    moved = image()
    later = replace(moved, extra={**moved.extra, "source": {**moved.extra["source"], "fetched": "tomorrow"}})
    assert document(later) == first, "when a source was fetched is no part of what the image is"


def test_the_image_and_every_package_of_it_are_named() -> None:
    found = document(image())
    subject = found["metadata"]["component"]
    assert (subject["name"], subject["group"], subject["hashes"]) == (
        "image.qcow2", "relay", [{"alg": "SHA-256", "content": "0" * 64}])
    urls = [PackageURL.from_string(entry["purl"]) for entry in found["components"] if "purl" in entry]
    assert [(url.type, url.namespace, url.name, url.version) for url in urls] == [
        ("deb", "debian", "bash", "5.2.15-2+b13"), ("deb", "debian", "opensips", "4.0.1-1"),
        ("deb", "debian", "tzdata", "1:2026a~x-1")]
    assert urls[0].qualifiers == {"arch": "amd64", "distro": "bookworm"}
    assert {"ref": "image", "dependsOn": sorted(entry["bom-ref"] for entry in found["components"])} in (
        {**entry, "dependsOn": sorted(entry.get("dependsOn", []))} for entry in found["dependencies"])


def test_packages_that_uefis_boot_loader_was_taken_out_of() -> None:
    made = image()
    loader = component(replace(made, extra={**made.extra, "loader": {"shim-signed": "1.44~1+deb12u1+15.8-1"}}),
                       "shim-signed")
    assert loader["purl"].startswith("pkg:deb/debian/shim-signed@1.44~1%2Bdeb12u1%2B15.8-1?arch=amd64")
    assert loader["properties"] == [{"name": "dialtone:partition", "value": "EFI system"}]


def test_packages_of_another_repository_are_not_debians() -> None:
    variables = {"DIB_RELEASE": "bookworm", "DIB_OPENSIPS_REPOSITORY": "https://packages.example.org/debian"}
    made = image("none", extra={"variables": variables})
    proxy = PackageURL.from_string(component(made, "opensips")["purl"])
    assert proxy.namespace == "opensips" and proxy.qualifiers["repository_url"] == variables["DIB_OPENSIPS_REPOSITORY"]
    assert PackageURL.from_string(component(made, "bash")["purl"]).namespace == "debian"


def test_a_compiled_source_package_with_its_patches_and_hashes() -> None:
    relay = component(image(), "rtpengine")
    assert (relay["version"], relay["hashes"]) == (VERSION, [{"alg": "SHA-256", "content": "8" * 64}])
    [source] = relay["pedigree"]["ancestors"]
    assert source["hashes"][0]["content"] == "3" * 64
    assert source["purl"] == "pkg:deb/debian/rtpengine@10.5.3.5-1%2Bdeb12u1?arch=source&distro=bookworm"
    patches = {patch["diff"]["url"]: patch.get("resolves", []) for patch in relay["pedigree"]["patches"]}
    assert patches == {"debian/patches/CVE-2025-53399.patch": [{"type": "security", "id": "CVE-2025-53399"}],
                       "debian/patches/more%20fix.patch": []}
    assert {file["name"]: file["hashes"][0]["content"] for file in relay["components"]} == PATCHES
    module = component(image(), "xt_RTPENGINE")
    assert (module["type"], module["hashes"][0]["content"]) == ("device-driver", "2" * 64)


def test_a_compiled_tree_with_its_commit_or_hash() -> None:
    pedigree = component(image("git"), "rtpengine")["pedigree"]
    assert pedigree["commits"] == [{"uid": "7" * 40, "url": "https://example.org/rtpengine.git"}]
    [archive] = component(image("tarball"), "rtpengine")["pedigree"]["ancestors"]
    assert archive["hashes"][0]["content"] == "3" * 64
    assert archive["externalReferences"][0]["url"] == "https://example.org/mr10.5.3.5.tar.gz"
    packages = component(image("debian-packages"), "rtpengine")["pedigree"]["ancestors"]
    assert {entry["name"]: entry["hashes"][0]["content"] for entry in packages} == {
        "rtpengine-daemon": "3" * 64, "rtpengine-kernel-dkms": "6" * 64}


def addressed(address: str) -> tuple[str, str]:
    """What becomes of an address: of a repository, and of an archive."""
    found = []
    for kind in ("git", "tarball"):
        made = image(kind)
        source = {**made.extra["source"], "url": address}
        found.append(component(replace(made, extra={**made.extra, "source": source}), "rtpengine")["pedigree"])
    return found[0]["commits"][0]["url"], found[1]["ancestors"][0]["externalReferences"][0]["url"]


@pytest.mark.parametrize(("address", "written"), [
    ("https://h/x/?f=a|b&c=d", "https://h/x/?f=a%7Cb&c=d"), ("https://h/ä%zz%2f", "https://h/%C3%A4%25zz%2f"),
    ("https://h/%#a#b#c", "https://h/%25#a%23b%23c"), ("ssh://git@h:22/~x/y+z", "ssh://git@h:22/~x/y+z"),
    ("https://[2001:db8::1]:80/x[1]", "https://%5B2001%3Adb8%3A%3A1%5D:80/x%5B1%5D"), (r"https://h/a\b^`", "https://h/a%5Cb%5E%60")])
def test_an_address_is_written_as_the_format_has_it(address: str, written: str) -> None:
    assert addressed(address) == (written, written)


def test_the_name_of_a_patch_is_a_path() -> None:
    names = ["debian/patches/a%b", "debian/patches/a%20b", "debian/patches/#1|ä?"]
    made = image()
    source = {**made.extra["source"], "patches": dict.fromkeys(names, "4" * 64)}
    relay = component(replace(made, extra={**made.extra, "source": source}), "rtpengine")
    assert {patch["diff"]["url"] for patch in relay["pedigree"]["patches"]} == {
        "debian/patches/a%25b", "debian/patches/a%2520b", "debian/patches/%231%7C%C3%A4%3F"}


@pytest.mark.parametrize("spoil", [
    lambda bom: bom["components"][0].pop("name"),
    lambda bom: bom["components"][0].update(purpose="unknown to the format"),
    lambda bom: bom["components"][0].update(type="package"),
    lambda bom: bom.update(serialNumber="4711"),
    lambda bom: bom["metadata"]["component"]["hashes"][0].update(content="short"),
    lambda bom: bom.update(components=[*bom["components"], bom["components"][0]]),
], ids=["no name", "unknown key", "unknown type", "serial number", "hash", "one twice"])
def test_a_broken_one_is_red(spoil: Callable[[dict[str, Any]], Any]) -> None:
    bom = document(image())
    spoil(bom)
    with pytest.raises(BuildError, match="is not valid CycloneDX") as error:
        sbom.check(json.dumps(bom))
    assert error.value.fault is Fault.HOST


def test_it_lies_beside_its_manifest_and_needs_one(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(InspectError, match="is no manifest"):
        sbom.write(tmp_path / "manifest.json")
    assert not (tmp_path / sbom.NAME).exists()


def source_package(directory: Path, series: str, **patches: str) -> FetchedSource:
    with tarfile.open(directory / "x_1-1.debian.tar.xz", "w:xz") as archive:
        for name, text in {"series": series, **patches}.items():
            member = tarfile.TarInfo(f"debian/patches/{name}")
            member.size = len(text)
            archive.addfile(member, BytesIO(text.encode()))
    return FetchedSource(SourceSpec("debian-source", "1-1", package="x"), directory, {})


def test_patches_are_those_of_the_series_in_its_order(tmp_path: Path) -> None:
    found = sources.patches(source_package(tmp_path, "# first\nb.patch\n\na.patch -p1\n",
                                           **{"a.patch": "1", "b.patch": "2", "c.patch": "3"}))
    assert list(found) == ["debian/patches/b.patch", "debian/patches/a.patch"]
    assert found["debian/patches/a.patch"] == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"


def test_a_patch_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"has no debian/patches/b\.patch"):
        sources.patches(source_package(tmp_path, "b.patch\n"))
