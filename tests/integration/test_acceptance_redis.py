"""A relay that keeps its calls in Redis: they survive its daemon, and the relay survives Redis; red where not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness import appliance as appliances_file
from harness import host
from harness.levels import Level
from harness.settings import Settings
from tests.controls import CONFIGURATION, MEDIA, Control, assert_turned, configured, rule
from tests.real_server import Booted, work_in

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]

CONTROLS = [
    configured("test_daemon_stopped test_daemon_killed test_redis_restarted test_redis_down", "no Redis",
               f"sed -i '/^redis = /d' {CONFIGURATION}"),
    configured("test_redis_down", "no start without Redis", f"sed -i /^no-redis-required/d {CONFIGURATION}"),
    configured("test_redis_hangs", "no limit to wait for Redis", f"sed -i /^redis-cmd-timeout/d {CONFIGURATION}"),
    configured("test_redis_hangs", "Redis asked again and again", f"sed -i /^redis-allowed-errors/d {CONFIGURATION}"),
    rule("test_redis_restarted test_redis_hangs test_redis_down", "a packet of a hundred lost",
         f"-p {MEDIA} -m statistic --mode nth --every 100 --packet 50 -j DROP"),
    Control("a Redis that forgets", "redis-cli config set save ''; rm -f /var/lib/redis/dump.rdb",
            "redis-cli config set save '3600 1 300 100 60 10000'", "test_redis_restarted"),
]


@pytest.fixture(scope="module")
def server(real_settings: Settings) -> Iterator[Booted]:
    appliance = appliances_file.select(appliances_file.load(real_settings.appliances), "rtpengine-redis")
    host.prepare(real_settings, say=lambda text: None)
    with work_in(real_settings, appliance) as work:
        yield Booted(work, work.launch(work.upload(work.build()))[0])


def test_every_check_is_green(server: Booted) -> None:
    assert server.red() == []
    results = server.results("-k", "test_outages or test_redis.py", level=Level.ACCEPTANCE)
    assert [(r.id, r.message) for r in results if r.outcome != "passed"] == []
    seen = {r.id.rsplit("::", 1)[-1]: r.seen for r in results}
    print(*(f"{check}: {text}" for check, text in seen.items()), sep="\n")
    assert "5 of 5 calls kept, no media for " in seen["test_daemon_killed"]
    assert "5 of 5 calls kept, no media for " in seen["test_daemon_stopped"]
    assert "without an answer of Redis 5 calls set up in " in seen["test_redis_hangs"]


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_control(server: Booted, control: Control) -> None:
    assert_turned(server, control)


def test_all_is_green_again(server: Booted) -> None:
    assert server.red() == []
