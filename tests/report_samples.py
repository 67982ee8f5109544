"""Run directories as a night leaves them: green, red, broken cloud, interrupted, huge. Figures are invented."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.resources import Resource
from harness.run import Run, Stage, State

BEGAN = 1_793_842_200.0  # 5 November 2026, 01:30 UTC
KERNEL = "6.1.0-56-cloud-amd64"
FIRST, AGAIN = "first boot", "after reboot"

GROUPS: dict[str, list[tuple[str, str]]] = {
    "forwarding": [
        ("test_module_loaded", "the kernel module is loaded"), ("test_table", "table 0 is there and has an owner"),
        ("test_counters", "media is forwarded in the kernel"),
        ("test_table_in_use", "a table in use can't be deleted"),
        ("test_rules", "rules lead to the module for IPv4 and IPv6"), ("test_held", "the kernel package is held")],
    "daemon": [
        ("test_unit", "the unit is active and enabled"),
        ("test_ng_ping", "the relay answers an ng ping over the route"),
        ("test_no_fallback", "no fallback to user space is allowed"), ("test_ports", "only the asked ports listen"),
        ("test_redis", "Redis keeps calls over a crash")],
    "conntrack": [
        ("test_module_early", "the table's module is loaded before sysctls are set"),
        ("test_live", "every planned value is live"), ("test_entries", "entries can be read")],
    "logging": [
        ("test_log_file", "the daemon writes to /var/log/rtpengine.log"), ("test_rotation", "the log is rotated")],
    "cloud": [
        ("test_data_source", "the data source is the config drive"),
        ("test_hostname", "the host has the server's name"),
        ("test_root_grown", "the root file system fills the disk"), ("test_key", "the key was injected")],
    "clean boot": [
        ("test_units", "no unit failed"), ("test_kernel_log", "the kernel log has no oops"),
        ("test_warnings", "cloud-init has no warning beyond the known ones")],
}

PLAN = {f"net.netfilter.nf_conntrack_{key}": value for key, value in {
    "max": 131072, "buckets": 131072, "expect_max": 2048, "acct": 0, "checksum": 1, "events": 2,
    "generic_timeout": 600, "icmp_timeout": 30, "log_invalid": 0, "tcp_be_liberal": 0, "tcp_loose": 1,
    "tcp_max_retrans": 3, "tcp_timeout_close": 10, "tcp_timeout_close_wait": 60, "tcp_timeout_established": 7440,
    "tcp_timeout_fin_wait": 120, "tcp_timeout_syn_recv": 60, "tcp_timeout_unacknowledged": 300, "timestamp": 0,
    "udp_timeout": 30, "udp_timeout_stream": 120}.items()}

FAILURE = {
    "stage": "check", "title": "media is forwarded in the kernel", "fault": "image",
    "where": "tests/appliance/test_forwarding.py::test_counters",
    "expected": "at least 95 % of packets in the kernel after 5 s",
    "seen": "0 % of 10,000; the daemon relayed them in user space",
    "because": "no module xt_RTPENGINE is loaded: it is built for 6.1.0-55, the server runs 6.1.0-56",
    "console": ["[   41.203] xt_RTPENGINE: version magic '6.1.0-55-cloud-amd64 SMP preempt mod_unload modversions' "
                "should be '6.1.0-56-cloud-amd64 SMP preempt mod_unload modversions'"],
    "look": "./inv ssh        the server is kept (--keep failed), until ./inv destroy",
    "again": "./inv check -- -k test_counters",
    "next": "./inv build --force, or pin the kernel in appliances.yaml:14",
}

HOSTILE = ("</pre><script>document.title='owned'</script>\x1b[31mred\x1b[0m \x00\x07\x08 \u202egnp.exe "
           "\ufffe & \"quoted\"")


def make(runs: Path, number: int, *, exit_code: int | None = 0, stages: Iterable[Stage] = (), **facts: Any) -> Run:
    """A finished run of the appliance rtpengine, `number` days after the first."""
    began = BEGAN + number * 86400
    directory = runs / f"{datetime.fromtimestamp(began, UTC):%Y%m%d-%H%M%S}-rtpengine-{number:04x}"
    directory.mkdir(parents=True)
    run = Run(directory, "rtpengine", "local", began, State.DONE, "failed", list(stages))
    run.facts = facts if exit_code is None else {"exit_code": exit_code, **facts}
    run.save()
    return run


def stages(began: float, *entries: tuple[str, float, str, str]) -> list[Stage]:
    """Stages one after another: name, seconds, outcome, detail."""
    made = []
    for name, seconds, outcome, detail in entries:
        made.append(Stage(name, began, None if outcome == "running" else seconds, outcome, detail))
        began += seconds
    return made


def image(size: int = 188_400_000, *, from_cache: bool = False) -> dict[str, Any]:
    return {"path": ".cache/images/rtpengine-3f9c2ab1/rtpengine.qcow2", "size": size, "virtual_size": 4_294_967_296,
            "sha256": "9b6f1d0c3a7e52488c1f0e6bb7a4d9935d2c8f7160e4a3b9c8d7e6f50a1b2c3d", "kernel": KERNEL,
            "from_cache": from_cache}


def source() -> dict[str, Any]:
    return {
        "used": {"kind": "debian-packages", "version": "10.5.3.5-1+deb12u1", "hashes": {
            "rtpengine-kernel-dkms": "98889066cb85362e6f387f945881d827b53d16b640863a0905c41bd5ee610d00",
            "rtpengine-daemon": "acd8de7924de52dde1396d45e52c7b22dbfdf51a3c1028202bf7db8431ec50fa"}},
        "skipped": [{"kind": "debian-source", "version": "10.5.3.5-1+deb12u1",
                     "reason": "the mirror answers 404 for rtpengine_10.5.3.5.orig.tar.xz"}],
        "notes": []}


def manifest(packages: int = 214) -> dict[str, Any]:
    return {
        "image": "rtpengine.qcow2", "kernel": KERNEL,
        "modules": [{"name": "xt_RTPENGINE", "vermagic": f"{KERNEL} SMP preempt mod_unload modversions"}],
        "sysctls": {key: str(value) for key, value in PLAN.items()},
        "packages": [{"name": f"libsample{number}-{number % 7}", "version": f"1.{number}.0-{number % 5}+deb12u1",
                      "architecture": "amd64"} for number in range(packages)],
        "elements": {"voip-appliance": "5c1e" * 16, "conntrack": "77ab" * 16, "rtpengine": "e90d" * 16},
    }


def facts(**more: Any) -> dict[str, Any]:
    return {
        "image": image(), "source": source(),
        "conntrack": {"plan": PLAN, "live": {key: str(value) for key, value in PLAN.items()}},
        "server": {"name": "server1", "timings": {"address": 0.4, "key": 12.1, "ssh": 19.8, "ready": 26.3}},
        "reboot": {"name": "server1", "timings": {"down": 6.2, "port": 31.0, "ssh": 33.4, "ready": 38.9}},
        "host": {"cores": 2, "memory": "24676288 kB", "accelerator": "QEMU, no KVM: TCG", "kernel": "6.18.44",
                 "python": "3.11.2"},
        "previous": {"host": 1.2, "build": 61.0, "inspect": 4.1, "launch": 27.9, "check": 20.7, "reboot": 55.8,
                     "remove": 2.2},
    } | more


def write_checks(run: Run, phase: str, alter: Callable[[dict[str, Any]], dict[str, Any]] = lambda entry: entry) -> None:
    """One line per check of GROUPS, each passed through `alter`."""
    chance = random.Random(phase)
    lines = []
    for group, tests in GROUPS.items():
        file = f"tests/appliance/test_{group.replace(' ', '_')}.py"
        for test, title in tests:
            entry: dict[str, Any] = {
                "id": f"{file}::{test}", "title": title, "group": group, "phase": phase, "server": "server1",
                "outcome": "passed", "seconds": round(chance.uniform(0.05, 1.9), 2), "expected": "", "seen": "",
                "because": "", "console": [], "message": "", "reason": ""}
            if test == "test_redis":
                entry |= {"outcome": "skipped", "reason": "the appliance doesn't ask for Redis"}
            lines.append(json.dumps(alter(entry)))
    name = f"checks-{phase.replace(' ', '-')}.jsonl"
    (run.directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_console(run: Run, *last: str, lines: int = 400) -> None:
    """A boot's console, `last` at its end."""
    body = [f"[{number * 0.0613:12.6f}] systemd[1]: Started sample{number}.service - a unit of the boot."
            for number in range(lines)]
    server = run.directory / "server1"
    server.mkdir(exist_ok=True)
    (server / "console.log").write_text("\r\n".join([*body, *last]) + "\r\n", encoding="utf-8", newline="")


