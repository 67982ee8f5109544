"""The root file system of an unbooted image, read-only, with nothing to clean up.

The raw copy is a file without a name, the loop device detaches itself, and the file system is mounted in no
directory (fsmount(2)): all three are held by file descriptors of this process alone, so that the kernel takes them
away however the process ends. Paths inside are resolved as if the image's root were "/" (openat2(2),
RESOLVE_IN_ROOT), so a link in the image never leads to this host's files.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import io
import json
import os
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harness.deadline import Deadline
from harness.errors import HostError, InspectError
from harness.image import gpt
from harness.process import CommandFailed, run

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT, _SYS_OPENAT2 = 430, 431, 432, 437
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_MOUNT_ATTR_RDONLY_NOSUID_NODEV_NOEXEC = 1 | 2 | 4 | 8
_RESOLVE_IN_ROOT = 0x10
_LOOP_CTL_GET_FREE, _LOOP_CONFIGURE = 0x4C82, 0x4C0A
# Of the memory that is free, what a disk may take at most: it is not given back before the inspection ends.
_MEMORY_SHARE = 0.25
_LO_FLAGS_READ_ONLY, _LO_FLAGS_AUTOCLEAR = 1, 4
# struct loop_config of linux/loop.h: fd, block_size, loop_info64 (of which offset, sizelimit and flags), reserved.
_LOOP_CONFIG = struct.Struct("=II 3Q QQ III I 64s 64x 32x 2Q 8Q")

_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


class Root:
    """A tree of files, read below the directory that `descriptor` is open on.

    Paths are absolute or relative to the root, always with "/"; links are followed inside the tree. What is not
    there raises FileNotFoundError, as in os.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def _open(self, path: str, flags: int) -> int:
        how = struct.pack("=3Q", flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT)
        try:
            return _syscall(_SYS_OPENAT2, ctypes.c_int(self._descriptor), os.fsencode(path), how,
                            ctypes.c_size_t(len(how)))
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None

    def open(self, path: str) -> io.BufferedReader:
        return os.fdopen(self._open(path, os.O_RDONLY), "rb")

    def read(self, path: str) -> bytes:
        with self.open(path) as file:
            return file.read()

    def text(self, path: str) -> str:
        return self.read(path).decode(errors="replace")

    def lstat(self, path: str) -> os.stat_result:
        descriptor = self._open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.fstat(descriptor)
        finally:
            os.close(descriptor)

    def exists(self, path: str) -> bool:
        """Whether `path`, links followed, is there."""
        try:
            os.close(self._open(path, os.O_PATH))
        except FileNotFoundError:
            return False
        return True

    def link(self, path: str) -> str:
        """Where the link `path` points to. Raises OSError (EINVAL) where it is no link."""
        descriptor = self._open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink("", dir_fd=descriptor)
        except FileNotFoundError:
            # readlinkat(2): ENOENT for an empty path whose descriptor is no symbolic link.
            raise OSError(errno.EINVAL, "is no link", path) from None
        finally:
            os.close(descriptor)

    def names(self, directory: str) -> list[str]:
        """Sorted names in `directory`; none where it is missing."""
        try:
            descriptor = self._open(directory, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return []
        try:
            with os.scandir(descriptor) as entries:
                return sorted(entry.name for entry in entries)
        finally:
            os.close(descriptor)

    def walk(self, top: str) -> Iterator[tuple[str, os.stat_result]]:
        """Every file, link and directory below `top` (absolute paths, `top` not included); none where it is missing."""
        try:
            descriptor = self._open(top, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return
        try:
            for directory, subdirectories, files, here in os.fwalk(".", dir_fd=descriptor):
                for name in (*subdirectories, *files):
                    yield (os.path.normpath(os.path.join("/", top, directory, name)),  # noqa: PTH118
                           os.stat(name, dir_fd=here, follow_symlinks=False))
        finally:
            os.close(descriptor)

    def files(self, top: str) -> Iterator[str]:
        """Paths of everything below `top` that is no directory."""
        return (path for path, status in self.walk(top) if not stat.S_ISDIR(status.st_mode))

    @property
    def space(self) -> tuple[int, int]:
        """Octets in all and free (also for root alone) of the file system."""
        status = os.fstatvfs(self._descriptor)
        return status.f_blocks * status.f_frsize, status.f_bfree * status.f_frsize


def virtual_size(image: Path, deadline: Deadline) -> int:
    """Octets of the disk in the qcow2 file `image`. Raises InspectError where it is none."""
    if not image.is_file():
        raise InspectError(f"{image}: there is no such image", hint="./inv build makes one")
    try:
        described = json.loads(run(["qemu-img", "info", "--output", "json", "-f", "qcow2", image],
                                   deadline=deadline).stdout)
    except CommandFailed as error:
        raise InspectError(f"{image} is not a whole qcow2 file", excerpt=error.output.strip(),
                           hint="./inv build --force builds it again") from error
    return int(described["virtual-size"])


@contextmanager
def raw_copy(image: Path, deadline: Deadline) -> Iterator[BinaryIO]:
    """The disk in `image` as a sparse file without a name: in memory where there is plenty, else beside the image.

    Raises InspectError where the image is damaged, HostError where there is no room.
    """
    size = virtual_size(image, deadline)
    with _nameless(image, in_memory=size <= memory_available() * _MEMORY_SHARE) as file:
        file.truncate(size)
        try:
            run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", "-n", "--target-is-zero", "-W", "-m", "16", image,
                 f"/proc/{os.getpid()}/fd/{file.fileno()}"], deadline=deadline)
        except CommandFailed as error:
            if os.strerror(errno.ENOSPC) in error.output:
                raise HostError(f"no room beside {image} for its disk ({size // 2**20} MiB at most)",
                                excerpt=error.output.strip(), hint=f"df -h {image.parent}") from error
            raise InspectError(f"{image} is damaged: its content cannot be read", excerpt=error.output.strip(),
                               hint="./inv build --force builds it again") from error
        yield file


