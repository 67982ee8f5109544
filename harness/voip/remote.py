"""Endpoints on another host that are used as if they were here: an agent there has their sockets and their clock.

What they send leaves there by the clock there, and what comes is counted there by the time at which that host's kernel
received it; only orders and figures go over the connection. The code is sent along: what is needed there is Python 3.11
or later, and nothing stays.
"""

from __future__ import annotations

import io
import os
import pickle
import queue
import subprocess
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from harness.deadline import Deadline
from harness.errors import HostError
from harness.process import PATIENCE, end_group
from harness.voip.agent import PROGRESS, State, frame, frames
from harness.voip.endpoint import Endpoint, Stream
from harness.voip.traffic import Health, with_peers

PROGRAM: Final = """\
import os, sys
if sys.version_info < (3, 11):
    sys.exit("Python 3.11 or later is needed, here is " + sys.version.split()[0])
size = int.from_bytes(sys.stdin.buffer.read(4), "big")
code = os.memfd_create("harness")
os.write(code, sys.stdin.buffer.read(size))
sys.path.insert(0, "/proc/self/fd/%d" % code)
from harness.voip.agent import main
main()
"""
"""For python3 -I -c on the other host: takes the code, then orders, from its standard input."""
_ANSWER: Final = 30.0
"""Seconds at most until an answer comes, besides what the order itself takes."""
_MOST_SAID: Final = 1 << 16
_FRESH: Final = 0.05
"""Seconds for which figures are not asked for again."""
_HARNESS: Final = Path(__file__).parent.parent
_KNOWN: Final = {("harness.voip.stats", "Received"), ("harness.voip.traffic", "Health"), ("harness.voip.rtcp", "Block"),
                 ("collections", "Counter"), ("array", "array"), ("array", "_array_reconstructor")}


class Agent:
    """An agent that runs at `where` (in words) by the command `argv`, which ends in PROGRAM; use `with`, or close() it.

    The first request shows whether it runs. Whatever can't be done there raises HostError.
    """

    def __init__(self, argv: Sequence[str], where: str) -> None:
        self.where = where
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said,
                                         start_new_session=True, bufsize=0)
        self._one_at_a_time = threading.Lock()
        self._answers: queue.SimpleQueue[tuple[int, str, Any] | None] = queue.SimpleQueue()
        self._last = 0
        self._lost = ""
        self._reader = threading.Thread(target=self._read, name=f"agent at {where}", daemon=True)
        self._reader.start()
        self._flows: list[_Flow] = []
        with suppress(OSError):  # the first request will say why
            self._write(frame(_code()))

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The agent ends with its input."""
        self._lost = self._lost or "it was ended"
        with suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self._process.kill()
        self._reader.join(PATIENCE)
        end_group(self._process)
        self._said.close()

    def address_towards(self, address: str) -> str:
        """The address that the host there has on its way to `address`."""
        return str(self.ask("address_towards", address))

    def endpoint(self, address: str, *, port: int = 0, tos: int = 0) -> RemoteEndpoint:
        """An endpoint there, on `address` of that host."""
        return RemoteEndpoint(self, address, *self.ask("open", address, port, tos))

    def flow(self, streams: Sequence[Stream], report_every: float) -> _Flow:
        return _Flow(self, streams, report_every)

    def ask(self, method: str, *arguments: object, seconds: float = 0.0) -> Any:
        """What the agent's method returns, which takes so many seconds itself."""
        with self._one_at_a_time:
            self._last += 1
            self._tell(self._last, method, arguments)
            limit = Deadline(seconds + _ANSWER)
            while True:
                try:
                    answer = self._answers.get(timeout=limit.remaining)
                except queue.Empty:
                    self._lost = f"it did not answer for {limit.seconds:.0f} s"
                    raise self._away() from None
                if answer is None:
                    self._lost = self._lost or "it ended"
                    raise self._away()
                number, problem, value = answer
                if number == self._last:  # else of a request whose answer nobody waited for to the end
                    break
        if problem:
            raise HostError(f"{self.where}: {problem}")
        return value

    def tell(self, method: str, *arguments: object) -> None:
        """As ask(), but nobody waits for an answer; of no consequence where the agent is gone."""
        with suppress(HostError), self._one_at_a_time:
            self._tell(0, method, arguments)

    def refresh(self) -> None:
        """Bring what is known of all that flows now up to date."""
        for flow in list(self._flows):
            flow.refresh()

    def _tell(self, number: int, method: str, arguments: Sequence[object]) -> None:
        if self._lost:
            raise self._away()
        text = io.BytesIO()
        _Pickler(text).dump((number, method, arguments))
        with suppress(BrokenPipeError):  # the reader knows why
            self._write(frame(text.getvalue()))

    def _write(self, data: bytes) -> None:
        assert self._process.stdin is not None
        while data:
            data = data[self._process.stdin.write(data):]

    def _read(self) -> None:
        assert self._process.stdout is not None
        try:
            for data in frames(io.BufferedReader(self._process.stdout)):  # type: ignore[type-var]
                number, problem, value = _Unpickler(io.BytesIO(data)).load()
                self._answers.put((number, problem, value))
        except Exception as error:
            self._lost = f"it sent what is no answer: {error}"
        self._answers.put(None)

    def _away(self) -> HostError:
        said = b"" if self._said.closed else os.pread(self._said.fileno(), _MOST_SAID, 0)
        last = said.decode(errors="replace").strip().rpartition("\n")[2]
        return HostError(f"no endpoints at {self.where}: {self._lost}{f' ({last})' if last else ''}",
                         hint="Python 3.11 or later is needed there, as python3")


