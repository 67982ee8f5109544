import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

TASKS = """
import errno
import os
import shlex
import signal
from invoke.tasks import task
from harness.errors import BuildError, CloudError, DescriptionError

ERRORS = {"build": BuildError("no compiler", hint="install gcc", excerpt="cc: not found"),
          "description": DescriptionError("line 3 is wrong"), "cloud": CloudError("no quota"),
          "full": OSError(errno.ENOSPC, "No space left on device", "/x"), "stop": KeyboardInterrupt()}

@task
def fail(c, how):
    raise ERRORS[how]

class AtTheVeryEnd:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGINT):
        kill(me, number)

@task
def stop_twice(c):
    global late
    late = AtTheVeryEnd()
    raise KeyboardInterrupt

@task
def show(c, number=1):
    print(shlex.split(c.remainder))
"""


@pytest.fixture
def inv(tmp_path: Path):
    (tmp_path / "tasks.py").write_text(TASKS)

    def call(*arguments: str, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-m", "harness.cli", "--search-root", str(tmp_path), *arguments]
        return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, timeout=60)

    return call


def test_arguments_after_two_hyphens_keep_their_words(inv):
    words = ["-k", "one or two", "", "it's", "--", "$HOME"]
    done = inv("show", "--", *words)
    assert (done.returncode, done.stdout) == (0, f"{words}\n"), done.stderr
    assert inv("show").stdout == "[]\n"
    assert shlex.split(shlex.join(words)) == words


@pytest.mark.parametrize(("how", "code", "lines"), [
    ("build", 4, ["no compiler", "  | cc: not found", "  install gcc", "exit 4: the build"]),
    ("description", 2, ["line 3 is wrong", "exit 2: the command line or the description"]),
    ("cloud", 7, ["no quota", "exit 7: the cloud"]),
    ("full", 3, ["No space left on device: /x", "  free some room, or set `cache` and `runs` to another disk",
                 "exit 3: this host"]),
    ("stop", 130, ["interrupted"]),
])
def test_an_error_has_its_exit_code_and_no_traceback(inv, how, code, lines):
    done = inv("fail", "--how", how)
    assert (done.returncode, done.stderr.splitlines(), done.stdout) == (code, lines, "")


def test_a_late_ctrl_c_does_not_replace_the_exit_code(inv):
    done = inv("stop-twice")
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


@pytest.mark.parametrize("arguments", [("--list",), ("show",)])
def test_a_reader_that_goes_away_is_no_traceback(inv, arguments):
    reader, writer = os.pipe()
    os.close(reader)
    done = inv(*arguments, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.parametrize("arguments", [("no-such-task",), ("show", "--no-such-option"), ("show", "--number", "x"),
                                       ("fail",), ("--no-such-option",), ("fail", "--how")])
def test_a_mistake_on_the_command_line_is_exit_2(inv, arguments):
    done = inv(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert "Traceback" not in done.stderr and done.stderr.splitlines()[-1] == "exit 2: the command line"
