"""Whether a server that starts signed programs only takes the relay's kernel module."""

from __future__ import annotations

import re

from harness.access import ssh_config
from harness.cloud import Server
from harness.deadline import Deadline
from harness.errors import NotReadyError
from harness.process import run as run_command
from harness.run import Run

_TRY = "sudo -n modprobe {module} 2>&1 || sudo -n dmesg | grep -i 'module\\|PKCS\\|lockdown' | tail -3; exit 0"


class ModuleRefused(NotReadyError):
    """The server's kernel takes signed modules only, and no key that it trusts signed the relay's."""


def try_module(run: Run, server: Server, module: str, deadline: Deadline) -> None:
    """Load `module` on the server, where Secure Boot is on. Raises ModuleRefused where that is what it is refused for.

    Whatever else keeps it from being loaded is for the checks to explain.
    """
    done = run_command(["ssh", "-F", ssh_config.path(run), server.name, _TRY.format(module=module)], deadline=deadline,
                       check=False)
    if not refused(done.stdout):
        return
    why = "it is not signed" if "unsigned module" in done.stdout else "the key that signed it is not enrolled"
    raise ModuleRefused(f"{server.name}: Secure Boot is on and the module is not signed by an enrolled key: {module}: "
                        f"{why}", excerpt=done.stdout.strip(),
                        hint="signing_key and signing_certificate sign it and enrol the key: docs/firmware.md")


def refused(said: str) -> bool:
    """Whether modprobe(8) said that the kernel refused a module for its signature (EKEYREJECTED, ENOKEY, EPERM)."""
    return bool(re.search(r"could not insert .*: (Key was rejected by service|Required key not available|"
                          r"Operation not permitted)", said))
