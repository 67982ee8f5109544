"""What several checks look at, read from the server once.

Every check reads; what one has to change to see something, it changes back. `after` names the checks (by function)
that a check builds upon: when one of those failed it is skipped, so that one defect is one failure.
"""

from __future__ import annotations

import configparser
from dataclasses import dataclass

import pytest

from harness.conntrack import plan as conntrack_plan


@pytest.fixture(scope="session")
def kernel(host):
    """The release of the running kernel."""
    return host.check_output("uname -r")


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
def unit(host):
    """unit(name, *properties): properties of a systemd unit by name (systemctl(1), show)."""
    def properties(name, *wanted):
        lines = host.check_output("systemctl show --property=%s %s", ",".join(wanted), name).splitlines()
        return dict(line.split("=", 1) for line in lines)

    return properties


@dataclass(frozen=True)
class Daemon:
    """The running relay: its process and its options in force, the command line over the configuration file."""

    pid: int
    options: dict[str, list[str]]

    def option(self, name, default=""):
        return self.options.get(name, [default])[-1]


@pytest.fixture(scope="session")
def daemon(host, unit, rtpengine):
    pid = int(unit("rtpengine.service", "MainPID")["MainPID"])
    arguments = host.check_output("tr '\\0' '\\n' </proc/%s/cmdline", str(pid)).splitlines()[1:]
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
    parser.read_string(host.check_output("cat %s", file))
    for name, value in parser["rtpengine"].items():
        options.setdefault(name, [value])
    return Daemon(pid, options)
