"""The generator of media alone: the figures of docs/performance-generator.md.

Peers over the same loopback, G.711 of 20 ms both ways: a plain loop of sendto() and recvmsg() with the same statistics,
and sipp, which plays a file to itself: one process sends, another echoes, nobody counts.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from harness.appliance import Appliance
from harness.bench import figures
from harness.bench.figures import Row, Table
from harness.deadline import Deadline
from harness.errors import HostError
from harness.process import run as run_command
from harness.progress import Progress
from harness.resources import Resource
from harness.settings import Settings
from harness.stages import Work
from harness.voip import ceiling
from harness.voip.ceiling import Step

_SECONDS: Final = 2.0
"""How long each rate is held."""
_CALLS: Final = 100
_CALL_SECONDS: Final = 10

# In a network namespace of its own, whose counters and ports are nobody else's; it ends with the shell.
_SIPP: Final = """
set -eu
ip link set lo up
ulimit -n 10000
cd "$1"
sipp -sn uas -i 127.0.0.1 -p 5061 -mp 20000 -rtp_echo -m "$2" -nostdin >echo.log 2>&1 &
sleep 1
sipp 127.0.0.1:5061 -sf rtp-play.xml -i 127.0.0.1 -p 5060 -mp 30000 -m "$2" -l "$2" -r 100 -nostdin >play.log 2>&1
wait
cat /proc/net/snmp
times
"""


@dataclass(frozen=True)
class Played:
    """Packets that sipp's two processes sent, and the processor time that both took, in seconds."""

    packets: int
    busy: float


def bench(settings: Settings, appliance: Appliance, progress: Progress, *, boots: int, out: Path) -> int:
    """Take all figures `boots` times, the median counts; write `out`.json and `out`.md. Returns the exit code.

    Raises HostError where there is no sipp.
    """
    if shutil.which("sipp") is None:
        raise HostError("there is no sipp to compare with", hint="apt-get install --no-install-recommends sip-tester")
    return figures.measure(settings, appliance, progress, lambda work: _rows(work, boots),
                           Table("Performance of the traffic generator", "./inv bench --cloud generator",
                                 "none: loopback of this machine"), out)


def _rows(work: Work, times: int) -> Iterator[Row]:
    ours: list[Step] = []
    plain: list[Step] = []
    sipp: list[Played] = []
    for _ in range(times):
        for name, steps, run in (("ours", ours, ceiling.shared), ("plain", plain, ceiling.plain)):
            with work.progress.stage(name):
                steps.append(_best(name, run))
        with work.progress.stage("sipp"):
            sipp.append(play(work))
    rate, plain_rate = (statistics.median(1e6 / step.packets_per_second for step in steps) for steps in (ours, plain))
    cost, plain_cost = (statistics.median(step.cost for step in steps) for steps in (ours, plain))
    loop = "a plain loop, the same statistics"
    yield Row("a million packets, at the highest rate that one process keeps up", "s", rate, plain_rate, loop,
              "16.7 s: 60,000 packets/s")
    yield Row("processor time to send, receive and count a packet", "µs", cost, plain_cost, loop, "")
    yield Row("processor time to send, receive and count a packet", "µs", cost,
              statistics.median(one.busy / one.packets * 1e6 for one in sipp),
              "sipp, a packet that it sends; it receives half of them and counts none", "0.2 x")


def _best(name: str, run: ceiling.Runner) -> Step:
    held = [step for step in ceiling.ceiling(run, _SECONDS) if step.kept_up]
    if not held:
        raise HostError(f"no rate was kept up by {name}: this machine is too busy for the figures to mean anything")
    return max(held, key=lambda step: step.calls)


def play(work: Work) -> Played:
    """Let sipp place calls to itself that play silence."""
    place = work.settings.cache / "sipp"
    work.run.journal.creating(Resource("path", os.fspath(place)))
    place.mkdir(parents=True, exist_ok=True)
    (place / "rtp-play.xml").write_text(files("harness.bench").joinpath("rtp-play.xml").read_text(encoding="utf-8")
                                        .replace("SECONDS", str(_CALL_SECONDS)), encoding="utf-8")
    (place / "silence.ul").write_bytes(bytes([0xFF]) * 8000 * _CALL_SECONDS)
    done = run_command(["unshare", "--net", "bash", "-c", _SIPP, "sipp", place, str(_CALLS)],
                       deadline=Deadline(60.0 + _CALL_SECONDS))
    return played(done.stdout)


def played(printed: str) -> Played:
    """From /proc/net/snmp, and bash's `times`: its second line is for processes that have ended (user, system)."""
    names, values = (line.split()[1:] for line in re.findall(r"^Udp:.*$", printed, re.MULTILINE))
    sent = int(dict(zip(names, values, strict=True))["OutDatagrams"])
    spent = re.findall(r"(\d+)m([\d.]+)s", printed.splitlines()[-1])
    return Played(sent, sum(60 * int(minutes) + float(seconds) for minutes, seconds in spent))
