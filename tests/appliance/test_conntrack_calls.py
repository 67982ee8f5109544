"""Connection tracking under calls."""

import json
import shlex
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

import pytest

from harness import acceptance
from harness.conntrack import entries_per_call, of_sockets, parse_entries
from harness.conntrack_full import FILLER, PROVOKED, Filled, Losses
from harness.deadline import Deadline
from harness.plugin import expect
from harness.units import many
from harness.voip.call import Call, CallResult, placed
from harness.voip.traffic import Traffic

pytestmark = [pytest.mark.level("acceptance"),
              pytest.mark.after("test_one_call", "test_conntrack_loaded_at_boot", "test_conntrack_entries_readable")]

ENTRIES = "/proc/net/nf_conntrack"
STATISTICS = "/proc/net/stat/nf_conntrack"

# Nothing is tracked where no rule asks for it. This one asks, and does nothing to any packet.
RULE = "iptables -w -t mangle {} PREROUTING -m conntrack --ctstate INVALID"
LONGEST = 240.0
"""Seconds after which the server itself puts back what a check changed that has not come to its end."""


@contextmanager
def tracked(host, put_back, address):
    """With connection tracking at work. Its entries of `address`, where our endpoints are, are deleted afterwards."""
    with put_back(f"{RULE.format('-D')}; conntrack -D -p udp -s {address}; conntrack -D -p udp -d {address}; true",
                  LONGEST):
        host.check_output(RULE.format("-I"))
        yield


@pytest.fixture(scope="module")
def entries(read):
    """entries(): what is tracked now. To read the list takes expired entries off it, which else may take a minute."""
    return lambda: parse_entries(read(ENTRIES)[ENTRIES])


CALLS = 10
SECONDS = 4.0
"""Until every entry is assured: more than two seconds after its first packet, RTCP's too, which comes once a second."""
ASSURED = 6.0
"""Seconds more for that, where a report got lost or a server is slow."""


def test_entries_of_calls(switchboard, endpoint, host, put_back, entries, arrived, appliance, plan, server, seen):
    """calls take the entries that the table was sized for"""
    goal = replace(appliance.conntrack, legs=2)  # of each of these calls
    caller, callee, before = endpoint(), endpoint(), arrived()
    calls = [Call(switchboard, caller, callee) for _ in range(CALLS)]
    with tracked(host, put_back, caller.address), placed(calls):
        streams = [stream for call in calls for stream in call.streams]
        # What the server sees are its own addresses, not the advertised one.
        hosts = {server.internal_ip, *(stream.target[0] for stream in streams)}
        rtp, rtcp = ({(host, port) for host in hosts for port in ports} for ports in (
            {stream.target[1] for stream in streams}, {stream.rtcp_target[1] for stream in streams}))
        wanted = CALLS * entries_per_call(goal)
        with Traffic(streams, report_every=1.0 if goal.rtcp else 0) as traffic:
            traffic.wait(SECONDS)
            limit = Deadline(ASSURED)
            while True:
                known = entries()
                of_rtp, of_rtcp = of_sockets(known, rtp), of_sockets(known, rtcp)
                found = [*of_rtp, *of_rtcp]
                assured = sum(entry.assured for entry in found)
                if assured >= wanted or limit.expired:
                    break
                traffic.wait(0.5)
        results = [call.result() for call in calls]
    acceptance.fit(results, [traffic.health], arrived() - before)
    said = f"{len(of_rtp)} entries of RTP and {len(of_rtcp)} of RTCP, {assured} of them assured"
    each = entries_per_call(goal)
    seen(f"{many(CALLS, 'call')}: {said}" + (f"; the table has room for {plan.max // each:,} such" if each else ""))
    expect(len(found) == assured == wanted,
           f"{wanted} entries, {each} a call, all assured" if each else "no entry of the media", said,
           lambda: crowded(found, rtp | rtcp))


