"""Things in the cache: whole or not there. Made beside their place, in the journal meanwhile, renamed when complete."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from harness.resources import Resource
from harness.run import Journal


class Maker(Protocol):
    """Who makes things in the cache: a run, or whatever else has an id of its own and a journal."""

    @property
    def id(self) -> str: ...

    @property
    def journal(self) -> Journal: ...


@contextmanager
def making(place: Path, run: Maker, *, replace: bool = False) -> Iterator[Path]:
    """An empty directory that becomes `place` when the block ends well, and is removed when it doesn't.

    Where `place` is there by then, made by another run, it stays, unless `replace`.
    """
    part = Path(f"{place}.part-{run.id}")
    old = Path(f"{part}.old")
    paths = (part, old) if replace else (part,)
    resources = [run.journal.creating(Resource("path", os.fspath(path))) for path in paths]
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if replace and place.exists():
            place.rename(old)
        if not place.exists():
            part.rename(place)
    finally:
        for resource in resources:
            shutil.rmtree(resource.name, ignore_errors=True)
            run.journal.gone(resource)


def used(place: Path) -> Path:
    """`place`, marked as used now: prune() goes by that."""
    os.utime(place)
    return place


def prune(directory: Path, *, keep: int, prefix: str = "", idle: float = 24 * 3600.0) -> None:
    """Remove what is whole in `directory` and named `prefix` and a key, except the `keep` that were used last.

    What was used within the last `idle` seconds stays: another run may be using it.
    """
    if not directory.is_dir():
        return
    # A key has no dash: `relay-` is not for what belongs to `relay-redis-`.
    whole = [p for p in directory.iterdir()
             if p.is_dir() and p.name.startswith(prefix) and "-" not in p.name.removeprefix(prefix)]
    newest = sorted(whole, key=lambda p: p.stat().st_mtime, reverse=True)
    for place in newest[keep:]:
        if time.time() - place.stat().st_mtime > idle:
            shutil.rmtree(place)


def sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
