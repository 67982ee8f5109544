"""Everything that a cloud's APIs list, to compare before and after."""

from __future__ import annotations

from typing import Any

from harness.cloud.api import Api


def of(api: Api) -> dict[str, list[str]]:
    """Names and ids by kind: of the project, or as an administrator of the whole cloud."""
    sdk: Any = api.sdk
    listed = {
        "servers": sdk.compute.servers(details=True), "key pairs": sdk.compute.keypairs(),
        "images": sdk.image.images(), "networks": sdk.network.networks(), "subnets": sdk.network.subnets(),
        "routers": sdk.network.routers(), "ports": sdk.network.ports(), "floating IPs": sdk.network.ips(),
        "security groups": sdk.network.security_groups(), "rules": sdk.network.security_group_rules()}
    return {kind: sorted(f"{thing.name} {thing.id}" for thing in things) for kind, things in listed.items()}


def more(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """What is there after and was not before, and what is gone, one line each."""
    lines = [f"left: {kind} {name}" for kind, names in after.items() for name in names if name not in before[kind]]
    return lines + [f"gone: {kind} {name}" for kind, names in before.items() for name in names
                    if name not in after[kind]]
