"""Images in Glance (Image API v2): uploaded once by their hash, claimed by the runs that use them.

An image of ours has the properties dialtone_owner, dialtone_run and dialtone_sha256, and a tag
`run:<owner>:<id>` for each run that uses it. The run that takes its tag off last removes the image.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from openstack.exceptions import NotFoundException, raise_from_response
from openstack.image.v2._proxy import Proxy

from harness.cloud import Say
from harness.cloud.api import Api, Refused, translated
from harness.deadline import Deadline
from harness.errors import CloudError, HostError, Unreachable
from harness.firmware import Firmware
from harness.units import octets

TAG = "dialtone"
_CLAIM = "run:"
_THEIR_LOG = "the cloud's image service has the reason in its log"
HASH = "sha512"
"""Glance's os_hash_algo unless an operator changed it."""
_CHUNK = 1 << 20
_POLL = 1.0
_TRIES = 3
_SAY_EVERY = 0.5
"""Seconds."""


@dataclass(frozen=True)
class Uploaded:
    """An active image in Glance. `reused`: it was there already, with the same hash."""

    id: str
    name: str
    reused: bool


@dataclass(frozen=True)
class File:
    """An image file to be uploaded. `sha512` in hexadecimal; `min_disk` GiB, `min_ram` MiB."""

    path: Path
    name: str
    sha512: str
    min_disk: int
    min_ram: int
    properties: Mapping[str, str]


def sha512(path: Path) -> str:
    """The file's hash as Glance computes it. Raises HostError."""
    try:
        with path.open("rb") as source:
            return hashlib.file_digest(source, HASH).hexdigest()
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", hint="./inv build makes it") from error


def claim(owner: str, run_id: str) -> str:
    """A run's tag. Without an owner it is the one of a journal that names none: tags had none, either."""
    return f"{_CLAIM}{owner}:{run_id}" if owner else f"{_CLAIM}{run_id}"


def upload(api: Api, file: File, run_id: str, url: str, say: Say, deadline: Deadline) -> Uploaded:
    """The image `file` in Glance, active and with the same hash, claimed by the run.

    Found by its hash where it is there; else sent (or, with `url`, fetched by Glance from there). What a cut upload
    left is removed and it is sent again. Raises CloudError.
    """
    _check_format(api)
    same = next((i for i in listed(api, file.name) if i.status == "active" and i.hash_value == file.sha512), None)
    if same and _claimed(api, same, claim(file.properties["dialtone_owner"], run_id)):
        return Uploaded(str(same.id), file.name, True)
    for attempt in range(1, _TRIES + 1):
        image = _register(api, file, run_id, deadline)
        try:
            if url:
                _fetch(api, image, url, say)
            else:
                _send(api, image, file, say)
            _verify(api, image, file, deadline, say)
            return Uploaded(image, file.name, False)
        except (Unreachable, Refused) as error:
            delete(api, image)
            if attempt == _TRIES or deadline.expired or (isinstance(error, Refused) and error.status < 500):
                raise
            say(f"the upload was cut ({error.message}), again")
    raise AssertionError("unreachable")


def listed(api: Api, name: str) -> list[Any]:
    """Every image that is called `name`, in whatever state (openstack.image.v2.image.Image)."""
    return api.get(f"images called {name}", lambda: list(images_of(api).images(name=name)))


def of_owner(api: Api, owner: str) -> list[Any]:
    """Every image that runs of this checkout have to do with."""
    return api.get("our images", lambda: [i for i in images_of(api).images(tag=TAG) if users(i, owner)])


def users(image: Any, owner: str) -> list[str]:
    """Ids of the owner's runs that have to do with an image: who claims it, or who made it where nobody at all does.

    Another checkout's claims are not among them: whether those runs live can't be known here.
    """
    claims = [t for t in image.tags if t.startswith(_CLAIM)]
    ours = claim(owner, "")
    if not claims and image.properties.get("dialtone_owner") == owner:
        return [str(image.properties.get("dialtone_run", ""))]
    return list(dict.fromkeys(t.removeprefix(ours) for t in claims if t.startswith(ours)))


def release(api: Api, name: str, owner: str, run_id: str) -> None:
    """Take the run's claim off the images called `name`; one of ours that nobody claims any more is deleted."""
    tag = claim(owner, run_id)
    for image in listed(api, name):
        claims = {t for t in image.tags if t.startswith(_CLAIM)}
        mine = tag in claims or image.properties.get("dialtone_run") == run_id
        if tag in claims:
            api.get(f"the claim on image {name}", partial(_unclaim, api, image, tag))
        if mine and not claims - {tag} and "dialtone_owner" in image.properties:
            delete(api, image.id)


def delete(api: Api, image: str) -> None:
    api.get(f"deleting image {image}", lambda: images_of(api).delete_image(image, ignore_missing=True))


def images_of(api: Api) -> Proxy:
    """The image service, version 2. Raises CloudError where there is only an older one."""
    found = api.sdk.image
    if not isinstance(found, Proxy):
        raise CloudError(f"{api.name} has no Image API of version 2")
    return found


def _unclaim(api: Api, image: Any, tag: str) -> None:
    with contextlib.suppress(NotFoundException):
        images_of(api).remove_tag(image, tag)


def _check_format(api: Api) -> None:
    schema = api.get("the formats of images", lambda: images_of(api).get_image_schema())
    formats = schema.properties["disk_format"].get("enum", ["qcow2"])
    if "qcow2" not in formats:
        raise CloudError(f"{api.name} takes no qcow2 images, only {', '.join(filter(None, formats))}",
                         hint="qemu-img convert makes another format")