def memory_available() -> int:
    """Octets that programs can still take without swapping (proc(5), /proc/meminfo)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))


def _nameless(image: Path, *, in_memory: bool) -> BinaryIO:
    try:
        if in_memory:
            return os.fdopen(os.memfd_create(os.fspath(image)[:200], os.MFD_CLOEXEC), "w+b")
        return tempfile.TemporaryFile(dir=image.parent)
    except OSError as error:
        raise HostError(f"no temporary file for the disk of {image}: {error.strerror}") from error


@contextmanager
def loop_device(disk: BinaryIO, partition: gpt.Partition) -> Iterator[str]:
    """A read-only block device for one partition of `disk`; it detaches itself when its last user is gone."""
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"/dev/loop-control: {error.strerror}", hint="run as root, e.g. with sudo") from error
    try:
        device, name = _attach(control, disk, partition)
    finally:
        os.close(control)
    try:
        yield name
    finally:
        os.close(device)


def _attach(control: int, disk: BinaryIO, partition: gpt.Partition) -> tuple[int, str]:
    config = _LOOP_CONFIG.pack(disk.fileno(), gpt.SECTOR, 0, 0, 0, partition.offset, partition.size, 0, 0, 0,
                               _LO_FLAGS_READ_ONLY | _LO_FLAGS_AUTOCLEAR, b"dialtone", *[0] * 10)
    # Somebody else may take the free device between the two calls.
    for _ in range(16):
        name = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
        try:
            device = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"{name}: {error.strerror}", hint="a loop device is needed; in a container, give it /dev"
                            ) from error
        try:
            fcntl.ioctl(device, _LOOP_CONFIGURE, config)
        except OSError as error:
            os.close(device)
            if error.errno != errno.EBUSY:
                raise HostError(f"{name}: {error.strerror}") from error
        else:
            return device, name
    raise HostError("no loop device stays free long enough", hint="losetup --list")


@contextmanager
def mounted(device: str) -> Iterator[Root]:
    """The ext4 file system on `device`, read-only and without replaying its journal.

    Raises InspectError where there is no such file system.
    """
    context = descriptor = -1
    try:
        context = _syscall(_SYS_FSOPEN, b"ext4", ctypes.c_uint(_FSOPEN_CLOEXEC))
        for command, key, value in ((_FSCONFIG_SET_STRING, b"source", device.encode()),
                                    (_FSCONFIG_SET_FLAG, b"ro", None),
                                    (_FSCONFIG_SET_FLAG, b"noload", None),
                                    (_FSCONFIG_CMD_CREATE, None, None)):
            _syscall(_SYS_FSCONFIG, ctypes.c_int(context), ctypes.c_uint(command), key, value, ctypes.c_int(0))
        descriptor = _syscall(_SYS_FSMOUNT, ctypes.c_int(context), ctypes.c_uint(_FSMOUNT_CLOEXEC),
                              ctypes.c_uint(_MOUNT_ATTR_RDONLY_NOSUID_NODEV_NOEXEC))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENODEV, errno.ENOSYS):
            raise HostError(f"this host cannot mount an ext4 file system: {error.strerror}",
                            hint="run as root on a kernel (5.2 or later) with ext4") from error
        raise InspectError("the root partition holds no ext4 file system that can be read",
                           excerpt=_kernel_message(context) or error.strerror) from error
    finally:
        if context >= 0:
            os.close(context)
    try:
        yield Root(descriptor)
    finally:
        os.close(descriptor)


def _kernel_message(context: int) -> str:
    with contextlib.suppress(OSError):
        os.set_blocking(context, False)
        return os.read(context, 1024).decode(errors="replace").strip()
    return ""


@contextmanager
def root_of(image: Path, deadline: Deadline) -> Iterator[Root]:
    """The root file system of the qcow2 file `image`. Raises InspectError or HostError, as the steps do."""
    with raw_copy(image, deadline) as disk:
        partition = gpt.read(disk).root
        if partition is None:
            raise InspectError(f"{image}: there is no partition for a Linux file system")
        with loop_device(disk, partition) as device, mounted(device) as root:
            yield root
