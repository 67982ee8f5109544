"""A way out of the private network, where the settings ask for it.

slirp4netns is a user-mode network stack: nothing of the host's own forwarding or packet filter changes, and the
host's loopback stays out of reach.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

from harness.cloud.network import EGRESS_LINK, Network
from harness.deadline import Deadline
from harness.errors import HostError
from harness.process import CommandMissing
from harness.resources import Resource
from harness.run import Journal

PROGRAM = "slirp4netns"
RESOLVER = "10.0.2.3"
"""slirp4netns' own DNS forwarder (its default address)."""


def start(network: Network, directory: Path, journal: Journal, deadline: Deadline) -> None:
    """Give the router a default route by slirp4netns. Raises CommandMissing, HostError."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise CommandMissing(PROGRAM)
    token = f"{network.mark}egress:"
    journal.creating(Resource("process", token))
    log = directory / "egress.log"
    ready, announce = os.pipe()
    try:
        with log.open("ab") as out:
            process = subprocess.Popen(
                [token, "--configure", "--mtu=1500", "--disable-host-loopback", f"--ready-fd={announce}",
                 "--netns-type=path", f"/run/netns/{network.namespace}", EGRESS_LINK],
                executable=program, stdin=subprocess.DEVNULL, stdout=out, stderr=out, pass_fds=[announce],
                start_new_session=True)
        os.close(announce)
        os.set_blocking(ready, False)
        while not deadline.expired:
            try:
                if os.read(ready, 1):
                    return
                break
            except BlockingIOError:
                time.sleep(0.05)
    finally:
        os.close(ready)
    raise HostError(f"{PROGRAM} does not start (exit code {process.poll()})",
                    excerpt="\n".join(log.read_text(errors="replace").splitlines()[-8:]) or None)
