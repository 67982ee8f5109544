"""When a server is ready, in stages; each has a share of the deadline and an error of its own.

key (shown on the console, then pinned), port (TCP), ssh (a command ran), cloud-init (done), ready (systemd has
started all that it was to start). A dead machine and a kernel panic end the wait at once, in any stage.
"""

from __future__ import annotations

import json
import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from harness.access import keys, reach, ssh_config
from harness.cloud import Cloud, Server
from harness.deadline import Deadline
from harness.errors import Fault, NotReadyError
from harness.process import end_group
from harness.process import run as run_command
from harness.run import Run

_POLL = 0.1
_CONNECT = 0.25
"""Seconds that one TCP attempt waits: a new one makes the kernel ask for the server's address (ARP) again."""

_ALIVE = 1.0
"""Seconds between two looks for the machine itself: a cloud may have to ask an API, or read all of /proc."""

_TAIL = 12
_PANIC = re.compile(r"Kernel panic - not syncing.*")
_CONTROL = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|[\x00-\x08\x0b-\x1f\x7f]")

# One session for all that is left to wait for: a further one costs an emulated server half a second.
_WATCH = """\
echo "boot $(cat /proc/sys/kernel/random/boot_id)"
command -v cloud-init >/dev/null || { echo 'off is not installed'; exit 0; }
while ! [ -e /run/cloud-init/result.json ]; do
    [ -e /run/cloud-init/disabled ] && { echo 'off found no data source and is off'; exit 0; }
    sleep 0.2
done
echo "result $(tr -d '\\n' </run/cloud-init/result.json)"
echo "system $(systemctl is-system-running --wait)"
"""


class MachineDied(NotReadyError):
    """The server's machine (its QEMU, say) ended."""

    fault = Fault.CLOUD


class KernelPanicked(NotReadyError):
    """The server's kernel gave up; its console says so."""


class HostKeyNotShown(NotReadyError):
    """The console never showed the server's SSH host key."""


class PortClosed(NotReadyError):
    """Nothing accepted a TCP connection on the SSH port."""


class LoginFailed(NotReadyError):
    """No command could be run over SSH."""


class HostKeyMismatch(NotReadyError):
    """Who answers at the server's address has another host key than the server's console showed."""


class CloudInitNotDone(NotReadyError):
    """cloud-init did not end, or never ran."""


class SystemNotStarted(NotReadyError):
    """systemd did not start all that it was to start."""


class NotRebooted(NotReadyError):
    """The server was asked to reboot and did not."""


@dataclass(frozen=True)
class Ready:
    """A server that is ready. `timings` maps stage names to seconds since the wait began.

    `boot_id` is that of random(4); `datasource` and `errors` are what cloud-init says of itself; `system` is
    the state that systemd gives (running, degraded).
    """

    boot_id: str
    timings: dict[str, float]
    datasource: str
    errors: tuple[str, ...]
    system: str


@dataclass(frozen=True)
class _Step:
    """A stage: its share of the whole deadline, and what is said of it and of its failure."""

    name: str
    share: float
    doing: str
    error: type[NotReadyError]
    failure: str
    hint: str


_KEY = _Step("key", 0.8, "waiting for the host key on the console", HostKeyNotShown,
             "did not show its SSH host key on the console",
             "does it boot at all, and does cloud-init print the key (keys_to_console)?")
_DOWN = _Step("down", 0.3, "going down", NotRebooted, "was asked to reboot and is still up",
              "look: systemctl list-jobs")
_PORT = _Step("port", 0.8, "waiting for the SSH port", PortClosed, "accepted no TCP connection on port 22",
              "did it get its address, and does sshd run?")
_SSH = _Step("ssh", 0.4, "waiting for an SSH session", LoginFailed, "ran no command over SSH",
             "is the run's key among the user's authorized_keys?")
_CLOUD_INIT = _Step("cloud-init", 0.6, "waiting for cloud-init", CloudInitNotDone, "has a cloud-init that did not end",
                    "look: cloud-init status --long")
_READY = _Step("ready", 0.6, "waiting for systemd", SystemNotStarted, "has a systemd that still starts something",
               "look: systemctl list-jobs")

Say = Callable[[str], None]


def wait(cloud: Cloud, run: Run, server: Server, deadline: Deadline, say: Say) -> Ready:
    """Wait until a server that was just launched is ready; its host key is pinned on the way.

    Raises the error of the stage that did not end in time (all are NotReadyError), each with the console's tail.
    """
    watch = _Watch(cloud, run, server, deadline, say)
    watch.host_key()
    watch.port()
    return watch.session()


def reboot(cloud: Cloud, run: Run, server: Server, deadline: Deadline, say: Say) -> Ready:
    """Reboot a server from inside and wait until it is ready again, with another boot_id. Raises as wait()."""
    watch = _Watch(cloud, run, server, deadline, say, skip=len(cloud.console(run, server)))
    watch.begin(_SSH)
    old = watch.command("cat /proc/sys/kernel/random/boot_id && sudo -n systemctl reboot --no-block")
    # The shared connection would hang on to a server that is going away.
    disconnect(run, server)
    watch.down()
    watch.port()
    return watch.session(old)


def disconnect(run: Run, server: Server) -> None:
    """End the shared SSH connections to a server; the next command makes a new one."""
    for alias in set(ssh_config.aliases(run)) & {server.name, ssh_config.floating(server)}:
        run_command(["ssh", "-F", ssh_config.path(run), "-O", "exit", alias], check=False)


