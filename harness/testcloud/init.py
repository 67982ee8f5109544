"""The node's first process: writes the files it is told to, starts the services in order, says how they are.

Runs inside the node with that system's own Python and nothing but its standard library. It reads PLAN, keeps STATUS
up to date, and takes SIGTERM as the wish to stop. When it ends, the kernel ends everything in the node.

PLAN     {"directories": [{path, owner, mode}], "files": [{path, text, owner, group, mode}], "environment": {},
          "services": [{name, argv, needs, ready, user, once, graceful, environment}]}
STATUS   {name: {"pid": N, "started": T, "ready": T, "ended": T, "code": N}}; times in seconds since the epoch, what
          did not happen yet is null; a service that does not appear waits for others
"""

from __future__ import annotations

import contextlib
import grp
import http.client
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

RUN = Path("/run/testcloud")
PLAN = RUN / "plan.json"
STATUS = RUN / "services.json"
LOGS = RUN / "logs"
POLL = 0.1
"""Seconds between two questions whether a service is ready."""
PATIENCE = 10.0
"""Seconds that services which hold something get to write it when the node stops."""


class Node:
    """The services of a plan."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.plan = plan
        self.services = {s["name"]: s for s in plan["services"]}
        self.ready = {name: threading.Event() for name in self.services}
        self.stopping = threading.Event()
        self.status: dict[str, dict[str, Any]] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.lock = threading.Lock()

    def write_files(self) -> None:
        for entry in self.plan["directories"]:
            path = Path(entry["path"])
            path.mkdir(parents=True, exist_ok=True)
            os.chown(path, *ids(entry["owner"]))
            path.chmod(entry["mode"])
        for entry in self.plan["files"]:
            path = Path(entry["path"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.touch(mode=0o600)
            path.write_text(entry["text"], encoding="utf-8")
            os.chown(path, pwd.getpwnam(entry["owner"]).pw_uid, grp.getgrnam(entry["group"]).gr_gid)
            path.chmod(entry["mode"])

    def start(self) -> None:
        for name in self.services:
            threading.Thread(target=self.conduct, args=(name,), name=name, daemon=True).start()

    def conduct(self, name: str) -> None:
        """The life of one service, in a thread of its own."""
        service = self.services[name]
        for need in service["needs"]:
            self.ready[need].wait()
        with self.lock:
            if self.stopping.is_set():
                return
            process = self.spawn(service)
            self.processes[name] = process
            self.status[name] = {"pid": process.pid, "started": time.time(), "ready": None, "ended": None,
                                 "code": None}
            self.publish()
        if not service["once"]:
            while process.poll() is None and not all(
                    is_ready(probe, LOGS / f"{name}.log") for probe in service["ready"]):
                time.sleep(POLL)
            if process.poll() is None:
                self.note(name, ready=time.time())
                self.ready[name].set()
        code = process.wait()
        if service["once"] and code == 0:
            self.note(name, ready=time.time(), ended=time.time(), code=0)
            self.ready[name].set()
        else:
            self.note(name, ended=time.time(), code=code)

    def spawn(self, service: dict[str, Any]) -> subprocess.Popen[bytes]:
        user = pwd.getpwnam(service["user"])
        environment = {"HOME": user.pw_dir, "USER": user.pw_name, **self.plan["environment"],
                       **service["environment"]}
        with (LOGS / f"{service['name']}.log").open("ab") as log:
            try:
                return subprocess.Popen(
                    service["argv"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", env=environment,
                    start_new_session=True, user=user.pw_uid, group=user.pw_gid,
                    extra_groups=os.getgrouplist(user.pw_name, user.pw_gid))
            except OSError as error:
                log.write(f"{service['argv'][0]} can't be started: {error}\n".encode())
                return subprocess.Popen(["false"])

    def note(self, name: str, **values: Any) -> None:
        with self.lock:
            self.status[name].update(values)
            self.publish()

    def publish(self) -> None:
        part = STATUS.with_suffix(".part")
        part.write_text(json.dumps(self.status))
        part.replace(STATUS)

    def stop(self) -> None:
        """End everything: what holds nothing at once, then the rest in order."""
        with self.lock:
            self.stopping.set()
            running = {n: p for n, p in self.processes.items() if p.poll() is None}
        graceful = [n for n in running if self.services[n]["graceful"]]
        for name, process in running.items():
            signal_group(process, signal.SIGTERM if name in graceful else signal.SIGKILL)
        end = time.monotonic() + PATIENCE
        for name in graceful:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running[name].wait(max(0.0, end - time.monotonic()))


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def ids(owner: str) -> tuple[int, int]:
    user = pwd.getpwnam(owner)
    return user.pw_uid, user.pw_gid


def is_ready(probe: str, log: Path) -> bool:
    kind, _, what = probe.partition(" ")
    try:
        if kind == "tcp":
            host, _, port = what.rpartition(":")
            socket.create_connection((host, int(port)), timeout=2).close()
        elif kind == "http":
            return answers(what)
        elif kind == "path":
            return Path(what).exists()
        elif kind == "log":
            return what.encode() in log.read_bytes()
    except OSError:
        return False
    return True


def answers(url: str) -> bool:
    """Whether something serves `url`: also a wish for a password is an answer, an open port alone is none."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    try:
        connection.request("GET", parts.path or "/")
        return connection.getresponse().status in {200, 300, 401}
    except http.client.HTTPException:
        return False
    finally:
        connection.close()


def supervise() -> None:
    """The services, until SIGTERM."""
    node = Node(json.loads(PLAN.read_text(encoding="utf-8")))
    wanted = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: wanted.set())
    node.write_files()
    node.start()
    wanted.wait()
    node.stop()


def main() -> None:
    """Adopt and bury orphans, as a first process must; end when the supervisor, its only child, has ended."""
    os.umask(0o022)
    child = os.fork()
    if child == 0:
        try:
            supervise()
        except BaseException as error:  # the log is all that is left to say it to
            print(f"init: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(child, signal.SIGTERM))
    while True:
        pid, status = os.wait()
        if pid == child:
            sys.exit(os.waitstatus_to_exitcode(status) & 0xFF)


if __name__ == "__main__":
    main()
