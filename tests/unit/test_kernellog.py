"""Stalls in a kernel's log: those of a processor that was not run are told from those of one that loops."""

from __future__ import annotations

import pytest

from harness.kernellog import without_waits

BEFORE, AFTER = "[   95.184027] xt_RTPENGINE: loading out-of-tree module taints kernel.", "[   99.000000] BUG: x"
HEAD = "[   70.111212] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:"
OWN = "[   70.111212] rcu: INFO: rcu_preempt self-detected stall on CPU"
CPU = "[   70.112277] rcu: \t1-....: ({} ticks this GP) idle=b6dc/1/0x4000000000000000 softirq=1988/1988 fqs=1117"
SEEN = "[   70.112893] \t(detected by 0, t=5255 jiffies, g=2261, q=380 ncpus=2)"
TRACE = """\
[   70.094720] Sending NMI from CPU 0 to CPUs 1:
[   70.094720] NMI backtrace for cpu 1
[   70.094720] CPU: 1 PID: 136 Comm: udevadm Not tainted 6.1.0-56-cloud-amd64 #1  Debian 6.1.192-2
[   70.094720] Hardware name: OpenStack Foundation OpenStack Nova, BIOS 1.16.2-debian-1.16.2-1 04/01/2014
[   70.094720] RIP: 0010:clear_page_rep+0x7/0x10
[   70.094720] Code: fd 48 89 df 48 8b 5b 08
[   70.094720] RSP: 0000:ffffcd66c03e3bf0 EFLAGS: 00000246
[   70.094720] R13: ffff893f3ffb2600 R14: ffff893f3ffb3e00 R15: fffff86ac0dede80
[   70.094720] FS:  00007fb35d8528c0(0000) GS:ffff893f3ed00000(0000) knlGS:0000000000000000
[   70.094720] CS:  0010 DS: 0000 ES: 0000 CR0: 0000000080050033
[   70.094720] CR2: 00007fb35dd20020 CR3: 0000000001dc4000 CR4: 00000000000006a0
[   70.094720] Call Trace:
[   70.094720]  <TASK>
[   70.094720]  get_page_from_freelist+0x54f/0x11a0
[   70.094720]  </TASK>""".splitlines()


def report(*ticks: int, head: str = HEAD) -> list[str]:
    return [head, *(CPU.format(number) for number in ticks), SEEN, *TRACE]


@pytest.mark.parametrize("head", [HEAD, OWN])
def test_a_processor_that_was_not_run_is_told_apart(head: str) -> None:
    assert without_waits([BEFORE, *report(237, head=head), AFTER]) == ([BEFORE, AFTER], [head])


@pytest.mark.parametrize("stall", [
    report(5250), report(237, 5250), report(1400), report(), [HEAD, CPU.format(237), *TRACE]])
def test_one_that_loops_or_of_which_nothing_is_known_stays(stall: list[str]) -> None:
    assert without_waits([BEFORE, *stall, AFTER]) == ([BEFORE, *stall, AFTER], [])


def test_each_of_several_is_judged_by_itself() -> None:
    assert without_waits([*report(5250), *report(3), BEFORE, *report(2)]) == ([*report(5250), BEFORE], [HEAD, HEAD])


def test_a_fault_right_behind_it_stays() -> None:
    fault = ["[   71.000000] watchdog: BUG: soft lockup - CPU#1 stuck for 22s!", *TRACE]
    assert without_waits([*report(237), *fault])[0] == fault
    assert without_waits([BEFORE, *TRACE]) == ([BEFORE, *TRACE], [])
