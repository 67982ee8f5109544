"""Relays of the generations whose daemon makes the rules: every check is green on a real server, and red where what its
generation has to show is not there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import yaml

from harness import appliance as appliances_file
from harness import host
from harness.generation import GENERATIONS, Generation
from harness.levels import Level
from harness.settings import Settings
from tests.conftest import PROJECT
from tests.controls import Control, broken
from tests.real_server import Booted, work_in

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]

NAMES = ("rtpengine-12", "rtpengine-26")
MODULE = "xt_RTPENGINE"
"""What the generation before has."""
EXTENSION = "/usr/lib/x86_64-linux-gnu/xtables/libxt_RTPENGINE.so"


def without_rule(generation: Generation, family: str, red: str) -> Control:
    rule = generation.rule(family, 0)
    return Control(f"no rule for {family}: {red}", rule.delete, rule.insert, red)


CONTROLS = [
    Control("a chain that is left", "iptables -w -N rtpengine_left; iptables -w -A INPUT -p udp -j rtpengine_left",
            "iptables -w -D INPUT -p udp -j rtpengine_left; iptables -w -X rtpengine_left",
            "test_module_unloaded_and_loaded"),
    Control("an extension of another generation", f"touch {EXTENSION}", f"rm {EXTENSION}", "test_iptables_extension"),
    Control("a daemon that may fall back",
            "cp /etc/rtpengine/rtpengine.conf /run/conf; "
            "sed -i 's/^no-fallback.*/no-fallback = false/' /etc/rtpengine/rtpengine.conf; systemctl restart rtpengine",
            "cat /run/conf >/etc/rtpengine/rtpengine.conf; systemctl restart rtpengine", "test_without_module"),
]


def controls(generation: Generation) -> dict[str, Control]:
    """By name."""
    found = [
        without_rule(generation, "ip", "test_rule_to_module[ip]"),
        without_rule(generation, "ip6", "test_rule_to_module[ip6]"),
        without_rule(generation, "ip", "test_forwarded_by_daemon test_forwarded_by_module"),
        *CONTROLS,
    ]
    return {control.name: control for control in found}


@pytest.fixture(scope="module", params=NAMES)
def server(real_settings: Settings, request: pytest.FixtureRequest) -> Iterator[Booted]:
    appliance = appliances_file.select(appliances_file.load(real_settings.appliances), request.param)
    host.prepare(real_settings, say=lambda text: None)
    with work_in(real_settings, appliance) as work:
        image = work.build()
        work.inspect(image)
        yield Booted(work, work.launch(work.upload(image))[0])


def generation_of(server: Booted) -> Generation:
    relay = server.work.appliance.rtpengine
    assert relay
    return relay.generation


def test_every_check_is_green(server: Booted) -> None:
    results = server.results(level=Level.ACCEPTANCE)
    assert [(r.id, r.message) for r in results if r.red] == []
    ran = {r.id.rsplit("::", 1)[-1] for r in results if r.outcome == "passed"}
    assert {name for control in controls(generation_of(server)).values() for name in control.red.split()} <= ran


@pytest.mark.parametrize("name", controls(GENERATIONS[-1]))
def test_control(server: Booted, name: str) -> None:
    control = controls(generation_of(server))[name]
    red = control.red.split()
    functions = " or ".join({name.partition("[")[0] for name in red})
    with broken(server, control):
        assert server.red("-k", functions, level=Level.ACCEPTANCE) == red


def test_what_another_generation_has_to_show_is_not_here(server: Booted, tmp_path_factory: pytest.TempPathFactory
                                                         ) -> None:
    """The same server, described as one of the generation before."""
    content = yaml.safe_load((PROJECT / "appliances.yaml").read_text(encoding="utf-8"))
    before = content["appliances"]["rtpengine"] | {"checks": [f"{PROJECT}/tests/appliance"]}
    file = tmp_path_factory.mktemp("before") / "appliances.yaml"
    name = server.work.appliance.name
    file.write_text(yaml.safe_dump({"appliances": {name: before}}), encoding="utf-8")
    described = replace(server, work=replace(server.work, appliance=appliances_file.load(file)[name]))
    # What needs a module of that name is not run where there is none.
    of_module = ({"test_rule_to_module[ip]", "test_rule_to_module[ip6]", "test_table_added_and_deleted"}
                 if generation_of(server).module == MODULE else {"test_module_in_extra"})
    assert {"test_daemon_version", "test_iptables_extension", "test_stages_share_interpreter",
            *of_module} <= set(described.red())


def test_all_is_green_again(server: Booted) -> None:
    assert server.red() == []
