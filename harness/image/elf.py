"""What an ELF file says of itself: the libraries it needs, and the .modinfo of a kernel module.

System V ABI, chapters 4 and 5; 64-bit little-endian files only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NEEDED, _DT_STRTAB, _DT_STRSZ, _DT_RPATH, _DT_RUNPATH = 1, 5, 10, 15, 29


class NotElf(ValueError):
    """The file is no 64-bit little-endian ELF file, or a damaged one."""


@dataclass(frozen=True)
class Dynamic:
    """Shared libraries by soname, the program interpreter (empty for a library), directories to search first.

    `search` may hold $ORIGIN, the directory of the file.
    """

    needed: tuple[str, ...] = ()
    interpreter: str = ""
    search: tuple[str, ...] = ()


def dynamic(file: BinaryIO) -> Dynamic:
    """The dynamic section of a program or shared library; nothing needed where there is none. Raises NotElf."""
    header = _header(file)
    offset, size, count = header[5], header[9], header[10]
    segments = [_PROGRAM.unpack(_at(file, offset + n * size, _PROGRAM.size)) for n in range(count)]
    interpreter = b"".join(_at(file, s[2], s[5]) for s in segments if s[0] == _PT_INTERP)
    section = next((s for s in segments if s[0] == _PT_DYNAMIC), None)
    if section is None:
        return Dynamic(interpreter=_string(interpreter, 0))
    entries = list(_DYNAMIC.iter_unpack(_at(file, section[2], section[5] // _DYNAMIC.size * _DYNAMIC.size)))
    values = dict(reversed(entries))
    address = values.get(_DT_STRTAB, 0)
    load = next((s for s in segments if s[0] == _PT_LOAD and s[3] <= address < s[3] + s[5]), None)
    if load is None:
        raise NotElf("its string table is in no segment")
    strings = _at(file, load[2] + address - load[3], values.get(_DT_STRSZ, 0))
    return Dynamic(
        needed=tuple(_string(strings, value) for tag, value in entries if tag == _DT_NEEDED),
        interpreter=_string(interpreter, 0),
        search=tuple(directory for tag, value in entries if tag in (_DT_RPATH, _DT_RUNPATH)
                     for directory in _string(strings, value).split(":") if directory),
    )


def modinfo(file: BinaryIO) -> dict[str, str]:
    """The .modinfo section of a kernel module, as modinfo(8) reads it (the first value of each key). Raises NotElf."""
    for name, content in _sections(file):
        if name == ".modinfo":
            pairs = [p.decode(errors="replace").partition("=") for p in content.split(b"\0") if b"=" in p]
            return {key: value for key, _, value in reversed(pairs)}
    raise NotElf("it is no kernel module: there is no section .modinfo")


def _header(file: BinaryIO) -> tuple[int, ...]:
    header = _HEADER.unpack(_at(file, 0, _HEADER.size))
    if header[0][:6] != b"\x7fELF\x02\x01":
        raise NotElf("it is no 64-bit little-endian ELF file")
    return header


def _sections(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    header = _header(file)
    offset, size, count, names = header[6], header[11], header[12], header[13]
    headers = [_SECTION.unpack(_at(file, offset + n * size, _SECTION.size)) for n in range(count)]
    if names >= len(headers):
        raise NotElf("it has no section names")
    table = _at(file, headers[names][4], headers[names][5])
    for section in headers:
        name = _string(table, section[0])
        if name == ".modinfo":
            yield name, _at(file, section[4], section[5])


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise NotElf("it ends too early")
    return data


def _string(table: bytes, offset: int) -> str:
    return table[offset:].split(b"\0", 1)[0].decode(errors="replace")
