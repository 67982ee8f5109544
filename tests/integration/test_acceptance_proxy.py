"""The checks of a SIP proxy on one real server: each is green, and red where what it proves is broken.

For this the description has to say where OpenSIPS's packages are: DIALTONE_APPLIANCES=a file that does.
"""

from __future__ import annotations

from string import Template

import pytest

from harness.levels import Level
from tests.conftest import PROJECT
from tests.controls import Control, assert_turned, rule
from tests.real_server import Booted

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]

CFG = "/etc/opensips/opensips.cfg"


def configured(red: str, name: str, script: str, afterwards: str = "") -> Control:
    """The proxy started anew after `script` changed its configuration; `afterwards` when it is as it was."""
    return Control(name, f"cp {CFG} /run/cfg; {script}; systemctl restart opensips",
                   f"cat /run/cfg >{CFG}; systemctl restart opensips; {afterwards}", red)


CONTROLS = [
    Control("not enabled", "systemctl disable opensips", "systemctl enable opensips", "test_proxy_enabled"),
    Control("stopped", "systemctl stop opensips", "systemctl start opensips", "test_proxy_active"),
    Control("a program of another version",
            "printf '#!/bin/sh\\necho version: opensips 1.2.3\\n' >/root/other; chmod 755 /root/other; "
            "mount --bind /root/other /usr/sbin/opensips", "umount /usr/sbin/opensips; rm /root/other",
            "test_proxy_version"),
    configured("test_proxy_listens[tcp]", "another port for TCP",
               f"sed -i 's/^socket=tcp:.*/socket=tcp:*:5070/' {CFG}"),
    configured("test_proxy_listens[udp]", "another port for UDP",
               f"sed -i 's/^socket=udp:.*/socket=udp:*:5070/' {CFG}"),
    configured("test_management_on_loopback_only", "MI for everybody",
               f"sed -i 's/udp:127.0.0.1:8080/udp:0.0.0.0:8080/' {CFG}"),
    configured("test_management_on_loopback_only", "MI by HTTP for everybody",
               f"sed -i 's/\"ip\", \"127.0.0.1\"/\"ip\", \"0.0.0.0\"/' {CFG}"),
    configured("test_proxy_modules", "a module is not loaded", f"sed -i '/event_virtual/d' {CFG}"),
    Control("a relay that nobody described", "echo 192.0.2.5:2223 >/etc/opensips/relays; systemctl restart opensips",
            ": >/etc/opensips/relays; systemctl restart opensips", "test_proxy_relays"),
    configured("test_proxy_log_written", "to the system's log", f"sed -i 's/LOG_LOCAL0/LOG_LOCAL5/' {CFG}",
               r"sed -i '/opensips\[/d' /var/log/syslog; systemctl kill -s HUP rsyslog"),
    Control("no rotation", "mv /etc/logrotate.d/opensips /run/rotation", "mv /run/rotation /etc/logrotate.d/opensips",
            "test_proxy_log_rotated"),
    rule("test_options_answered[udp]", "UDP does not pass", "-p udp --dport 5060 -j DROP"),
    rule("test_options_answered[tcp]", "TCP does not pass", "-p tcp --dport 5060 -j DROP"),
    configured("test_registered[udp] test_registered[tcp]", "registrations are not kept",
               f"sed -i '/save(\"location\")/{{N; s/.*/send_reply(200, \"OK\");/}}' {CFG}"),
    configured("test_call_refused[somebody-198.51.100.1-403]", "an open relay",
               f"sed -i '/is_myself/,+3d' {CFG}"),
    configured("test_call_refused[nobody-None-404]", "a call to nobody is taken",
               f"sed -i 's/route(REFUSE, 404, \"Not Found\")/t_reply(486, \"Busy\")/' {CFG}"),
]


@pytest.fixture(scope="module")
def server(opensips_server: Booted) -> Booted:
    return opensips_server


def test_every_check_is_green_and_one_of_the_controls_turns_it_red(server: Booted) -> None:
    assert server.red() == []
    results = server.results("-k", "test_proxy", level=Level.ACCEPTANCE)
    assert [(r.id, r.message) for r in results if r.outcome != "passed"] == []
    assert {r.id.rsplit("::", 1)[-1] for r in results} == {name for control in CONTROLS for name in control.red.split()}


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_control(server: Booted, control: Control) -> None:
    assert_turned(server, control)


TOLD = """\
cat >/run/told.yaml <<'END'
{text}END
cloud-init schema --config-file /run/told.yaml
cloud-init --file /run/told.yaml single --name write_files --frequency always
systemctl restart opensips
"""
SUBSCRIBERS = """\
exec 3<>/dev/udp/127.0.0.1/8080
printf '{"jsonrpc":"2.0","id":1,"method":"subscribers_list","params":["E_PIKE_BLOCKED"]}' >&3
timeout 5 dd bs=65535 count=1 <&3 2>/dev/null
"""


def test_what_user_data_says_is_in_force_from_the_start(server: Booted) -> None:
    template = Template((PROJECT / "cloud-init/opensips.yaml").read_text())
    text = template.substitute(relay="192.0.2.5:2223", domain="sip.example.org", event="E_PIKE_BLOCKED",
                               subscriber="udp:127.0.0.1:9999")
    try:
        server.root(TOLD.format(text=text))
        written = server.root("cat /run/opensips/server.cfg")
        assert '"udp:192.0.2.5:2223"' in written and "alias=udp:sip.example.org:5060" in written
        assert "127.0.0.1:9999" in server.root(SUBSCRIBERS)
        assert server.red("-k", "test_proxy_relays") == ["test_proxy_relays"]
    finally:
        server.root("for file in relays domains subscriptions; do : >/etc/opensips/$file; done; "
                    "systemctl restart opensips")


def test_all_is_green_again(server: Booted) -> None:
    assert server.red() == []
