"""Everything that the test cloud's APIs list, to compare before and after."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.cloud.api import Api
from harness.settings import Settings


def of(settings: Settings) -> dict[str, list[str]]:
    """Names and ids of the whole test cloud by kind, as its administrator sees it; key pairs are their users' own."""
    sdk: Any = Api("testcloud-admin", settings).sdk
    listed = {
        "servers": sdk.compute.servers(details=True, all_projects=True), "images": sdk.image.images(),
        "networks": sdk.network.networks(), "subnets": sdk.network.subnets(), "routers": sdk.network.routers(),
        "ports": sdk.network.ports(), "floating IPs": sdk.network.ips(),
        "security groups": sdk.network.security_groups(), "rules": sdk.network.security_group_rules()}
    if settings.testcloud_volumes:
        # Cinder lets go of a volume a moment after its server is gone; a deletion that failed has another status.
        listed["volumes"] = [v for v in sdk.block_storage.volumes(all_projects=True) if v.status != "deleting"]
    for user in ("testcloud", "testcloud-other"):
        listed[f"key pairs of {user}"] = Api(user, settings).sdk.compute.keypairs()
    return {kind: sorted(f"{thing.name} {thing.id}" for thing in things) for kind, things in listed.items()}


@contextmanager
def unchanged(settings: Settings) -> Iterator[None]:
    """What the cloud lists is the same after the block as before."""
    first = of(settings)
    yield
    changed = more(first, of(settings))
    assert not changed, "\n".join(changed)


def more(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """What is there after and was not before, and what is gone, one line each."""
    lines = [f"left: {kind} {name}" for kind, names in after.items() for name in names if name not in before[kind]]
    return lines + [f"gone: {kind} {name}" for kind, names in before.items() for name in names
                    if name not in after[kind]]