def crowded(found, sockets):
    """The entries at each of the relay's ports that has not one."""
    ways = [entry.original for entry in found]
    at = {port: [f"{way.source}:{way.source_port} to {way.destination}:{way.destination_port}" for way in ways
                 if port in (way.source_port, way.destination_port)] for _, port in sockets}
    return "; ".join(f"port {port}: {', '.join(there) or 'none'}" for port, there in sorted(at.items())
                     if len(there) != 1)


@dataclass(frozen=True)
class Siege:
    """A table that was small and full for a while. `known` are calls that it had entries of before, and that went on
    all the time, `newcomer` one whose media began when it was full, `later` one that began when it had drained.
    `tried` is how often it did, until none of its packets passed; `losses` is what the table lost meanwhile, `told` how
    often the kernel said so since it was filled. `left` are the filler's flows that were still there `seconds` after
    its end."""

    size: int
    filled: Filled
    losses: Losses
    told: int
    newcomer: CallResult
    tried: int
    known: list[CallResult]
    later: CallResult
    left: int
    seconds: float


SIZE = 256
BUCKETS = 512
"""A page of them: the fewest that the kernel makes. Eviction looks into eight buckets: they must not be empty."""
SIEGE, DRAIN = 60, 2
"""Seconds until an assured entry is forgotten: nobody's is while the table is full, and soon afterwards all are."""
KNOWN = 3
AHEAD = 2.0
"""Seconds by which the known calls begin before the table is filled: that takes more than two seconds, too."""
FILLING = 45.0
TRIES = 3
STATE = "/run/dialtone-conntrack-filler.json"


@pytest.fixture(scope="module")
def siege(switchboard, endpoint, host, put_back, read, entries, arrived, losses, provoked, appliance, plan):
    """Fills the table, made small for that: see Siege."""
    if appliance.conntrack.stateless:
        pytest.skip("media takes no entries where it is not tracked")
    ends = [(endpoint(), endpoint()) for _ in range(3)]
    known = [Call(switchboard, *ends[0]) for _ in range(KNOWN)]
    newcomer, later = (Call(switchboard, *pair) for pair in ends[1:])
    streams = [stream for call in known for stream in call.streams]
    before = arrived()
    with placed([*known, newcomer, later]), tracked(host, put_back, ends[0][0].address), \
            noted(host, losses, provoked), in_force(host, put_back, read, max=SIZE + len(entries()), buckets=BUCKETS,
                                                    udp_timeout_stream=SIEGE):
        with Traffic(streams, report_every=1.0) as traffic:
            traffic.wait(AHEAD)
            empty = losses()
            with filler(host, read) as state:
                tried = looks = 0
                while True:
                    tried += 1
                    wait(FILLING, lambda looks=looks: (now := state()).full and now.rounds > looks)
                    filled, full = state(), losses()
                    # Sent after the one count of arrivals and before the other: what is on its way is nobody's loss.
                    came, others = arrived(), sum(stream.sent for stream in streams)
                    refused = Traffic(newcomer.streams, report_every=0).run(1.5, linger=1.0)
                    others = sum(stream.sent for stream in streams) - others
                    came = arrived() - came - others
                    after, refusal = losses(), newcomer.result()
                    passed = any(one.received for one in acceptance.directions([refusal]))
                    if not (filled.full and passed) or tried == TRIES:
                        break
                    # Something else's entry may have ended meanwhile, and have left its room to whoever came first.
                    newcomer.interval()
                    looks = state().rounds + 1
                host.check_output(f"sysctl -q -w net.netfilter.nf_conntrack_udp_timeout_stream={DRAIN}")
                refreshed = state().rounds
                wait(FILLING, lambda: state().rounds >= refreshed + 2)
            begin = time.monotonic()
            wait(DRAIN + 10.0, lambda: not filling(entries()))
            seconds, left = time.monotonic() - begin, len(filling(entries()))
            welcome = Traffic(later.streams, report_every=0).run(1.5, acceptance.LINGER)
            traffic.stop(acceptance.LINGER)
        results = [call.result() for call in known]
        acceptance.fit([refusal], [refused], came)
        acceptance.fit([*results, later.result()], [traffic.health, welcome], arrived() - before)
        return Siege(SIZE, filled, after - full, (after - empty).told, refusal, tried, results, later.result(),
                     left, seconds)


