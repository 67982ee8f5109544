"""What the everyday tests don't boot: another data source."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest

from harness.cloud import configdrive
from harness.image.build import Image
from tests.real_server import Booted

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
