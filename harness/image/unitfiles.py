"""Whether systemd can make one order of an image's units: what its own systemd-analyze(1) says, without booting it."""

from __future__ import annotations

from datetime import date

from harness.deadline import Deadline
from harness.errors import HostError
from harness.image.configuration import enabled_units
from harness.image.contained import contained_on
from harness.image.finding import Expectation, Seen, few
from harness.image.root import Root
from harness.known import expired, unknown
from harness.process import run as command

TITLE = "systemd finds no fault in the units"
_CANNOT_RUN = (126, 127)


def verified(device: str, root: Root, expect: Expectation, deadline: Deadline) -> Seen:
    """`device` holds the file system that `root` reads. Raises HostError where this host cannot look.

    An ordering cycle does not change the exit code of systemd-analyze: whatever it says counts.
    """
    units = ["default.target", *enabled_units(root)]
    done = command(contained_on(device, ["systemd-analyze", "verify", "--man=no", *units]), deadline=deadline,
                   check=False)
    if done.returncode not in (0, 1, *_CANNOT_RUN):
        raise HostError("systemd-analyze of the image cannot be started here", excerpt=done.stdout.strip() or None,
                        hint="it needs mount and process-id namespaces of its own: unshare(1)")
    said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    if done.returncode and not said:
        said = [f"systemd-analyze ends with {done.returncode}"]
    lines = unknown(said, expect.known.units)
    lines += [f"{entry} is to be looked at again" for entry in expired(expect.known.units, date.today())]
    return Seen(not lines, f"no complaint about default.target and {len(units) - 1} enabled units",
                few(lines, 3) if lines else "none",
                because="systemd breaks an ordering cycle by leaving out one of its units"
                if any("ordering cycle" in line for line in lines) else "",
                hint="systemd-analyze verify default.target says it on a server too; a complaint that is known is "
                     "named in known/<element>.yaml, under units, with a reason and a date")
