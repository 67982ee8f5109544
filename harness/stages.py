"""The stages of a run, each once: host, build, inspect, launch, check, reboot, remove, report.

`Work` holds what they share. The order, and what happens after a failure, is nightly.py's.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from string import Template
from typing import Any

from harness import checks, host, known, reaper
from harness.access import keys, readiness, secure_boot, shell, ssh_config
from harness.access.readiness import PortClosed, Ready
from harness.appliance import Appliance
from harness.cloud import Cloud, ImageFile, Need, Server, ServerSpec, uefi
from harness.cloud.local import LocalCloud
from harness.conntrack import plan
from harness.deadline import Deadline
from harness.errors import (
    CloudError,
    DescriptionError,
    DialtoneError,
    Fault,
    InspectError,
    NotReadyError,
    RemovalError,
    from_os_error,
)
from harness.firmware import Firmware
from harness.image import build as image_build
from harness.image import module, signing
from harness.image.build import Image
from harness.image.finding import expectation
from harness.image.inspect import inspect as look_into
from harness.image.module import Delivered
from harness.levels import Level
from harness.progress import Progress
from harness.run import Run, State, write_whole
from harness.settings import Settings
from harness.units import many, octets

FIRST_BOOT = "first boot"
AFTER_REBOOT = "after reboot"

DEADLINES = {"look": 120, "build": 3600, "inspect": 300, "upload": 900, "launch": 600, "check": 900, "load": 900,
             "reboot": 600}
"""Seconds that a stage may take on a loaded machine without hardware acceleration."""


@dataclass
class Work:
    """A run and what its stages need. Every stage writes what it learned to `run.facts`."""

    settings: Settings
    appliance: Appliance
    cloud: Cloud
    run: Run
    progress: Progress

    @property
    def certificate(self) -> Path | None:
        """Of the key that signs the relay's module; None where nobody does."""
        signer = signing.signer(self.settings)
        return signer.certificate if signer else None

    @contextmanager
    def _stage(self, name: str, save: Callable[[], None] | None = None) -> Iterator[Callable[[str], None]]:
        with self.progress.stage(name), self.run.stage(name, save) as entry:
            def say(text: str) -> None:
                entry.detail = text
                self.progress.detail(text)

            yield say

    @contextmanager
    def noting(self) -> Iterator[None]:
        """What can't be written down inside is a warning: no removal may depend on a disk that is full."""
        try:
            yield
        except OSError as error:
            warning = f"not written down: {from_os_error(error).message}"
            warnings = self.run.facts.setdefault("warnings", [])
            if warning not in warnings:
                warnings.append(warning)
                self.progress.line(f"    note: {warning}")

    def _save(self) -> None:
        with self.noting():
            self.run.save()

    def host(self) -> None:
        """What this machine must have; and whatever dead runs left on it is removed first."""
        with self._stage("host") as say:
            host.prepare(self.settings, say=say)
            reaped = reaper.sweep(self.settings)
            stuck = [r for r in reaped if r.outcome == "failed"]
            if stuck:
                self.run.facts.setdefault("warnings", []).extend(f"{r.resource} of {r.run_id}: {r.why}" for r in stuck)
            # Whatever the cloud is: an image that is sent to one is booted here first.
            uefi.look(firmware_of(self.settings, self.appliance))
            size = self.appliance.server
            seen = self.cloud.look(Need(size.memory, size.cpus, size.disk), Deadline(DEADLINES["look"]))
            swept = sum(r.outcome == "removed" for r in reaped)
            self.run.facts["host"] = _host_facts() | {"accelerator": self.cloud.describe()}
            say(", ".join(["ready", *([seen] if self.cloud.uploads else []),
                           *([f"removed {many(swept, 'leftover')} of dead runs"] if swept else [])]))

    def build(self, *, force: bool = False) -> Image:
        """The image of the appliance: built, or taken from the cache where no input changed."""
        try:
            return self._build(force=force)
        finally:
            self._note()

    def _build(self, *, force: bool) -> Image:
        with self._stage("build") as say:
            known.load(self.appliance)  # a mistake in these files is told before the build, not after it
            image = image_build.build(self.appliance, self.settings, self.run, say,
                                      Deadline(DEADLINES["build"]), force=force)
            facts = self.run.facts
            facts["image"] = {"path": str(image.path), "size": image.size, "sha256": image.sha256,
                              "kernel": image.kernel, "from_cache": image.from_cache,
                              "sbom": image.sbom.name}
            facts["source"] = {"used": {k: v for k, v in image.source.items() if k != "skipped"},
                               "skipped": image.source.get("skipped", []), "notes": list(image.notes)}
            facts["build_log"] = str(image.log)
            for described in (image.manifest, image.sbom):
                shutil.copyfile(described, self.run.directory / described.name)
            if self.appliance.conntrack:
                table = plan(self.appliance.conntrack, self.appliance.server.memory)
                facts.setdefault("warnings", []).extend(table.warnings)
            say(f"{image.path.parent.name}, {octets(image.size)}" + (", nothing changed" if image.from_cache else ""))
        return image

    def module(self) -> Delivered:
        """The relay's module for the kernel of the day, as packages for servers that follow kernels."""
        try:
            with self._stage("module") as say:
                if firmware_of(self.settings, self.appliance) is Firmware.SECURE_BOOT and not self.certificate:
                    raise DescriptionError("servers that start by Secure Boot take no module that is not signed",
                                           hint="signing_key and signing_certificate: docs/firmware.md")
                delivered = module.deliver(self.appliance, self.settings, self.run, say, Deadline(DEADLINES["build"]))
                say(f"for {delivered.kernel}")
        finally:
            self._note()
        return delivered

    def _note(self) -> None:
        """Show what is to be known of the build: also of one that failed, whose cause may be an old pin."""
        facts = self.run.facts
        for note in (*facts.get("source", {}).get("notes", []), *facts.get("warnings", [])):
            self.progress.line(f"    note: {note}")
        for pin in facts.get("pins", []):
            self.progress.line(f"    note: {pin['sentence']}")
            for name, digest in pin["hashes"].items():
                self.progress.line(f"          {name}: {digest}")

    def inspect(self, image: Image) -> None:
        """Look into the image without booting it. Raises InspectError when a finding is red."""
        notes: list[str] = []
        try:
            with self._stage("inspect") as say:
                expect = expectation(self.appliance, image.kernel, image.loader, self.certificate)
                findings = look_into(image.path, expect, say, Deadline(DEADLINES["inspect"]))
                write_whole(self.run.directory / "inspect.json", json.dumps([asdict(f) for f in findings], indent=1))
                failed = [f for f in findings if f.red]
                red = f", {len(failed)} FAILED" if failed else ""
                say(f"{len(findings) - len(failed)} passed{red}" if red else f"{len(findings)} checks")
                for finding in failed:
                    self.fail(stage="inspect", title=finding.title, where=str(image.path), expected=finding.expected,
                              seen=finding.seen, because=finding.because, next=finding.hint, fault=Fault.IMAGE)
                notes += [f"{finding.title}: {finding.note}" for finding in findings if finding.note]
                self.run.facts.setdefault("warnings", []).extend(notes)
                if failed:
                    raise InspectError(f"{len(failed)} of {len(findings)} findings in the image are red: "
                                       f"{failed[0].title}")
        finally:
            for note in notes:
                self.progress.line(f"    note: {note}")

    def gate(self, image: Image) -> None:
        """Boot the image on this machine before a cloud gets it; once by each firmware. Raises as launch() does."""
        passed = image.path.parent / f"booted-{firmware_of(self.settings, self.appliance)}.json"
        if not self.cloud.uploads:
            return
        self.run.facts["gate"] = os.fspath(passed)
        if passed.exists():
            return
        with self._stage("boot") as say:
            here = LocalCloud(self.settings)
            with self.run.journal.passing(here.removers):
                [(_, ready)] = self._boot(here, os.fspath(image.path), ["gate"], say)
                shell.close_all(self.run)
            write_whole(passed, json.dumps({"run": self.run.id, "cloud": here.describe(), "timings": ready.timings}))

    def upload(self, image: Image) -> str:
        """Make the image known to the cloud; what launch() takes."""
        manifest = image.manifest.read_bytes()
        file = ImageFile(image.path, self.appliance.name, image.sha256, hashlib.sha256(manifest).hexdigest(),
                         int(json.loads(manifest)["virtual_size"]), self.appliance.server.memory,
                         firmware_of(self.settings, self.appliance))
        if not self.cloud.uploads:
            return self.cloud.upload(self.run, file, Deadline(DEADLINES["upload"]), self.progress.detail)
        with self._stage("upload") as say:
            return self.cloud.upload(self.run, file, Deadline(DEADLINES["upload"]), say)

    def launch(self, image: str, *names: str) -> list[Server]:
        """Start servers, one unless more are named, from an image that the cloud knows; wait until all are ready."""
        with self._stage("launch") as say:
            booted = self._boot(self.cloud, image, names or ("server1",), say)
            server, ready = booted[0]
            self.run.facts["server"] = {"name": server.name, "timings": ready.timings,
                                        "internal_ip": server.internal_ip, "floating_ip": server.floating_ip,
                                        "datasource": ready.datasource}
            if len(booted) > 1:
                say(f"{len(booted)} servers ready")
            return [server for server, _ in booted]

    def _boot(self, cloud: Cloud, image: str, names: Sequence[str], say: Callable[[str], None]
              ) -> list[tuple[Server, Ready]]:
        deadline = Deadline(DEADLINES["launch"])
        public = keys.create(self.run).public
        say("starting")
        servers = cloud.launch(self.run, [server_spec(self.settings, self.appliance, self.run, image, public, name)
                                          for name in names], deadline)
        ssh_config.write(self.run, cloud.servers(self.run))
        # They boot at the same time, so that waiting for one after the other takes no longer.
        booted, errors = [], []
        for server in servers:
            try:
                booted.append((server, self._wait(cloud, server, deadline, say)))
            except NotReadyError as error:
                errors.append(error)
        if errors:
            raise together(errors, len(servers))
        return booted

    def _wait(self, cloud: Cloud, server: Server, deadline: Deadline, say: Callable[[str], None]) -> Ready:
        try:
            ready = readiness.wait(cloud, self.run, server, deadline, say)
        except PortClosed as error:
            if not cloud.uploads or not Path(self.run.facts.get("gate", "-")).exists():
                raise
            # The console showed the host key, and here the image was reached: what is left is the way to the server.
            raise CloudError(f"{error.message}, though it has booted, and its image was reached on this machine",
                             excerpt=error.excerpt, hint="is the network node's namespace the right one, and does a "
                             "security group let port 22 in? docs/openstack.md") from error
        say(", ".join(f"{name} {seconds:.1f}" for name, seconds in ready.timings.items()))
        relay = self.appliance.rtpengine
        if server.firmware is Firmware.SECURE_BOOT and relay and relay.table >= 0:
            secure_boot.try_module(self.run, server, relay.generation.module, deadline)
        return ready

    def check(self, server: Server, selection: Sequence[str] = (), level: Level = Level.BASIC
              ) -> DialtoneError | None:
        """Run the appliance's checks on a server; what they come to, None when all passed.

        What checks after an earlier reboot found is removed: they were of a server as it was before these.
        """
        with self._stage("check") as say:
            checks.discard(self.run, AFTER_REBOOT)
            return self._check(server, FIRST_BOOT, selection, level, say)

    def reboot(self, server: Server, level: Level = Level.BASIC) -> DialtoneError | None:
        """Reboot from inside, wait for another boot_id, and run the checks again; returns as check()."""
        with self._stage("reboot") as say:
            ready = readiness.reboot(self.cloud, self.run, server, Deadline(DEADLINES["reboot"]), say)
            self.run.facts["reboot"] = {"name": server.name, "timings": ready.timings}
            return self._check(server, AFTER_REBOOT, (), level, say)

    def _check(self, server: Server, phase: str, selection: Sequence[str], level: Level,
               say: Callable[[str], None]) -> DialtoneError | None:
        before = Level(self.run.facts.get("level", level)) if phase == AFTER_REBOOT else level
        self.run.facts["level"] = str(max(before, level, key=lambda one: one.rank))
        limit = DEADLINES["check"] + (DEADLINES["load"] if level is Level.LOAD else 0)
        results = checks.run_checks(self.run, server, self.appliance, phase, say, Deadline(limit),
                                    selection=selection, level=level)
        if self.appliance.conntrack and not any(r.outcome == "error" for r in results):
            table = plan(self.appliance.conntrack, self.appliance.server.memory)
            self.run.facts["conntrack"] = {"plan": dict(table.sysctls), "live": checks.live_conntrack(self.run, server)}
        red = [r for r in results if r.red]
        for result in red:
            self.fail(stage="check", title=result.title, where=result.id, expected=result.expected, seen=result.seen,
                      because=result.because, console=result.console, message=result.message,
                      look="./inv ssh", again=result.again(level), fault=result.fault)
        passed = sum(r.outcome == "passed" for r in results)
        skipped = sum(r.outcome == "skipped" for r in results)
        say(f"{passed} passed" + (" again" if phase == AFTER_REBOOT and not red else "")
            + (f", {skipped} skipped" if skipped else "") + (f", {len(red)} FAILED" if red else ""))
        self.run.stages[-1].outcome = "failed" if red else "running"
        return checks.verdict(results, phase)

    def remove(self) -> None:
        """Remove everything that the run made, though it may be that nothing can be saved.

        Raises RemovalError naming what is left.
        """
        with self._stage("remove", self._save) as say:
            journal = self.run.journal
            made = journal.outstanding()
            # A courtesy: their processes are in the journal.
            with suppress(DialtoneError, OSError):
                shell.close_all(self.run)
            left = journal.remove_outstanding(self.cloud.removers)
            if left:
                raise RemovalError("not removed: " + "; ".join(f"{r} ({e.message})" for r, e in left),
                                   hint=f"./inv destroy {self.run.id} tries again")
            say(f"{_counted(made)}: nothing left" if made else "nothing left")

    def fail(self, **entry: Any) -> None:
        """Add a failure to the run's facts; an empty field is left out."""
        self.run.facts.setdefault("failures", []).append({k: v for k, v in entry.items() if v})
        self.run.save()