def _claimed(api: Api, image: Any, tag: str) -> bool:
    """Whether the image is there still after it was claimed: its last user may be deleting it."""
    def claim_it() -> bool:
        try:
            images_of(api).add_tag(image, tag)
            return bool(images_of(api).get_image(image).status == "active")
        except NotFoundException:
            return False

    return api.get("the claim on an image", claim_it)


def _register(api: Api, file: File, run_id: str, deadline: Deadline) -> str:
    """Make the image's record; a queued one of this run that is there already is taken."""
    body = {"name": file.name, "disk_format": "qcow2", "container_format": "bare", "visibility": "private",
            "min_disk": file.min_disk, "min_ram": file.min_ram,
            "tags": [claim(file.properties["dialtone_owner"], run_id), TAG], **file.properties}

    def queued() -> str | None:
        return next((str(i.id) for i in listed(api, file.name)
                     if i.status == "queued" and i.properties.get("dialtone_run") == run_id), None)

    def register() -> str:
        response = images_of(api).post("/images", json=body)
        raise_from_response(response)
        return str(response.json()["id"])

    return api.create(f"image {file.name}", queued, register, deadline)


class _Reader:
    """A file that says how far it was read. requests asks for its length and for pieces of it."""

    def __init__(self, path: Path, say: Say) -> None:
        self._file = path.open("rb")
        self._size = path.stat().st_size
        self._say = say
        self._done = 0
        self._said = 0.0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self.read(_CHUNK):
            yield chunk

    def read(self, size: int = -1) -> bytes:
        chunk = self._file.read(size)
        self._done += len(chunk)
        if time.monotonic() - self._said > _SAY_EVERY:
            self._said = time.monotonic()
            self._say(f"{octets(self._done)} of {octets(self._size)}")
        return chunk

    def close(self) -> None:
        self._file.close()


def _send(api: Api, image: str, file: File, say: Say) -> None:
    reader = _Reader(file.path, say)
    try:
        with translated(f"sending {file.path.name}", api.name):
            raise_from_response(images_of(api).put(f"/images/{image}/file", data=reader,
                                                  headers={"Content-Type": "application/octet-stream"}))
    finally:
        reader.close()


def _fetch(api: Api, image: str, url: str, say: Say) -> None:
    say(f"the cloud fetches {url}")
    with translated(f"importing {url}", api.name):
        found = images_of(api).get_image(image)
        # openstacksdk hands an error over as an answer here.
        raise_from_response(images_of(api).import_image(found, method="web-download", uri=url))


def _verify(api: Api, image: str, file: File, deadline: Deadline, say: Say) -> None:
    """Wait until the image is active, and compare the hash that Glance computed with the file's."""
    while True:
        entry = api.get(f"image {file.name}", lambda: images_of(api).get_image(image))
        if entry.status == "active":
            break
        failed = entry.properties.get("os_glance_failed_import")
        if entry.status in ("killed", "deleted") or failed:
            raise CloudError(f"{api.name}: the image {file.name} is {entry.status}"
                             + (f": the import failed in {failed}" if failed else ""), hint=_THEIR_LOG)
        if deadline.expired:
            raise CloudError(f"{api.name}: the image {file.name} is still {entry.status}", hint=_THEIR_LOG)
        say(f"the image is {entry.status}")
        time.sleep(_POLL)
    if entry.hash_algo == HASH and entry.hash_value != file.sha512:
        delete(api, image)
        raise CloudError(f"{api.name}: the image {file.name} arrived changed: its {HASH} there is "
                         f"{entry.hash_value[:16]}..., here {file.sha512[:16]}...",
                         hint="the file was damaged on its way, or is another one at that URL")


def file_of(path: Path, sha256: str, appliance: str, owner: str, run_id: str, *, manifest_sha256: str, min_disk: int,
            min_ram: int, firmware: Firmware) -> File:
    """What is uploaded of an image file, with its properties (Glance's "useful image properties" and ours).

    The same file for another firmware is another image: the firmware is one of its properties.
    """
    name = "-".join([appliance, sha256[:12], *([] if firmware is Firmware.BIOS else [firmware])])
    return File(path, name, sha512(path), min_disk, min_ram, {
        **_FIRMWARE[firmware],
        "hw_disk_bus": "virtio", "hw_vif_model": "virtio", "hw_rng_model": "virtio", "os_type": "linux",
        "os_distro": "debian", "dialtone_owner": owner, "dialtone_run": run_id, "dialtone_appliance": appliance,
        "dialtone_sha256": sha256, "dialtone_manifest_sha256": manifest_sha256})


# The config drive is a CD-ROM, which a q35 has on SATA unless it is told otherwise: Debian's kernels for clouds up to
# 6.1 have no driver for that.
_UEFI = {"hw_firmware_type": "uefi", "hw_machine_type": "q35", "hw_cdrom_bus": "scsi", "hw_scsi_model": "virtio-scsi"}
_FIRMWARE: Mapping[Firmware, Mapping[str, str]] = {
    Firmware.BIOS: {},
    Firmware.UEFI: _UEFI,
    Firmware.SECURE_BOOT: {**_UEFI, "os_secure_boot": "required"},
}


def min_disk(virtual_size: int) -> int:
    """GiB that a disk must have for an image of `virtual_size` octets."""
    return -(-virtual_size // (1 << 30))


def url_of(base: str, path: Path) -> str:
    """Where the file of the cache's images/ directory is when `base` serves that directory."""
    return f"{base.rstrip('/')}/{path.parent.name}/{path.name}" if base else ""
