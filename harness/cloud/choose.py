"""The cloud that a name stands for."""

from __future__ import annotations

from harness.cloud import Cloud
from harness.cloud.local import LocalCloud
from harness.settings import Settings


def choose(settings: Settings) -> Cloud:
    """The cloud named in the settings: `local`, or one of clouds.yaml. Raises DescriptionError for any other."""
    if settings.cloud == "local":
        return LocalCloud(settings)
    # openstacksdk takes a second to load.
    from harness.cloud.api import Api
    from harness.cloud.openstack import OpenStackCloud

    return OpenStackCloud(settings, Api(settings.cloud, settings))
