"""Where SIP programs come from: a Debian system in the cache that has them, or one that the settings name. Nothing is
installed on this host, where Debian's package of a proxy would start one for good."""

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
from harness.sip.proxy import PROXIES, Kamailio, Proxy

RELEASE = "bookworm"
ARCHITECTURE = "amd64"
SIPP = "sip-tester"
"""Debian's package of SIPp."""
SIPP_PROGRAM = "usr/bin/sipp"


def proxy_of(settings: Settings) -> Proxy:
    """The proxy that calls go by: Kamailio, or the one of the system that the settings name. Raises HostError."""
    if not settings.sip_root:
        return Kamailio()
    root = Path(settings.sip_root)
    found = next((proxy for proxy in PROXIES if (root / proxy.program).exists()), None)
    if found is None or not (root / SIPP_PROGRAM).exists():
        raise HostError(f"sip_root: {root} has {'no SIPp' if found else 'no proxy'}",
                        hint=f"it is to have {SIPP_PROGRAM} and {' or '.join(proxy.program for proxy in PROXIES)}")
    return found


def prepare(settings: Settings, run: Run, proxy: Proxy, deadline: Deadline) -> Path:
    """The root of a system with `proxy` and SIPp, in the versions that the mirror has now; from the cache where there.

    Where the settings name a system, that. What making it prints is in sip-programs.log of the run. Raises HostError.
    """
    if os.geteuid() != 0:
        raise HostError("this is not root: SIP programs run in a system of their own", hint="sudo ./inv ...")
    if settings.sip_root:
        return Path(settings.sip_root)
    state = state_for(settings.cache, apt_mirrors(settings, RELEASE), RELEASE, ARCHITECTURE)
    state.refresh(deadline)
    try:
        return builder.prepare([proxy.package, SIPP], state, settings, run, deadline,
                               run.directory / "sip-programs.log")
    except BuildError as error:
        raise HostError(f"{proxy.name} and SIPp can't be had: {error.message}", excerpt=error.excerpt,
                        hint=error.hint) from error
