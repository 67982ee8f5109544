"""`./inv` as a user types it, with runs (and where asked, a cache) in a directory of the test's own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.settings import Settings
from tests import leftovers
from tests.conftest import PROJECT


@dataclass(frozen=True)
class Ended:
    """How a command ended; `out` is standard output and standard error together."""

    code: int
    out: str


@dataclass(frozen=True)
class Inv:
    """`directory` gets the runs; `environment` is added to this process's own, `prefix` stands before the command."""

    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    prefix: Sequence[str | os.PathLike[str]] = ()

    @property
    def settings(self) -> Settings:
        """The settings that the command will find."""
        return Settings.load(PROJECT, self._dialtone())

    def having(self, **settings: str | os.PathLike[str]) -> Inv:
        """The same with DIALTONE_<NAME> set for each of `settings`."""
        added = {f"DIALTONE_{name.upper()}": os.fspath(value) for name, value in settings.items()}
        return replace(self, environment={**self.environment, **added})

    def __call__(self, *arguments: str, seconds: float = 600) -> Ended:
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=seconds)
        return Ended(process.returncode, out)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        return self._popen([PROJECT / "inv", *arguments], **options)

    def patched(self, statement: str, *arguments: str, seconds: float = 600) -> Ended:
        """The same command line behind one statement of Python, for what no setting reaches."""
        program = f"import sys; {statement}; from harness.cli import main; sys.argv[0] = 'inv'; main()"
        process = self._popen([sys.executable, "-c", program, "--search-root", PROJECT, *arguments])
        out, _ = process.communicate(timeout=seconds)
        return Ended(process.returncode, out)

    def _popen(self, command: Sequence[str | os.PathLike[str]], **options: Any) -> subprocess.Popen[str]:
        environment = {**{k: v for k, v in os.environ.items() if not k.startswith("DIALTONE_")}, **self._dialtone(),
                       **{k: v for k, v in self.environment.items() if not k.startswith("DIALTONE_")}}
        return subprocess.Popen([*self.prefix, *command], env=environment, cwd=PROJECT, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                start_new_session=True, **options)

    def _dialtone(self) -> dict[str, str]:
        own = {k: v for k, v in self.environment.items() if k.startswith("DIALTONE_")}
        return {"DIALTONE_RUNS": os.fspath(self.directory / "runs"), **own}

    def refused(self, ended: Ended, code: int, *words: str) -> None:
        """`ended` is one clear error: its exit code, said as well, all of `words`, no traceback, nothing left."""
        assert ended.code == code, ended.out
        assert "Traceback" not in ended.out, ended.out
        for word in (f"exit {code}", *words):
            assert word in ended.out, f"{word!r} is not said:\n{ended.out}"
        assert leftovers.of(self.settings) == []
