"""Loss and jitter against an independent count: tshark's RTP stream analysis of a capture of the same packets.

They go over loopback through a relay that loses, delays, reorders and duplicates some: the counting is compared.
"""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.voip.call import Call
from harness.voip.endpoint import Endpoint
from harness.voip.mediastats import MediaStats
from harness.voip.ng import NgClient
from harness.voip.traffic import Traffic
from tests.conftest import lacking
from tests.relay_double import Faults, relay_double

pytestmark = [pytest.mark.root, pytest.mark.nightly]

ROW = re.compile(r"^ *[\d.]+ +[\d.]+ +\S+ +\d+ +\S+ +(?P<port>\d+) +0x(?P<ssrc>[0-9A-F]+) +.*? (?P<packets>\d+) +"
                 r"(?P<lost>-?\d+) \([-\d.]+%\) +(?:[\d.]+ +){4}(?P<mean>[\d.]+) +(?P<most>[\d.]+)", re.MULTILINE)
"""A line of `-z rtp,streams`: times, addresses, ..., least, mean and most delta, least, mean and most jitter."""


@contextmanager
def captured(file: Path) -> Iterator[None]:
    """What goes over loopback by UDP is in `file` afterwards."""
    with subprocess.Popen(["tshark", "-q", "-i", "lo", "-f", "udp", "-w", file], stderr=subprocess.DEVNULL) as tshark, \
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        end = time.monotonic() + 30
        while not file.exists() or file.stat().st_size < 2000:
            assert time.monotonic() < end and tshark.poll() is None, "tshark does not capture"
            probe.sendto(bytes(500), ("127.0.0.1", 9))
            time.sleep(0.1)
        try:
            yield
        finally:
            time.sleep(0.5)
            tshark.send_signal(signal.SIGINT)
            tshark.wait(20)


def analysed(file: Path) -> dict[tuple[int, int], dict[str, str]]:
    """What tshark says of each stream, by the port that it went to and its SSRC."""
    done = subprocess.run(["tshark", "-r", file, "--enable-heuristic", "rtp_udp", "-q", "-z", "rtp,streams"],
                          capture_output=True, text=True, check=True)
    return {(int(row["port"]), int(row["ssrc"], 16)): row.groupdict() for row in ROW.finditer(done.stdout)}


def called(faults: Faults, file: Path) -> list[tuple[MediaStats, dict[str, str]]]:
    """Both directions of a call as they are counted here, each with what tshark says of the same packets."""
    with relay_double(faults) as relay, NgClient("127.0.0.1", relay.port) as client, \
            Endpoint("127.0.0.1") as caller, Endpoint("127.0.0.1") as callee, Call(client, caller, callee) as call:
        with captured(file):
            Traffic(call.streams, report_every=0).run(4.0)
        result, said = call.result(), analysed(file)
        return [(result.to_callee, said[callee.port, call.caller.ssrc]),
                (result.to_caller, said[caller.port, call.callee.ssrc])]


@pytest.mark.parametrize("faults", [
    Faults(), Faults(lose=lambda n: n % 17 == 5), Faults(delay=lambda n: (n * 7919 % 40) / 1000),
    Faults(lose=lambda n: n % 23 == 7, duplicate=lambda n: n % 50 == 3, swap=lambda n: n % 31 == 9,
           delay=lambda n: (n * 7919 % 15) / 1000)],
    ids=["none", "loss", "delay", "all"])
def test_loss_and_jitter_are_tsharks(tmp_path: Path, faults: Faults) -> None:
    if shutil.which("tshark") is None:
        lacking("no tshark (package tshark)")
    for counted, said in called(faults, tmp_path / "media.pcap"):
        assert (counted.received, counted.expected - counted.received) == (int(said["packets"]), int(said["lost"]))
        assert counted.jitter_mean == pytest.approx(float(said["mean"]), abs=0.002)
        assert counted.jitter_max == pytest.approx(float(said["most"]), abs=0.002)
        assert counted.received > 100
        if faults.delay(5):
            assert counted.jitter_mean > 1
