"""Connection tracking of one real server: under calls, when its table is full, and changed from here."""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading

import pytest

from harness.access import readiness
from harness.checks import CLEAN_UP
from harness.conntrack import parse_proc_statistics
from harness.deadline import Deadline
from harness.levels import Level
from harness.settings import Settings
from tests.command_line import Ended, Inv
from tests.controls import MEDIA, Control, assert_turned, broken, outcomes, process_of_checks, rule
from tests.real_server import Booted

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.nightly]

EVERY = ("-m", "level", "-k", "test_conntrack_calls.py")
TIMEOUT = "/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream"


def raw(name: str, red: str, *rules: str) -> Control:
    """Rules that packets meet before they are tracked."""
    return Control(name, "; ".join(f"iptables -w -t raw -I {words}" for words in rules),
                   "; ".join(f"iptables -w -t raw -D {words}" for words in rules), red)


CONTROLS = [
    raw("media not tracked", "test_entries_of_calls test_full_table_refuses",
        f"PREROUTING -p {MEDIA} -j CT --notrack", "OUTPUT -p udp --sport 30000:40000 -j CT --notrack"),
    raw("RTCP lost before it is tracked", "test_entries_of_calls",
        f"PREROUTING -p {MEDIA} -m length --length 0:160 -j DROP"),
    rule("test_full_table_spares", "a packet of a hundred lost",
         f"-p {MEDIA} -m statistic --mode nth --every 100 --packet 50 -j DROP"),
    Control("a kernel that says nothing", "sysctl -q -w net.core.message_burst=0",
            "sysctl -q -w net.core.message_burst=10", "test_full_table_told", green="test_full_table_refuses"),
    Control("entries that are kept for long", f"cp {TIMEOUT} /run/timeout; mount --bind /run/timeout {TIMEOUT}",
            f"umount {TIMEOUT}; conntrack -D -p udp -s 127.0.0.1", "test_full_table_drains",
            green="test_full_table_refuses"),
]


def test_every_check_is_green_and_one_of_the_controls_turns_it_red(server: Booted) -> None:
    results = server.results(*EVERY, level=Level.ACCEPTANCE)
    assert [(r.id, r.message) for r in results if r.outcome != "passed"] == []
    measured = {r.id.rsplit("::", 1)[-1]: r.seen for r in results}
    assert "20 entries of RTP and 20 of RTCP, 40 of them assured" in measured["test_entries_of_calls"]
    assert set(measured) == {check for control in CONTROLS for check in control.red.split()}


def test_what_a_check_lost_on_purpose_is_known(server: Booted) -> None:
    assert parse_proc_statistics(server.root("cat /proc/net/stat/nf_conntrack"))["drop"] > 0
    assert server.red("-k", "conntrack") == []
    with broken(server, Control("", "echo 'nf_conntrack: nf_conntrack: table full, dropping packet' >/dev/kmsg",
                                "dmesg --clear", "")):
        assert server.red("-k", "conntrack") == ["test_conntrack_never_full"]


def test_what_killed_checks_changed_is_put_back_by_the_server(server: Booted) -> None:
    """Its timers are not waited for: what they would start is started."""
    def changed() -> list[str]:
        return [*live(server), *server.root("iptables -w -t mangle -S PREROUTING").splitlines()]

    before = changed()
    checks = threading.Thread(target=lambda: outcomes(server, "-k", "test_full_table_refuses"))
    checks.start()
    limit = Deadline(60)
    while live(server) == before[:4]:
        assert not limit.expired, "the table was not made small"
    os.kill(process_of_checks(server), signal.SIGKILL)
    checks.join(CLEAN_UP + 30)
    left = changed()
    assert all(now != then for now, then in zip((left[0], left[2], left[4:]), (before[0], before[2], before[4:]),
                                                strict=True)), left
    timers = re.findall(r"dialtone-\w+(?=\.timer)", server.root("systemctl list-units --plain --no-legend '*.timer'"))
    assert len(timers) == 2
    server.root("; ".join(f"systemctl start {unit}.service" for unit in timers)
                + "; systemctl stop 'dialtone-*.timer'; systemctl restart rtpengine; "
                "pkill -f /run/dialtone-conntrack-filler.json || true; conntrack -F")
    assert changed() == before


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_control(server: Booted, control: Control) -> None:
    assert_turned(server, control)


