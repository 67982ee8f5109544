"""Where the test cloud's things lie, and who holds it.

    <cache>/testcloud/
      root-<key>/root/      the system with all packages; never written to after it was made
      seed-<key>/           databases with schemas, users and catalog, ready to start from
      state/                what this cloud wrote since: kept by down, thrown away by `up --fresh`
      run/                  what the running node was told and says of itself
      logs/                 one log for each service of the last start
      clouds.yaml           how to log in, and how to reach the routers' namespaces
      journal.jsonl         what `up` made on this host
      lock                  held by the node's first process: free means that no node runs
      work.lock             held by whoever brings the cloud up or takes it down
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.cloud.ownership import Mark, owner
from harness.errors import HostError
from harness.run import Journal, held, write_whole
from harness.settings import Settings

NAME = "testcloud"


@dataclass(frozen=True)
class Place:
    """The test cloud of one cache."""

    directory: Path
    mark: Mark

    @property
    def id(self) -> str:
        """Stands for the run's id where something is made for the test cloud and not for a run."""
        return self.mark.run_id

    @property
    def journal(self) -> Journal:
        return Journal(self.directory / "journal.jsonl")

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def run(self) -> Path:
        return self.directory / "run"

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    @property
    def lock(self) -> Path:
        return self.directory / "lock"

    @property
    def clouds(self) -> Path:
        return self.directory / "clouds.yaml"

    @property
    def token(self) -> str:
        """In the command line of the node's first process, and in no other's."""
        return f"{self.mark}node:"

    @property
    def link(self) -> str:
        """The host's end of the link to the node."""
        return f"dtc-{self.mark.owner[:8]}"

    @property
    def alive(self) -> bool:
        """Whether the node runs."""
        return held(self.lock)

    @property
    def busy(self) -> bool:
        """Whether somebody is bringing the cloud up or taking it down."""
        return held(self.directory / "work.lock")

    @contextmanager
    def working(self) -> Iterator[None]:
        """Be the only one who brings the cloud up or takes it down. Raises HostError where another does."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with (self.directory / "work.lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HostError("the test cloud is being brought up or taken down by another process",
                                hint="wait for it, then try again: ./inv testcloud.status") from None
            yield

    def note(self, name: str, value: Any) -> None:
        """Write run/<name>.json, whole."""
        write_whole(self.run / f"{name}.json", json.dumps(value, indent=1, sort_keys=True), mode=0o600)

    def noted(self, name: str) -> Any:
        """What run/<name>.json holds, None where it is not there."""
        try:
            return json.loads((self.run / f"{name}.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None


def place_of(settings: Settings) -> Place:
    """The test cloud belongs to the cache: whoever shares that shares the cloud, with any directory of runs."""
    directory = settings.cache / NAME
    return Place(directory, Mark(owner(replace(settings, runs=directory)), NAME))
