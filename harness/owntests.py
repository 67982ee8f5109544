"""The project's own lint and tests, as `./inv test` and `./inv lint` run them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import host
from harness.settings import Settings


def run_tests(settings: Settings, *, unit: bool, nightly: bool, options: Sequence[str]) -> int:
    """Lint, then pytest; host packages are installed first where root.

    Where `options` name files of tests these alone are run. Returns lint's exit code where it fails. Else this process
    becomes pytest: a signal to it goes to the tests, which take away what they made.
    """
    host.prepare(settings, purpose=host.Purpose.UNIT if unit else host.Purpose.TESTS,
                 say=lambda text: print(f"host: {text}", flush=True))
    code = run_lint(settings)
    if not code:
        selection = [] if nightly else ["-m", "not nightly"]
        if nightly:
            os.environ.setdefault("DIALTONE_TESTCLOUD_VOLUMES", "true")
        trees = ["tests/unit"] if unit else ["tests/unit", "tests/integration"]
        if any((settings.project / option.partition("::")[0]).exists() for option in options):
            trees = []
        os.chdir(settings.project)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *selection, *trees, *options])
    return code


def run_lint(settings: Settings) -> int:
    """ruff, mypy --strict, and shellcheck on the elements and the project's shell scripts."""
    programs = Path(sys.executable).parent
    scripts = shell_scripts(settings.project)
    for command in ([os.fspath(programs / "ruff"), "check", "--quiet", "."],
                    [os.fspath(programs / "mypy"), "--no-error-summary"],
                    ["shellcheck", "--external-sources", *map(os.fspath, scripts)]):
        code = subprocess.call(command, cwd=settings.project)
        if code:
            print(f"{Path(command[0]).name} found something", file=sys.stderr)
            return code
    return 0


def shell_scripts(project: Path) -> list[Path]:
    """Files below elements/, harness/ and the launcher that begin with a shell's shebang."""
    trees = (project / "elements", project / "harness")
    candidates = [project / "inv", project / ".ci" / "run", *(p for tree in trees for p in tree.rglob("*"))]
    return sorted(p.relative_to(project) for p in candidates if p.is_file() and _is_shell(p))


def _is_shell(path: Path) -> bool:
    with path.open("rb") as text:
        first = text.readline(80)
    return first.startswith(b"#!") and any(word in first for word in (b"/bash", b"/sh", b" bash", b" sh"))
