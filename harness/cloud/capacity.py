"""Whether a cloud takes a server: the flavor that fits, and what a quota leaves. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.cloud import Need
from harness.errors import CloudError, DescriptionError


@dataclass(frozen=True)
class Flavor:
    """Memory in MiB, disk in GiB (0: as large as the image asks for)."""

    id: str
    name: str
    memory: int
    cpus: int
    disk: int


@dataclass(frozen=True)
class Limit:
    """One figure of a quota; `limit` -1 means without limit."""

    what: str
    used: int
    limit: int

    def lacks(self, more: int) -> bool:
        return self.limit >= 0 and self.used + more > self.limit


def choose(flavors: Iterable[Flavor], need: Need, name: str = "") -> Flavor:
    """The flavor called `name`, else the smallest that fits: by memory, then processors, then disk.

    Raises DescriptionError for an unknown name, or one too small; CloudError where none fits.
    """
    known = sorted(flavors, key=lambda f: (f.memory, f.cpus, f.disk, f.name))
    fitting = [f for f in known if _fits(f, need)]
    if name:
        named = next((f for f in known if name in (f.name, f.id)), None)
        if named is None:
            raise DescriptionError(f"there is no flavor {name!r}", hint="known: " + ", ".join(f.name for f in known))
        if named not in fitting:
            raise DescriptionError(f"the flavor {name} has {_words(named)}, and {_wanted(need)} are needed",
                                   hint="server in appliances.yaml, flavor in clouds.yaml")
        return named
    if not fitting:
        largest = known[-1] if known else None
        raise CloudError(f"no flavor has {_wanted(need)}",
                         hint=f"the largest is {largest.name} with {_words(largest)}" if largest else "there is none")
    return fitting[0]


def shortages(limits: Sequence[Limit], more: Mapping[str, int]) -> list[str]:
    """One phrase for each limit that `more` (by its `what`) would exceed: `servers: 10 of 10 used, 1 more wanted`."""
    return [f"{limit.what}: {limit.used} of {limit.limit} used, {more[limit.what]} more wanted"
            for limit in limits if limit.what in more and limit.lacks(more[limit.what])]


def _fits(flavor: Flavor, need: Need) -> bool:
    return flavor.memory >= need.memory and flavor.cpus >= need.cpus and (flavor.disk >= need.disk or not flavor.disk)


def _words(flavor: Flavor) -> str:
    return f"{flavor.memory} MiB, {flavor.cpus} processors, {flavor.disk} GiB"


def _wanted(need: Need) -> str:
    return f"{need.memory} MiB, {need.cpus} processors, {need.disk} GiB"
