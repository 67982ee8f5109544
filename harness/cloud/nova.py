"""Servers and key pairs in Nova (Compute API v2.1)."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from openstack.exceptions import NotFoundException

from harness.cloud.api import Api, Refused, translated
from harness.cloud.capacity import Flavor, Limit
from harness.deadline import Deadline
from harness.errors import CloudError
from harness.firmware import Firmware

OWNER, RUN = "dialtone_owner", "dialtone_run"
"""Keys of a server's metadata that say whose it is."""
_EXPLAINED = 10.0
"""Seconds for which the reason of an ERROR is waited for."""
_OFFERED = {Firmware.UEFI: "OVMF", Firmware.SECURE_BOOT: "the trait COMPUTE_SECURITY_UEFI_SECURE_BOOT"}
"""What a compute node must have (Nova's pages UEFI and Secure Boot)."""


@dataclass(frozen=True)
class State:
    """What Nova says of a server in its list."""

    id: str
    name: str
    status: str
    host: str


def flavors(api: Api) -> list[Flavor]:
    return [Flavor(str(f.id), str(f.name), int(f.ram), int(f.vcpus), int(f.disk))
            for f in api.get("the flavors", lambda: list(api.sdk.compute.flavors()))]


def quota(api: Api) -> list[Limit]:
    """What the project uses of its compute quota (limits, absolute)."""
    limits = api.get("the compute quota", lambda: api.sdk.compute.get_limits()).absolute
    return [Limit("servers", limits.instances_used, limits.instances),
            Limit("processors", limits.total_cores_used, limits.total_cores),
            Limit("MiB of memory", limits.total_ram_used, limits.total_ram)]


def import_key_pair(api: Api, name: str, public_key: str, deadline: Deadline) -> None:
    """Let Nova know a public key; a key pair of that name that has it already is taken."""
    def find() -> Any:
        return api.sdk.compute.find_keypair(name)

    there = api.get(f"key pair {name}", find)
    if there is None:
        api.create(f"key pair {name}", find, lambda: api.sdk.compute.create_keypair(
            name=name, public_key=public_key), deadline)


def create_server(api: Api, name: str, attributes: Mapping[str, Any], user_data: str, deadline: Deadline) -> str:
    """Ask for a server; returns its id. One of that name and run that is there already is taken.

    Raises CloudError. The server's state is another matter: it is still being built.
    """
    run = attributes["metadata"][RUN]

    def find() -> str | None:
        return next((s.id for s in states(api, run) if s.name == name), None)

    body = {**attributes, "name": name, "user_data": base64.b64encode(user_data.encode()).decode("ascii")}
    return api.create(f"server {name}", find, lambda: str(api.sdk.compute.create_server(**body).id), deadline)


def states(api: Api, run_id: str) -> list[State]:
    """The state of every server of a run, by one request."""
    servers = api.get("the servers", lambda: list(api.sdk.compute.servers(details=True, name=f"^{run_id}-")))
    return [State(str(s.id), str(s.name), str(s.status),
                  str(s.hypervisor_hostname or s.host_id or "")) for s in servers]


class Listing:
    """Servers of runs, listed at most once in `interval` seconds: one request serves everybody who asks meanwhile."""

    def __init__(self, api: Api, interval: float) -> None:
        self._api, self._interval = api, interval
        self._listed: dict[str, tuple[float, list[State]]] = {}

    def states(self, run_id: str) -> list[State]:
        when, found = self._listed.get(run_id, (0.0, []))
        if time.monotonic() - when >= self._interval:
            found = states(self._api, run_id)
            self._listed[run_id] = (time.monotonic(), found)
        return found


