"""Load."""

import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field

import pytest

from harness import acceptance, load
from harness.errors import CheckFailed, DialtoneError, HostError
from harness.plugin import expect
from harness.units import many
from harness.voip.call import Call, placed
from harness.voip.search import following
from harness.voip.traffic import Traffic

pytestmark = [pytest.mark.level("load"), pytest.mark.after("test_ten_calls")]

FIRST = 10
"""Calls of the first step."""
SECONDS = 4.0
"""Of a step, after the relay has learned its endpoints."""
LEARNING = 15.0
SEARCH = 150.0
"""Seconds after which a search begins no further step."""
HOPELESS = 100
"""Times the bounds: a step that is as far beyond them is not tried once more."""
PORTS_OF_A_CALL = 4
KERNEL, USER = "in the kernel", "in user space"
CHEAPER = 8.0
"""The daemon's processor time a packet in user space over that in the kernel: what forwarding in the kernel is for."""
PATHS_APART = 0.2
"""Packets that were on their way when the module was asked: an emulated server stops for some 0.5 s now and then."""
CLIENTS = (1, 2, 4, 8)
RATE_SECONDS = 2.0
IDLE_CALLS, BATCH, LEAST_BATCHES = 600, 50, 4
IDLE_SECONDS = 20.0
"""No more idle calls are placed after that: the relay gives up on them when they are silent for a minute."""
CALLS, PACKETS = "calls", "packets relayed a second"


@dataclass
class Climb:
    """Steps of one search in their order, and why it ended where it did not find its end by itself."""

    steps: list[load.Step] = field(default_factory=list)
    ended: str = ""
    crowd: float = 0.0
    """The most processes for each processor of this host, where the server runs on it."""

    def in_words(self):
        best, broken = load.most_held(self.steps), self.broken
        said = [f"{best.calls} calls held: {words(best)}" if best else "no number of calls held"]
        if broken:
            said.append(f"{broken.calls} not: {words(broken)}")
        if broken and broken.excused:
            said.append(f"that may be the generator's limit, and not the relay's: {broken.limit}")
        if self.crowd > load.CROWDED:
            said.append(f"this machine had {self.crowd:.1f} processes for each of its processors")
        return "; ".join([*said, *([self.ended] if self.ended else [])])

    @property
    def excused(self):
        """What was not held may be this host's fault: the generator's, or that of others who kept the server from its
        processors, unless so much was lost that they can't be why."""
        crowded = self.crowd > load.CROWDED and self.broken.loss < HOPELESS * load.BOUNDS.loss
        return self.broken.excused or crowded

    @property
    def broken(self):
        """The step with the lowest number of calls that was not held."""
        return min((one for one in self.steps if not one.held()), key=lambda one: one.calls, default=None)


def words(one):
    return (f"{one.packets:,.0f} packets/s, {one.loss:.2f} % lost, jitter {one.jitter:.1f} ms, latency "
            f"{one.latency:.1f} ms, {one.cost.server:.2f} of {one.processors} processors busy "
            f"({one.cost.daemon:.2f} the daemon, {one.cost.interrupts:.2f} interrupts)")