def test_full_table_refuses(siege, seen):
    """a table full of assured entries refuses a new call's media, and counts what it refuses"""
    flows, drop = siege.filled.flows, siege.losses.drop
    ways = acceptance.directions([siege.newcomer])
    sent, received = sum(one.sent for one in ways), sum(one.received for one in ways)
    seen(f"full with {flows} flows; {received} of {sent} packets of a new call passed, {drop} drops, "
         f"{siege.losses.early_drop} early drops")
    expect(siege.filled.full, f"a table of {siege.size} entries filled", siege.filled)
    expect(received == 0, "no packet of a new call", f"{received} of {sent} at try {siege.tried}")
    expect(drop >= sent, f"{sent} drops or more counted", drop)


@pytest.mark.after("test_full_table_refuses")
def test_full_table_spares(siege, seen):
    """calls that the table knew before it was full lose nothing"""
    said = acceptance.in_words(siege.known)
    seen(said)
    lost = sum(acceptance.missing(one) for one in acceptance.directions(siege.known))
    expect(lost == 0, "every packet received at the other end", said)


@pytest.mark.after("test_full_table_refuses")
def test_full_table_told(siege, seen):
    """the kernel says that the table is full"""
    seen(many(siege.told, "line"))
    expect(siege.told > 0, '"table full, dropping packet" in the kernel log', "no such line")


@pytest.mark.after("test_full_table_refuses")
def test_full_table_drains(siege, seen):
    """a table that was full drains, and new calls pass again"""
    said = acceptance.in_words([siege.later])
    seen(f"empty after {siege.seconds:.1f} s; then {said}")
    expect(siege.left == 0, f"no flow left {DRAIN} s after its last packet",
           f"{many(siege.left, 'flow')} after {siege.seconds:.0f} s")
    lost = sum(acceptance.missing(one) for one in acceptance.directions([siege.later]))
    expect(lost == 0, "every packet of a new call", said)


@contextmanager
def in_force(host, put_back, read, **values):
    """With other settings of net.netfilter, by the names that they have after nf_conntrack_."""
    def written(settings):
        return " ".join(["sysctl -q -w", *(f"net.netfilter.nf_conntrack_{key}={value}"
                                           for key, value in settings.items())])

    files = {key: f"/proc/sys/net/netfilter/nf_conntrack_{key}" for key in values}
    with put_back(written({key: read(file)[file].strip() for key, file in files.items()}), LONGEST):
        host.check_output(written(values))
        yield


@contextmanager
def noted(host, losses, provoked):
    """What the table loses inside is known to be on purpose: test_conntrack_never_full reads the note."""
    before = losses()
    try:
        yield
    finally:
        note = shlex.quote(json.dumps(asdict(provoked() + losses() - before)))
        host.check_output(f"echo {note} >{PROVOKED}")


@contextmanager
def filler(host, read):
    """With the filler at work on the server; state() is how far it is. It would end by itself, too."""
    words = f"{shlex.quote(FILLER.read_text(encoding='utf-8'))} {TRIES * FILLING} {STATE}"
    number = host.check_output(f"rm -f {STATE}; python3 -c {words} >/dev/null 2>&1 & echo $!")
    try:
        yield lambda: Filled.from_json(read(STATE).get(STATE, ""))
    finally:
        host.run(f"kill {number}; rm -f {STATE}")


def filling(entries):
    """Those of the filler's flows; a name server's on loopback are not assured."""
    return [entry for entry in entries if entry.protocol == "udp" and entry.assured
            and entry.original.source == entry.original.destination == "127.0.0.1"]


def wait(seconds, condition):
    """Until `condition` holds, `seconds` at most."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.3)
