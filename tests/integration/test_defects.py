"""One defect in the real image turns the right check red, and no other: before it boots, and on a server of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import pytest

from harness.appliance import Appliance
from harness.deadline import Deadline
from harness.firmware import Firmware
from harness.image import gpt, ownership, unitfiles
from harness.image.build import Image
from harness.image.finding import expectation
from harness.image.inspect import inspect
from harness.journal import CHECKED
from harness.known import unexpected
from tests.conftest import PROJECT
from tests.real_server import Booted

pytestmark = pytest.mark.root

INTACT, KNOWN = (check.title for check in ownership.CHECKS)
Alter = Callable[[str], Image]
Boot = Callable[[Image], AbstractContextManager[Booted]]


@dataclass(frozen=True)
class Defect:
    """`script` breaks the image's root file system; `look` and `check` are what then is red, before and after boot."""

    name: str
    script: str
    look: str
    check: str


DEFECTS = [
    Defect("module for another kernel",
           "sed -i 's/vermagic=[0-9]/vermagic=9/' usr/lib/modules/*/extra/xt_RTPENGINE.ko",
           "the relay's module is for that kernel", "test_module_fits_kernel"),
    Defect("sysctls without their module", "rm etc/modules-load.d/conntrack.conf",
           "nf_conntrack is loaded before its settings", "test_conntrack_loaded_at_boot"),
    Defect("forwarding table -1", "sed -i 's/^table = 0$/table = -1/' etc/rtpengine/rtpengine.conf",
           "rtpengine.conf as described", "test_daemon_holds_table"),
    Defect("no rule for IPv6", "sed -i 's/for command in iptables ip6tables/for command in iptables/' "
           "usr/libexec/rtpengine/kernel-forwarding", "", "test_rule_to_module[ip6]"),
    Defect("host key in the image",
           "ssh-keygen -q -t ed25519 -N '' -f etc/ssh/ssh_host_ed25519_key; touch -d '1 day ago' etc/ssh/ssh_host_*; "
           "echo 'ssh_deletekeys: false' >>etc/cloud/cloud.cfg.d/92_voip-appliance-network.cfg",
           "no SSH host keys", "test_host_key_made_here"),
    Defect("no rule for the log", "rm etc/rsyslog.d/30-rtpengine.conf",
           "the relay logs to its own file", "test_log_written"),
    Defect("unit disabled", "rm etc/systemd/system/multi-user.target.wants/rtpengine.service",
           "units are enabled", "test_service_enabled"),
    Defect("data sources in another order",
           "sed -i 's/ConfigDrive, OpenStack, NoCloud/NoCloud, OpenStack, ConfigDrive/' "
           "etc/cloud/cloud.cfg.d/*datasources.cfg",
           "cloud-init data sources as described", "test_datasource_as_described"),
    Defect("every stage of cloud-init by itself",
           "rm etc/systemd/system/cloud-init.target.wants/cloud-init-stages.service",
           "cloud-init is enabled", "test_stages_share_interpreter"),
]


def looked(image: Image, appliance: Appliance) -> list[str]:
    findings = inspect(image.path, expectation(appliance, image.kernel, image.loader), lambda text: None, Deadline(300))
    return [f"{f.title}: {f.seen}" for f in findings if f.outcome != "passed"]


each_defect = pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)


@each_defect
def test_defect_before_it_boots(defect: Defect, altered: Alter, real_appliance: Appliance) -> None:
    red = looked(altered(defect.script), real_appliance)
    assert [line.split(":")[0] for line in red] == ([defect.look] if defect.look else []), red


@pytest.mark.guest
@each_defect
def test_defect_on_a_server(defect: Defect, altered: Alter, booted: Boot) -> None:
    with booted(altered(defect.script)) as server:
        assert server.red() == [defect.check]


