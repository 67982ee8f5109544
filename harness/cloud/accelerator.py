"""Which accelerator of QEMU really boots a guest on this machine.

That /dev/kvm opens proves little: where the machine is itself a guest, KVM may start a guest that never runs, or gets
through a BIOS and never through a kernel. So the question is answered by booting one, which has to be done as soon as
emulation is, or nearly; and the answer is remembered until this machine or its QEMU changes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from harness.cloud.qemu import CPU, PROGRAM
from harness.deadline import Deadline
from harness.errors import DescriptionError, HostError
from harness.process import CommandFailed, CommandTimedOut, run
from harness.run import write_whole
from harness.settings import Settings

GREETING = b"dialtone\n"
_EXIT = 0x10
_EXPECTED_CODE = (_EXIT << 1) | 1  # isa-debug-exit ends QEMU with (value << 1) | 1

_SECONDS = 30.0
_TIMES, _LEAST = 5.0, 1.0
"""How much longer than an emulated guest, and how many seconds in any case, an accelerated one may take. Seen: 0.1 s
emulated; 2.8 to 3.4 s, that is 25 times as long, by a KVM under which no kernel ever comes up."""


@dataclass(frozen=True)
class Accelerator:
    """`name` as QEMU spells it, `why` it was chosen in one phrase."""

    name: str
    why: str


def boot_sector() -> bytes:
    """512 bytes of 16-bit x86 code for 0x7c00: see a timer interrupt, print GREETING to port 0xe9, end the machine.

    The timer matters: a guest that gets no interrupts prints well and still never boots an operating system.
    """
    code = bytearray.fromhex(
        "31 c0 8e d8"        # xor ax, ax; mov ds, ax
        "fb a1 6c 04"        # sti; mov ax, [0x46c]: the BIOS counts 18.2 ticks a second there
        "f4 3b 06 6c 04"     # tick: hlt; cmp ax, [0x46c]
        "74 f9"              # je tick
        "be 00 00 fc"        # mov si, message; cld
        "ac 84 c0 74 04"     # next: lodsb; test al, al; je end
        "e6 e9 eb f7"        # out 0xe9, al; jmp next
        "b0 00 e6 f4"        # end: mov al, EXIT; out 0xf4, al
        "f4 eb fd"           # hlt; jmp to the hlt
    )
    code[16:18] = (0x7C00 + len(code)).to_bytes(2, "little")
    code[29] = _EXIT
    return (bytes(code) + GREETING + b"\0").ljust(510, b"\0") + b"\x55\xaa"


def probe(name: str, seconds: float = _SECONDS) -> str | None:
    """None where a guest boots with accelerator `name` in time, else what was seen instead. Raises CommandMissing."""
    sector = os.memfd_create("boot-sector", os.MFD_CLOEXEC)
    try:
        os.write(sector, boot_sector())
        done = run([PROGRAM, "-accel", name, "-cpu", CPU[name], "-machine", "pc", "-m", "16", "-nodefaults",
                    "-no-user-config", "-display", "none", "-debugcon", "stdio",
                    "-device", "isa-debug-exit,iobase=0xf4,iosize=1",
                    "-drive", f"if=floppy,format=raw,readonly=on,file=/proc/{os.getpid()}/fd/{sector}"],
                   deadline=Deadline(seconds), check=False)
    except CommandTimedOut:
        return f"a guest printed nothing within {seconds:.1f} s"
    finally:
        os.close(sector)
    if done.returncode == _EXPECTED_CODE and done.stdout.encode() == GREETING:
        return None
    return (done.stdout.strip().splitlines() or [f"QEMU ended with exit code {done.returncode}"])[-1]


def choose(settings: Settings, probe: Callable[[str, float], str | None] = probe) -> Accelerator:
    """The accelerator that the settings name, else the remembered one, else the first that boots a guest.

    Raises DescriptionError for an unknown name, HostError where none boots a guest, CommandMissing without QEMU.
    """
    if settings.accelerator:
        if settings.accelerator not in CPU:
            raise DescriptionError(f"accelerator is {settings.accelerator!r}", hint="it can be " + " or ".join(CPU))
        return Accelerator(settings.accelerator, "set so")
    memory = settings.cache / "accelerator.json"
    machine = _machine()
    remembered = _recall(memory, machine)
    if remembered:
        return remembered
    begin = time.monotonic()
    emulated = probe("tcg", _SECONDS)
    took = time.monotonic() - begin
    accelerated = _absent("kvm") or probe("kvm", _SECONDS if emulated else max(_LEAST, _TIMES * took))
    if accelerated and emulated:
        raise HostError("no accelerator of QEMU boots a guest here",
                        excerpt=f"kvm: {accelerated}\ntcg: {emulated}")
    found = Accelerator("tcg", f"not kvm: {accelerated}")
    if not accelerated:
        found = Accelerator("kvm", "a guest boots with it")
    memory.parent.mkdir(parents=True, exist_ok=True)
    write_whole(memory, json.dumps({"machine": machine, **asdict(found)}, indent=1))
    return found


def _absent(name: str) -> str | None:
    if name == "kvm" and not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm is not there or may not be opened"
    return None


def _machine() -> str:
    """What the answer holds for: this boot of this machine, this QEMU, and whether there is a /dev/kvm."""
    try:
        version = run([PROGRAM, "--version"], deadline=Deadline(20)).stdout.splitlines()[0]
    except CommandFailed as error:
        raise HostError(f"{PROGRAM} doesn't start", excerpt=error.excerpt) from error
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {version} {'without' if _absent('kvm') else 'with'} kvm"


def _recall(memory: Path, machine: str) -> Accelerator | None:
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known["machine"] == machine and known["name"] in CPU:
            return Accelerator(known["name"], known["why"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None

