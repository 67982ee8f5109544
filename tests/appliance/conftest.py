"""What several checks look at, read from the server once.

Every check reads; what one has to change to see something, it changes back. Looking into a file (`read`, `find`)
costs an emulated server next to nothing, starting a program 0.1 s and more: so files first. `after` names the checks
(by function) that a check builds upon: when one of those failed it is skipped, so that one defect is one failure.
"""

from __future__ import annotations

import re
import secrets
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial

import pytest

from harness import acceptance, journal, relayoptions
from harness import known as known_files
from harness.access.shell import ConnectionLost
from harness.conntrack import plan as conntrack_plan
from harness.conntrack_full import PROVOKED, Losses
from harness.errors import CloudError
from harness.kernellog import without_waits
from harness.opensips import remote
from harness.opensips.expectation import Events
from harness.opensips.interface import EventInterface
from harness.opensips.keeper import Keeper
from harness.opensips.mi import MiClient
from harness.opensips.subscriber import Subscriber
from harness.plugin import expect
from harness.voip.call import Call, CallResult, placed
from harness.voip.ng import NgNoAnswer
from harness.voip.traffic import Health, Traffic

LONGEST = 300.0
"""Seconds after which the server itself puts back what a check changed that has not come to its end. A daemon's start
takes 40 s on a busy emulated server, and two ways back at once undo each other."""


@pytest.fixture(scope="session")
def kernel(read):
    """The release of the running kernel."""
    return read("/proc/sys/kernel/osrelease")["/proc/sys/kernel/osrelease"].strip()


@pytest.fixture(scope="session")
def kernel_log(host):
    """The kernel's messages since boot, as lines."""
    return host.check_output("dmesg").splitlines()


@pytest.fixture(scope="session")
def but_waits(host):
    """A function of lines of the kernel's log: those without reports of stalls that an emulator brought about, and the
    first lines of these reports."""
    def sift(log):
        rest, waits = without_waits(log)
        emulated = waits and host.run("systemd-detect-virt").stdout.strip() == "qemu"
        return (rest, waits) if emulated else (log, [])
    return sift


@pytest.fixture(scope="session", autouse=True)
def checking(host):
    """Notes on the server when checks run: what it logs then is their doing."""
    host.run(journal.note("begin"))
    yield
    with suppress(ConnectionLost):
        host.run(journal.note("end"))


@pytest.fixture(scope="session")
def complaints(host, read, checking):
    """What kernel and services have logged since boot as warning or worse, but while checks ran."""
    entries = journal.read(host.check_output(journal.WARNINGS))
    return journal.apart(entries, journal.windows(read(journal.CHECKED)[journal.CHECKED]))


@pytest.fixture(scope="session")
def known(appliance):
    """What is known of the appliance's servers, and has a reason."""
    return known_files.load(appliance)


@pytest.fixture(scope="session")
def table(rtpengine):
    """The number of the relay's forwarding table."""
    if rtpengine.table < 0:
        pytest.skip("the description asks for forwarding in user space (table: -1)")
    return rtpengine.table


@pytest.fixture(scope="session")
def generation(rtpengine):
    """What the relay's generation has to show."""
    return rtpengine.generation


@pytest.fixture(scope="session")
def plan(conntrack, appliance):
    """The connection tracking table that follows from the description."""
    return conntrack_plan(conntrack, appliance.server.memory)


@pytest.fixture(scope="session")
def losses(host, read):
    """losses(): what the tracking table has lost since boot."""
    file = "/proc/net/stat/nf_conntrack"
    return lambda: Losses.of(read(file)[file], host.check_output("dmesg"))


@pytest.fixture(scope="session")
def provoked(read):
    """provoked(): how much of it a check has provoked on purpose."""
    return lambda: Losses.from_json(read(PROVOKED).get(PROVOKED, ""))


@pytest.fixture(scope="session")
def units(host, appliance):
    """Properties of the units that checks ask for, by unit (systemctl(1), show)."""
    names = ["rtpengine.service", "redis-server.service", "opensips.service", "logrotate.timer",
             appliance.debian.cloud_init]
    shown = host.check_output("systemctl show --property=ActiveState,SubState,NRestarts,Result,UnitFileState,MainPID,"
                              "StatusText,ExecStart " + " ".join(names))
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.split("\n\n")]
    return dict(zip(names, blocks, strict=True))


@pytest.fixture(scope="session")
def rotated(host, units):
    """rotated(log): that this file is rotated."""
    def judge(log):
        tried = host.run("logrotate --debug /etc/logrotate.conf")
        said = tried.stdout + tried.stderr
        errors = [line for line in said.splitlines() if line.startswith("error:")]
        expect(tried.rc == 0 and not errors, "a logrotate configuration without errors", "; ".join(errors) or tried.rc)
        expect(f"considering log {log}" in said, f"{log} considered by logrotate", "it is not")
        timer = units["logrotate.timer"]["UnitFileState"]
        expect(timer == "enabled", "logrotate.timer enabled", timer)

    return judge


