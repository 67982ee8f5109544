"""How scripts of a source tree are run and judged. These are stand-ins: upstream's own are in no package of Debian."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from harness import upstream
from harness.upstream import Stand, Verdict
from tests.relay_double import RelayDouble, relay_double

pytestmark = [pytest.mark.root, pytest.mark.nightly]

MODULE = """package Standin;
use strict; use warnings; use Bencode; use IO::Socket::IP; use IO::Multiplex; use Net::Interface; use Crypt::Rijndael;
use Crypt::OpenSSL::RSA; use Digest::CRC; use Digest::HMAC_SHA1; use IO::Socket::INET6; use JSON; use Socket6;
sub ping {
    my ($host, $port) = @ENV{"RTPENGINE_HOST", "RTPENGINE_PORT"};
    my $s = IO::Socket::IP->new(Type => &SOCK_DGRAM, PeerHost => $host, PeerPort => $port);
    $s->send(rand() . " " . Bencode::bencode({command => "ping"}));
    $s->recv(my $answer, 65535);
    return (split(/ /, $answer, 2))[1];
}
1;
"""
GOOD = """use Standin;
Standin::ping() eq "d6:result4:ponge" or die;
print "$ENV{RTPE_TEST_V4_ADDRS} $ENV{RTPE_TEST_V6_ADDRS} $>\\n";
print "media packets sent: 50 1\\nmedia packets received: 50 1\\n" x 2;
"""


@pytest.fixture(scope="module")
def root(debian_root: Callable[[Sequence[str]], Path]) -> Path:
    return debian_root(upstream.PACKAGES)


@pytest.fixture
def relay() -> Iterator[RelayDouble]:
    with relay_double() as double:
        yield double


@pytest.fixture
def stand(root: Path, relay: RelayDouble, tmp_path: Path) -> Stand:
    """With the modules of Perl that upstream's scripts use."""
    for name in ("perl", "t"):
        (tmp_path / "tree" / name).mkdir(parents=True)
    (tmp_path / "tree/perl/Standin.pm").write_text(MODULE)
    return Stand(root, tmp_path / "tree", "", ["127.0.0.1", "::1"], ("127.0.0.1", relay.port))


def judged(stand: Stand, text: str, log: Path) -> Verdict:
    (stand.tree / "t/test-basic-ipv4.pl").write_text(text)
    return stand.run("basic-ipv4", log)


def test_a_script_reaches_the_relay_and_is_nobody(stand: Stand, relay: RelayDouble, tmp_path: Path) -> None:
    seen = judged(stand, GOOD, tmp_path / "log")
    assert seen == Verdict("basic-ipv4", True, "50 of 50 packets came, 50 of 50 packets came"), seen
    assert (tmp_path / "log").read_text().splitlines()[0] == "127.0.0.1 127.0.0.1 65534"
    assert relay.commands == {"ping": 1}


def test_a_script_that_ends_in_an_error_and_one_that_lost_packets(stand: Stand, tmp_path: Path) -> None:
    seen = judged(stand, "print qq(much\\n); die qq(80 ne 81\\n);", tmp_path / "log")
    assert not seen.good and seen.said == "exit code 255: 80 ne 81"
    assert not judged(stand, GOOD.replace("received: 50", "received: 30"), tmp_path / "log").good


def test_a_script_that_does_not_end_is_ended(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "_SECONDS", 2.0)
    assert judged(stand, "sleep 100;", tmp_path / "log").said == "it did not end within 2 s"