def test_a_live_change_ends_with_the_next_boot_and_a_baked_one_stays(server: Booted, real_settings: Settings) -> None:
    inv, run = Inv(real_settings.runs.parent), ("--run", server.work.run.id)
    as_planned(inv("conntrack", *run))
    back = []
    for change in ("max=20480", "udp_timeout=45 --bake", "buckets=20480 --bake"):
        done = inv("conntrack.set", *change.split(), *run)
        assert done.code == 0, done.out
        back.append(shlex.split(done.out.split("./inv ")[1]))
    assert live(server) == ["20480", "45", "20480", "20480"]
    assert differing(inv("conntrack", *run).out) == ["max", "buckets", "udp_timeout"]

    readiness.reboot(server.work.cloud, server.work.run, server.server, Deadline(600), lambda text: None)
    assert live(server) == ["40448", "45", "20480", "20480"]
    shown = inv("conntrack", *run)
    assert (shown.code, differing(shown.out)) == (1, ["buckets", "udp_timeout"]), shown.out
    assert server.red("-k", "test_conntrack_size or test_conntrack_hashsize or test_conntrack_settings") == [
        "test_conntrack_hashsize", "test_conntrack_settings", "test_conntrack_size[buckets]"]

    assert back == [["conntrack.set", "max=40448"], ["conntrack.set", "udp_timeout=30", "--bake"],
                    ["conntrack.set", "buckets=40448", "--bake"]]
    for taken_back in back:
        assert inv(*taken_back, *run).code == 0
    as_planned(inv("conntrack", *run))
    server.root("test ! -e /etc/sysctl.d/70-conntrack.conf")


def test_a_change_that_can_t_be_kept_is_not_made(server: Booted, real_settings: Settings) -> None:
    before, in_the_way = live(server), "/etc/sysctl.d/70-conntrack.conf.new"
    with broken(server, Control("", f"mkdir {in_the_way}", f"rmdir {in_the_way}", "")):
        ended = Inv(real_settings.runs.parent)("conntrack.set", "udp_timeout=45", "--bake", "--run", server.work.run.id)
    assert (ended.code, "70-conntrack.conf can't be written on server1" in ended.out) == (1, True), ended.out
    assert live(server) == before


def as_planned(shown: Ended) -> None:
    assert (shown.code, differing(shown.out), "others" in shown.out) == (0, [], True), shown.out


def live(server: Booted) -> list[str]:
    """In force: max, udp_timeout, buckets, and the number of buckets as the module has it."""
    return server.root("cd /proc/sys/net/netfilter; cat nf_conntrack_max nf_conntrack_udp_timeout nf_conntrack_buckets "
                       "/sys/module/nf_conntrack/parameters/hashsize").split()


def differing(shown: str) -> list[str]:
    return re.findall(r"^ +(\w+) .* differs$", shown, re.MULTILINE)


@pytest.mark.parametrize(("arguments", "said"), [
    (["conntrack.set", "size=1"], "there is no setting 'size'"),
    (["conntrack.set", "max=0"], "max is '0'"),
    (["conntrack.set", "max=99999999"], "more than a quarter of the server's"),
    (["conntrack.set", "max=1", "--live", "--bake"], "exclude each other"),
    (["conntrack", "--run", "none"], "none"),
])
def test_a_mistake_changes_nothing(server: Booted, real_settings: Settings, arguments: list[str], said: str) -> None:
    before = live(server)
    run = () if "--run" in arguments else ("--run", server.work.run.id)
    ended = Inv(real_settings.runs.parent)(*arguments, *run)
    assert (ended.code, said in ended.out, "Traceback" in ended.out) == (2, True, False), ended.out
    assert live(server) == before
