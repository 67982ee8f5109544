"""Calls by SIP: SIPp calls, a proxy asks the relay, SIPp answers; media are of endpoints here, which count them.

    caller (SIPp)  --INVITE-->  proxy  --INVITE-->  callee (SIPp)
                                  |  offer, answer, delete (ng)
    caller's endpoint  <--RTP-->  relay  <--RTP-->  callee's endpoint

All of SIP has one address, and ports that are free. SIPp tells each end's endpoint in its session descriptions, and its
message file tells what the other side wrote into those that came.
"""

from __future__ import annotations

import os
import random
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.access import namespace
from harness.deadline import Deadline
from harness.errors import HostError
from harness.image.contained import contained_in
from harness.process import running
from harness.resources import Resource
from harness.run import Journal
from harness.sip import trace
from harness.sip.proxy import Proxy, Wiring
from harness.sip.request import Request
from harness.sip.trace import Dialog, Message
from harness.voip.call import Exchange
from harness.voip.endpoint import Endpoint

START = 20.0
"""Seconds at most until the proxy answers."""
PATIENCE = 15.0
"""Seconds at most until every call is taken up or refused, and until both ends have hung up: the proxy gives a silent
relay 4 s, and its callee's first INVITE may get lost."""
_LOOK = 0.05
_LAST_RESORT = 120
"""Seconds after which a SIPp ends that nobody ended."""
_NOBODY = 65534
_PORTS = range(10_000, 30_000)
_FILES = "/mnt/files"
_SCENARIOS = Path(__file__).parent


@dataclass(frozen=True)
class Site:
    """Where SIP programs run: the root of a system with them (programs.prepare), and the network namespace (empty: this
    host's own) with its IPv4 address. Files go to `directory`, processes into `journal`."""

    root: Path
    namespace: str
    address: str
    directory: Path
    journal: Journal

    @contextmanager
    def running(self, name: str, files: Mapping[str, str], command: Sequence[str]) -> Iterator[Program]:
        """`command` without privileges inside the root, with `files` in _FILES, until the block ends."""
        directory = self.directory / f"{name}-{secrets.token_hex(4)}"
        directory.mkdir(parents=True)
        for file, text in files.items():
            (directory / file).write_text(text, encoding="utf-8")
        for path in (directory, *directory.iterdir()):
            os.chown(path, _NOBODY, _NOBODY)
        entered = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        argv = contained_in(self.root, ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups",
                                        "--no-new-privs", "--pdeathsig=keep", "--", *command], files=directory)
        process = self.journal.creating(Resource("process", os.fspath(directory)))
        try:
            with running([*entered, *argv], directory / "log") as started:
                yield Program(name, started, directory)
        finally:
            self.journal.gone(process)

    def open_socket(self, kind: socket.SocketKind) -> socket.socket:
        return namespace.open_socket(self.namespace, kind)

    def free_ports(self, count: int) -> list[int]:
        """Ports that nobody has, UDP and TCP, below those that the kernel gives away itself (ip_local_port_range)."""
        found: list[int] = []
        for port in random.sample(_PORTS, 100):
            with self.open_socket(socket.SOCK_DGRAM) as udp, self.open_socket(socket.SOCK_STREAM) as tcp, \
                    suppress(OSError):
                udp.bind((self.address, port))
                tcp.bind((self.address, port))
                found.append(port)
            if len(found) == count:
                return found
        raise HostError(f"no ports of {self.address} are free", hint="is the address one of this host?")


