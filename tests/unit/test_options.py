from __future__ import annotations

from typing import Any

import pytest

from harness.cloud import Gateway, RouteKind
from harness.cloud.options import CloudOptions, parse
from harness.errors import DescriptionError


def test_nothing_said_means_the_defaults() -> None:
    assert parse(None, "x") == CloudOptions()


def test_everything_is_read() -> None:
    options = parse({"external_network": "public", "cidr": "10.1.0.0/24", "config_drive": False, "route": "jump",
                     "network_nodes": [{"host": "node1", "user": "stack", "port": 2022}],
                     "jump": {"host": "bastion"}, "remote_prefix": "192.0.2.0/24"}, "x")
    assert options.network_nodes == (Gateway("node1", "stack", 2022),)
    assert (options.route, options.jump) == (RouteKind.JUMP, Gateway("bastion"))
    assert not options.config_drive


@pytest.mark.parametrize(("value", "said"), [
    ([], "clouds.x.dialtone: is no mapping"),
    ({"flavour": "a"}, "unknown key 'flavour'"),
    ({"flavor": 1}, "dialtone.flavor: 1 is no text"),
    ({"config_drive": "yes"}, "dialtone.config_drive: 'yes' is neither true nor false"),
    ({"route": "tunnel"}, "dialtone.route: 'tunnel' is no route"),
    ({"route": "jump"}, "dialtone.jump is missing"),
    ({"remote_prefix": "10.0.0.1/8"}, "dialtone.remote_prefix: 10.0.0.1/8 has host bits set"),
    ({"network_nodes": {"host": "a"}}, "network_nodes: is no list"),
    ({"network_nodes": [{}]}, "network_nodes[0].host: is missing"),
    ({"network_nodes": [{"host": "a", "port": "x"}]}, "network_nodes[0].port: 'x' is no port"),
    ({"network_nodes": [{"host": "a", "key": "x"}]}, "network_nodes[0]: unknown key 'key'"),
])
def test_a_mistake_is_named_with_its_place(value: Any, said: str) -> None:
    with pytest.raises(DescriptionError) as caught:
        parse(value, "x")
    assert said in caught.value.message
    assert caught.value.message.startswith("clouds.yaml: clouds.x.dialtone")