def write_rest(run: Run, *, removed: bool = True) -> None:
    """inspect.json, manifest.json, build.log and a journal whose resources are gone (or not)."""
    findings = ["the partition table is sound", "the file system is clean", "kernel and module match",
                "no SSH host key is in the image", "the machine id is empty", "no password is set",
                "no apt list is left", "no mirror of the build host is left"]
    (run.directory / "inspect.json").write_text(json.dumps(
        [{"title": title, "outcome": "passed", "expected": "", "seen": "", "because": "", "hint": ""}
         for title in findings]), encoding="utf-8")
    (run.directory / "manifest.json").write_text(json.dumps(manifest()), encoding="utf-8")
    (run.directory / "build.log").write_text("\n".join(f"dib-run-parts {n} running sample" for n in range(300)),
                                             encoding="utf-8")
    for kind, name in (("namespace", "qrouter-5f3b"), ("link", "rtp-5f3b"), ("process", "qemu server1"),
                       ("path", "/var/tmp/dialtone-5f3b")):
        resource = run.journal.creating(Resource(kind, name, {}))
        if removed:
            run.journal.gone(resource)


def past_nights(runs: Path, nights: int = 12) -> None:
    """Earlier runs: one lost to the cloud, one to the image, the rest green with some noise."""
    chance = random.Random(7)
    for number in range(nights):
        code = {3: 7, 8: 1}.get(number, 0)
        noise = chance.uniform(0.93, 1.07)
        run = make(runs, number, exit_code=code, **facts(
            image=image(int(201_000_000 - number * 900_000)), server={"timings": {"ready": round(31.0 * noise, 1)}}))
        if code != 7:
            run.stages = stages(run.started, ("host", 1.2, "passed", ""), ("build", 61 * noise, "passed", ""),
                                ("inspect", 4.1, "passed", ""), ("launch", 31 * noise, "passed", ""),
                                ("check", 21 * noise, "passed", ""), ("reboot", 55 * noise, "passed", ""))
            write_checks(run, FIRST, redden if code else lambda entry: entry)
        run.save()


