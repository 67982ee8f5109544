"""Whether the test cloud is well: its services as the node's first process sees them, its agents as the APIs do."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from openstack.connection import Connection

from harness.testcloud.place import Place
from harness.testcloud.services import Service
from harness.units import octets, seconds

AGENTS = ("Linux bridge agent", "L3 agent", "DHCP agent", "Metadata agent")
COMPUTE = ("nova-compute", "nova-conductor", "nova-scheduler")
VOLUMES = ("cinder-scheduler", "cinder-volume")


@dataclass(frozen=True)
class Line:
    """One service or agent. `since` in seconds since the epoch, `memory` (PSS) in octets; 0 where there is none."""

    name: str
    well: bool
    seen: str
    since: float = 0.0
    memory: int = 0

    def text(self, now: float) -> str:
        since = f"since {seconds(max(0.0, now - self.since))}" if self.since else ""
        return f"  {self.name:<22} {self.seen:<28} {since:<20} {octets(self.memory) if self.memory else '':>8}".rstrip()


def of_services(wanted: Sequence[Service], status: Mapping[str, Mapping[str, Any]],
                memory: Mapping[int, int]) -> Iterator[Line]:
    """A line for every daemon of `wanted`, and one for each command that did not end well.

    `status` is what init.py writes, `memory` octets by session (the service's process id in the node). Pure.
    """
    for service in wanted:
        entry = status.get(service.name)
        if entry is None:
            yield Line(service.name, False, "not started")
        elif entry["ended"] and (not service.once or entry["code"]):
            yield Line(service.name, False, f"DEAD, {ending(entry['code'])}", entry["ended"])
        elif not entry["ready"]:
            yield Line(service.name, False, "starting", entry["started"], memory.get(entry["pid"], 0))
        elif not service.once:
            yield Line(service.name, True, "alive", entry["ready"], memory.get(entry["pid"], 0))


def ending(code: int) -> str:
    """How a process ended, by its code as Python has it: below zero a signal."""
    return f"ended by signal {-code}" if code < 0 else f"exit code {code}"


def of_agents(cloud: Connection, since: float, *, volumes: bool) -> list[Line]:
    """A line for every agent of Neutron and service of Nova and, where there are `volumes`, of Cinder; also for those
    that should be there and are not.

    The node started at `since` (seconds since the epoch): an API believes in a heartbeat for a minute, also in one
    of before.
    """
    network = {a.agent_type: a for a in cloud.network.agents()}
    lines = [_agent(name, network[name].is_alive, network[name].last_heartbeat_at, since) if name in network
             else Line(name, False, "never seen") for name in AGENTS]
    reporting = {s.binary: s for s in cloud.compute.services()}
    if volumes:
        reporting |= {s.binary: s for s in cloud.block_storage.services()}
    lines += [_agent(name, reporting[name].state == "up", reporting[name].updated_at, since) if name in reporting
              else Line(name, False, "never seen") for name in (*COMPUTE, *(VOLUMES if volumes else ()))]
    hypervisors = list(cloud.compute.hypervisors())
    lines.append(Line("hypervisor", bool(hypervisors), ", ".join(h.name for h in hypervisors) or "none"))
    return lines


def _agent(name: str, alive: bool, heartbeat: str | None, since: float) -> Line:
    """`heartbeat` is UTC in ISO 8601, to the second; a service of Nova that is new has none for some seconds."""
    if heartbeat and datetime.fromisoformat(heartbeat).replace(tzinfo=UTC).timestamp() < int(since):
        return Line(name, False, f"silent since the start, heartbeat {heartbeat}")
    return Line(name, bool(alive), f"{'alive' if alive else 'DOWN'}, heartbeat {heartbeat or 'not yet'}")


@dataclass(frozen=True)
class Process:
    """A process of the node. `session` as the node counts; `memory` is its proportional share (PSS) in octets."""

    command: str
    session: int
    memory: int


def processes(first: int, proc: Path = Path("/proc")) -> Iterator[Process]:
    """Every process of the node whose first process is `first` on the host (proc(5): status, smaps_rollup)."""
    space = _pid_namespace(proc / str(first))
    for entry in proc.glob("[0-9]*"):
        try:
            if _pid_namespace(entry) != space:
                continue
            status = (entry / "status").read_text()
            command, session = re.search(r"^Name:\t(.*)$", status, re.M), re.search(r"^NSsid:\t.*?(\d+)$", status, re.M)
            share = re.search(r"^Pss:\s+(\d+) kB", (entry / "smaps_rollup").read_text(), re.M)
        except OSError:
            continue
        yield Process(command[1] if command else "", int(session[1]) if session else 0,
                      int(share[1]) * 1024 if share else 0)


def memory_of(first: int) -> dict[int, int]:
    """Octets (PSS) of the node's processes by session; `first` is its first process.

    A session is the process id that a service got inside the node. What left its service's session (guests, what
    Neutron starts) counts for itself.
    """
    found: dict[int, int] = defaultdict(int)
    for process in processes(first):
        found[process.session] += process.memory
    return dict(found)


def _pid_namespace(process: Path) -> str:
    return str((process / "ns/pid").readlink())


def of_node(place: Place, wanted: Sequence[Service]) -> list[Line]:
    """What can be seen of a running node from the host: its services, and the memory of all its processes."""
    known = place.noted("node")
    memory = memory_of(known["pid"]) if known else {}
    services = list(of_services(wanted, place.noted("services") or {}, memory))
    return [*services, Line("all processes", True, "", known["started"] if known else 0.0, sum(memory.values()))]
