"""The bill of materials of an image, made from its manifest: CycloneDX 1.6 as JSON, beside the manifest.

It names every package of the image, those too that UEFI's boot loader was taken out of, and of what was compiled for it
the source, its patches, and the hashes of both and of the result. Equal manifests give equal files: no time is in it,
and its serial number follows from the rest.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import (
    Commit,
    Component,
    ComponentType,
    Diff,
    Patch,
    PatchClassification,
    Pedigree,
)
from cyclonedx.model.issue import IssueClassification, IssueType
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

from harness import __version__
from harness.errors import BuildError, Fault
from harness.image import manifest
from harness.image.manifest import Manifest
from harness.image.packages import Package
from harness.run import write_whole

NAME = "sbom.cdx.json"
SOFTWARE = "rtpengine"
"""What is compiled here."""
_NAMESPACE = uuid.UUID("8d8a4a3e-2f7c-5c9e-9d4f-5b0c6f6f7a11")


def write(described: Path) -> Path:
    """Write the bill of materials of the manifest `described` beside it. Raises InspectError, BuildError."""
    text = render(manifest.read(described))
    check(text)
    out = described.with_name(NAME)
    write_whole(out, text)
    return out


def render(image: Manifest) -> str:
    """The document as JSON text."""
    bom = Bom(serial_number=_NAMESPACE, components=[*_compiled(image), *_modules(image), *_packages(image)])
    subject = Component(
        name=image.image, type=ComponentType.FILE, group=_text(image, "appliance"), version=image.sha256[:12],
        bom_ref="image", hashes=_sha256(image.sha256),
        properties=_properties({"kernel": image.kernel, "size": str(image.size)} | {
            f"element:{name}": str(digest) for name, digest in _of(image.extra, "elements").items()}))
    bom.metadata.component = subject
    bom.metadata.tools = ToolRepository(components=[
        Component(name="dialtone", version=__version__, type=ComponentType.APPLICATION),
        Component(name="diskimage-builder", version=_text(image, "diskimage_builder"), type=ComponentType.APPLICATION)])
    bom.metadata.timestamp = None  # type: ignore[assignment]  # optional in the format, though not in the library
    bom.register_dependency(subject, bom.components)
    text = JsonV1Dot6(bom).output_as_string(indent=1) + "\n"
    return text.replace(str(_NAMESPACE), str(uuid.uuid5(_NAMESPACE, text)))


def check(text: str) -> None:
    """Validate by the format's own schema. Raises BuildError with the first mistake."""
    mistake = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if mistake is not None:
        raise BuildError(f"the bill of materials is not valid CycloneDX: {mistake!r}"[:600], fault=Fault.HOST,
                         hint="this is a mistake of Dialtone's, not of the image")


def _compiled(image: Manifest) -> Iterator[Component]:
    """What was compiled for this image, with what it was made of as its pedigree."""
    source = _of(image.extra, "source")
    if not source:
        return
    patches = _of(source, "patches")
    commit = _of(source, "hashes").get("commit")
    yield Component(
        name=SOFTWARE, type=ComponentType.APPLICATION, version=str(source.get("version", "")), bom_ref=SOFTWARE,
        hashes=_sha256(_of(image.extra, "artifact").get("sha256")),
        properties=_properties({"source": str(source.get("kind", ""))}),
        components=[Component(name=name, type=ComponentType.FILE, bom_ref=f"patch:{name}", hashes=_sha256(digest))
                    for name, digest in patches.items()],
        pedigree=Pedigree(
            ancestors=list(_ancestors(image, source)),
            commits=[Commit(uid=commit, url=_address(source["url"]) if "url" in source else None)] if commit else (),
            patches=[_patch(name) for name in patches]))


def _patch(name: str) -> Patch:
    """A patch by its path, with the vulnerabilities that its name says it is for."""
    return Patch(type=PatchClassification.UNOFFICIAL, diff=Diff(url=XsUri(quote(name))), resolves=[
        IssueType(type=IssueClassification.SECURITY, id=found) for found in re.findall(r"CVE-\d{4}-\d+", name)])


