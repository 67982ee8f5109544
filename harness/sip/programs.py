"""Where SIP programs come from: a Debian system in the cache that has them. Nothing is installed on this host, where
Debian's package of a proxy would start one for good."""

from __future__ import annotations

import os
from pathlib import Path

from harness.deadline import Deadline
from harness.errors import BuildError, HostError
from harness.image import builder
from harness.image.apt import state_for
from harness.image.mirrors import apt_mirrors
from harness.run import Run
from harness.settings import Settings
from harness.sip.proxy import Proxy

RELEASE = "bookworm"
ARCHITECTURE = "amd64"
SIPP = "sip-tester"
"""Debian's package of SIPp."""


def prepare(settings: Settings, run: Run, proxy: Proxy, deadline: Deadline) -> Path:
    """The root of a system with `proxy` and SIPp, in the versions that the mirror has now; from the cache where there.

    What making it prints is in sip-programs.log of the run. Raises HostError.
    """
    if os.geteuid() != 0:
        raise HostError("this is not root: SIP programs run in a system of their own", hint="sudo ./inv ...")
    state = state_for(settings.cache, apt_mirrors(settings, RELEASE), RELEASE, ARCHITECTURE)
    state.refresh(deadline)
    try:
        return builder.prepare([proxy.package, SIPP], state, settings, run, deadline,
                               run.directory / "sip-programs.log")
    except BuildError as error:
        raise HostError(f"{proxy.name} and SIPp can't be had: {error.message}", excerpt=error.excerpt,
                        hint=error.hint) from error