@dataclass
class Bench:
    """Places calls through the relay and looks at the server meanwhile."""

    switchboard: object
    endpoint: object
    read: object
    pid: int
    table: int
    by_module: object
    here: bool
    """The server runs on this host."""
    climbs: dict[str, Climb] = field(default_factory=dict)
    watched: list[tuple[float, int, int]] = field(default_factory=list)
    """Seconds since boot, entries of connection tracking, calls."""

    def look(self, calls):
        try:
            seen = load.moment(self.read(*load.moment_files(self.pid)))
        except ValueError as error:
            raise CheckFailed(str(error)) from error
        if seen.entries is not None:
            self.watched.append((seen.at, seen.entries, calls))
        return seen

    def targets(self):
        file = f"/proc/rtpengine/{self.table}/status"
        return load.targets(self.read(file).get(file, ""))

    def forwarded(self):
        file = f"/proc/rtpengine/{self.table}/list"
        return acceptance.targets(self.read(file).get(file, ""))

    def hold(self, count):
        """So many calls with media both ways: until the relay knows its endpoints, then for SECONDS."""
        caller, callee = self.endpoint(), self.endpoint()
        calls = [Call(self.switchboard, caller, callee) for _ in range(count)]
        streams = [stream for call in calls for stream in call.streams]
        with placed(calls):
            with punctual(streams) as learning:
                end = time.monotonic() + LEARNING
                learning.wait(1.0)
                while self.table >= 0 and self.targets() < len(streams) and time.monotonic() < end:
                    learning.wait(0.5)
                learning.stop(0.5)
            for call in calls:
                call.interval()
            begun, sent = self.by_module(self.forwarded()), sum(stream.sent for stream in streams)
            with punctual(streams) as traffic:
                traffic.wait(0.5)
                before, end = self.look(count), time.monotonic() + SECONDS
                while (left := end - time.monotonic()) > 0:
                    traffic.wait(min(1.0, left))
                    after = self.look(count)
                health = traffic.stop(acceptance.LINGER)
            sent = sum(stream.sent for stream in streams) - sent
            kernel = self.by_module(self.forwarded()) - begun
            results = [call.result() for call in calls]
        return load.step(results, rate=health.packets / health.seconds, kernel=kernel / sent,
                         spent=load.cost(before, after), processors=after.processors, health=health)

    def climb(self, path, measure, most):
        """Search for the highest number of calls that is held; a step that is not is tried once more, unless it is far
        from it: something else may have had a processor. What was measured stays when a step can't be made."""
        climb = self.climbs[path] = Climb()
        end, tried = time.monotonic() + SEARCH, {}
        while (count := following(tried, FIRST, most)) is not None:
            if time.monotonic() > end:
                climb.ended = f"the search ended after {SEARCH:.0f} s"
                break
            try:
                step = self.hold(count)
                if not step.held() and step.loss < HOPELESS * load.BOUNDS.loss:
                    step = self.hold(count)
            except DialtoneError as error:
                error.message = f"with {many(count, 'call')} {path}: {error.message}"
                raise
            climb.steps.append(step)
            if self.here:
                climb.crowd = max(climb.crowd, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
            plotted(climb.steps, path, measure)
            tried[count] = step.held()
        else:
            if tried.get(most):
                climb.ended = f"{most} calls are all that the relay has ports for"
        return climb


def plotted(steps, path, measure):
    steps = sorted(steps, key=lambda one: one.calls)
    measure.series("Loss over calls", path, CALLS, "% of packets lost", [(one.calls, one.loss) for one in steps])
    measure.series("Jitter over calls", path, CALLS, "ms (RFC 3550)", [(one.calls, one.jitter) for one in steps])
    for name, value in (("median", "latency"), ("99th percentile", "latency_p99")):
        measure.series("Latency over calls", f"{path}, {name}", CALLS, "ms one way",
                       [(one.calls, getattr(one, value)) for one in steps])
    by_rate = sorted(steps, key=lambda one: one.packets)
    for name, value in (("daemon", "daemon"), ("whole server", "server")):
        measure.series("Processor time over packets", f"{name}, {path}", PACKETS, "processors busy",
                       [(one.packets, getattr(one.cost, value)) for one in by_rate])


@contextmanager
def punctual(streams):
    """Traffic, while this process comes before whatever else this machine does, for an emulated server takes all
    processors. All its threads do: one that waits for a processor holds up the others where it has the interpreter's
    lock."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    try:
        with Traffic(streams, report_every=0) as traffic:
            yield traffic
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, usual)


@pytest.fixture(scope="module")
def bench(session, switchboard, endpoint, read, host, by_module, rtpengine):
    return Bench(switchboard, endpoint, read, main_process(host), rtpengine.table, by_module,
                 session.run.cloud == "local")


def main_process(host):
    return int(host.check_output("systemctl show --property=MainPID --value rtpengine.service"))


@pytest.fixture(scope="module")
def most(rtpengine):
    """Calls that the relay has ports for."""
    return (rtpengine.port_max - rtpengine.port_min + 1) // PORTS_OF_A_CALL


@pytest.fixture(scope="module")
def machine(host):
    """What executes the server's instructions, by what its processor says (systemd-detect-virt(1))."""
    kind = host.run("systemd-detect-virt").stdout.strip()
    return {"qemu": "QEMU without KVM (TCG)", "none": "no hypervisor"}.get(kind, kind)


@contextmanager
def without_rule(host, put_back, generation, table):
    """The firewall hands no packet to the module, and the daemon gets them all."""
    rule = generation.rule("ip", table)
    if rule.line not in host.run(rule.show).stdout.splitlines():
        yield
        return
    with put_back(rule.insert, 2 * SEARCH):
        host.check_output(rule.delete)
        yield


def test_memory_per_call(bench, host, read, appliance, most, measure, seen):
    """the memory of as many calls as are planned is there"""
    # A daemon that has had calls before has memory for as many.
    host.check_output("systemctl restart rtpengine.service")
    bench.pid = main_process(host)
    files = f"/proc/{bench.pid}/smaps_rollup", "/proc/meminfo"

    def memory():
        daemon, whole = (read(file)[file] for file in files)
        return [1024 * int(re.search(rf"^{name}:\s*(\d+) kB", text, re.MULTILINE)[1])
                for name, text in (("Rss", daemon), ("MemAvailable", whole))]

    caller, callee = bench.endpoint(), bench.endpoint()
    resident, available = memory()
    points, room = [(0, resident)], available
    end = time.monotonic() + IDLE_SECONDS
    with ExitStack() as held:
        for count in range(BATCH, min(IDLE_CALLS, most) + 1, BATCH):
            if time.monotonic() > end and len(points) > LEAST_BATCHES:
                break
            held.enter_context(placed([Call(bench.switchboard, caller, callee) for _ in range(BATCH)]))
            resident, available = memory()
            points.append((count, resident))
            measure.series("Memory over idle calls", "the daemon's resident memory", CALLS, "MiB",
                           [(calls, octets / 2**20) for calls, octets in points])
    each = load.slope(points)
    measure.figure("memory a call, daemon", each / 1024, "KiB", "less")
    said = f"{each / 1024:.1f} KiB a call"
    seen(said)
    planned = appliance.conntrack.calls if appliance.conntrack else most
    expect(planned * each <= room, f"room for {planned:,} calls in {room / 2**20:.0f} MiB of available memory", said)


def test_set_up_rate(bench, relay_client, endpoint, measure, seen):
    """calls are offered, answered and deleted by several clients at once, and none is left"""
    before = set(bench.switchboard.calls(limit=10_000))
    points = []
    for count in CLIENTS:
        workers = [(relay_client(), endpoint(), endpoint()) for _ in range(count)]
        begin = time.monotonic()

        def work(client, caller, callee, end=begin + RATE_SECONDS):
            done = 0
            while time.monotonic() < end:
                with Call(client, caller, callee):
                    done += 1
            return done

        with ThreadPoolExecutor(count) as pool:
            done = sum(pool.map(lambda worker: work(*worker), workers))
        points.append((count, done / (time.monotonic() - begin)))
        measure.series("Set-up rate over clients", "offered, answered and deleted", "clients at once",
                       "calls a second", points)
    best = max(rate for _, rate in points)
    measure.figure("set-up rate", best, "calls/s", "more")
    seen(", ".join(f"{rate:.0f} calls/s by {count}" for count, rate in points))
    left = set(bench.switchboard.calls(limit=10_000)) - before
    expect(not left, "no call left on the relay", f"{len(left)} calls left")


def test_calls_held_in_kernel(bench, table, most, measure, seen):
    """calls are held within the bounds of loss and jitter, forwarded in the kernel"""
    judged(bench.climb(KERNEL, measure, most), KERNEL, 1.0, measure, seen)


def test_calls_held_in_user_space(bench, host, put_back, generation, most, measure, seen):
    """calls are held within the bounds of loss and jitter, forwarded by the daemon"""
    with ExitStack() as changed:
        if bench.table >= 0:
            changed.enter_context(without_rule(host, put_back, generation, bench.table))
        climb = bench.climb(USER, measure, most)
    judged(climb, USER, 0.0, measure, seen)


def judged(climb, path, kernel, measure, seen):
    best = load.most_held(climb.steps)
    measure.figure(f"calls held, {path}", best.calls if best else 0, "calls", "more")
    seen(climb.in_words())
    if best is None and climb.excused:
        raise HostError(f"the relay can't be judged: {climb.in_words()}")
    expect(best is not None, f"calls held within {load.BOUNDS}", climb.in_words())
    expect(abs(best.kernel - kernel) < PATHS_APART, f"{kernel:.0%} of the packets forwarded in the kernel",
           f"{best.kernel:.1%}")


@pytest.mark.after("test_calls_held_in_kernel", "test_calls_held_in_user_space")
def test_kernel_is_cheaper(bench, machine, table, measure, seen):
    """forwarding in the kernel takes less of the daemon's processor time than in user space"""
    climbs = [bench.climbs.get(path) for path in (KERNEL, USER)]
    if None in climbs:
        pytest.skip("it needs the steps of both searches")
    both = load.in_common(*(climb.steps for climb in climbs))
    if both is None:
        pytest.skip("no number of calls was held both ways")
    kernel, user = both
    for name, value in (("daemon", "daemon_per_packet"), ("whole server", "server_per_packet")):
        for path, step in ((KERNEL, kernel), (USER, user)):
            measure.figure(f"processor time a packet, {name}, {path}", getattr(step, value), "µs", "less")
    daemon, server = (getattr(user, value) / getattr(kernel, value) for value in ("daemon_per_packet",
                                                                                  "server_per_packet"))
    measure.figure("daemon's processor time a packet, user space : kernel", daemon, ": 1", "more")
    said = (f"{daemon:.1f} : 1 of the daemon's time ({user.daemon_per_packet:.1f} µs a packet in user space, "
            f"{kernel.daemon_per_packet:.1f} µs in the kernel), {server:.1f} : 1 of the whole server's "
            f"({user.server_per_packet:.0f} µs, {kernel.server_per_packet:.0f} µs); {kernel.calls} calls, {machine}")
    seen(said)
    expect(daemon >= CHEAPER, f"{CHEAPER:g} : 1 or more of the daemon's processor time, user space : kernel", said)


def test_entries_below_limit(bench, read, measure, seen):
    """the connection tracking table is never full under load"""
    if not bench.watched:
        pytest.skip("the server's kernel tracks no connections, or no search was made")
    file = "/proc/sys/net/netfilter/nf_conntrack_max"
    most, begin = int(read(file)[file]), bench.watched[0][0]
    for name, position in (("entries", 1), ("calls held", 2)):
        measure.series("Connection tracking over time", name, "seconds", "number",
                       [(one[0] - begin, one[position]) for one in bench.watched])
    peak = max(entries for _, entries, _ in bench.watched)
    measure.figure("connection tracking entries, most", peak, "entries", "less")
    said = f"{peak:,} entries at most, room for {most:,}"
    seen(said)
    expect(peak < most, f"fewer than {most:,} entries", said)