def test_what_packages_did_not_bring_is_named(altered: Alter, real_appliance: Appliance, tmp_path: Path) -> None:
    """Files of packages as dpkg itself sees them; files of nobody; an ordering cycle as the image's systemd sees it."""
    image = altered("echo >>usr/sbin/visudo; rm usr/bin/ssh-keygen usr/lib/x86_64-linux-gnu/libz.so.1; "
                    "echo >>etc/sudo.conf; echo >etc/strange.conf; touch usr/lib/strange.so; "
                    "sed -i '/^.Unit.$/a Before=sysinit.target' etc/systemd/system/rtpengine.service")
    red = {line.split(":")[0]: line for line in looked(image, real_appliance)}
    assert red.keys() >= {INTACT, KNOWN, unitfiles.TITLE}
    assert "/etc/strange.conf, /usr/lib/strange.so" in red[KNOWN]
    assert "ordering cycle" in red[unitfiles.TITLE] and "rtpengine.service" in red[unitfiles.TITLE]
    changed, missing = (set(re.findall(rf"(/\S+) of \S+ is {word}", red[INTACT])) for word in ("changed", "missing"))
    assert changed == {"/usr/sbin/visudo", "/etc/sudo.conf"}
    assert missing == {"/usr/bin/ssh-keygen", "/usr/lib/x86_64-linux-gnu/libz.so.1"}
    # What dpkg names besides is what known/ has as left out on purpose.
    left_out = expectation(real_appliance, image.kernel, image.loader).known.missing
    named = {line.split()[-1]: line.split()[0] for line in verified_by_dpkg(tmp_path / "altered.raw")}
    strange, _ = unexpected((path if path.startswith(("/usr/", "/etc/", "/var/")) else f"/usr{path}" for path in named),
                            left_out)
    assert set(strange) == changed | missing


def verified_by_dpkg(disk: Path) -> list[str]:
    with disk.open("rb") as file:
        partition = gpt.read(file).root
    assert partition
    options = f"ro,noload,loop,offset={partition.offset},sizelimit={partition.size}"
    script = f'mount -o {options} "$1" /mnt; dpkg --root=/mnt --verify'
    return subprocess.run(["unshare", "--mount", "sh", "-euc", script, "sh", disk], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, text=True).stdout.splitlines()


@dataclass(frozen=True)
class Control:
    """`broken` turns the checks `red` red on a running server, `mended` takes it back.

    A check is skipped where one that it builds upon is red: those of a further line of `red` are run by themselves.
    """

    red: str
    broken: str
    mended: str


FUNCTIONS = r"""
cover() { # FILE SED-EXPRESSION: what is read from FILE goes through sed, until uncover
    copy=$(mktemp /run/cover.XXXXXX)
    cp --attributes-only --preserve=mode,ownership,timestamps "$1" "$copy"
    sed -e "$2" "$1" >"$copy"
    mount --bind "$copy" "$1"
}
uncover() { umount "$1"; }
hide() { mv "$1" "/run/hidden-${1##*/}"; }
show() { mv "/run/hidden-${1##*/}" "$1"; }
conf=/etc/rtpengine/rtpengine.conf
modules=/lib/modules/$(uname -r)
extensions=/usr/lib/x86_64-linux-gnu/xtables
filter=/proc/sys/net/netfilter
disk=/sys/block/$(lsblk -no pkname "$(findmnt -no SOURCE /)")
""" + f"checked={CHECKED}\n"


def covered(red: str, file: str, expression: str) -> Control:
    return Control(red, f"cover {file} '{expression}'", f"uncover {file}")


def hidden(red: str, file: str) -> Control:
    return Control(red, f"hide {file}", f"show {file}")


def added(red: str, file: str) -> Control:
    return Control(red, f"touch {file}", f"rm {file}")