def tail(console: str, lines: int = _TAIL) -> str:
    """The last lines of a console that say something, without control characters."""
    clean = (_CONTROL.sub("", line) for line in console[-20000:].splitlines())
    return "\n".join([line.rstrip() for line in clean if line.strip()][-lines:])


@dataclass
class _Watch:
    """One wait. `skip` characters of the console are from before it."""

    cloud: Cloud
    run: Run
    server: Server
    deadline: Deadline
    say: Say
    skip: int = 0
    began: float = field(default_factory=time.monotonic)
    timings: dict[str, float] = field(default_factory=dict)
    step: _Step = _KEY
    limit: Deadline = field(default_factory=lambda: Deadline(0))
    last_ssh: str = ""
    last_sign: float = 0.0

    def host_key(self) -> None:
        self.begin(_KEY)
        while (key := keys.host_key_on(self._console())) is None:
            self._pause()
        keys.pin(self.run, ssh_config.names_of(self.server), key)
        self._reached()

    def down(self) -> None:
        self.begin(_DOWN)
        while self._port_open():
            self._pause()
        self._reached()

    def port(self) -> None:
        self.begin(_PORT)
        while not self._port_open():
            self._pause()
        self._reached()

    def session(self, old_boot_id: str = "") -> Ready:
        """Wait for all that a session tells; one that fails or is cut is tried again."""
        self.begin(_SSH)
        while True:
            seen = self._follow(old_boot_id)
            if "off" in seen:
                raise self._error(CloudInitNotDone, f"has a cloud-init that {seen['off']}",
                                  "see elements and datasources in appliances.yaml")
            if "system" in seen:
                break
            if "Host key verification failed" in self.last_ssh:
                raise self._error(HostKeyMismatch, "is not who answers at its address: the host key there is another "
                                  "than the one on its console", "is the address in use twice?")
            self._pause()
        result = json.loads(seen["result"])["v1"]
        return Ready(seen["boot"], self.timings, result.get("datasource") or "", tuple(result.get("errors", ())),
                     seen["system"])

    def command(self, command: str) -> str:
        """What a command run over SSH prints. Raises LoginFailed where that is nothing."""
        done = run_command(["ssh", "-F", ssh_config.path(self.run), self.server.name, command], check=False,
                           deadline=self.limit)
        words = done.stdout.split()
        if done.returncode not in (0, 255) or not words:
            self.last_ssh = done.stdout.strip()
            raise self._error(LoginFailed, "did not do over SSH what it was asked", f"it was asked: {command}")
        return words[0]

    def begin(self, step: _Step) -> None:
        self.step = step
        self.limit = self.deadline.within(self.deadline.seconds * step.share)
        self.say(step.doing)

    def _follow(self, old_boot_id: str) -> dict[str, str]:
        """One session: the lines that it said, by their first words."""
        seen: dict[str, str] = {}
        next_step = {"boot": _CLOUD_INIT, "result": _READY}
        process = subprocess.Popen(["ssh", "-F", ssh_config.path(self.run), self.server.name, _WATCH],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        try:
            for line in self._lines(process):
                word, _, rest = line.partition(" ")
                if word not in {"boot", "result", "system", "off"}:
                    self.last_ssh = line
                    continue
                if word == "boot" and rest == old_boot_id:
                    self.last_ssh = "the server still has the boot_id of before the reboot"
                    return {}
                seen[word] = rest
                self._reached()
                if word in next_step:
                    self.begin(next_step[word])
        finally:
            end_group(process)
        return seen

    def _lines(self, process: subprocess.Popen[bytes]) -> Iterator[str]:
        assert process.stdout is not None
        rest = b""
        while True:
            readable, _, _ = select.select([process.stdout], [], [], _POLL)
            if not readable:
                self._look()
                continue
            chunk = os.read(process.stdout.fileno(), 65536)
            if not chunk:
                return
            *whole, rest = (rest + chunk).split(b"\n")
            yield from (line.decode(errors="replace").strip() for line in whole if line.strip())

    def _port_open(self) -> bool:
        return reach.port_open(ssh_config.path(self.run), self.server.routes[0], 22, _CONNECT)

    def _reached(self) -> None:
        self.timings[self.step.name] = round(time.monotonic() - self.began, 2)

    def _pause(self) -> None:
        self._look()
        time.sleep(_POLL)

    def _look(self) -> None:
        """Raise where waiting is of no use: a panic, a dead machine, the step's limit reached."""
        if panic := _PANIC.search(self._console()):
            raise self._error(KernelPanicked, f"has a kernel that gave up: {panic[0].strip()}")
        if time.monotonic() - self.last_sign >= _ALIVE:
            self.last_sign = time.monotonic()
            if not self.cloud.alive(self.run, self.server):
                raise self._error(MachineDied, "ended while it was waited for")
        if self.limit.expired:
            raise self._error(self.step.error, f"{self.step.failure} within {self.limit.seconds:.0f} s", self.step.hint)

    def _console(self) -> str:
        return self.cloud.console(self.run, self.server)[self.skip:]

    def _error(self, kind: type[NotReadyError], what: str, hint: str = "") -> NotReadyError:
        reached = max(self.timings, key=lambda name: self.timings[name], default="started")
        lines = tail(self._console()) or "the console is empty"
        if self.last_ssh:
            lines += f"\nssh: {self.last_ssh}"
        whole = f"the whole console: {os.path.relpath(self.server.console_log)}"
        return kind(f"{self.server.name} {what} (reached: {reached})", reached=reached, excerpt=lines,
                    hint=f"{hint}; {whole}" if hint else whole)
