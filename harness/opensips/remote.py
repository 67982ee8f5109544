"""Management Interface and sockets for events on a server, over the SSH connection that the run shares.

Both may then be on the server's loopback: nothing is opened, and nothing has to lead from the server to this host.
harness.opensips.exchange and harness.opensips.intake are programs that run there, as root, as long as they are used.
"""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

from harness.access.shell import ConnectionLost
from harness.deadline import Deadline
from harness.opensips import exchange, intake, mi
from harness.opensips.intake import Piece
from harness.opensips.subscriber import refused
from harness.process import end_group

_START: float = 60.0
_GRACE: float = 10.0


class _Program:
    """One of our files as a program on the server `alias` of `config` (an ssh_config)."""

    def __init__(self, config: Path, alias: str, name: str, *arguments: str) -> None:
        self._alias, self._config = alias, config
        source = files("harness.opensips").joinpath(f"{name}.py").read_text(encoding="utf-8")
        command = shlex.join(["sudo", "-n", "env", "LC_ALL=C.UTF-8", "python3", "-I", "-S", "-c", source, *arguments])
        self.process = subprocess.Popen(["ssh", "-F", os.fspath(config), alias, command], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        self.rest = b""

    def greeting(self, begin: bytes) -> str:
        """What the program says of itself in its first line, after `begin`; a login may print something before it."""
        deadline = Deadline(_START)
        while True:
            while b"\n" not in self.rest:
                self.rest += self.more(deadline)
            line, self.rest = self.rest.split(b"\n", 1)
            if line.startswith(begin):
                return line.removeprefix(begin).decode().strip()

    def octets(self, count: int, deadline: Deadline | None = None) -> bytes:
        """Raises ConnectionLost, TimeoutError."""
        while len(self.rest) < count:
            self.rest += self.more(deadline)
        found, self.rest = self.rest[:count], self.rest[count:]
        return found

    def more(self, deadline: Deadline | None) -> bytes:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], deadline.remaining if deadline else None)[0]:
            raise self.lost(f"no answer within {deadline.seconds:.0f} s" if deadline else "no answer")
        chunk = os.read(self.process.stdout.fileno(), 1 << 20)
        if not chunk:
            raise self.lost("the session ended")
        return chunk

    def lost(self, why: str) -> ConnectionLost:
        return ConnectionLost(f"the connection to {self._alias} is lost: {why}", excerpt=self.end() or None,
                              hint=f"try it: ssh -F {os.path.relpath(self._config)} {self._alias}")

    def end(self) -> str:
        """End it by the end of its input; what ssh had to say."""
        try:
            _, said = self.process.communicate(timeout=5)
        except (subprocess.TimeoutExpired, ValueError):
            end_group(self.process)
            return ""
        return said.decode(errors="replace").strip()


class Interface:
    """A Way to the Management Interface at `place` of the server, in the words of mi.FORMS."""

    def __init__(self, config: Path, alias: str, place: str) -> None:
        self.place = f"{place} of {alias}"
        self._program = _Program(config, alias, "exchange", *mi.parsed(place))
        self._program.greeting(b"dialtone mi 1")

    def exchange(self, request: bytes, seconds: float) -> bytes:
        """Raises ConnectionLost where the server can't be reached, OSError where the interface does not answer."""
        stdin = self._program.process.stdin
        assert stdin is not None
        try:
            stdin.write(exchange.HEAD.pack(seconds, len(request)) + request)
            stdin.flush()
        except OSError as error:
            raise self._program.lost(error.strerror or str(error)) from error
        limit = Deadline(seconds + _GRACE)
        failed, length = exchange.HEAD.unpack(self._program.octets(exchange.HEAD.size, limit))
        answer = self._program.octets(length, limit)
        if failed:
            kind, _, words = answer.decode(errors="replace").partition(":")
            raise {"TimeoutError": TimeoutError, "Unusable": exchange.Unusable}.get(kind, OSError)(words)
        return answer

    def close(self) -> None:
        self._program.end()


class Socket:
    """A Listener on the server: `place` as for subscriber.Here, HOST of udp and tcp is an address of the server.

    Raises HostError where the place is taken there, ConnectionLost.
    """

    def __init__(self, config: Path, alias: str, transport: str, place: str) -> None:
        self.transport = transport
        self._stopped = False
        self._program = _Program(config, alias, "intake", transport, place)
        number, _, said = self._program.greeting(b"dialtone events 1").partition(" ")
        if number != "0":
            self._program.end()
            raise refused(transport, f"{place} of {alias}", OSError(int(number), said))
        self.name = said

    def pieces(self) -> Iterator[list[Piece]]:
        rest, self._program.rest = self._program.rest, b""
        size = intake.HEAD.size
        while True:
            try:
                rest += self._program.more(None)
            except ConnectionLost:
                if self._stopped:
                    return
                raise
            came: list[Piece] = []
            position = 0
            while len(rest) >= position + size:
                kind, number, length = intake.HEAD.unpack_from(rest, position)
                if len(rest) < position + size + length:
                    break
                came.append((kind, number, rest[position + size:position + size + length]))
                position += size + length
            rest = rest[position:]
            if came:
                yield came

    def stop(self) -> None:
        self._stopped = True
        with contextlib.suppress(OSError):
            if self._program.process.stdin:
                self._program.process.stdin.close()

    def close(self) -> None:
        end_group(self._program.process)
