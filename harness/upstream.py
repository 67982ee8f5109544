"""Upstream's judgement of a running relay: test scripts of RTPEngine's own source tree (t/test-*.pl) call through it.

They are Perl and run in a system of their own, at the end of the server's route. A script compares every packet that
comes with the one that is due and ends with an error where it is another; how many came is read from what it prints.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from harness.access import namespace, reach
from harness.appliance import Appliance
from harness.cloud import Server
from harness.deadline import Deadline
from harness.errors import CheckFailed, DescriptionError
from harness.image import builder, compile, sources
from harness.image.apt import AptState, state_for
from harness.image.contained import contained_in
from harness.image.mirrors import apt_mirrors
from harness.process import CommandTimedOut
from harness.process import run as run_command
from harness.progress import Progress
from harness.run import Run, write_whole
from harness.settings import Settings
from harness.units import many
from harness.voip.ng import NgClient, NgUnknownCall

SCRIPTS: Final = ("basic-ipv4", "plain-sdes", "sdes-plain", "sdes-sdes", "basic-ipv6", "basic-ipv4-6", "basic-ipv6-4")
"""Those that need nothing but a relay, and end by themselves; where the name has no 6, IPv4 will do. The others want
ICE, DTLS, transcoding or interfaces of certain names."""
PACKAGES: Final = ("dpkg-dev", "libbencode-perl", "libcrypt-openssl-rsa-perl", "libcrypt-rijndael-perl",
                   "libdigest-crc-perl", "libdigest-hmac-perl", "libio-multiplex-perl", "libio-socket-inet6-perl",
                   "libjson-perl", "libnet-interface-perl", "libsocket6-perl", "perl")
"""For scripts, and for unpacking a source package."""
_TREES: Final = ("git", "tarball", "debian-source")
_SECONDS: Final = 60.0
"""A script takes 10 s by itself."""
_CALLS: Final = 1000
"""More than a relay has while it is judged."""
_NOBODY: Final = 65534
_LEAST: Final = 0.95
"""Part of the packets that came: at its end a script leaves some on their way."""
_LONG: Final = re.compile(r"[0-9a-f]{28,}")
_COUNTED: Final = re.compile(r"^media packets (sent|received): (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Verdict:
    """What a script made of the relay; `said` in words."""

    script: str
    good: bool
    said: str


def verdict(script: str, code: int, printed: str) -> Verdict:
    """By the exit code of `script`, and by what it printed: the packets that each of the two ends sent and received."""
    if code:
        last = next((line.strip() for line in reversed(printed.splitlines()) if line.strip()), "it said nothing")
        return Verdict(script, False, f"exit code {code}: {_LONG.sub(lambda found: found[0][:24] + '...', last)}")
    sent, received = ([int(count) for what, count in _COUNTED.findall(printed) if what == wanted]
                      for wanted in ("sent", "received"))
    if len(sent) != 2 or len(received) != 2 or not all(sent):
        return Verdict(script, False, "it counted no packets both ways")
    ways = list(zip(sent, reversed(received), strict=True))
    return Verdict(script, all(_LEAST * left <= came <= left for left, came in ways),
                   ", ".join(f"{came} of {left} packets came" for left, came in ways))


@dataclass(frozen=True)
class Stand:
    """Where scripts run: a system with what they need, the source tree, a network namespace (empty: this host's own)
    with an address of each family there, and the relay's control port."""

    root: Path
    tree: Path
    namespace: str
    own: Sequence[str]
    relay: tuple[str, int]

    def run(self, script: str, log: Path) -> Verdict:
        """Let `script` call; what it prints is in `log`."""
        version4, version6 = ([one for one in self.own if (":" in one) is six] for six in (False, True))
        if "6" not in script:
            # It wants addresses of both lists, and takes any: with two families both ends might be of different ones.
            version6 = version4
        words = {"PERL5LIB": "/mnt/tree/perl", "RTPENGINE_HOST": self.relay[0], "RTPENGINE_PORT": str(self.relay[1]),
                 "RTPE_TEST_V4_ADDRS": " ".join(version4), "RTPE_TEST_V6_ADDRS": " ".join(version6)}
        argv = contained_in(self.root, [
            "setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--no-new-privs", "env",
            *(f"{name}={value}" for name, value in words.items()),
            "sh", "-c", 'perl "$1" 2>/tmp/errors; code=$?; cat /tmp/errors; exit $code', "perl",
            f"/mnt/tree/t/test-{script}.pl"], tree=self.tree)
        entered = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        try:
            done = run_command([*entered, *argv], check=False, deadline=Deadline(_SECONDS))
        except CommandTimedOut:
            return Verdict(script, False, f"it did not end within {_SECONDS:.0f} s")
        log.write_text(done.stdout, encoding="utf-8")
        return verdict(script, done.returncode, done.stdout)

    @property
    def scripts(self) -> list[str]:
        """Those of SCRIPTS that are in the tree, and whose families have an address here."""
        version6 = any(":" in one for one in self.own)
        return [script for script in SCRIPTS if (self.tree / f"t/test-{script}.pl").exists()
                and (version6 or "6" not in script)]


def judge(settings: Settings, run: Run, server: Server, appliance: Appliance, progress: Progress) -> None:
    """Let each script call through the relay of `server`, and print the verdicts; they are in upstream.json of the run.

    Raises CheckFailed where one is not good, DescriptionError where no source of the appliance has scripts, BuildError
    where none that has can be had, HostError.
    """
    if appliance.rtpengine is None:
        raise DescriptionError(f"{appliance.name} has no relay")
    (run.directory / "upstream.json").unlink(missing_ok=True)
    root, tree = _prepared(settings, run, appliance, progress.detail)
    routes = [route for route in server.routes if route.address in (server.internal_ip, server.internal_ipv6)]
    stand = Stand(root, tree, routes[0].namespace, [reach.own_address(route) for route in routes],
                  (server.internal_ip, appliance.rtpengine.ng_port))
    seen: list[Verdict] = []
    with NgClient(*stand.relay, partial(namespace.open_socket, stand.namespace, socket.SOCK_DGRAM)) as relay:
        for script in stand.scripts:
            before = relay.calls(_CALLS)
            with progress.stage(script):
                seen.append(stand.run(script, run.directory / f"upstream-{script}.log"))
                progress.detail(f"{'good' if seen[-1].good else 'NOT good'}: {seen[-1].said}")
            write_whole(run.directory / "upstream.json", json.dumps([asdict(one) for one in seen], indent=1))
            hang_up(relay, before)
    if not seen:
        raise DescriptionError(f"the source tree of {appliance.name} has none of upstream's scripts")
    bad = [one.script for one in seen if not one.good]
    if bad:
        raise CheckFailed(f"{len(bad)} of {many(len(seen), 'script')} of upstream's did not like the relay: "
                          f"{', '.join(bad)}", hint=f"what they printed: {os.fspath(run.directory)}/upstream-*.log")


def hang_up(relay: NgClient, before: Sequence[str]) -> None:
    """Delete the calls that `relay` has and had not `before`: a script that ends in an error leaves its own."""
    for call in set(relay.calls(_CALLS)) - set(before):
        with suppress(NgUnknownCall):
            relay.delete(call, next(iter(relay.query(call)["tags"]), ""))


def _prepared(settings: Settings, run: Run, appliance: Appliance, say: Callable[[str], None]) -> tuple[Path, Path]:
    """The system for the scripts, and the tree that has them."""
    assert appliance.rtpengine
    wanted = [spec for spec in appliance.rtpengine.sources if spec.kind in _TREES]
    if not wanted:
        raise DescriptionError(f"no source of {appliance.name} has upstream's scripts",
                               hint=f"a source of kind {', '.join(_TREES)} has them (appliances.yaml)")

    def state(source_packages: bool) -> AptState:
        mirrors = apt_mirrors(settings, appliance.release)
        return state_for(settings.cache, mirrors, appliance.release, appliance.architecture,
                         source_packages=source_packages)

    deadline, log = Deadline(900), run.directory / "upstream.log"
    known = sources.kinds(lambda: state(False), lambda: state(True))
    used = sources.fetch_first(wanted, settings, run, say, deadline, known).used
    binary = state(False)
    binary.refresh(deadline)
    root = builder.prepare(PACKAGES, binary, settings, run, deadline, log)
    return root, compile.tree(used, run.directory, root, deadline, log)