def green(runs: Path) -> Run:
    """All passed, after both boots; twelve nights before it."""
    past_nights(runs)
    run = make(runs, 20, **facts())
    run.stages = stages(
        run.started, ("host", 1.1, "passed", "ready"), ("build", 48.2, "passed", "rtpengine-3f9c2ab1, 188 MB"),
        ("inspect", 4.0, "passed", "8 checks"),
        ("launch", 26.3, "passed", "address 0.4, key 12.1, ssh 19.8, ready 26.3"),
        ("check", 21.4, "passed", "22 passed, 1 skipped"), ("reboot", 54.9, "passed", "22 passed again, 1 skipped"),
        ("remove", 2.0, "passed", "1 process, 1 link, 1 router: nothing left"))
    run.save()
    write_rest(run)
    write_checks(run, FIRST)
    write_checks(run, AGAIN)
    write_console(run, f"Debian GNU/Linux 12 rtpengine-{run.id[-4:]} ttyS0")
    return run


def red(runs: Path) -> Run:
    """The module is for another kernel: one check fails, and a planned value isn't live."""
    past_nights(runs)
    live = {key: str(value) for key, value in PLAN.items()} | {
        "net.netfilter.nf_conntrack_max": "65536", "net.netfilter.nf_conntrack_count": "4"}
    run = make(runs, 20, exit_code=1, failures=[FAILURE], warnings=[
        "rtpengine 10.5.3.5-1 is older than the distribution's security version 10.5.3.5-1+deb12u1 (CVE-2025-53399)"],
        **facts(conntrack={"plan": PLAN, "live": live}, server={"timings": {
            "key": 93.8, "port": 100.2, "ssh": 116.8, "cloud-init": 129.0, "ready": 129.3}}))
    run.stages = stages(
        run.started, ("host", 1.1, "passed", "ready"), ("build", 48.2, "passed", "rtpengine-3f9c2ab1, 188 MB"),
        ("inspect", 4.0, "passed", "8 checks"),
        ("launch", 131.2, "passed", "key 93.8, port 100.2, ssh 116.8, cloud-init 129.0, ready 129.3"),
        ("check", 22.9, "failed", "21 passed, 1 skipped, 1 FAILED"))
    run.state = State.KEPT
    run.save()
    write_rest(run, removed=False)
    write_checks(run, FIRST, redden)
    write_console(run, *FAILURE["console"], "[   41.377] systemd[1]: rtpengine.service: Deactivated successfully.")
    return run