def _address(text: str) -> XsUri:
    """An address with what must not be in one (RFC 3986) written as its octets; escapes that it has stay."""
    # What checks the format takes no IPv6 address in brackets.
    text = re.sub(r"(?<=[/@])\[[0-9A-Fa-f:.]+\]", lambda host: quote(host[0]), text, count=1)
    rest, mark, fragment = re.sub("%(?![0-9A-Fa-f]{2})", "%25", text).partition("#")
    return XsUri(quote(rest, safe=_IN_ADDRESSES) + mark + quote(fragment, safe=_IN_ADDRESSES))


_IN_ADDRESSES = ":/?@!$&'()*+,;=%"


def _ancestors(image: Manifest, source: Mapping[str, Any]) -> Iterator[Component]:
    """The files, or the tree, that were compiled: one for each hash that was compared with its pin."""
    kind, version = str(source.get("kind", "")), str(source.get("version", ""))
    reference = ExternalReferenceType.VCS if kind == "git" else ExternalReferenceType.DISTRIBUTION
    address = [ExternalReference(type=reference, url=_address(source["url"]))] if "url" in source else []
    for name, digest in _of(source, "hashes").items():
        if kind == "debian-packages":
            yield Component(name=name, version=version, purl=_purl(image, name, version), hashes=_sha256(digest))
        elif kind == "debian-source":
            package = name.split("_")[0]
            yield Component(name=package, version=version, purl=_purl(image, package, version, "source"),
                            hashes=_sha256(digest), properties=_properties({"file": name}))
        elif kind == "git":
            yield Component(name=SOFTWARE, version=version, external_references=address)
        else:
            yield Component(name=name, version=version, type=ComponentType.FILE, hashes=_sha256(digest),
                            external_references=address)


def _modules(image: Manifest) -> Iterator[Component]:
    for module in image.modules:
        yield Component(name=module.name, type=ComponentType.DEVICE_DRIVER, bom_ref=module.path,
                        hashes=_sha256(module.sha256),
                        properties=_properties({"path": module.path, "vermagic": module.vermagic}))


def _packages(image: Manifest) -> Iterator[Component]:
    for package in image.packages:
        purl = _purl(image, package.name, package.version, package.architecture, _repository(image, package))
        yield Component(name=package.name, version=package.version, purl=purl, bom_ref=purl.to_string())
    for name, version in _of(image.extra, "loader").items():
        purl = _purl(image, name, version, "amd64")
        yield Component(name=name, version=version, purl=purl, bom_ref=purl.to_string(),
                        properties=_properties({"partition": "EFI system"}))


def _repository(image: Manifest, package: Package) -> str:
    """Where a package comes from that is not Debian's; empty for Debian's."""
    url = str(_of(image.extra, "variables").get("DIB_OPENSIPS_REPOSITORY", ""))
    return url if package.name == "opensips" or package.name.startswith("opensips-") else ""


def _purl(image: Manifest, name: str, version: str, architecture: str = "", repository: str = "") -> PackageURL:
    """The package's URL (purl-spec, type deb)."""
    release = str(_of(image.extra, "variables").get("DIB_RELEASE", ""))
    qualifiers = {"arch": architecture, "distro": release, "repository_url": repository}
    return PackageURL("deb", "opensips" if repository else "debian", name, version,
                      {key: value for key, value in qualifiers.items() if value})


def _sha256(digest: object) -> list[HashType]:
    return [HashType(alg=HashAlgorithm.SHA_256, content=str(digest))] if digest else []


def _properties(values: Mapping[str, str]) -> list[Property]:
    return [Property(name=f"dialtone:{name}", value=value) for name, value in values.items() if value]


def _text(image: Manifest, name: str) -> str | None:
    value = image.extra.get(name)
    return value if isinstance(value, str) else None


def _of(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}
