"""What an image is expected to be, and what a look into it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness import conntrack
from harness import known as known_files
from harness.appliance import Appliance, Opensips, Rtpengine
from harness.debian import Release
from harness.image.root import Root
from harness.known import Known
from harness.results import Finding


@dataclass(frozen=True)
class Expectation:
    """What the description promises of an image.

    `kernel` is the release that the image boots, as in uname -r; `disk` the size in octets of the disk that the
    image must fit; `mirrors` the package mirrors that may be in the image; `limit` the most octets of the file;
    `loader` the SHA-256 of UEFI's boot loader, by name of its files; `certificate` that of the key
    which signed the relay's module, None where nobody did.
    """

    kernel: str
    release: Release
    datasources: tuple[str, ...]
    mirrors: tuple[str, ...]
    disk: int
    limit: int
    loader: Mapping[str, str]
    certificate: Path | None
    relay: Rtpengine | None
    proxy: Opensips | None
    conntrack: conntrack.ConntrackPlan | None
    stateless: bool
    known: Known
    kernel_held: bool


IMAGE_LIMIT = 300_000_000
"""An image of an appliance is far below this; what is above has something in it that nobody meant."""


def expectation(appliance: Appliance, kernel: str, loader: Mapping[str, str], certificate: Path | None = None
                ) -> Expectation:
    """What an image of `appliance` with these kernel and boot loader must be. Raises DescriptionError as
    conntrack.plan() and known.load()."""
    goal = appliance.conntrack
    return Expectation(
        kernel=kernel,
        release=appliance.debian,
        datasources=appliance.datasources,
        mirrors=tuple(m.rstrip("/") for m in (appliance.image_mirror, appliance.image_security_mirror) if m),
        disk=appliance.server.disk * 2**30,
        limit=IMAGE_LIMIT,
        loader=loader,
        certificate=certificate,
        relay=appliance.rtpengine,
        proxy=appliance.opensips,
        conntrack=None if goal is None else conntrack.plan(goal, appliance.server.memory),
        stateless=goal is not None and goal.stateless,
        known=known_files.load(appliance),
        kernel_held=appliance.kernel_held,
    )


@dataclass(frozen=True)
class Seen:
    """What one look saw, compared with what was expected; `note` as in Finding."""

    good: bool
    expected: str
    seen: str
    because: str = ""
    hint: str = ""
    note: str = ""

    def titled(self, title: str) -> Finding:
        return Finding(title, "passed" if self.good else "failed", self.expected, self.seen,
                       "" if self.good else self.because, "" if self.good else self.hint, self.note)


@dataclass(frozen=True)
class Check:
    """A look at the root file system. It may raise FileNotFoundError: the file it needs is then what is missing."""

    title: str
    look: Callable[[Root, Expectation], Seen]


def equal(expected: str, seen: str, *, because: str = "", hint: str = "") -> Seen:
    """Red unless both are the same."""
    return Seen(expected == seen, expected, seen or "nothing", because, hint)


def none_of(what: str, found: Iterable[str], *, because: str = "", hint: str = "") -> Seen:
    """Red if anything was found; names the first few."""
    listed = list(found)
    return Seen(not listed, f"no {what}", few(listed) or "none", because, hint)


def all_of(expected: Iterable[str], seen: Iterable[str], *, because: str = "", hint: str = "") -> Seen:
    """Red unless everything expected was seen; names what is missing."""
    wanted = list(expected)
    there = set(seen)
    missing = [item for item in wanted if item not in there]
    return Seen(not missing, few(wanted), f"without {few(missing)}" if missing else few(wanted), because, hint)


def few(items: Iterable[str], most: int = 5) -> str:
    """The first `most` items, and how many more there are."""
    listed = list(items)
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest
