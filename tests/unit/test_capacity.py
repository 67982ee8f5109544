from __future__ import annotations

import pytest

from harness.cloud import Need
from harness.cloud.capacity import Flavor, Limit, choose, shortages
from harness.errors import CloudError, DescriptionError

TINY, SMALL, LARGE = (Flavor("1", "tiny", 512, 1, 4), Flavor("2", "small", 1024, 2, 4),
                      Flavor("3", "large", 4096, 4, 40))
DISKLESS = Flavor("4", "diskless", 1024, 2, 0)
NEED = Need(1024, 2, 4)


def test_the_smallest_that_fits() -> None:
    assert choose([LARGE, SMALL, TINY], NEED) is SMALL
    assert choose([LARGE, TINY], NEED) is LARGE
    assert choose([DISKLESS], NEED) is DISKLESS


def test_the_named_one() -> None:
    assert choose([LARGE, SMALL], NEED, "large") is LARGE
    with pytest.raises(DescriptionError, match="no flavor 'huge'") as unknown:
        choose([LARGE, SMALL], NEED, "huge")
    assert unknown.value.hint == "known: small, large"
    with pytest.raises(DescriptionError, match="tiny has 512 MiB, 1 processors, 4 GiB, and 1024 MiB"):
        choose([LARGE, TINY], NEED, "tiny")


def test_none_fits() -> None:
    with pytest.raises(CloudError, match="no flavor has 8192 MiB") as caught:
        choose([LARGE], Need(8192, 2, 4))
    assert "large with 4096 MiB" in str(caught.value.hint)


def test_what_a_quota_lacks() -> None:
    limits = [Limit("servers", 9, 10), Limit("floating IPs", 3, 3), Limit("ports", 99, -1)]
    assert shortages(limits, {"servers": 1, "ports": 5}) == []
    assert shortages(limits, {"servers": 2, "floating IPs": 1}) == [
        "servers: 9 of 10 used, 2 more wanted", "floating IPs: 3 of 3 used, 1 more wanted"]
