"""Sockets that events come to, and what came, piece by piece.

Needs nothing but the standard library: harness.opensips.remote runs this very file on a server, where it writes every
piece with a head before it to standard output, and ends with its standard input.
"""

import contextlib
import os
import selectors
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

BUFFER = 8 << 20
"""Octets that a socket for datagrams may hold; a system may allow less to who is not root."""

_SO_RCVBUFFORCE = 33
_SO_MEMINFO = 55
_DROPS = 8
_AT_ONCE = 2000

DATAGRAM, STREAM, END, LOST = b"D", b"S", b"E", b"L"
Piece = tuple[bytes, int, bytes]
"""Kind; number of a connection, or of datagrams that are lost (LOST); octets. END has none: a connection is over."""


class Intake:
    """Listens at `place`: HOST:PORT for `udp` and `tcp` (port 0: one that is free), a path for `unix`.

    `name` is what OpenSIPS is to be told. Raises OSError: EADDRINUSE where the place is taken.
    """

    def __init__(self, transport: str, place: str) -> None:
        self.transport = transport
        self._path = ""
        self._own: socket.socket
        if transport == "unix":
            self._own = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._bind(place)
            # OpenSIPS is another user than ours.
            Path(place).chmod(0o666)
            self._path = place
        else:
            host, _, port = place.rpartition(":")
            kind = socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM
            self._own = socket.socket(socket.AF_INET, kind)
            if transport == "tcp":
                self._own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._bind((host, int(port)))
            place = "{}:{}".format(*self._own.getsockname())
        if transport == "tcp":
            self._own.listen(64)
        else:
            for option in (_SO_RCVBUFFORCE, socket.SO_RCVBUF):
                with contextlib.suppress(PermissionError):
                    self._own.setsockopt(socket.SOL_SOCKET, option, BUFFER)
                    break
        self.name = f"{transport}:{place}"
        self._own.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._own, selectors.EVENT_READ, 0)
        self._connections = 0
        self._lost = 0

    def _bind(self, place: object) -> None:
        try:
            self._own.bind(place)  # type: ignore[arg-type]
        except OSError:
            self._own.close()
            raise

    def also(self, number: int) -> None:
        """Wait for this file descriptor, too: pieces() comes to an end where it is ready."""
        self._selector.register(number, selectors.EVENT_READ, -1)

    def pieces(self) -> Iterator[list[Piece]]:
        """What comes, all that is there at once, until what also() named is ready."""
        while True:
            came: list[Piece] = []
            for key, _ in self._selector.select():
                if key.data == -1:
                    return
                if self.transport != "tcp":
                    came += self._datagrams()
                elif key.data == 0:
                    self._accept()
                else:
                    came.append(self._stream(key.fileobj, key.data))  # type: ignore[arg-type]
            if came:
                yield came

    def close(self) -> None:
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
        self._selector.close()
        if self._path:
            Path(self._path).unlink(missing_ok=True)

    def _datagrams(self) -> list[Piece]:
        came: list[Piece] = []
        with contextlib.suppress(BlockingIOError):
            for _ in range(_AT_ONCE):
                came.append((DATAGRAM, 0, self._own.recv(65535)))
        if self.transport == "udp":
            memory = self._own.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)
            lost = struct.unpack("=9I", memory)[_DROPS]
            if lost > self._lost:
                came.append((LOST, lost - self._lost, b""))
                self._lost = lost
        return came

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._own.accept()
            connection.setblocking(False)
            self._connections += 1
            self._selector.register(connection, selectors.EVENT_READ, self._connections)

    def _stream(self, connection: socket.socket, number: int) -> Piece:
        try:
            data = connection.recv(1 << 18)
        except BlockingIOError:
            return STREAM, number, b""
        except OSError:
            data = b""
        if data:
            return STREAM, number, data
        self._selector.unregister(connection)
        connection.close()
        return END, number, b""


HEAD = struct.Struct(">cII")
"""Before a piece: its kind, its number, its octets."""


def main(transport: str, place: str) -> None:
    write = sys.stdout.buffer
    try:
        intake = Intake(transport, place)
    except OSError as error:
        write.write(f"dialtone events 1 {error.errno} {error.strerror}\n".encode())
        write.flush()
        return
    try:
        write.write(f"dialtone events 1 0 {intake.name}\n".encode())
        write.flush()
        intake.also(0)
        for came in intake.pieces():
            write.write(b"".join(HEAD.pack(kind, number, len(data)) + data for kind, number, data in came))
            write.flush()
    finally:
        intake.close()


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main(*sys.argv[1:])
    # Nothing is left to be said, and to whom is not there.
    os._exit(0)