def wait_active(api: Api, run_id: str, names: Sequence[str], deadline: Deadline, interval: float,
                firmware: Firmware = Firmware.BIOS) -> list[State]:
    """Wait until all servers, started by `firmware`, are ACTIVE; they are listed together.

    Raises CloudError with Nova's own words.
    """
    while True:
        found = {s.name: s for s in states(api, run_id)}
        for name in names:
            state = found.get(name)
            if state is None or state.status in ("ERROR", "DELETED", "SHUTOFF"):
                raise failed(name, state, _fault(api, state) if state else "", api.name, firmware)
        if all(found[name].status == "ACTIVE" for name in names):
            return [found[name] for name in names]
        if deadline.expired:
            waiting = ", ".join(f"{n} is {found[n].status}" for n in names if found[n].status != "ACTIVE")
            raise CloudError(f"{api.name}: after {deadline.seconds:.0f} s {waiting}",
                             hint="the cloud's compute service has the reason in its log")
        time.sleep(interval)


def _fault(api: Api, state: State) -> str:
    """Nova's own message for a server in ERROR, which it writes a moment after the state."""
    limit = Deadline(_EXPLAINED)
    while True:
        fault = api.get(f"server {state.name}", lambda: api.sdk.compute.get_server(state.id)).fault or {}
        if fault.get("message") or limit.expired or state.status != "ERROR":
            return str(fault.get("message", ""))
        time.sleep(0.5)


def failed(name: str, state: State | None, fault: str, cloud: str, firmware: Firmware) -> CloudError:
    """What became of a server that is not ACTIVE; `fault` is Nova's own message."""
    if state is None:
        return CloudError(f"{cloud}: the server {name} is gone", hint="somebody deleted it")
    nowhere = "No valid host" in fault or "Exhausted all hosts" in fault
    # Nova looks for hosts by what an image's properties ask for, and doesn't tell which of them no host has.
    if firmware is not Firmware.BIOS and (nowhere or re.search("UEFI|Secure ?Boot", fault)):
        return CloudError(f"{cloud}: no host starts the server {name} by {firmware}, or none has room for it",
                          excerpt=fault, hint=f"do its compute nodes have {_OFFERED[firmware]}? docs/openstack.md; "
                                              "`firmware: bios` starts it without")
    if nowhere:
        return CloudError(f"{cloud}: no host has room for the server {name}", excerpt=fault,
                          hint="another flavor or availability_zone in clouds.yaml, or more room in the cloud")
    return CloudError(f"{cloud}: the server {name} is {state.status}", excerpt=fault or None,
                      hint="the cloud's compute service has more in its log")


def console_log(api: Api, server: str) -> str:
    """The server's console, as far back as Nova keeps it; empty as long as there is none."""
    try:
        answer = api.get("the console", lambda: api.sdk.compute.get_server_console_output(server))
    except Refused as error:
        if error.status in (404, 409):
            return ""
        raise
    return str(answer.get("output") or "")


def console_url(api: Api, server: str) -> str:
    """Where a browser shows the console. Raises Refused where the cloud offers none."""
    for kind in ("novnc", "spice-html5", "serial"):
        try:
            with translated("the console's address", api.name):
                return str((api.sdk.compute.create_console(server, console_type=kind) or {})["url"])
        except Refused as error:
            if error.status not in (400, 404, 409, 501):
                raise
    raise Refused(f"{api.name} shows no console by address", 501, hint="the console's log is what it offers")


def delete_server(api: Api, state: State) -> None:
    """Ask for a server's end; it is gone when states() no longer has it."""
    def delete() -> None:
        with suppress(NotFoundException):
            api.sdk.compute.delete_server(state.id, ignore_missing=True)

    api.get(f"deleting server {state.name}", delete)


def delete_key_pair(api: Api, name: str) -> None:
    api.get(f"deleting key pair {name}", lambda: api.sdk.compute.delete_keypair(name, ignore_missing=True))


def of_owner(api: Api, owner: str) -> list[tuple[str, str]]:
    """Name and run of every server that this checkout made."""
    servers = api.get("our servers", lambda: list(api.sdk.compute.servers(details=True)))
    return [(str(s.name), str(s.metadata[RUN])) for s in servers
            if s.metadata.get(OWNER) == owner and RUN in s.metadata]


def key_pairs(api: Api, suffix: str) -> list[str]:
    """Names of key pairs that end in `suffix`."""
    return [str(k.name) for k in api.get("the key pairs", lambda: list(api.sdk.compute.keypairs()))
            if str(k.name).endswith(suffix)]
