"""Pins that age: what the distribution has by now in the place of what appliances.yaml pins, and what has gone.

A pin that is old is a warning; another hash for the pinned version is an error.
"""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from harness.appliance import Appliance, SourceSpec
from harness.deadline import Deadline
from harness.image.apt import SNAPSHOT, AptState, MirrorError, Offer, newer
from harness.image.sources import NO_ANSWER, cause, compare

DISTRIBUTION_PACKAGE = "rtpengine-daemon"
"""The package whose versions are the distribution's of RTPEngine."""


@dataclass(frozen=True)
class AgedPin:
    """`where` is a place in the description, `pin` what is written there. `take` is what to write instead and `hashes`
    the SHA-256 that belong to it by name; each is empty where it is not known."""

    where: str
    pin: str
    because: str
    take: str = ""
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """All but the hashes."""
        return f"{self.where}: {self.pin} {self.because}" + (f"; take {self.take}" if self.take else "")


def aged(appliance: Appliance, state: AptState, source_state: Callable[[], AptState], deadline: Deadline
         ) -> list[AgedPin]:
    """The pins of `appliance` that are older than what `state` lists, and mirrors of the image that have gone.

    `source_state` has the lists of source packages. Raises BuildError where the lists have another hash for a pinned
    version.
    """
    return [*_sources(appliance, state, source_state, deadline), *_kernel(appliance, state),
            *_mirrors(appliance, state, deadline)]


def outdated(spec: SourceSpec, release: str, offers: Sequence[Offer]) -> tuple[str, str] | None:
    """Why `spec` is older than what `release` offers, and the version to take; None where it is not.

    `offers` are the distribution's versions of the package. An upstream version without a Debian revision is
    compared with the distribution's upstream version; equal means that the distribution's fixes are missing.
    """
    best = newest(offers)
    if best is None:
        return None
    label = f"{release}'s {best.version}" + _suite(best)
    if "-" in spec.version:
        return (f"is older than {label}", best.version) if newer(best.version, spec.version) else None
    upstream = best.version.split(":")[-1].rsplit("-", 1)[0]
    if newer(upstream, spec.version):
        return f"is older than {label}", best.version
    if upstream == spec.version and "+deb" in best.version:
        return f"lacks the fixes that {label} adds", best.version
    return None


def newest(offers: Sequence[Offer]) -> Offer | None:
    """The latest of `offers`; of equal ones the first."""
    best = None
    for offer in offers:
        if best is None or newer(offer.version, best.version):
            best = offer
    return best


def old_kernel(pinned: str, meta: str, current: str) -> bool:
    """Whether `pinned` is an exact kernel of the flavour that `meta` stands for, and older than its `current` one."""
    flavour = meta.removeprefix("linux-image-")
    version = pinned.removeprefix("linux-image-")
    return bool(re.match(r"\d", version)) and version.endswith(f"-{flavour}") and newer(current, pinned)


def stamped(url: str, stamp: str) -> str | None:
    """The address of another snapshot of the archive at `url`; None where it is of no snapshot."""
    changed, count = re.subn(rf"(?<=/){SNAPSHOT}(?=/|$)", stamp, url)
    return changed if count == 1 and changed != url else None


def _sources(appliance: Appliance, state: AptState, source_state: Callable[[], AptState], deadline: Deadline
             ) -> Iterator[AgedPin]:
    if not appliance.rtpengine:
        return
    offers = state.offers(DISTRIBUTION_PACKAGE)
    for spec in appliance.rtpengine.sources:
        old = outdated(spec, appliance.release, offers)
        listed = _listed(spec, state, source_state, deadline if old else None)
        _unchanged(spec, appliance.release, listed)
        if old:
            because, take = old
            # Only the distribution has its own version: what names another place needs another kind, too.
            kind = "" if "-" in spec.version else "kind debian-source or debian-packages, version "
            yield AgedPin(f"{appliance.file.name}:{spec.line}", f"{spec.kind} {spec.version}", because, kind + take,
                          {name: digest for (name, version), digest in listed.items() if version == take})


def _listed(spec: SourceSpec, state: AptState, source_state: Callable[[], AptState], deadline: Deadline | None
            ) -> Mapping[tuple[str, str], str]:
    """SHA-256 by name and version, of what `spec` pins by hash; lists are fetched for it only with a `deadline`."""
    if spec.packages:
        return state.package_hashes(list(spec.packages))
    if not spec.package:
        return {}
    sources = source_state()
    if deadline:
        with suppress(MirrorError):
            sources.refresh(deadline)
    # Lists that were never fetched say nothing.
    return sources.source_hashes(spec.package) if sources.state() else {}


def _unchanged(spec: SourceSpec, release: str, listed: Mapping[tuple[str, str], str]) -> None:
    pins = spec.packages or {spec.package: spec.sha256}
    for (name, version), digest in listed.items():
        if version == spec.version:
            compare(f"{release}'s {name} {version}", pins[name], digest, spec)


def _kernel(appliance: Appliance, state: AptState) -> Iterator[AgedPin]:
    exact = re.fullmatch(r"linux-image-\d+\.\S*?-(?P<flavour>(?:[a-z]+-)?[a-z]+\d*)", appliance.kernel)
    if not exact:
        return
    meta = f"linux-image-{exact['flavour']}"
    offer = newest(state.offers(meta))
    for current in state.depends(meta) if offer else ():
        if offer and old_kernel(appliance.kernel, meta, current):
            yield AgedPin(f"{appliance.file.name}:{appliance.line}", f"kernel {appliance.kernel}",
                          f"is older than {appliance.release}'s{_suite(offer)}", current)


def _mirrors(appliance: Appliance, state: AptState, deadline: Deadline) -> Iterator[AgedPin]:
    for key, url, suite in (("main", appliance.image_mirror, appliance.release),
                            ("security", appliance.image_security_mirror, f"{appliance.release}-security")):
        if not url or (why := _gone(url, suite, deadline)) is None:
            continue
        dates = [release.date for release in state.own_releases if release.codename == suite]
        other = stamped(url, f"{max(dates):%Y%m%dT%H%M%SZ}") if dates else None
        yield AgedPin(f"{appliance.file.name}:{appliance.line}", f"image_mirrors.{key} {url}", why,
                      other if other and _gone(other, suite, deadline) is None else "")


def _gone(url: str, suite: str, deadline: Deadline) -> str | None:
    """Why the image would get no packages of `suite` from `url`; None where it would."""
    said = ""
    for name in ("InRelease", "Release"):
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/dists/{suite}/{name}",
                                        timeout=max(1.0, min(10.0, deadline.remaining))):
                return None
        except urllib.error.HTTPError as error:
            said = f"answers {error.code} {error.reason} for dists/{suite}/{name}"
            if error.code not in {404, 410}:
                break
        except NO_ANSWER as error:
            # An address that only the cloud knows is not wrong.
            return f"can't be looked at from this machine: {cause(error)}"
    return said


def _suite(offer: Offer) -> str:
    return " (security)" if offer.suite.endswith("-security") else ""
