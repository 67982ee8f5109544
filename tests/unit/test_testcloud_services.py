import json
from pathlib import Path

import pytest

from harness.cloud.routes import overlapping
from harness.settings import Settings
from harness.testcloud import services
from harness.testcloud.config import Secrets, addresses_of
from harness.testcloud.node import plan

ADDRESSES = addresses_of(Settings(Path("/p")))
SECRETS = Secrets(*"dmsxauo")
CLOUD = services.cloud(ADDRESSES, volumes=False)
PLANS = {"cloud": CLOUD, "cloud with volumes": services.cloud(ADDRESSES, volumes=True),
         "seed": services.seed(ADDRESSES, SECRETS, volumes=False),
         "seed with volumes": services.seed(ADDRESSES, SECRETS, volumes=True)}


@pytest.mark.parametrize("name", PLANS)
def test_every_need_is_a_service_and_no_two_wait_for_each_other(name):
    wanted = PLANS[name]
    assert len({s.name for s in wanted}) == len(wanted)
    started: set[str] = set()
    while len(started) < len(wanted):
        free = {s.name for s in wanted if s.name not in started and set(s.needs) <= started}
        assert free, f"never started: {[s.name for s in wanted if s.name not in started]}"
        started |= free


@pytest.mark.parametrize("name", PLANS)
def test_a_command_is_ready_when_it_has_ended_and_is_asked_nothing(name):
    assert [s.name for s in PLANS[name] if s.once and s.ready] == []


def test_the_conductor_has_its_account_before_it_starts():
    """It asks Placement as soon as it runs, and dies where Keystone does not know it."""
    by_name = {s.name: s for s in CLOUD}
    assert {"keystone", "placement"} <= set(by_name["nova-conductor"].needs)
    assert "nova-conductor" in by_name["nova-compute"].needs


def test_databases_are_stopped_in_order():
    for wanted in PLANS.values():
        assert {s.name for s in wanted if s.graceful} == {"mariadb", "rabbitmq"}


def test_no_secret_is_an_argument():
    secrets = Secrets.generate()
    words = [word for s in services.seed(ADDRESSES, secrets, volumes=True) for word in s.argv]
    words += [word for s in services.cloud(ADDRESSES, volumes=True) for word in s.argv]
    assert not [word for word in words if any(value in word for value in vars(secrets).values())]


def test_a_plan_is_json():
    text = json.dumps(plan([], CLOUD, services.directories(volumes=False)))
    assert json.loads(text)["services"][0]["name"] == CLOUD[0].name


@pytest.mark.parametrize(("route", "expected"), [
    ({"dst": "198.19.0.0/24", "dev": "eth1"}, 1),
    ({"dst": "198.19.0.128/25", "dev": "eth1"}, 1),
    ({"dst": "198.19.0.0/16", "dev": "eth1"}, 2),
    ({"type": "local", "dst": "198.19.255.1", "dev": "eth1"}, 1),
    ({"dst": "default", "dev": "eth1"}, 0),
    ({"dst": "0.0.0.0/0", "dev": "eth1"}, 0),
    ({"dst": "198.18.0.5", "dev": "dt-1"}, 0),
])
def test_addresses_that_the_host_uses_are_not_taken(route, expected):
    assert len(list(overlapping([route], ADDRESSES.link, ADDRESSES.external))) == expected