@dataclass(frozen=True)
class Program:
    name: str
    process: subprocess.Popen[bytes]
    directory: Path

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(encoding="utf-8", errors="replace")

    @property
    def last_words(self) -> str:
        errors = self.directory / "errors"
        text = errors.read_text(encoding="utf-8", errors="replace") if errors.exists() else self.log
        return "\n".join(text.splitlines()[-8:])

    @property
    def messages(self) -> list[Message]:
        """What a SIPp sent and received so far."""
        file = self.directory / "messages"
        return trace.messages(file.read_bytes()) if file.exists() else []

    def wait(self, deadline: Deadline) -> None:
        """Until it has ended, or to the deadline."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(deadline.remaining)


@dataclass(frozen=True)
class SipCalls:
    """Calls that were begun, by their Call-IDs, which are also their From tags."""

    call_ids: Sequence[str]
    proxy: Proxy
    _callers: Sequence[Endpoint]
    _callees: Sequence[Endpoint]
    _proxy: Program
    _caller: Program
    _callee: Program
    _twin: tuple[Site, int]

    def settle(self) -> list[Dialog]:
        """Wait until every call is taken up or refused, PATIENCE at most. Raises HostError where a program ended."""
        limit = Deadline(PATIENCE)
        while not (all(d.settled for d in self.dialogs()) or limit.expired):
            self._alive()
            time.sleep(_LOOK)
        return self.dialogs()

    def _alive(self) -> None:
        for program in (self._callee, self._proxy, self._caller):
            if program.process.poll() is not None and not all(d.settled for d in self.dialogs()):
                raise HostError(f"the {program.name} ended with exit code {program.process.returncode}, its calls not "
                                "taken up", excerpt=program.last_words, hint=f"its files: {program.directory}")

    def exchanges(self) -> dict[str, Exchange]:
        """Media of the calls that are up, by Call-ID: a new stream at each end, to where it was told to send to."""
        # Calls may overtake each other on their way to the callee, which takes its next endpoint for what comes next.
        by_port = {endpoint.port: endpoint for endpoint in self._callees}
        found = {}
        for caller, dialog in zip(self._callers, self.dialogs(), strict=True):
            if dialog.up and dialog.told_caller and dialog.told_callee and dialog.callee:
                exchange = found[dialog.call_id] = Exchange(caller, by_port[dialog.callee.port])
                exchange.connect(dialog.told_caller, dialog.told_callee)
        return found

    def hang_up(self) -> list[Dialog]:
        """Let the callers send BYE; wait until SIPp has ended at both ends, PATIENCE at most. Raises HostError."""
        limit = Deadline(PATIENCE)
        up = [dialog.call_id for dialog in self.dialogs() if dialog.up]
        with ExitStack() as held:
            if up and self._caller.process.poll() is None:
                held.enter_context(self._told_to_go_on(up, limit))
            self._caller.wait(limit)
        if len(up) == len(self.call_ids):
            self._callee.wait(limit)
        return self.dialogs()

    def _told_to_go_on(self, call_ids: Sequence[str], limit: Deadline) -> socket.socket:
        """The connection over which the callers' SIPp was told to leave <recvCmd>; it ends when that closes."""
        site, port = self._twin
        twin = site.open_socket(socket.SOCK_STREAM)
        try:
            twin.settimeout(limit.remaining)
            twin.connect((site.address, port))
            twin.sendall("".join(f"Call-ID: {call_id}\r\n\r\n\x1b" for call_id in call_ids).encode())
        except OSError as error:
            twin.close()
            raise HostError(f"SIPp takes no commands: {error.strerror or error}",
                            hint=f"its files: {self._caller.directory}") from error
        return twin

    def dialogs(self) -> list[Dialog]:
        """The calls as both ends have seen them so far."""
        return trace.dialogs(self.call_ids, self._caller.messages, self._callee.messages)

    def said(self, dialog: Dialog) -> str:
        """What there is to read about a call that went wrong: the proxy's first errors, both ends' last messages."""
        return "\n".join((
            *(f"{self.proxy.name} said: {text}" for text in self.proxy.complaints(self._proxy.log)[:2]),
            *(f"the caller {line}" for line in trace.excerpt(dialog.call_id, self._caller.messages)),
            *(f"the callee {line}" for line in trace.excerpt(dialog.call_id, self._callee.messages))))


@contextmanager
def placed(site: Site, proxy: Proxy, relay: tuple[str, int], callers: Sequence[Endpoint], callees: Sequence[Endpoint]
           ) -> Iterator[SipCalls]:
    """Begin a call from each of `callers` to one of `callees`, as many, all at once, by `proxy`, which asks the relay
    whose ng protocol is at `relay` (IPv4 address and port, UDP).

    Processes are ended with the block; the relay is told nothing then, hang_up() does that. Raises HostError where the
    proxy or SIPp can't run.
    """
    own, callee, caller, twin = site.free_ports(4)
    prefix = f"dialtone-{secrets.token_hex(4)}"
    count = len(callers)
    wiring = Wiring((site.address, own), (site.address, callee), relay, secrets.randbits(31))
    with ExitStack() as stack:
        start = stack.enter_context
        answering = start(site.running("callee", *_sipp(site, "callee", callee, callees)))
        proxying = start(site.running("proxy", proxy.files(wiring), proxy.command(_FILES)))
        _await(site, proxy, proxying, own)
        calling = start(site.running("caller", *_sipp(
            site, "caller", caller, callers, "-r", str(count), "-rp", "100", "-cid_str", f"{prefix}-%u",
            "-3pcc", f"{site.address}:{twin}", f"{site.address}:{own}")))
        yield SipCalls([f"{prefix}-{number}" for number in range(1, count + 1)], proxy, callers, callees, proxying,
                       calling, answering, (site, twin))


def _sipp(site: Site, role: str, port: int, endpoints: Sequence[Endpoint], *options: str
          ) -> tuple[dict[str, str], list[str]]:
    """Files and command of a SIPp for as many calls as `endpoints`, each with the next of them."""
    ends = "".join(f"{end.address};{end.port};{end.rtcp_port}\n" for end in endpoints)
    files = {"scenario.xml": (_SCENARIOS / f"{role}.xml").read_text(encoding="utf-8"),
             "ends.csv": f"SEQUENTIAL\n{ends}"}
    return files, ["sipp", "-sf", f"{_FILES}/scenario.xml", "-inf", f"{_FILES}/ends.csv", "-i", site.address,
                   "-p", str(port), "-bind_local", "-ci", site.address, "-m", str(len(endpoints)), "-nostdin",
                   "-trace_msg", "-message_file", f"{_FILES}/messages", "-trace_err", "-error_file", f"{_FILES}/errors",
                   "-timeout", f"{_LAST_RESORT}s", "-timeout_error", *options]


def _await(site: Site, proxy: Proxy, program: Program, port: int) -> None:
    """Return when the proxy answers OPTIONS (RFC 3261, 11). Raises HostError."""
    limit = Deadline(START)
    with site.open_socket(socket.SOCK_DGRAM) as asking:
        asking.bind((site.address, 0))
        asking.settimeout(_LOOK)
        here = f"{site.address}:{asking.getsockname()[1]}"
        while program.process.poll() is None and not limit.expired:
            uri = f"sip:{site.address}:{port}"
            asking.sendto(bytes(Request("OPTIONS", uri, uri, here)), (site.address, port))
            try:
                if asking.recv(65535).startswith(b"SIP/2.0 200 "):
                    return
            except TimeoutError:
                continue
    raise HostError(f"{proxy.name} does not start", excerpt=program.last_words,
                    hint=f"its files: {program.directory}")
