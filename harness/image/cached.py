"""Things in the cache: whole or not there. Made beside their place, in the journal meanwhile, renamed when complete."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.resources import Resource
from harness.run import Run


@contextmanager
def making(place: Path, run: Run, *, replace: bool = False) -> Iterator[Path]:
    """An empty directory that becomes `place` when the block ends well, and is removed when it doesn't.

    Where `place` is there by then, made by another run, it stays, unless `replace`.
    """
    part = Path(f"{place}.part-{run.id}")
    resource = run.journal.creating(Resource("path", os.fspath(part)))
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        yield part
        if replace and place.exists():
            place.rename(Path(f"{part}.old"))
            shutil.rmtree(f"{part}.old")
        if not place.exists():
            part.rename(place)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        run.journal.gone(resource)


def sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