def server_spec(settings: Settings, appliance: Appliance, run: Run, image: str, public_key: str, name: str
                ) -> ServerSpec:
    """What to launch for an appliance; user-data from cloud-init/user-data.yaml. Raises DescriptionError."""
    template = settings.project / "cloud-init" / "user-data.yaml"
    try:
        user_data = Template(template.read_text(encoding="utf-8")).substitute(
            hostname=f"{appliance.name}-{run.id[-4:]}-{name}", ssh_public_key=public_key.strip())
    except (OSError, KeyError, ValueError) as error:
        raise DescriptionError(f"{template}: {error}", hint="cloud-init/README.md names the placeholders") from error
    return ServerSpec(name=name, image=image, user=appliance.user, public_key=public_key, user_data=user_data,
                      memory=appliance.server.memory, cpus=appliance.server.cpus, disk=appliance.server.disk,
                      ports=appliance.ports, firmware=firmware_of(settings, appliance))


def firmware_of(settings: Settings, appliance: Appliance) -> Firmware:
    """What starts the appliance's servers: as the settings say, else as the description does."""
    return Firmware(settings.firmware or appliance.server.firmware)


def together(errors: Sequence[NotReadyError], servers: int) -> NotReadyError:
    """The failures of several servers as one: the first, and how many failed in the same way."""
    first = errors[0]
    if servers > 1:
        alike = sum(type(error) is type(first) for error in errors)
        others = f", {len(errors) - alike} in other ways" if alike < len(errors) else ""
        first.message = f"{alike} of {servers} servers{others}: {first.message}"
    return first


