"""One request to a Management Interface and the octets that answer it, over each way that OpenSIPS listens on.

Needs nothing but the standard library: harness.opensips.remote runs this very file on a server, where the interface
listens on loopback only. Requests come on standard input then, each with its length and its patience before it.
"""

import contextlib
import http.client
import os
import secrets
import select
import socket
import struct
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

LARGEST_DATAGRAM = 65535
LARGEST_ANSWER = 1 << 24
FIFO_REQUEST = select.PIPE_BUF
"""A longer write may get mixed with another's (pipe(7)); OpenSIPS has as much room for it (MAX_MI_FIFO_BUFFER)."""


class Unusable(OSError):
    """What the interface did is no answer: its own words."""


def over_udp(place: str, request: bytes, seconds: float) -> bytes:
    """`place` is HOST:PORT. Raises OSError: TimeoutError, ConnectionRefusedError where nobody listens."""
    host, _, port = place.rpartition(":")
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.connect((host, int(port)))
        return _datagram(own, request, seconds)


def over_unix(place: str, request: bytes, seconds: float) -> bytes:
    """`place` is the path of a datagram socket, which answers to one of ours. Raises OSError."""
    with _own_directory() as directory, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
        path = directory / "answer"
        own.bind(os.fspath(path))
        path.chmod(0o666)
        own.connect(place)
        return _datagram(own, request, seconds)


def over_fifo(place: str, request: bytes, seconds: float) -> bytes:
    """`place` is the path of the FIFO and, after a comma, OpenSIPS' fifo_reply_dir (/tmp). Raises OSError.

    The answer comes by a FIFO of ours whose name is sent along, without a directory and without a dot.
    """
    path, _, directory = place.partition(",")
    end = time.monotonic() + seconds
    name = f"dialtone-mi-{secrets.token_hex(8)}"
    line = f":{name}:".encode() + request
    if len(line) > FIFO_REQUEST:
        raise Unusable(f"a request of {len(line)} octets is too long for a FIFO, which takes {FIFO_REQUEST}")
    replies = Path(directory or "/tmp", name)
    os.mkfifo(replies)
    try:
        replies.chmod(0o666)
        reading = os.open(replies, os.O_RDONLY | os.O_NONBLOCK)
        try:
            # Without a reader this is refused (ENXIO) where a blocking open would wait for one.
            writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            try:
                os.write(writing, line)
            finally:
                os.close(writing)
            return _until_closed(reading, end)
        finally:
            os.close(reading)
    finally:
        replies.unlink()


def over_http(place: str, request: bytes, seconds: float) -> bytes:
    """`place` is a URL like http://127.0.0.1:8888/mi. Raises OSError."""
    parts = urllib.parse.urlsplit(place)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port or 80, timeout=max(seconds, 0.001))
    try:
        connection.request("POST", parts.path or "/", request, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read(LARGEST_ANSWER)
    except http.client.HTTPException as error:
        raise Unusable(f"no answer of HTTP: {error!r}") from error
    finally:
        connection.close()
    if answer.status != http.HTTPStatus.OK:
        raise Unusable(f"HTTP status {answer.status} {answer.reason}")
    return body


WAYS: dict[str, Callable[[str, bytes, float], bytes]] = {
    "udp": over_udp, "unix": over_unix, "fifo": over_fifo, "http": over_http}


def _datagram(own: socket.socket, request: bytes, seconds: float) -> bytes:
    # A socket of its own for each request: what is answered too late finds nobody.
    own.settimeout(max(seconds, 0.001))
    own.send(request)
    return own.recv(LARGEST_DATAGRAM)


def _until_closed(reading: int, end: float) -> bytes:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    answer = b""
    while (left := end - time.monotonic()) > 0:
        # Before somebody opened it for writing there is nothing to see; when he has closed it there is its end.
        if poll.poll(left * 1000):
            chunk = os.read(reading, 65536)
            answer += chunk
            if not chunk or len(answer) > LARGEST_ANSWER:
                return answer
    raise TimeoutError("timed out")


@contextlib.contextmanager
def _own_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="dialtone-mi-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


HEAD = struct.Struct(">dI")
"""Before a request: seconds, octets. Before an answer: 0, or 1 where it is the words of an error; octets."""


def main(way: str, place: str) -> None:
    """Answer what comes on standard input until that ends."""
    read, write = sys.stdin.buffer, sys.stdout.buffer
    write.write(b"dialtone mi 1\n")
    write.flush()
    while len(head := read.read(HEAD.size)) == HEAD.size:
        seconds, length = HEAD.unpack(head)
        failed, request = 0.0, read.read(length)
        try:
            answer = WAYS[way](place, request, seconds)
        except OSError as error:
            failed, answer = 1.0, f"{type(error).__name__}:{error.strerror or error}".encode()
        write.write(HEAD.pack(failed, len(answer)) + answer)
        write.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
