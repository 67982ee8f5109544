"""Sockets inside a network namespace, for a process that stays outside (setns(2), ip-netns(8))."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from pathlib import Path

from harness.errors import HostError

NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000


def open_socket(namespace: str, kind: socket.SocketKind,
                family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A new socket of the namespace called `namespace`, or of this process's own where that is empty.

    A socket belongs for good to the namespace that it was made in, and setns(2) moves one thread only: a thread
    that ends right after makes it. Raises HostError where the namespace is not there or may not be entered.
    """
    if not namespace:
        return socket.socket(family, kind)
    made: list[socket.socket] = []
    failures: list[OSError] = []

    def make() -> None:
        try:
            _enter(namespace)
            made.append(socket.socket(family, kind))
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=make, name=f"enter {namespace}")
    thread.start()
    thread.join()
    if failures:
        raise HostError(f"network namespace {namespace}: {failures[0].strerror}",
                        hint="`ip netns list` shows the namespaces; entering one needs root")
    return made[0]


def _enter(namespace: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(NAMESPACES / namespace, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(handle, _CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(handle)
