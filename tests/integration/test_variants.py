"""What the everyday tests don't boot: another data source, a relay with Redis."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest

from harness.appliance import Appliance
from harness.cloud import configdrive
from harness.image.build import Image
from harness.settings import Settings
from tests.real_server import Booted, server_of, work_in

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]


def test_a_server_of_nocloud_passes_all_checks(booted: Callable[[Image], AbstractContextManager[Booted]],
                                               real_image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drive labelled `cidata` with meta-data and user-data (cloud-init's documentation, NoCloud)."""
    def files(instance: configdrive.Instance) -> dict[str, str]:
        return {"meta-data": json.dumps({"instance-id": instance.uuid, "local-hostname": instance.name,
                                         "public-keys": {"dialtone": instance.public_key.strip()}}),
                "user-data": instance.user_data}

    monkeypatch.setattr(configdrive, "files", files)
    monkeypatch.setattr(configdrive, "LABEL", "cidata")
    with booted(real_image) as server:
        assert server.red("-k", "test_datasource_as_described") == ["test_datasource_as_described"]
        assert replace(server, server=replace(server.server, datasource="NoCloud")).red() == []


def test_a_relay_with_redis_passes_all_checks(real_settings: Settings, real_appliance: Appliance) -> None:
    assert real_appliance.rtpengine
    with_redis = replace(real_appliance, rtpengine=replace(real_appliance.rtpengine, redis=True))
    with work_in(real_settings, with_redis) as work:
        image = work.build()
    with server_of(real_settings, with_redis, image) as server:
        # The checks read the description from its file, which says no: they must see that this server is another.
        assert server.red() == ["test_redis_as_described"]
        assert server.root("redis-cli -n 1 ping; grep ^redis /etc/rtpengine/rtpengine.conf").split() == [
            "PONG", "redis", "=", "127.0.0.1:6379/1"]
