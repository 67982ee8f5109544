from __future__ import annotations

import re
from importlib.resources import files

import pytest

from harness.bench import generator
from harness.bench.generator import Played, played

PRINTED = """\
Ip: Forwarding DefaultTTL
Ip: 1 64
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
Udp: 25267 0 24711 50234 24711 0 0 0 0
UdpLite: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors InCsumErrors IgnoredMulti MemErrors
UdpLite: 0 0 0 0 0 0 0 0 0
0m0.010s 0m0.020s
0m0.183s 1m0.491s
"""


def test_what_sipp_sent_and_took_is_read() -> None:
    assert played(PRINTED) == Played(50234, pytest.approx(60.674))


def test_the_scenario_plays_as_long_as_it_is_told() -> None:
    text = files("harness.bench").joinpath("rtp-play.xml").read_text()
    assert re.findall(r"SECONDS\d*", text) == ["SECONDS", "SECONDS000"]
    assert 'rtp_stream="silence.ul,' in text


def test_a_rate_that_is_never_kept_up_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator.ceiling, "ceiling", lambda run, seconds: [])
    with pytest.raises(Exception, match="no rate was kept up by ours"):
        generator._best("ours", generator.ceiling.shared)
