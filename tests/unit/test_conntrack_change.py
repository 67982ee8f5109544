"""Settings to be changed on a server: what is refused, and the drop-ins that make a change permanent."""

from __future__ import annotations

import pytest

from harness import conntrack, conntrack_change
from harness.appliance import ConntrackGoal
from harness.conntrack_change import DROP_IN, Change
from harness.conntrack_view import PREFIX
from harness.errors import DescriptionError

PLAN = conntrack.plan(ConntrackGoal(calls=5000), 1024)
OWN = {"/etc/sysctl.d/60-conntrack.conf": f"{PREFIX}max = 40448\n{PREFIX}udp_timeout = 30\n",
       "/etc/modprobe.d/conntrack.conf": "options nf_conntrack hashsize=40448\n"}


@pytest.mark.parametrize("text", ["udp_timeout=45", "net.netfilter.nf_conntrack_udp_timeout=45", " udp_timeout = 45 "])
def test_a_change(text: str) -> None:
    change = conntrack_change.parse(text, PLAN)
    assert change == Change("udp_timeout", 45) and change.name == "net.netfilter.nf_conntrack_udp_timeout"


@pytest.mark.parametrize(("text", "said"), [
    ("udp_timeout", "'udp_timeout' is not KEY=VALUE"),
    ("size=1", "there is no setting 'size'\n  KEY is one of acct, buckets"),
    ("helper=1", "can't be set: removed in Linux 6.0"),
    ("count=1", "can't be set: read-only"),
    ("net.nf_conntrack_max=1", "can't be set: another name of"),
    ("max=0", "max is '0'\n  a number from 1 to"),
    ("max=many", "max is 'many'"),
    ("max=٣", "max is '٣'"),
    ("acct=2", "a number from 0 to 1"),
    ("udp_timeout=-1", "a number of seconds from 1 to 2147483"),
    ("udp_timeout=2147484", "a number of seconds from 1 to 2147483"),
    ("buckets=1000", "whole pages of 512 of them\n  512 or 1024"),
])
def test_what_can_t_be_set_is_refused(text: str, said: str) -> None:
    with pytest.raises(DescriptionError) as error:
        conntrack_change.parse(text, PLAN)
    assert said in str(error.value)


def test_every_setting_of_the_plan_can_be_set_to_its_value() -> None:
    for name, value in PLAN.sysctls.items():
        assert conntrack_change.parse(f"{name}={value}", PLAN) == Change(name.removeprefix(PREFIX), int(value))


def test_a_table_that_does_not_fit_is_refused() -> None:
    conntrack_change.fit(Change("max", 1_000_000), PLAN.sysctls, 1024)
    conntrack_change.fit(Change("udp_timeout", 2_000_000), PLAN.sysctls, 1)
    with pytest.raises(DescriptionError, match="1100000 entries in 40448 buckets take 269 MiB: more than a quarter"):
        conntrack_change.fit(Change("max", 1_100_000), PLAN.sysctls, 1024)
    with pytest.raises(DescriptionError, match="buckets=51200000: 40448 entries"):
        conntrack_change.fit(Change("buckets", 51_200_000), PLAN.sysctls, 1024)


def test_a_baked_change_joins_those_of_before() -> None:
    content = conntrack_change.baked(Change("udp_timeout", 45), OWN)
    assert content == f"{PREFIX}udp_timeout = 45\n"
    content = conntrack_change.baked(Change("max", 512), {**OWN, DROP_IN: content})
    assert content == f"{PREFIX}max = 512\n{PREFIX}udp_timeout = 45\n"
    assert conntrack_change.baked(Change("buckets", 1024), {DROP_IN: content}) == f"{PREFIX}buckets = 1024\n{content}"


def test_what_the_image_says_itself_is_not_said_again() -> None:
    files = {**OWN, DROP_IN: f"{PREFIX}max = 512\n{PREFIX}udp_timeout = 45\n{PREFIX}buckets = 1024\n"}
    for change, left in ((Change("max", 40448), 2), (Change("udp_timeout", 30), 1), (Change("buckets", 40448), 0)):
        files[DROP_IN] = conntrack_change.baked(change, files)
        assert change.key not in files[DROP_IN] and files[DROP_IN].count("\n") == left
    assert conntrack_change.baked(Change("max", 40448), OWN) == ""


def test_what_holds_at_boot() -> None:
    files = {**OWN, DROP_IN: f"{PREFIX}max = 512\n"}
    assert [conntrack_change.at_boot(key, files) for key in ("max", "udp_timeout", "buckets", "acct")] == [
        "512", "30", "40448", ""]


def test_the_drop_in_is_read_after_the_images_own_file() -> None:
    assert sorted([*OWN, DROP_IN])[1:] == ["/etc/sysctl.d/60-conntrack.conf", DROP_IN]