@dataclass(frozen=True)
class Daemon:
    """The running relay: its process and its options in force, the command line over the configuration file."""

    pid: int
    options: dict[str, list[str]]

    def option(self, name, default=""):
        return self.options.get(name, [default])[-1]


@pytest.fixture(scope="session")
def daemon(read, units, rtpengine):
    pid = int(units["rtpengine.service"]["MainPID"])
    words = read(f"/proc/{pid}/cmdline").get(f"/proc/{pid}/cmdline", "").split("\0")[1:-1]
    return Daemon(pid, options_of(words, read))


@pytest.fixture(scope="session")
def configured(read, units, rtpengine):
    """The options that the unit and the configuration file have for the daemon, which may not run."""
    command = re.search(r"argv\[\]=(.*?) ;", units["rtpengine.service"].get("ExecStart", ""))
    return options_of(command[1].split()[1:] if command else [], read)


def options_of(words, read):
    arguments = relayoptions.of_arguments(words)
    file = arguments.get("config-file", ["/etc/rtpengine/rtpengine.conf"])[-1]
    return relayoptions.merged(arguments, relayoptions.of_file(read(file)[file]))


INSTANCE_DATA = "/run/cloud-init/instance-data.json"


@pytest.fixture(scope="session")
def advertised(read):
    """The addresses that the server's metadata wants advertised: one, or none."""
    return re.findall(r'"rtpengine_advertised": *"([^"]*)"', read(INSTANCE_DATA).get(INSTANCE_DATA, ""))[:1]


@pytest.fixture(scope="session")
def media_address(server, advertised):
    """The relay's address for media, as its clients are to be told."""
    return advertised[0] if advertised else server.internal_ip


@pytest.fixture(scope="session")
def switchboard(relay):
    """The relay's control port, to place calls by. A relay that does not answer at all is not the image's fault here:
    the checks of the service and of the control port, which come before, say what there is to say of the image."""
    try:
        relay.ping()
    except NgNoAnswer as error:
        raise CloudError(f"no call can be placed: {error.message}") from error
    return relay


@pytest.fixture(scope="session")
def endpoint(endpoint_towards, media_address):
    """endpoint(tos=0): an RTP endpoint from which the relay's address for media is reached."""
    return partial(endpoint_towards, media_address)


@pytest.fixture(scope="session")
def arrived(read):
    """arrived(): packets that the server's network interfaces have received so far."""
    return lambda: sum(int(text) for path, text in read("/sys/class/net/*/statistics/rx_packets").items()
                       if "/lo/" not in path)


@pytest.fixture(scope="session")
def put_back(host):
    """put_back(command, seconds=LONGEST): a block at whose end the server carries out `command`, which takes a change
    back.

    Where this process and its connection are gone by then, the server does it itself after `seconds`.
    """
    @contextmanager
    def promised(command, seconds=LONGEST):
        unit = f"dialtone-{secrets.token_hex(4)}"
        host.check_output("systemd-run --quiet --unit=%s --on-active=%s sh -c %s", unit, f"{seconds:.0f}", command)
        try:
            yield
        finally:
            host.check_output(f"{{ {command}; }} && systemctl stop {unit}.timer")

    return promised


@pytest.fixture(scope="session")
def firewall(host, put_back):
    """firewall(*rules): a block in which these rules, in words of iptables(8), come before all others of INPUT."""
    @contextmanager
    def ruled(*rules):
        with put_back(changed("-D", rules), 120):
            host.check_output(changed("-I", rules[::-1]))
            yield

    def changed(action, rules):
        lines = "\\n".join(["*filter", *(f"{action} INPUT {rule}" for rule in rules), "COMMIT"])
        return f"printf '{lines}\\n' | iptables-restore -w --noflush"

    return ruled


@dataclass(frozen=True)
class Conversation:
    """Calls that took place at once. Where kernel forwarding is described, `sent` and `forwarded` are of the time after
    learning: what was sent to each of the relay's ports, and by how much the module's count of it grew.

    `learned` is after how many seconds the module had every port, None where it never did. `by_module` is how many of
    them all the kernel forwarded by a count that is the module's alone. `totals` is by how much the daemon's own
    counters grew, over the whole calls.
    """

    results: list[CallResult]
    health: list[Health]
    arrived: int
    learned: float | None
    sent: dict[int, int]
    forwarded: dict[int, int]
    by_module: int
    totals: dict[str, int]


CALLS = 10
AFTERWARDS = 4.0


@pytest.fixture(scope="session")
def by_module(switchboard, generation):
    """by_module(forwarded): a number that grows by one with every packet that the kernel forwards, and by nothing else;
    `forwarded` are the counts of the ports in question in the module's list."""
    def count(forwarded):
        if generation.own_count:
            return sum(forwarded.values())
        return int(switchboard.statistics()["totalstatistics"]["relayedpackets_kernel"])

    return count


