"""The checks of events, on a server that is this host in namespaces of its own, with a stand-in that is not OpenSIPS.

    unshare --net --mount --pid --fork --kill-child --mount-proc python -m tests.proxy_here DIRECTORY DEFECT CHECKS

`ssh`, `sudo` and `systemctl` are scripts. It proves that the checks are green where all is well and red where it isn't;
of OpenSIPS it proves nothing. Prints outcomes and messages by check, as JSON.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import appliance as appliances_file
from harness import checks
from harness.cloud import Route, RouteKind, Server
from harness.deadline import Deadline
from harness.levels import Level
from harness.run import Run
from tests import opensips_double
from tests.opensips_double import OpenSipsDouble

PROJECT = Path(__file__).resolve().parent.parent
VERSION = "4.0.1"
CONFIGURATION = Path("/etc/opensips/opensips.cfg")
RESTART = Path("/run/restart")
PORTS = {"mi": 8080, "http": 8888, "sip": 5060}
PROGRAMS = {
    "ssh": 'eval "exec $4"',
    "sudo": 'shift; exec "$@"',
    "systemctl": f'touch {RESTART}; while [ -e {RESTART} ]; do sleep 0.05; done',
}
DESCRIPTION = f"""\
appliances:
  opensips:
    description: stand-in, not OpenSIPS
    release: bookworm
    elements: [voip-appliance, opensips]
    checks: [{PROJECT / 'tests/appliance'}]
    opensips: {{version: {VERSION}-1, pike_density: 20}}
"""


class Deaf(OpenSipsDouble):
    """Events over unix datagrams are lost."""

    def _send(self, place: str, payload: bytes) -> None:
        if not place.startswith("unix:"):
            super()._send(place, payload)


class Untyped(OpenSipsDouble):
    """Every value is a text."""

    def happened(self, event: str, params: Any) -> None:
        texts = {name: str(value) for name, value in params.items()} if isinstance(params, Mapping) else params
        super().happened(event, texts)


class Sorted(OpenSipsDouble):
    """Parameters come in another order."""

    def happened(self, event: str, params: Any) -> None:
        super().happened(event, dict(sorted(params.items())) if isinstance(params, Mapping) else params)


class Immortal(OpenSipsDouble):
    """Subscriptions do not end."""

    def _purge(self, name: str, now: int) -> None:
        return


class Unrenewed(OpenSipsDouble):
    """A renewal changes nothing."""

    def _subscribe(self, event: str, socket: str, expire: int = 3600) -> str:
        known = next((one for one in self.subscribers.get(event, []) if one.socket == socket), None)
        since = known.since if known and expire else None
        said = super()._subscribe(event, socket, expire)
        if known and since is not None:
            known.since = since
        return said


class Lenient(OpenSipsDouble):
    """Takes events that there are none of."""

    def _subscribe(self, event: str, socket: str, expire: int = 3600) -> str:
        return super()._subscribe(event if event in self.subscribers else "E_CORE_THRESHOLD", socket, expire)


class Unguarded(OpenSipsDouble):
    """No flood is a flood."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.density = 1 << 30


class Unblocking(OpenSipsDouble):
    """The flood is told, and nobody is blocked."""

    def _pike_list(self) -> Any:
        return {"IPs": []}


class Thrifty(OpenSipsDouble):
    """Takes no memory."""

    def memory(self, usage: int) -> None:
        return


class Poor(OpenSipsDouble):
    """An event of the core is missing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        del self.subscribers["E_CORE_SHM_THRESHOLD"]


class Older(OpenSipsDouble):
    """Another version than is described."""

    def _version(self) -> Any:
        return {"Server": "OpenSIPS (4.0.0 (x86_64/linux))"}


class Silent(OpenSipsDouble):
    """The script tells nobody of a call that it refuses."""

    def script(self, event: str, names: Sequence[str], values: Sequence[Any]) -> None:
        return


def served(double: OpenSipsDouble, stop: threading.Event) -> None:
    """Does what is asked of systemctl."""
    while not stop.wait(0.02):
        if RESTART.exists():
            configured = re.search(r"^event_pkg_threshold=(\d+)", CONFIGURATION.read_text(), re.MULTILINE)
            assert configured
            double.threshold = int(configured[1])
            double.restart()
            RESTART.unlink()


def prepare(directory: Path) -> None:
    """Namespaces that nobody else looks into: /run and /etc are copies, `directory`/bin comes first."""
    def done(*words: str) -> None:
        subprocess.run(words, check=True)

    done("mount", "--make-rprivate", "/")
    done("mount", "-t", "tmpfs", "tmpfs", "/run")
    Path("/run/etc").mkdir()
    done("cp", "-a", "/etc/.", "/run/etc")
    done("mount", "--bind", "/run/etc", "/etc")
    done("ip", "link", "set", "lo", "up")
    for path in (Path("/run/opensips"), CONFIGURATION.parent, directory / "bin"):
        path.mkdir(parents=True)
    CONFIGURATION.write_text("event_pkg_threshold=0\n")
    for name, text in PROGRAMS.items():
        (directory / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (directory / "bin" / name).chmod(0o755)
    os.environ["PATH"] = f"{directory / 'bin'}:{os.environ['PATH']}"


def main(directory: Path, defect: str, selection: Sequence[str]) -> None:
    prepare(directory)
    kind: Callable[..., OpenSipsDouble] = globals()[defect] if defect else OpenSipsDouble
    opensips_double.OpenSipsDouble = kind  # type: ignore[misc,assignment]
    (directory / "appliances.yaml").write_text(DESCRIPTION)
    described = appliances_file.load(directory / "appliances.yaml")["opensips"]
    run = Run.create(directory / "runs", "opensips", "local")
    server = Server("server1", "id", "debian", "127.0.0.1", "", (Route(RouteKind.FLOATING_IP, "127.0.0.1"),),
                    directory / "console.log")
    stop = threading.Event()
    with opensips_double.opensips_double(VERSION, Path("/run/opensips"), PORTS) as double:
        double.threshold = 0
        thread = threading.Thread(target=served, args=[double, stop])
        thread.start()
        begin = time.monotonic()
        try:
            found = checks.run_checks(run, server, described, "first boot", lambda text: None, Deadline(300),
                                      ["-k", *selection], Level.ACCEPTANCE)
        finally:
            stop.set()
            thread.join()
    print(json.dumps({result.id.rsplit("::", 1)[-1]: [result.outcome, result.seen or result.message or result.reason]
                      for result in found} | {"seconds": time.monotonic() - begin}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
