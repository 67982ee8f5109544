"""Connection tracking of a running server: shown beside its plan, and changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

from harness import conntrack_change, conntrack_view
from harness.access import ssh_config
from harness.access.shell import Shell
from harness.appliance import Appliance
from harness.cloud import Server
from harness.conntrack import ConntrackPlan, plan
from harness.conntrack_change import Change
from harness.conntrack_view import State
from harness.errors import CheckFailed, DescriptionError
from harness.progress import Progress
from harness.run import Run
from harness.units import many


def show(run: Run, server: Server, appliance: Appliance, progress: Progress) -> None:
    """Print plan and live state side by side. Raises CheckFailed where they differ, ConnectionLost."""
    table = _planned(appliance)
    with _shell(run, server) as shell:
        state = _state(shell, server)
    if progress.as_json:
        print(json.dumps({"run": run.id, "server": server.name} | conntrack_view.as_json(table, state)),
              file=progress.out, flush=True)
    else:
        progress.line(f"{server.name} of {run.id}")
        for line in conntrack_view.lines(table, state):
            (progress.error if line.wrong else progress.line)(line.text)
    if wrong := conntrack_view.differing(table, state):
        key = wrong[0].removeprefix(conntrack_view.PREFIX)
        raise CheckFailed(f"{many(len(wrong), 'setting')} of {server.name} {'is' if len(wrong) == 1 else 'are'} not as "
                          f"planned", hint=f"./inv conntrack.set {key}={table.sysctls[wrong[0]]} sets it until the "
                          "next boot, with --bake for good")


def change(run: Run, server: Server, appliance: Appliance, text: str, progress: Progress, *, bake: bool) -> None:
    """Change a setting (KEY=VALUE): until the next boot, or with `bake` for good. Prints how to take it back.

    Raises DescriptionError, CheckFailed where the server does not take the value, ConnectionLost.
    """
    wanted = conntrack_change.parse(text, _planned(appliance))
    with _shell(run, server) as shell:
        live = _state(shell, server).settings
        before = live.get(wanted.name, "")
        conntrack_change.fit(wanted, live, appliance.server.memory)
        files = {path: content.decode() for path, content in shell.read(*conntrack_change.FILES).items()}
        back = conntrack_change.at_boot(wanted.key, files) or before
        _write(shell, server, wanted)
        lasts = "until the next boot"
        if bake:
            content = conntrack_change.baked(wanted, files)
            try:
                _drop_in(shell, server, content)
            except BaseException:
                _write(shell, server, Change(wanted.key, int(before)))
                raise
            lasts = "now and at every boot" + (f" ({conntrack_change.DROP_IN})" if content else ", as the image has it")
    progress.line(f"  {wanted.key:<24} {before} -> {wanted.value}, {lasts}")
    progress.line(f"  {'to take it back':<24} ./inv conntrack.set {wanted.key}={back if bake else before}"
                  + (" --bake" if bake else ""))


def _planned(appliance: Appliance) -> ConntrackPlan:
    if appliance.conntrack is None:
        raise DescriptionError(f"the appliance {appliance.name} has no conntrack section",
                               hint="docs/appliance.md: what a table is sized for")
    return plan(appliance.conntrack, appliance.server.memory)


@contextmanager
def _shell(run: Run, server: Server) -> Iterator[Shell]:
    shell = Shell(ssh_config.path(run), server.name)
    try:
        yield shell
    finally:
        shell.close()


def _state(shell: Shell, server: Server) -> State:
    state = State.of(shell.read(*conntrack_view.FILES))
    if not state.settings:
        raise CheckFailed(f"connection tracking is not loaded on {server.name}",
                          hint="./inv check -- -k conntrack says more")
    return state


def _write(shell: Shell, server: Server, wanted: Change) -> None:
    """Set the value, and see that it is in force."""
    answer = shell.run(f"sysctl -q -w {wanted.name}={wanted.value}")
    file = "/proc/sys/" + wanted.name.replace(".", "/")
    seen = shell.read(file).get(file, b"").decode().strip()
    if answer.code or seen != str(wanted.value):
        raise CheckFailed(f"{wanted.name} of {server.name} is {seen or 'not there'} after {wanted.value} was set",
                          excerpt=answer.stderr.decode(errors="replace").strip() or None)


def _drop_in(shell: Shell, server: Server, content: str) -> None:
    """Write the drop-in as a whole and onto the disk, or remove it where it is empty."""
    path = conntrack_change.DROP_IN
    script = (f"cat >{path}.new && chmod 644 {path}.new && mv {path}.new {path} && sync {path}" if content
              else f"rm -f {path}") + f" && sync $(dirname {path})"
    answer = shell.run(script, stdin=content.encode())
    if answer.code:
        raise CheckFailed(f"{path} can't be written on {server.name}",
                          excerpt=answer.stderr.decode(errors="replace").strip() or None)