@pytest.fixture(scope="session")
def conversation(switchboard, endpoint, read, arrived, by_module, rtpengine):
    """Ten calls with media both ways: until the kernel forwards them, and some seconds more. Without RTCP, so that the
    relay's counters are those of what was sent."""
    file = f"/proc/rtpengine/{rtpengine.table}/list"
    caller, callee = endpoint(), endpoint()
    calls = [Call(switchboard, caller, callee) for _ in range(CALLS)]
    streams = [stream for call in calls for stream in call.streams]
    before, came = switchboard.statistics()["totalstatistics"], arrived()
    with placed(calls):
        with Traffic(streams, report_every=0) as learning:
            learned = acceptance.learned(learning, streams, lambda: read(file).get(file, ""))
            learning.stop(acceptance.LINGER)
        counted, packets = acceptance.targets(read(file).get(file, "")), {s: s.sent for s in streams}
        begun = by_module(counted)
        afterwards = Traffic(streams, report_every=0).run(AFTERWARDS, acceptance.LINGER)
        sent = {stream.target[1]: stream.sent - packets[stream] for stream in streams}
        ended = acceptance.targets(read(file).get(file, ""))
        forwarded, in_kernel = acceptance.grown(counted, ended, sent), by_module(ended) - begun
        results = [call.result() for call in calls]
    after = switchboard.statistics()["totalstatistics"]
    totals = {name: int(after[name]) - int(before[name]) for name in after if name.startswith("relayedpackets")}
    return Conversation(results, [learning.health, afterwards], arrived() - came, learned, sent, forwarded, in_kernel,
                        totals)


@dataclass(frozen=True)
class Talk:
    """Calls whose media go on meanwhile."""

    calls: list[Call]
    traffic: Traffic

    @property
    def streams(self):
        return [stream for call in self.calls for stream in call.streams]

    def during(self, seconds):
        """The figures of all calls from when they were last asked for to `seconds` from now; lost are gaps only."""
        self.traffic.wait(seconds)
        return [call.interval() for call in self.calls]


@pytest.fixture
def talk(switchboard, endpoint):
    """Five calls that have begun."""
    caller, callee = endpoint(), endpoint()
    calls = [Call(switchboard, caller, callee) for _ in range(5)]
    with placed(calls), Traffic((s for call in calls for s in call.streams), report_every=0) as traffic:
        traffic.wait(1)
        yield Talk(calls, traffic)


@pytest.fixture
def listed(read, rtpengine):
    """listed(): what the module's table holds."""
    file = f"/proc/rtpengine/{rtpengine.table}/list"
    return lambda: read(file).get(file, "")


@pytest.fixture
def settled(talk, listed, rtpengine):
    """Five calls that the kernel forwards, where that is described."""
    if rtpengine.table >= 0:
        expect(acceptance.learned(talk.traffic, talk.streams, listed) is not None,
               "every stream in the module's table", "some are not")
    return talk


@pytest.fixture
def whole(talk, arrived, seen):
    """whole(results, said): all streams of `talk` had media without a gap; `said` is what else was measured."""
    came = arrived()

    def judge(results, said):
        acceptance.fit(results, [talk.traffic.health], arrived() - came)
        every = acceptance.directions(results)
        silent, lost = sum(not one.received for one in every), sum(one.lost for one in every)
        seen(said)
        expect(not silent and not lost, f"media of {len(every)} streams, no packet lost",
               f"{silent} streams silent, {lost} packets lost; {said}")

    return judge


MANAGEMENT = {"datagrams": "udp:127.0.0.1:8080", "FIFO": "fifo:/run/opensips/opensips_fifo,/run/opensips",
              "HTTP": "http://127.0.0.1:8888/mi"}
EVENT_SOCKETS = {"udp": "127.0.0.1:0", "tcp": "127.0.0.1:0", "unix": "/run/opensips/dialtone-events.sock"}
EVENT_SECONDS = 10.0
"""In which an answer or an event comes from a busy emulated server."""


@pytest.fixture(scope="session")
def management(session, server, opensips):
    """management(way): a client of the proxy's Management Interface on the server's loopback; closed at the end."""
    with ExitStack() as opened:
        yield lambda way: opened.enter_context(MiClient(
            remote.Interface(session.config, server.name, MANAGEMENT[way]), EVENT_SECONDS))


@pytest.fixture(scope="session")
def event_interface(management):
    """The proxy's event interface."""
    return EventInterface(management("datagrams"))


@pytest.fixture(scope="session")
def event_socket(session, server, opensips):
    """event_socket(transport): a socket on the server that the proxy's events may come to."""
    return lambda transport: remote.Socket(session.config, server.name, transport, EVENT_SOCKETS[transport])


@pytest.fixture(scope="session")
def events(event_interface, event_socket):
    """`with events.expect("E_PIKE_BLOCKED", ip=address):` the block, or what it has begun, leads to that event, and it
    comes over UDP, TCP and unix datagrams."""
    with Keeper(event_interface) as keeper, ExitStack() as opened:
        yield Events(*(opened.enter_context(Subscriber(keeper, event_socket(transport)))
                       for transport in EVENT_SOCKETS), within=EVENT_SECONDS)
