"""The checks of events on one real server with OpenSIPS: each is green, and red where what it proves is broken.

For this the description has to say where OpenSIPS's packages are: DIALTONE_APPLIANCES=a file that does.
"""

from __future__ import annotations

import pytest

from harness.levels import Level
from tests.controls import Control, assert_turned, outcomes
from tests.real_server import Booted

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]

CFG = "/etc/opensips/opensips.cfg"


def configured(red: str, name: str, script: str, green: str = "") -> Control:
    """The proxy started anew after `script` changed its configuration."""
    return Control(name, f"cp {CFG} /run/cfg; {script} {CFG}; systemctl restart opensips; sleep 1",
                   f"cat /run/cfg >{CFG}; systemctl restart opensips; sleep 1", red, green)


CONTROLS = [
    configured("test_management_answers[FIFO]", "no FIFO", "sed -i /mi_fifo/d",
               "test_management_answers[datagrams] test_management_answers[HTTP]"),
    configured("test_events_listed", "an event with another name", "sed -i s/E_CALL_REFUSED/E_CALL_DENIED/"),
    configured("test_subscription_listed[tcp]", "no transport by TCP", "sed -i /event_stream/d",
               "test_subscription_listed[udp] test_subscription_listed[unix]"),
    configured("test_event_of_script", "another code", r"sed -i 's/\$avp(value) = \$param(1)/$avp(value) = 486/'",
               "test_event_by_management"),
    configured("test_event_of_module", "no flood is a flood", "sed -i 's/reqs_density_per_unit\", .*/"
               "reqs_density_per_unit\", 1000000)/'", "test_event_by_management"),
    configured("test_event_of_core", "a threshold that can't be set", "sed -i /^event_pkg_threshold/d"),
]


@pytest.fixture(scope="module")
def server(opensips_server: Booted) -> Booted:
    return opensips_server


def test_every_check_is_green(server: Booted) -> None:
    results = server.results("-k", "test_opensips_events", level=Level.ACCEPTANCE)
    print(*(f"{r.id.rsplit('::', 1)[-1]}: {r.outcome} {r.seen} {r.seconds:.1f} s" for r in results), sep="\n")
    assert [(r.id, r.message) for r in results if r.outcome != "passed"] == [] and len(results) == 14


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_control(server: Booted, control: Control) -> None:
    assert_turned(server, control)


def test_all_is_green_again(server: Booted) -> None:
    assert set(outcomes(server, "-k", "test_opensips_events").values()) == {"passed"}
