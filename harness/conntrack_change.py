"""A setting of connection tracking that is to be changed on a server, now or at every boot. Nothing here does I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from harness.conntrack import BUCKET_BYTES, ENTRY_BYTES, MEMORY_SHARE, ConntrackPlan
from harness.conntrack_view import PREFIX
from harness.errors import DescriptionError

DROP_IN = "/etc/sysctl.d/70-conntrack.conf"
"""Read after the image's own file (sysctl.d(5): in the order of names). It has the number of buckets, too: the sysctl
resizes the table that the module's parameter has made."""
FILES = (DROP_IN, "/etc/sysctl.d/60-conntrack.conf", "/etc/modprobe.d/conntrack.conf")
"""What baked() and at_boot() take: the drop-in, and the image's own files."""

_PAGE_OF_BUCKETS = 512
_MOST = 2**31 - 1
_SWITCH = (0, 1)
_RANGES = {
    "acct": _SWITCH, "checksum": _SWITCH, "events": (0, 2), "log_invalid": (0, 255), "tcp_be_liberal": _SWITCH,
    "tcp_loose": _SWITCH, "tcp_max_retrans": (0, 255), "timestamp": _SWITCH, "expect_max": (1, _MOST),
    # 0 would be no limit at all.
    "max": (1, _MOST), "buckets": (_PAGE_OF_BUCKETS, _MOST),
}
# The kernel counts in ticks, of which it has up to a thousand a second.
_SECONDS = (1, _MOST // 1000)


@dataclass(frozen=True)
class Change:
    """`key` without net.netfilter.nf_conntrack_ and its new value."""

    key: str
    value: int

    @property
    def name(self) -> str:
        return PREFIX + self.key


def parse(text: str, plan: ConntrackPlan) -> Change:
    """A change from KEY=VALUE; the key may be a full name. Raises DescriptionError."""
    key, separator, value = (part.strip() for part in text.partition("="))
    key = key.removeprefix(PREFIX)
    for name, why in {**plan.gone, **plan.not_set}.items():
        if key in {name, name.removeprefix(PREFIX)}:
            raise DescriptionError(f"{name} can't be set: {why}")
    if not separator or PREFIX + key not in plan.sysctls:
        known = ", ".join(sorted(name.removeprefix(PREFIX) for name in plan.sysctls))
        raise DescriptionError(f"there is no setting {key!r}" if separator else f"{text!r} is not KEY=VALUE",
                               hint=f"KEY is one of {known}")
    least, most = _RANGES.get(key, _SECONDS)
    if not re.fullmatch("[0-9]{1,10}", value) or not least <= int(value) <= most:
        unit = " of seconds" if key not in _RANGES else ""
        raise DescriptionError(f"{key} is {value!r}", hint=f"a number{unit} from {least} to {most}")
    if key == "buckets" and int(value) % _PAGE_OF_BUCKETS:
        below = int(value) // _PAGE_OF_BUCKETS * _PAGE_OF_BUCKETS
        raise DescriptionError(f"buckets is {value}, and the kernel makes whole pages of {_PAGE_OF_BUCKETS} of them",
                               hint=f"{below} or {below + _PAGE_OF_BUCKETS}")
    return Change(key, int(value))


def fit(change: Change, live: Mapping[str, str], memory_mib: int) -> None:
    """Raise DescriptionError where the full table would take more than its share of the server's memory."""
    size = {key: int(live.get(PREFIX + key, 0)) for key in ("max", "buckets")} | {change.key: change.value}
    memory = size["max"] * ENTRY_BYTES + size["buckets"] * BUCKET_BYTES
    if change.key in {"max", "buckets"} and memory > memory_mib * 2**20 * MEMORY_SHARE:
        raise DescriptionError(
            f"{change.key}={change.value}: {size['max']} entries in {size['buckets']} buckets take "
            f"{memory / 2**20:.0f} MiB: more than a quarter of the server's {memory_mib} MiB")


def at_boot(key: str, files: Mapping[str, str]) -> str:
    """What the setting is from the next boot on by FILES; empty where they say nothing of it."""
    dropped_in, own = _values(files)
    return dropped_in.get(key) or own.get(key, "")


def baked(change: Change, files: Mapping[str, str]) -> str:
    """What the drop-in has to hold for a change to be permanent, besides those that it has already.

    What the image's own files say is left out of it; where nothing remains it is to be removed.
    """
    dropped_in, own = _values(files)
    wanted = dropped_in | {change.key: str(change.value)}
    return "".join(f"{PREFIX}{key} = {value}\n" for key, value in sorted(wanted.items()) if own.get(key) != value)


def _values(files: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Settings by key: those of the drop-in, and those of the image's own files."""
    found: tuple[dict[str, str], dict[str, str]] = {}, {}
    for path, text in files.items():
        settings = re.findall(rf"^{re.escape(PREFIX)}(\w+) *= *(\d+)$", text, re.MULTILINE)
        buckets = re.findall(r"^options nf_conntrack hashsize=(\d+)$", text, re.MULTILINE)
        found[path != DROP_IN].update([*settings, *(("buckets", number) for number in buckets)])
    return found