LOAD = {"in the kernel": (640.0, 1.0), "in user space": (130.0, 5.5)}
"""Of each path: calls that are held, and what a packet costs the daemon; invented."""


def measured(path: str, scale: float = 1.0) -> dict[str, Any]:
    """What a check of the load level takes down."""
    held, cost = LOAD[path][0] * scale, LOAD[path][1]
    calls = [count for count in (25, 50, 100, 200, 400, 800) if count < 2.5 * held]

    def series(plot: str, name: str, x: str, y: str, points: list[tuple[float, float]]) -> dict[str, Any]:
        return {"plot": plot, "name": name, "x": x, "y": y, "points": points}

    broken = [max(0.0, count / held - 1) for count in calls]
    return {
        "figures": [{"name": f"calls held, {path}", "value": round(held), "unit": "calls", "better": "more"}],
        "series": [
            series("Loss over calls", path, "calls", "% of packets lost", [
                (count, round(12 * beyond, 3)) for count, beyond in zip(calls, broken, strict=True)]),
            series("Latency over calls", f"{path}, median", "calls", "ms one way", [
                (count, 2 + count / 90 + 90 * beyond) for count, beyond in zip(calls, broken, strict=True)]),
            series("Latency over calls", f"{path}, 99th percentile", "calls", "ms one way", [
                (count, 9 + count / 40 + 400 * beyond) for count, beyond in zip(calls, broken, strict=True)]),
            series("Processor time over packets", f"daemon, {path}", "packets relayed a second", "processors busy", [
                (100 * count, round(count * cost / 1000, 4)) for count in calls]),
            series("Processor time over packets", f"whole server, {path}", "packets relayed a second",
                   "processors busy", [(100 * count, round(0.1 + count * (cost + 1) / 1000, 4)) for count in calls])]}


