"""The checks of events on a real server, over SSH and its router. What runs there is a stand-in, and not OpenSIPS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from harness import appliance as appliances_file
from harness.appliance import Appliance
from harness.image.build import Image
from harness.levels import Level
from harness.settings import Settings
from tests.conftest import PROJECT
from tests.controls import Control, assert_turned, outcomes
from tests.real_server import Booted, work_in

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]

SIP = 30_500
"""A port that the router lets in for the image that it runs on."""
DESCRIPTION = f"""\
appliances:
  opensips:
    description: stand-in, not OpenSIPS
    release: bookworm
    elements: [voip-appliance, opensips]
    checks: [{PROJECT / 'tests/appliance'}]
    opensips: {{version: 4.0.1-1, port: {SIP}, pike_density: 16}}
"""
PROGRAM = "/usr/local/lib/opensips_double.py"
INSTALL = f"""
cat >{PROGRAM} <<'END'
{(PROJECT / 'tests/opensips_double.py').read_text()}
END
mkdir -p /etc/opensips
echo event_pkg_threshold=0 >/etc/opensips/opensips.cfg
cat >/etc/systemd/system/opensips.service <<'END'
[Service]
RuntimeDirectory=opensips
RuntimeDirectoryPreserve=restart
User=nobody
ExecStart=python3 {PROGRAM} 4.0.1 /run/opensips /etc/opensips/opensips.cfg {SIP}
END
systemctl daemon-reload
systemctl start opensips
"""


def changed(name: str, script: str, red: str, green: str = "") -> Control:
    """The stand-in started anew after `script` changed it."""
    return Control(name, f"cp {PROGRAM} /run/double; {script}; systemctl restart opensips; sleep 2",
                   f"cp /run/double {PROGRAM}; systemctl restart opensips; sleep 2", red, green)


CONTROLS = [
    Control("nobody there", "systemctl stop opensips", "systemctl start opensips; sleep 2", "test_events_listed"),
    changed("another code", f"""sed -i 's/"Not Found", 404/"Not Found", 486/' {PROGRAM}""", "test_event_of_script",
            "test_event_by_management"),
    changed("no TCP", f"sed -i 's/self._streams.put(((host, int(port)), payload))/pass/' {PROGRAM}",
            "test_event_by_management"),
    Control("no SIP", f"iptables -w -I INPUT -p udp --dport {SIP} -j DROP",
            f"iptables -w -D INPUT -p udp --dport {SIP} -j DROP", "test_event_of_module", "test_event_by_management"),
    Control("a configuration that does not count", "sed -i s,/etc/opensips/opensips.cfg,/run/opensips.cfg, "
            "/etc/systemd/system/opensips.service; cp /etc/opensips/opensips.cfg /run; systemctl daemon-reload; "
            "systemctl restart opensips; sleep 2", "sed -i s,/run/opensips.cfg,/etc/opensips/opensips.cfg, "
            "/etc/systemd/system/opensips.service; systemctl daemon-reload; systemctl restart opensips; sleep 2",
            "test_event_of_core"),
]


@pytest.fixture(scope="module")
def server(real_settings: Settings, real_appliance: Appliance, real_image: Image, tmp_path_factory) -> Iterator[Booted]:
    file = tmp_path_factory.mktemp("description") / "appliances.yaml"
    file.write_text(DESCRIPTION)
    described = appliances_file.select(appliances_file.load(file), "opensips")
    with work_in(real_settings, real_appliance) as work:
        booted = Booted(work, work.launch(work.upload(real_image))[0])
        booted.root(INSTALL)
        yield Booted(replace(work, appliance=described), booted.server)


def test_every_check_is_green(server: Booted) -> None:
    results = server.results("-k", "test_opensips_events", level=Level.ACCEPTANCE)
    print(*(f"{r.id.rsplit('::', 1)[-1]}: {r.outcome} {r.seen} {r.seconds:.1f} s" for r in results), sep="\n")
    assert [(r.id, r.outcome, r.message) for r in results if r.outcome != "passed"] == [] and len(results) == 14


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_control(server: Booted, control: Control) -> None:
    assert_turned(server, control)


def test_all_is_green_again(server: Booted) -> None:
    assert set(outcomes(server, "-k", "test_event_of_core").values()) == {"passed"}
