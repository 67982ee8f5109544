"""Many datagrams in one system call: sendmmsg(2) and recvmmsg(2), over buffers that are laid out once.

For 64-bit Linux, as everything else here.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

NAME: Final = 0
CONTROL: Final = 32
DATA: Final = 128
SLOT: Final = 2048
"""A received datagram's slot: socket address, control messages and octets at these offsets."""
ROOM: Final = 256
_LARGEST: Final = SLOT - DATA

_SO_TIMESTAMPNS: Final = 35
_SO_MEMINFO: Final = 55
_SK_MEMINFO_DROPS: Final = 8
_SO_RCVBUFFORCE: Final = 33
CONTROL_LENGTH: Final = 56
"""What the two control messages take that options() asks for: the time, then TOS or traffic class."""
STAMP4: Final = struct.Struct("=16xqq16xB")
STAMP6: Final = struct.Struct("=16xqq16xi")
"""In the control messages: seconds and nanoseconds since 1970, TOS or traffic class."""
_IN4: Final = struct.Struct("!H4s8x")
_IN6: Final = struct.Struct("!HI16sI")
_FAMILY: Final = struct.Struct("=H")


class _Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class _Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (("name", ctypes.c_void_p), ("name_length", ctypes.c_uint32), ("iov", ctypes.c_void_p),
                ("iov_count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
                ("flags", ctypes.c_int))


class _Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", _Header), ("length", ctypes.c_uint))


_STEP: Final = ctypes.sizeof(_Message)
_libc = ctypes.CDLL(None, use_errno=True)
_sendmmsg: Any = _libc.sendmmsg
_sendmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int]
_recvmmsg: Any = _libc.recvmmsg
_recvmmsg.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p]


def socket_address(address: str, port: int) -> bytes:
    """An IPv4 or IPv6 address as the kernel wants it (struct sockaddr_in, sockaddr_in6)."""
    if ":" in address:
        return _FAMILY.pack(socket.AF_INET6) + _IN6.pack(port, 0, socket.inet_pton(socket.AF_INET6, address), 0)
    return _FAMILY.pack(socket.AF_INET) + _IN4.pack(port, socket.inet_pton(socket.AF_INET, address))


def in_words(name: bytes) -> tuple[str, int]:
    """Address and port of what socket_address() makes."""
    if _FAMILY.unpack_from(name)[0] == socket.AF_INET6:
        port, _, octets, _ = _IN6.unpack_from(name, 2)
        return socket.inet_ntop(socket.AF_INET6, octets), port
    port, octets = _IN4.unpack_from(name, 2)
    return socket.inet_ntop(socket.AF_INET, octets), port


def options(own: socket.socket, tos: int, buffer: int) -> None:
    """Set up a UDP socket: mark what it sends with `tos`, tell time and TOS of what comes, room for `buffer` octets.

    Without the right to more, the system's limit for buffers holds (net.core.rmem_max).
    """
    own.setblocking(False)
    own.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    if own.family == socket.AF_INET6:
        own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        own.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, tos)
    else:
        own.setsockopt(socket.IPPROTO_IP, socket.IP_RECVTOS, 1)
        own.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
    try:
        own.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
    except PermissionError:
        own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)


def dropped(own: socket.socket) -> int:
    """Datagrams that reached the socket but found no room, since it was made (SO_MEMINFO, socket(7))."""
    return int.from_bytes(own.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)[4 * _SK_MEMINFO_DROPS:], "little")


class Outgoing:
    """Datagrams of one size from one socket, each to an address of its own; `buffer` holds them one after another."""

    def __init__(self, own: socket.socket, size: int, names: Sequence[bytes]) -> None:
        self.size = size
        self.buffer = bytearray(size * len(names))
        self._socket = own
        self._keep = (ctypes.c_char * len(self.buffer)).from_buffer(self.buffer)
        self._names = [ctypes.create_string_buffer(name, len(name)) for name in names]
        self._iov = (_Iovec * len(names))()
        self._messages = (_Message * len(names))()
        for number, name in enumerate(self._names):
            self._iov[number] = _Iovec(ctypes.addressof(self._keep) + size * number, size)
            self._messages[number].header = _Header(
                ctypes.addressof(name), len(name), ctypes.addressof(self._iov) + ctypes.sizeof(_Iovec) * number, 1)
        self._begin = ctypes.addressof(self._messages)

    def send(self, first: int, count: int) -> int:
        """Send `count` datagrams from number `first` on; how many were. Raises OSError where the first can't be."""
        sent: int = _sendmmsg(self._socket.fileno(), self._begin + _STEP * first, count, 0)
        if sent < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return sent


class Incoming:
    """Room for 256 datagrams of up to 1920 octets each, for any number of sockets in turn."""

    def __init__(self) -> None:
        self.buffer = bytearray(SLOT * ROOM)
        self._keep = (ctypes.c_char * len(self.buffer)).from_buffer(self.buffer)
        self._iov = (_Iovec * ROOM)()
        self._messages = (_Message * ROOM)()
        for number in range(ROOM):
            slot = ctypes.addressof(self._keep) + SLOT * number
            self._iov[number] = _Iovec(slot + DATA, _LARGEST)
            self._messages[number].header = _Header(
                slot + NAME, CONTROL, ctypes.addressof(self._iov) + ctypes.sizeof(_Iovec) * number, 1,
                slot + CONTROL, DATA - CONTROL)
        self._view = memoryview(self._messages).cast("B")
        self._as_laid_out = bytes(self._view)
        self._words = self._view.cast("I")
        self._begin = ctypes.addressof(self._messages)
        self._used = 0

    def receive(self, own: int) -> int:
        """How many datagrams came, without waiting, to the socket of this file descriptor. Raises OSError."""
        used = self._used * _STEP
        self._view[:used] = self._as_laid_out[:used]
        count: int = _recvmmsg(own, self._begin, ROOM, socket.MSG_DONTWAIT, None)
        if count < 0:
            self._used = 0
            code = ctypes.get_errno()
            if code == 11:
                return 0
            raise OSError(code, os.strerror(code))
        self._used = count
        return count

    def lengths(self, count: int) -> list[int]:
        """Octets of each of the first `count` datagrams."""
        return self._words[_Message.length.offset // 4:count * _STEP // 4:_STEP // 4].tolist()

    def control_lengths(self, count: int) -> list[int]:
        """Octets of control messages that came with each of the first `count` datagrams."""
        return self._words[_Header.control_length.offset // 4:count * _STEP // 4:_STEP // 4].tolist()