AT_REST = [
    hidden("test_module_in_extra", "$modules/modules.dep"),
    Control("test_kernel_held test_upgrade_keeps_kernel",
            "apt-mark -q unhold linux-image-$(uname -r)", "apt-mark -q hold linux-image-$(uname -r)"),
    covered("test_next_kernel_has_module", "/boot/grub/grub.cfg", "s/vmlinuz-/vmlinuz-0/"),
    added("test_no_compiler", "/usr/bin/gcc"),
    Control("test_daemon_version", "mount --bind /bin/true /usr/sbin/rtpengine", "umount /usr/sbin/rtpengine"),
    hidden("test_iptables_extension", "$extensions/libxt_RTPENGINE.so"),
    covered("test_option_in_force[log-level-log_level] test_option_in_force[no-fallback-no_fallback] "
            "test_option_in_force[log-facility-log_facility] test_option_in_force[port-min-port_min] "
            "test_option_in_force[port-max-port_max] test_option_in_force[tos-tos] "
            "test_option_in_force[endpoint-learning-endpoint_learning]", "$conf",
            "s/^log-level = .*/log-level = 7/; s/^no-fallback = .*/no-fallback = false/; s/local1/local2/; "
            "s/^port-m.*/&1/; s/^tos = .*/tos = 0/; s/^endpoint-learning = .*/endpoint-learning = delayed/"),
    Control("test_sockets_have_room", "sysctl -q -w net.core.rmem_default=212992",
            "sysctl -q -p /etc/sysctl.d/60-rtpengine.conf"),
    covered("test_pidfile", "/run/rtpengine/rtpengine.pid", "s/.*/1/"),
    covered("test_advertised_address", "/run/cloud-init/instance-data.json",
            '1s/{/&"rtpengine_advertised": "203.0.113.7",/'),
    hidden("test_redis_as_described", "/usr/bin/redis-server"),
    hidden("test_log_rotated", "/etc/logrotate.d/rtpengine"),
    Control("test_conntrack_size[max] test_conntrack_size[expect_max] test_conntrack_size[buckets] "
            "test_conntrack_hashsize test_conntrack_settings test_conntrack_gone_keys",
            """mkdir /run/filter; cp $filter/nf_conntrack_* /run/filter; cd /run/filter
            for key in max expect_max buckets udp_timeout helper; do echo 7 >nf_conntrack_$key; done
            mount --bind . $filter; cover /sys/module/nf_conntrack/parameters/hashsize s/.*/7/""",
            "umount $filter; uncover /sys/module/nf_conntrack/parameters/hashsize"),
    hidden("test_conntrack_entries_readable", "$extensions/libxt_conntrack.so"),
    Control("test_conntrack_never_full test_kernel_log_clean\ntest_kernel_log_stays_clean",
            "echo 'nf_conntrack: nf_conntrack: table full, dropping packet' >/dev/kmsg; echo 'BUG: x' >/dev/kmsg",
            "dmesg --clear"),
    Control("test_no_failed_units\ntest_no_ordering_cycle\ntest_log_known",
            # What a test does to a server is excused; what is logged apart from it is not.
            """! systemd-run --quiet --wait --unit=broken false
            read -r seconds rest </proc/uptime; echo "end $seconds apart" >>$checked
            logger --priority user.err --tag systemd "Found ordering cycle on a.service/start"
            echo '<4>this server is on fire' >/dev/kmsg""",
            "systemctl reset-failed; sed -i /apart/d $checked"),
    covered("test_cloud_init_done", "/run/cloud-init/result.json", 's/"errors": \\[/&"no network"/'),
    covered("test_key_injected", "/home/debian/.ssh/authorized_keys", "$a ssh-ed25519 AAAA somebody else"),
    covered("test_root_grown", "$disk/size", "s/$/0/"),
    Control("test_host_name_set", "name=$(hostname); echo $name >/run/name; hostname another",
            "hostname $(cat /run/name)"),
    covered("test_cloud_init_warnings", "/var/log/cloud-init.log", "$a 2026-01-01 00:00:00,000 - x.py[WARNING]: x"),
    added("test_host_key_types", "/etc/ssh/ssh_host_rsa_key"),
    covered("test_no_password_login", "/etc/shadow", "s/^debian:[^:]*/debian:$y$j9T$x/"),
]
"""Each by itself, and all at once, for none of them touches what another looks at."""

