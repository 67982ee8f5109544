"""What several checks look at, read from the server once.

Every check reads; what one has to change to see something, it changes back. Looking into a file (`read`, `find`)
costs an emulated server next to nothing, starting a program 0.1 s and more: so files first. `after` names the checks
(by function) that a check builds upon: when one of those failed it is skipped, so that one defect is one failure.
"""

from __future__ import annotations

import configparser
from dataclasses import dataclass

import pytest

from harness.conntrack import plan as conntrack_plan


@pytest.fixture(scope="session")
def kernel(read):
    """The release of the running kernel."""
    return read("/proc/sys/kernel/osrelease")["/proc/sys/kernel/osrelease"].strip()


@pytest.fixture(scope="session")
def kernel_log(host):
    """The kernel's messages since boot, as lines."""
    return host.check_output("dmesg").splitlines()


@pytest.fixture(scope="session")
def rtpengine(appliance):
    """The relay as the description wants it."""
    if appliance.rtpengine is None:
        pytest.skip("the appliance has no relay")
    return appliance.rtpengine


@pytest.fixture(scope="session")
def table(rtpengine):
    """The number of the relay's forwarding table."""
    if rtpengine.table < 0:
        pytest.skip("the description asks for forwarding in user space (table: -1)")
    return rtpengine.table


@pytest.fixture(scope="session")
def plan(appliance):
    """The connection tracking table that follows from the description."""
    if appliance.conntrack is None:
        pytest.skip("the appliance has no conntrack section")
    return conntrack_plan(appliance.conntrack, appliance.server.memory)


@pytest.fixture(scope="session")
def units(host):
    """Properties of the units that checks ask for, by unit (systemctl(1), show)."""
    names = ["rtpengine.service", "redis-server.service", "logrotate.timer", "cloud-init-stages.service"]
    shown = host.check_output("systemctl show --property=ActiveState,SubState,NRestarts,Result,UnitFileState,MainPID,"
                              "StatusText " + " ".join(names))
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.split("\n\n")]
    return dict(zip(names, blocks, strict=True))


@dataclass(frozen=True)
class Daemon:
    """The running relay: its process and its options in force, the command line over the configuration file."""

    pid: int
    options: dict[str, list[str]]

    def option(self, name, default=""):
        return self.options.get(name, [default])[-1]


@pytest.fixture(scope="session")
def daemon(read, units, rtpengine):
    pid = int(units["rtpengine.service"]["MainPID"])
    arguments = read(f"/proc/{pid}/cmdline").get(f"/proc/{pid}/cmdline", "").split("\0")[1:-1]
    options = {}
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            name, separator, value = argument[2:].partition("=")
            following = arguments[position + 1:position + 2]
            if not separator and following and not following[0].startswith("-"):
                value = following[0]
            options.setdefault(name, []).append(value or "true")
    file = options.get("config-file", ["/etc/rtpengine/rtpengine.conf"])[-1]
    parser = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",))
    parser.read_string(read(file)[file])
    for name, value in parser["rtpengine"].items():
        options.setdefault(name, [value])
    return Daemon(pid, options)
