"""Invoke, with our exit codes: a mistake on the command line is 2, an error of ours its own kind."""

from __future__ import annotations

import os
import shlex
import signal
import sys

from invoke.config import Config
from invoke.exceptions import CollectionNotFound, Exit, ParseError
from invoke.program import Program

from harness import __version__
from harness.errors import DialtoneError, ExitCode, from_os_error
from harness.process import STOP_SIGNALS


def described(error: DialtoneError) -> str:
    """An error for the terminal: message, excerpt, hint, and the exit code with what it stands for."""
    from harness.report.verdict import EXIT_CODES  # here: the report is much to load for `./inv --list`

    description = error.exit_code is ExitCode.DESCRIPTION
    subject = "the command line or the description" if description else EXIT_CODES[error.exit_code]
    return f"{error}\nexit {int(error.exit_code)}: {subject}"


class _OwnSettingsOnly(Config):
    """Settings are dialtone.toml's; Invoke's own files (/etc/invoke.yaml, ~/.invoke.yaml) play no part."""

    def load_base_conf_files(self) -> None:
        return


class Dialtone(Program):
    """The program behind `./inv`."""

    def parse_core(self, argv: list[str] | None) -> None:
        with _mistakes():
            super().parse_core(argv)
        # Invoke joins what follows `--` with blanks: quoted here, shlex.split() gives the arguments back.
        if "--" in self.argv:
            self.core.remainder = shlex.join(self.argv[self.argv.index("--") + 1:])

    def parse_collection(self) -> None:
        with _mistakes():
            super().parse_collection()

    def parse_tasks(self) -> None:
        with _mistakes():
            try:
                super().parse_tasks()
            except ValueError as error:  # an option's value of the wrong type
                raise ParseError(str(error)) from error

    def execute(self) -> None:
        try:
            super().execute()
        except KeyboardInterrupt:
            raise Exit("interrupted", code=int(ExitCode.INTERRUPTED)) from None
        except DialtoneError as error:
            raise Exit(described(error), code=int(error.exit_code)) from None
        except BrokenPipeError:
            raise
        except OSError as error:
            raise Exit(described(from_os_error(error)), code=int(ExitCode.HOST)) from None


class _mistakes:
    """Turns Invoke's own parse errors into exit code 2."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ParseError | CollectionNotFound):
            raise Exit(f"{error}\n  ./inv --list shows the tasks, ./inv --help TASK its options\n"
                       "exit 2: the command line", code=int(ExitCode.DESCRIPTION)) from None


def main() -> None:
    """Entry point of the launcher."""
    try:
        try:
            Dialtone(name="inv", binary="inv", binary_names=["inv"], version=__version__,
                     config_class=_OwnSettingsOnly).run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Nobody reads any more; what is still to be written would fail once more when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(int(ExitCode.HOST))
    finally:
        # All is said and done: an impatient Ctrl-C would only replace the exit code that the interpreter leaves with.
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
