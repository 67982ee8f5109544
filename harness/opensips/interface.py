"""The Event Interface of a running OpenSIPS, by its Management Interface."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.deadline import Deadline
from harness.errors import DescriptionError
from harness.opensips.mi import MiClient, MiMalformed, MiRefused
from harness.opensips.profile import PROFILES, Profile, of_version

_VERSION = re.compile(r"OpenSIPS \((\d+\.\d+[^ )]*)")
NOT_THERE = 404


@dataclass(frozen=True)
class Subscription:
    """Who is told of an event. `expire` is in seconds, None for ever; `ttl` is what is left of it.

    A subscription that has expired is listed, with a ttl of 0, and served until the second that it ended in is over.
    """

    event: str
    socket: str
    expire: int | None
    ttl: int | None


class EventInterface:
    """Events and subscriptions of the OpenSIPS that `client` asks; its version decides what methods are called."""

    def __init__(self, client: MiClient, deadline: Deadline | None = None) -> None:
        """Asks for the version. Raises MiNoAnswer, MiMalformed: also where no profile is known for it."""
        self.client = client
        said = client.request("version", deadline=deadline)
        found = _VERSION.search(str(said.get("Server") if isinstance(said, dict) else said))
        self.version = found[1] if found else ""
        profile = of_version(self.version)
        if profile is None:
            known = ", ".join(f"{start}x" for profile in PROFILES for start in profile.versions)
            raise MiMalformed(f"what is at {client.place} calls itself {said!r}", hint=f"known is OpenSIPS {known}")
        self.profile: Profile = profile

    def up_since(self, deadline: Deadline | None = None) -> str:
        """When OpenSIPS was started, in its own words."""
        return _text(self.client.request("uptime", deadline=deadline), "Up since", "uptime")

    def events(self) -> tuple[str, ...]:
        """Every event that can be subscribed to."""
        listed = _list(self.client.request(self.profile.events), "Events", self.profile.events)
        return tuple(_text(event, "name", self.profile.events) for event in listed)

    def subscriptions(self, event: str = "") -> tuple[Subscription, ...]:
        """All subscriptions, or those of one event. Raises MiRefused with code 404 where there is no such event.

        OpenSIPS has some 64 KiB for an answer by datagram: of very many subscriptions ask event by event.
        """
        method = self.profile.subscribers
        answer = self.client.request(method, [event] if event else [])
        if not event:
            blocks = _list(answer, "Events", method)
        elif isinstance(answer, dict) and isinstance(answer.get("Event"), dict):
            blocks = [answer["Event"]] if answer["Event"] else []
        else:
            raise MiMalformed(f"the answer to {method} has no Event: {answer!r}")
        return tuple(_subscription(_text(block, "name", method), one, method)
                     for block in blocks for one in _list(block, "Subscribers", method))

    def subscribed(self, event: str, socket: str, deadline: Deadline | None = None) -> bool:
        """Whether `socket` is told of `event`."""
        try:
            self.client.request(self.profile.subscribers, [event, socket], deadline)
        except MiRefused as error:
            if error.code != NOT_THERE:
                raise
            return False
        return True

    def subscribe(self, event: str, socket: str, expire: int, deadline: Deadline | None = None) -> None:
        """Have `socket`, like udp:192.0.2.1:9999, told of `event` for `expire` seconds from now; again to renew.

        Raises MiRefused with code 400 where there is no such event, or no module for the transport.
        """
        said = self.client.request(self.profile.subscribe, [event, socket, expire], deadline)
        if said != "OK":
            raise MiMalformed(f"{self.profile.subscribe} was answered with {said!r}", hint="OK is the answer")

    def unsubscribe(self, event: str, socket: str, deadline: Deadline | None = None) -> None:
        """End a subscription, or none. What is raised in the same second may still be sent."""
        self.subscribe(event, socket, 0, deadline)

    def raise_event(self, event: str, params: Mapping[str, int | str] | Sequence[str] = ()) -> None:
        """Have OpenSIPS raise `event`, soon after it has answered.

        `params` by name keep their types, numbers are of 32 bits; by position they are text. Raises MiRefused: code
        480 where nobody has subscribed, 404 where there is no such event; DescriptionError for what can't be a value.
        """
        values = params.values() if isinstance(params, Mapping) else params
        for value in values:
            # Of other values OpenSIPS frees the text before it sends it: anything may arrive.
            if type(value) is not str and (type(value) is not int or not -2**31 <= value < 2**31):
                raise DescriptionError(f"{value!r} can't be a value of an event: neither text nor a number of 32 bits")
        # An object is taken as JSON in a text; as an object it would be refused (400 No Params).
        given = json.dumps(params) if isinstance(params, Mapping) else list(params)
        self.client.request(self.profile.raise_event, [event, given] if params else [event])

    def blocked(self) -> tuple[str, ...]:
        """Addresses that the module pike blocks now."""
        return tuple(_list(self.client.request(self.profile.blocked), "IPs", self.profile.blocked))

    def unblock(self, address: str) -> None:
        """Have the module pike forget that it blocks `address`. Raises MiRefused where it does not."""
        self.client.request(self.profile.unblock, [address])


def _subscription(event: str, listed: Any, method: str) -> Subscription:
    socket = _text(listed, "socket", method)
    expire, ttl = listed.get("expire"), listed.get("ttl")
    if expire == "never":
        return Subscription(event, socket, None, None)
    if not isinstance(expire, int) or not (isinstance(ttl, int) or ttl == "expired"):
        raise MiMalformed(f"{method} lists a subscription that can't be understood: {listed!r}")
    return Subscription(event, socket, expire, 0 if ttl == "expired" else ttl)


def _list(answer: Any, name: str, method: str) -> list[Any]:
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, list):
        raise MiMalformed(f"the answer to {method} has no list {name}: {answer!r}")
    return found


def _text(answer: Any, name: str, method: str) -> str:
    found = answer.get(name) if isinstance(answer, dict) else None
    if not isinstance(found, str):
        raise MiMalformed(f"the answer to {method} has no {name}: {answer!r}")
    return found
