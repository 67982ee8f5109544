"""Volumes in Cinder (Block Storage API v3). Servers boot from them; Nova makes and removes them."""

from __future__ import annotations

from harness.cloud.api import Api
from harness.cloud.capacity import Limit
from harness.errors import DescriptionError


def quota(api: Api) -> list[Limit]:
    """What the project uses of its quota of volumes. Raises DescriptionError where the cloud has none."""
    if not api.get("the catalog", lambda: api.sdk.has_service("block-storage")):
        raise DescriptionError(f"{api.name} has no volumes (no service block-storage in its catalog)",
                               hint="leave `volume` out of its entry in clouds.yaml: docs/openstack.md")
    limits = api.get("the quota of volumes", lambda: api.sdk.block_storage.get_limits()).absolute
    return [Limit("volumes", limits.total_volumes_used, limits.max_total_volumes),
            Limit("GiB of volumes", limits.total_gigabytes_used, limits.max_total_volume_gigabytes)]
