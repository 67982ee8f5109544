import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from harness.errors import HostError
from harness.settings import Settings
from harness.testcloud import up
from harness.testcloud.config import addresses_of
from harness.testcloud.place import place_of


@pytest.fixture
def settings(tmp_path):
    """Of a cloud whose state lies in the cache, with addresses as they are set by default, without volumes."""
    found = Settings(tmp_path, cache=tmp_path / "cache", runs=tmp_path / "runs")
    place = place_of(found)
    for name in ("root-1", "seed-1", "state"):
        (place.directory / name).mkdir(parents=True)
    base = up.Base("root-1", "seed-1", found.testcloud_link, found.testcloud_external)
    (place.state / "base.json").write_text(json.dumps(asdict(base)))
    return found


def _kept(settings):
    return up._kept(settings, place_of(settings), addresses_of(settings))


def test_a_state_is_used_again(settings):
    assert _kept(settings).root == "root-1"


def test_a_state_of_before_there_were_volumes_has_none(settings):
    file = place_of(settings).state / "base.json"
    old = json.loads(file.read_text())
    del old["volumes"]
    file.write_text(json.dumps(old))
    assert not _kept(settings).volumes


@pytest.mark.parametrize(("changed", "complaint"), [
    ({"testcloud_volumes": True}, "is one without volumes"),
    ({"testcloud_external": "198.19.128.0/24"}, "has other addresses"),
])
def test_a_state_of_another_kind_is_refused(settings, changed, complaint):
    with pytest.raises(HostError, match=complaint):
        _kept(replace(settings, **changed))


def test_no_state_is_made_anew(settings):
    assert up._kept(settings, replace(place_of(settings), directory=Path("/nowhere")), addresses_of(settings)) is None
