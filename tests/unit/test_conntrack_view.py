"""Plan and live state side by side."""

from __future__ import annotations

from harness import conntrack, conntrack_view
from harness.appliance import ConntrackGoal
from harness.conntrack_view import State

PLAN = conntrack.plan(ConntrackGoal(calls=5000), 1024)
ENTRY = ("ipv4     2 {0} src=10.0.0.5 dst=10.0.0.9 sport=40000 dport={1} "
         "src=10.0.0.9 dst=10.0.0.5 sport={1} dport=40000 {2}mark=0 zone=0 use=2\n")
ENTRIES = (ENTRY.format("udp      17 119", 30000, "[ASSURED] ") + ENTRY.format("udp      17 29", 30002, "")
           + ENTRY.format("tcp      6 7439 ESTABLISHED", 22, "[ASSURED] "))
STATISTICS = "entries drop early_drop insert_failed\n3 00000002 00000001 0000000a\n3 00000001 00000000 00000000\n"


def state(entries: str = ENTRIES, statistics: str = STATISTICS, **changes: str) -> State:
    values = {**PLAN.sysctls, **{conntrack_view.PREFIX + key: value for key, value in changes.items()}}
    files = {"/proc/sys/" + name.replace(".", "/"): f"{value}\n".encode() for name, value in values.items()}
    return State.of({**files, "/proc/net/nf_conntrack": entries.encode(),
                     "/proc/net/stat/nf_conntrack": statistics.encode()})


def test_a_state_is_read_from_the_kernels_files() -> None:
    seen = state()
    assert seen.settings == PLAN.sysctls
    assert (seen.entries, seen.protocols, seen.assured) == (3, {"udp": 2, "tcp": 1}, 2)
    assert (seen.drop, seen.early_drop, seen.insert_failed) == (3, 1, 10)
    assert State.of({}).settings == {}


def test_what_is_as_planned_is_short() -> None:
    lines = conntrack_view.lines(PLAN, state(statistics="drop early_drop insert_failed\n0 0 0\n"))
    assert [line.text.split() for line in lines[:3]] == [
        ["plan", "live"], ["max", "40,448", "40,448"], ["buckets", "40,448", "40,448"]]
    assert lines[6].text.split() == ["20", "others", "as", "planned"]
    assert "3 of 40,448: 2 udp, 1 tcp; 2 assured" in lines[7].text
    assert lines[8].text.endswith("1 now, 10 when full, 2.0 on average then")
    assert len(lines) == 10 and not any(line.wrong for line in lines)
    assert max(len(line.text) for line in lines) <= 80


def test_what_differs_is_marked_and_a_setting_that_is_not_there_is_none() -> None:
    seen = state(max="512", tcp_loose="0")
    del seen.settings["net.netfilter.nf_conntrack_acct"]  # type: ignore[attr-defined]
    wrong = [line.text.split() for line in conntrack_view.lines(PLAN, seen) if line.wrong]
    assert wrong[:3] == [["max", "40,448", "512", "differs"], ["acct", "0", "none", "differs"],
                         ["tcp_loose", "1", "0", "differs"]]
    assert wrong[3][:4] == ["since", "boot", "3", "packets"], "drops"
    assert conntrack_view.as_json(PLAN, seen)["differing"] == [
        f"net.netfilter.nf_conntrack_{key}" for key in ("acct", "max", "tcp_loose")]
