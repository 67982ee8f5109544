"""A relay whose ports are not tracked: an image of its own, and what its table has under calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from harness import appliance as appliances_file
from harness.deadline import Deadline
from harness.image.finding import expectation
from harness.image.inspect import inspect
from harness.levels import Level
from harness.settings import Settings
from tests.conftest import PROJECT
from tests.controls import Control, broken
from tests.real_server import Booted, work_in

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]


@pytest.fixture(scope="module")
def stateless(real_settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    """A server of the project's appliance with `stateless: true`."""
    described = yaml.safe_load((PROJECT / "appliances.yaml").read_text())
    described["appliances"]["rtpengine"]["conntrack"]["stateless"] = True
    described["appliances"]["rtpengine"]["checks"] = [str(PROJECT / "tests/appliance")]
    file: Path = tmp_path_factory.mktemp("stateless") / "appliances.yaml"
    file.write_text(yaml.safe_dump(described))
    appliance = appliances_file.load(file)["rtpengine"]
    with work_in(real_settings, appliance) as work:
        image = work.build()
        findings = inspect(image.path, expectation(appliance, image.kernel), lambda text: None, Deadline(300))
        assert [(f.title, f.seen) for f in findings if f.outcome != "passed"] == []
        yield Booted(work, work.launch(work.upload(image))[0])


def test_a_server_is_green(stateless: Booted) -> None:
    assert stateless.red() == []


def test_media_takes_no_entries_until_the_rules_are_gone(stateless: Booted) -> None:
    def entries() -> tuple[str, str]:
        [result] = stateless.results("-k", "test_entries_of_calls", level=Level.ACCEPTANCE)
        return result.outcome, result.seen

    assert entries() == ("passed", "10 calls: 0 entries of RTP and 0 of RTCP, 0 of them assured")
    with broken(stateless, Control("", "systemctl stop conntrack-notrack", "systemctl start conntrack-notrack", "")):
        assert entries() == ("failed", "20 entries of RTP and 20 of RTCP, 40 of them assured")
    assert entries()[0] == "passed"
    rules = stateless.root("iptables -w -t raw -S; ip6tables -w -t raw -S")
    assert rules.count("--notrack") == 4, "each rule once, for both families"


def test_no_client_of_the_servers_own_gets_an_untracked_port(stateless: Booted) -> None:
    assert stateless.root("sysctl -n net.ipv4.ip_local_reserved_ports").strip() == "30000-40000"