def loaded(runs: Path, number: int = 20, scale: float = 1.0) -> Run:
    """Load was measured; the search in user space came to no good end."""
    run = make(runs, number, exit_code=1, level="load", **facts())
    run.stages = stages(run.started, ("launch", 26.3, "passed", "ready 26.3"),
                        ("check", 400.0 * scale, "failed", "24 passed, 1 FAILED"))
    run.save()
    write_checks(run, FIRST)
    blank = {"group": "load", "phase": FIRST, "server": "server1", "seconds": 90.0, "expected": "", "seen": "",
             "because": "", "console": [], "message": "", "reason": ""}
    watched = {"figures": [], "series": [
        {"plot": "Connection tracking over time", "name": name, "x": "seconds", "y": "number",
         "points": [(second, (second // 20 * 25 if second < 150 else 0) * factor) for second in range(0, 200)]}
        for name, factor in (("entries", 4), ("calls held", 1))]}
    with (run.directory / f"checks-{FIRST.replace(' ', '-')}.jsonl").open("a", encoding="utf-8") as out:
        for name, outcome, taken in (("kernel", "passed", measured("in the kernel", scale)),
                                     ("user_space", "error", measured("in user space", scale)),
                                     ("entries", "passed", watched)):
            out.write(json.dumps(blank | {
                "id": f"tests/appliance/test_load.py::test_{name}", "title": f"calls are held, {name}",
                "outcome": outcome, "message": "the connection is lost" if outcome == "error" else ""} | taken) + "\n")
    return run


def broken_cloud(runs: Path) -> Run:
    """The cloud failed at launch: nothing is said about the image."""
    run = make(runs, 20, exit_code=7, failures=[{
        "stage": "launch", "title": "the floating address 198.18.0.4 is taken by another run", "fault": "cloud",
        "next": "./inv reap, or set floating_cidr in dialtone.toml"}],
        **facts(server={}, conntrack={}, warnings=["2 leftovers of dead runs could not be removed"]))
    run.stages = stages(run.started, ("host", 1.0, "passed", "ready"), ("build", 0.4, "passed", "nothing changed"),
                        ("inspect", 3.9, "passed", "8 checks"), ("launch", 2.2, "failed", "starting"),
                        ("remove", 0.3, "passed", "nothing left"))
    run.save()
    write_rest(run)
    return run


def interrupted(runs: Path) -> Run:
    """Ctrl-C during the build."""
    run = make(runs, 20, exit_code=130, failures=[{"stage": "build", "title": "interrupted", "fault": "user"}],
               previous={"host": 1.0, "build": 60.0})
    run.stages = stages(run.started, ("host", 1.0, "passed", "ready"),
                        ("build", 17.5, "failed", "installing packages"), ("remove", 0.8, "passed", "nothing left"))
    run.save()
    return run


def died_at_once(runs: Path) -> Run:
    """Killed in its first stage: run.json is all that there is."""
    run = make(runs, 20, exit_code=None)
    run.state = State.ACTIVE
    run.stages = stages(run.started, ("host", 0.0, "running", ""))
    run.save()
    return run


def huge(runs: Path) -> Run:
    """500 checks, most of them red with long explanations, hostile titles, 2 MB of console full of markup."""
    run = green(runs)
    run.facts["exit_code"] = 1
    run.save()
    with (run.directory / f"checks-{FIRST.replace(' ', '-')}.jsonl").open("w", encoding="utf-8") as out:
        for number in range(500):
            out.write(json.dumps({
                "id": f"tests/appliance/test_many.py::test_{number}[{HOSTILE}]", "title": f"check {number} {HOSTILE}",
                "group": f"group {number % 20}", "phase": FIRST, "server": "server1",
                "outcome": "passed" if number % 4 == 0 else "failed", "seconds": 0.1, "expected": "x" * 3000,
                "seen": HOSTILE * 40, "because": f"cause {number % 40} " + "word " * 700, "console": [HOSTILE * 4] * 40,
                "message": "m" * 5000, "reason": ""}) + "\n")
    line = "[   12.345678] <unit> & \"a line\" that is escaped to more than it was: " + HOSTILE
    write_console(run, *[line] * (2_000_000 // len(line)), lines=10)
    return run


def redden(entry: dict[str, Any]) -> dict[str, Any]:
    if entry["id"] != FAILURE["where"]:
        return entry
    return entry | {"outcome": "failed"} | {key: FAILURE[key] for key in ("expected", "seen", "because", "console")}


SAMPLES: dict[str, Callable[[Path], Run]] = {
    "green": green, "red": red, "loaded": loaded, "broken-cloud": broken_cloud, "interrupted": interrupted,
    "died-at-once": died_at_once, "huge": huge,
}