MACHINE_ID = covered("test_machine_id", "/etc/machine-id", "s/.*/uninitialized/")
"""Not at once with others: journalctl(1) finds the journal by it."""
OUTDATED = covered("test_no_outdated_options", "$conf", "$a redis-db = 1")

IN_USE = Control("""\
test_module_loaded
test_module_control_files test_service_active
test_control_port_listening test_interfaces_of_server test_table_in_use_is_kept test_module_in_use_is_kept \
test_table_added_and_deleted test_rule_to_module[ip] test_rule_to_module[ip6]
test_ng_ping
test_ng_statistics test_ng_list test_ng_refusal
""", r"""
systemctl stop rtpengine
rmmod xt_RTPENGINE
cat >/run/liar <<'END'
import socket
answers = {b"ping": b"d6:result4:punge", b"statistics": b"d6:result2:ok10:statisticsd0:0:ee",
           b"list": b"d5:callsl1:xe6:result2:oke", b"no-such-command": b"d6:result2:oke"}
port = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
port.bind(("::", 2223))
while True:
    datagram, sender = port.recvfrom(65535)
    answer = next(answer for command, answer in answers.items() if command in datagram)
    port.sendto(datagram.split(b" ")[0] + b" " + answer, sender)
END
systemd-run --quiet --unit=liar python3 /run/liar
""", "systemctl stop liar; modprobe xt_RTPENGINE; systemctl start rtpengine")
"""The service is stopped and the module gone; a program answers on the control port that is no relay."""

RULE_LEFT = Control("test_module_unloaded_and_loaded", "iptables -w -A INPUT -p udp -j RTPENGINE --id 5",
                    "iptables -w -D INPUT -p udp -j RTPENGINE --id 5")


def out_of_date(appliance: Appliance, directory: Path) -> Appliance:
    """The same with known issues that were to be looked at again long ago."""
    file = Path(shutil.copy(appliance.file, directory))
    (directory / "tests").symlink_to(PROJECT / "tests")
    for known in Path(shutil.copytree(PROJECT / "known", directory / "known")).iterdir():
        known.write_text(re.sub(r"until: .*", "until: 2026-01-01", known.read_text()))
    return replace(appliance, file=file)


@pytest.mark.guest
def test_every_check_can_turn_red(altered: Alter, booted: Boot, real_appliance: Appliance, tmp_path: Path) -> None:
    """On one server: all green; whatever no seeded defect turns red is broken and mended; all green again."""
    image = altered("true")
    assert looked(image, real_appliance) == []
    with booted(image) as server:
        green = server.results()
        assert [(r.id, r.message) for r in green if r.outcome != "passed"] == []
        for controls in (AT_REST, [OUTDATED, MACHINE_ID], [IN_USE], [RULE_LEFT]):
            server.root(FUNCTIONS + "\n".join(control.broken for control in controls))
            try:
                for lines in zip_longest(*(control.red.splitlines() for control in controls), fillvalue=""):
                    wanted = set(" ".join(lines).split())
                    red = set(server.red("-k", " or ".join({check.split("[")[0] for check in wanted})))
                    assert red == wanted, f"not red: {wanted - red}; red besides: {red - wanted}"
            finally:
                server.root(FUNCTIONS + "\n".join(control.mended for control in reversed(controls)))
        assert server.red() == []
        late = Booted(replace(server.work, appliance=out_of_date(real_appliance, tmp_path)), server.server)
        assert late.red("-k", "test_known_issues_in_date") == ["test_known_issues_in_date"]
        taken = Booted(server.work, replace(server.server, firmware=Firmware.UEFI))
        assert taken.red("-k", "test_firmware") == ["test_firmware"]
    seen = {check for control in (*AT_REST, OUTDATED, MACHINE_ID, IN_USE, RULE_LEFT) for check in control.red.split()}
    names = {result.id.rsplit("::", 1)[-1] for result in green}
    seen |= {"test_known_issues_in_date", "test_firmware", *(defect.check for defect in DEFECTS)}
    assert names - seen == set(), "checks that nothing here turns red"
