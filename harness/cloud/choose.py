"""The cloud that a name stands for."""

from __future__ import annotations

from harness.cloud import Cloud
from harness.cloud.local import LocalCloud
from harness.errors import DescriptionError
from harness.settings import Settings


def choose(settings: Settings) -> Cloud:
    """The cloud named in the settings. Raises DescriptionError for one that is not known."""
    if settings.cloud == "local":
        return LocalCloud(settings)
    raise DescriptionError(f"there is no cloud {settings.cloud!r}", hint="known: local")