def previous_stages(run: Run) -> dict[str, float]:
    """Seconds that each stage took in the last of run.earlier(); none where there is none."""
    before = run.earlier()
    return {s.name: s.seconds for s in before[-1].stages if s.seconds is not None and s.outcome == "passed"
            } if before else {}


def finish(work: Work, first_error: DialtoneError | None, keep: bool) -> None:
    """Settle the run's state on disk."""
    if work.cloud.calls:
        calls = work.cloud.calls
        work.run.facts.setdefault("cloud", {})["api_calls"] = (
            f"{sum(calls.values())} ({', '.join(f'{n} {method}' for method, n in sorted(calls.items()))})")
    work.run.facts["exit_code"] = int(first_error.exit_code) if first_error else 0
    work.run.state = State.KEPT if keep else State.DONE
    work.run.save()


def _host_facts() -> dict[str, Any]:
    meminfo = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return {"cores": len(os.sched_getaffinity(0)), "memory": meminfo["MemTotal"].strip(),
            "kernel": platform.release(), "python": platform.python_version(),
            "load": Path("/proc/loadavg").read_text().split()[0]}


_NOUNS = {"namespace": "router", "loop": "loop device", "os-floating-ip": "floating IP"}


def _counted(resources: Sequence[Any]) -> str:
    counts: dict[str, int] = {}
    for resource in resources:
        noun = _NOUNS.get(resource.kind, resource.kind.removeprefix("os-").replace("-", " "))
        counts[noun] = counts.get(noun, 0) + 1
    return ", ".join(many(n, noun, "processes" if noun == "process" else None) for noun, n in counts.items())
