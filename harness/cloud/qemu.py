"""QEMU: its command line, and its monitor (QEMU Machine Protocol, QMP)."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.deadline import Deadline
from harness.errors import CloudError

PROGRAM = "qemu-system-x86_64"
USER = "nobody"
"""Who QEMU becomes once it has opened its files: what breaks out of a guest has little to take."""

MONITOR = "qmp.sock"
CONSOLE = "console.sock"

CPU = {"kvm": "host", "tcg": "qemu64"}
"""CPU model by accelerator. TCG boots qemu64 a sixth faster than max, whose newer features it emulates slowly."""


@dataclass(frozen=True)
class Uefi:
    """OVMF in a machine's flash: its code, and the variable store, which is written to. With `secure` only code in
    system management mode writes there, as Secure Boot needs it."""

    code: Path
    variables: Path
    secure: bool


@dataclass(frozen=True)
class Machine:
    """A virtual machine. Memory in MiB; sockets are made in the working directory of the process.

    `token` is what tells its process from all others; `disk` is qcow2 and written to, `config_drive` is ISO 9660.
    Without `uefi` it has a BIOS.
    """

    token: str
    uuid: str
    accelerator: str
    cpu: str
    cpus: int
    memory: int
    disk: Path
    config_drive: Path
    tap: str
    mac: str
    console_log: Path
    log: Path
    uefi: Uefi | None = None


def command(machine: Machine) -> list[str]:
    """The command that starts `machine` and returns when it runs, or fails with QEMU's own message.

    The path of a Unix socket has at most 107 bytes (unix(7)), so sockets are named relative to the directory that
    the command is started in.
    """
    threads = ",thread=multi" if machine.accelerator == "tcg" else ""
    return [
        PROGRAM, "-name", machine.token, "-uuid", machine.uuid, "-daemonize", "-D", os.fspath(machine.log),
        "-runas", USER,
        "-nodefaults", "-no-user-config", "-display", "none",
        *_firmware(machine.uefi), "-accel", machine.accelerator + threads, "-cpu", machine.cpu,
        "-smp", str(machine.cpus), "-m", str(machine.memory),
        # Unsafe: the disk is thrown away with the server, so what a crash of this host loses matters to nobody.
        "-drive", f"if=none,id=root,format=qcow2,cache=unsafe,discard=unmap,file={_value(machine.disk)}",
        "-device", "virtio-blk-pci,drive=root,bootindex=0",
        "-drive", f"if=none,id=config,format=raw,readonly=on,file={_value(machine.config_drive)}",
        "-device", "virtio-blk-pci,drive=config",
        "-netdev", f"tap,id=net,ifname={machine.tap},script=no,downscript=no",
        "-device", f"virtio-net-pci,netdev=net,mac={machine.mac},romfile=",
        "-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random",
        "-chardev", f"socket,id=console,path={CONSOLE},server=on,wait=off,"
                    f"logfile={_value(machine.console_log)},logappend=on",
        "-serial", "chardev:console",
        "-qmp", f"unix:{MONITOR},server=on,wait=off",
    ]


def _firmware(uefi: Uefi | None) -> list[str]:
    if uefi is None:
        return ["-machine", "q35"]
    # Without S3, which OVMF can't keep safe from a guest that is not in system management mode.
    secure = ["-global", "driver=cfi.pflash01,property=secure,value=on", "-global", "ICH9-LPC.disable_s3=1"]
    return ["-machine", "q35,smm=on" if uefi.secure else "q35", *(secure if uefi.secure else []),
            "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={_value(uefi.code)}",
            "-drive", f"if=pflash,unit=1,format=raw,file={_value(uefi.variables)}"]


def _value(path: Path) -> str:
    """A path as an option's value, where a comma would end it."""
    return os.fspath(path).replace(",", ",,")


@contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    """A connection to the Unix socket `path`, however long its directory's name is. Raises OSError."""
    directory = os.open(path.parent, os.O_PATH | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.connect(f"/proc/self/fd/{directory}/{path.name}")
            yield connection
    finally:
        os.close(directory)


def execute(monitor: Path, name: str, deadline: Deadline) -> Any:
    """Run the command `name` of the machine behind the socket `monitor`, and return what it returned.

    None where the machine ended instead of answering, as `quit` makes it. Raises CloudError.
    """
    try:
        with connected(monitor) as connection:
            connection.settimeout(max(deadline.remaining, 0.1))
            with connection.makefile("rw", encoding="utf-8") as stream:
                answers = (json.loads(line) for line in stream)
                next(answers, None)
                _ask(stream, answers, "qmp_capabilities")
                return _ask(stream, answers, name)
    except ConnectionResetError:
        return None
    except (OSError, ValueError) as error:
        raise CloudError(f"the machine's monitor doesn't answer to {name}: {error}",
                         hint=f"its socket: {monitor}") from error


def _ask(stream: Any, answers: Iterator[dict[str, Any]], name: str) -> Any:
    stream.write(json.dumps({"execute": name}) + "\n")
    stream.flush()
    for answer in answers:
        if "error" in answer:
            raise CloudError(f"the machine refused {name}: {answer['error'].get('desc', answer['error'])}")
        if "return" in answer:
            return answer["return"]
    return None