class RemoteEndpoint(Endpoint):
    """An endpoint at an agent's. What is known of it here is not older than 50 ms when it is looked at."""

    def __init__(self, agent: Agent, address: str, number: int, port: int, rtcp_port: int) -> None:
        self._blank(address)
        self.place = self._agent = agent
        self.number, self._ports = number, (port, rtcp_port)

    def close(self) -> None:
        self._agent.tell("close", self.number)

    @property
    def port(self) -> int:
        return self._ports[0]

    @property
    def rtcp_port(self) -> int:
        return self._ports[1]

    def refresh(self) -> None:
        self._agent.refresh()

    def clock(self) -> int:
        return int(self._agent.ask("clock", self.number))

    def forget(self, sender: int) -> None:
        super().forget(sender)
        self._agent.tell("forget", self.number, sender)


class _Flow:
    """Media by an agent, see harness.voip.traffic.Flow."""

    def __init__(self, agent: Agent, streams: Sequence[Stream], report_every: float) -> None:
        self.stopped = threading.Event()
        self._agent, self._streams, self._report_every = agent, streams, report_every
        self._number = 0
        self._known_at = 0.0
        self._health = Health(0.0, 0, 0.0, 0, 0.0, 0)

    def start(self) -> None:
        self._number = self._agent.ask("begin", self._streams, self._report_every)
        self._agent._flows.append(self)

    def stop(self, linger: float) -> Health:
        if not self.stopped.is_set():
            self.stopped.set()
            self._agent._flows.remove(self)
            self._take(self._agent.ask("end", self._number, linger, seconds=linger + 10))
        return self._health

    @property
    def health(self) -> Health:
        self._agent.refresh()
        return self._health

    def refresh(self) -> None:
        if time.monotonic() - self._known_at >= _FRESH:
            self._take(self._agent.ask("look", self._number))

    def _take(self, state: State) -> None:
        self._health, streams, endpoints = state
        every = with_peers(self._streams)
        for stream, progress in zip(every, streams, strict=True):
            for name, value in zip(PROGRESS, progress, strict=True):
                setattr(stream, name, value)
        for endpoint in {stream.endpoint for stream in every}:
            if isinstance(endpoint, RemoteEndpoint):
                endpoint.received, endpoint.sender_reports, endpoint.unrecognised = endpoints[endpoint.number]
        self._known_at = time.monotonic()


class _Pickler(pickle.Pickler):
    """Endpoints are known there by their number."""

    def persistent_id(self, value: object) -> int | None:
        return value.number if isinstance(value, RemoteEndpoint) else None


class _Unpickler(pickle.Unpickler):
    """Figures, and nothing else that another host might want to have made here."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def _code() -> bytes:
    """An archive (zipimport) of what the agent is made of."""
    packed = io.BytesIO()
    own = [_HARNESS / name for name in ("__init__.py", "errors.py", "deadline.py")]
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in (*own, *(_HARNESS / "voip").glob("*.py")):
            archive.write(path, path.relative_to(_HARNESS.parent))
    return packed.getvalue()
