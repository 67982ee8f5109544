"""The host's own IPv4 routes, and what of them is in the way of networks that are to be made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network
from typing import Any

from harness.process import run


def routes() -> list[dict[str, Any]]:
    """Every IPv4 route of this host, local addresses included, as `ip -json route` has them."""
    listed: list[dict[str, Any]] = json.loads(
        run(["ip", "-4", "-json", "route", "show", "table", "all"]).stdout or "[]")
    return listed


def overlapping(known: Sequence[Mapping[str, Any]], *wanted: IPv4Network) -> Iterator[str]:
    """What of the routes `known` overlaps with one of the `wanted` networks, default routes apart; one phrase each."""
    for route in known:
        if route.get("dst", "default") == "default":
            continue
        destination = IPv4Network(route["dst"], strict=False)
        for network in wanted:
            if destination.prefixlen and destination.overlaps(network):
                yield f"{route.get('type', 'route')} {route['dst']} dev {route.get('dev', '-')}"
