from types import SimpleNamespace

import pytest

from harness.cloud import cinder
from harness.cloud.capacity import Limit
from harness.errors import DescriptionError


def _api(*services: str) -> SimpleNamespace:
    absolute = SimpleNamespace(total_volumes_used=1, max_total_volumes=10, total_gigabytes_used=4,
                               max_total_volume_gigabytes=-1)
    sdk = SimpleNamespace(has_service=lambda service: service in services,
                          block_storage=SimpleNamespace(get_limits=lambda: SimpleNamespace(absolute=absolute)))
    return SimpleNamespace(name="lab", sdk=sdk, get=lambda what, action: action())


def test_figures_of_the_quota():
    assert cinder.quota(_api("block-storage")) == [Limit("volumes", 1, 10), Limit("GiB of volumes", 4, -1)]


def test_a_cloud_without_volumes_is_said():
    with pytest.raises(DescriptionError, match="lab has no volumes"):
        cinder.quota(_api("compute"))
