"""What differs between versions of OpenSIPS, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Profile:
    """Names of methods of the Management Interface; `versions` are those that have them, by their beginning."""

    versions: tuple[str, ...]
    subscribe: str
    events: str
    subscribers: str
    raise_event: str
    blocked: str
    unblock: str


PROFILES: Final = (
    Profile(("3.",), "event_subscribe", "events_list", "subscribers_list", "raise_event", "pike_list",
            "pike_rm"),
    # Each module's methods bear its name; of the old names the core's still work, most modules' do not.
    Profile(("4.",), "evi:subscribe", "evi:list", "evi:subscribers", "evi:raise", "pike:list", "pike:rm"),
)


def of_version(version: str) -> Profile | None:
    """The profile of a version like 3.6.8; None where none is known."""
    return next((profile for profile in PROFILES if version.startswith(profile.versions)), None)
