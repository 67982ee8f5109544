"""The launcher, for real, in a project of its own whose lock is empty: nothing is fetched."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from harness.deadline import Deadline

CLI = """
import sys
print(sys.prefix, *sys.argv[1:])
"""


@pytest.fixture
def small(tmp_path: Path, project: Path) -> Path:
    """A project with the launcher, a command line of its own, and no requirements."""
    small = tmp_path / "small"
    (small / "harness").mkdir(parents=True)
    shutil.copy(project / "inv", small)
    (small / "requirements.lock").write_text("")
    (small / "harness" / "__init__.py").write_text("")
    (small / "harness" / "cli.py").write_text(CLI)
    return small


def _start(small: Path, *arguments: str, cwd: Path | None = None, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen([small / "inv", *arguments], cwd=cwd or small, text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **options)


def _inv(small: Path, *arguments: str, **options: object) -> tuple[int, str, str]:
    process = _start(small, *arguments, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def _environments(small: Path) -> list[str]:
    return sorted(p.name for p in (small / ".cache" / "venv").iterdir() if p.is_dir())


def test_the_environment_is_made_once_and_then_used(small, tmp_path):
    code, out, err = _inv(small, "build", "--force")
    assert (code, out) == (0, f"{small}/.venv --search-root {small} build --force\n")
    assert err == "  setup     making the environment from requirements.lock\n"
    made = (small / ".venv").stat().st_ino
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "harness").mkdir(parents=True)
    (elsewhere / "harness" / "cli.py").write_text("print('the wrong one')")
    assert _inv(small, "x y", cwd=elsewhere) == (0, f"{small}/.venv --search-root {small} x y\n", "")
    assert (small / ".venv").stat().st_ino == made


def test_a_link_to_the_launcher_is_as_good(small, tmp_path):
    link = tmp_path / "dialtone"
    link.symlink_to(small / "inv")
    done = subprocess.run([link], capture_output=True, text=True, check=True)
    assert done.stdout == f"{small}/.venv --search-root {small}\n"


def test_another_lock_or_another_place_makes_it_anew(small, tmp_path):
    _inv(small)
    first = _environments(small)
    (small / "requirements.lock").write_text("# changed\n")
    _, _, err = _inv(small)
    assert "making" in err and len(_environments(small)) == 2
    moved = small.rename(tmp_path / "moved")
    code, out, err = _inv(moved)
    assert code == 0 and out.startswith(f"{moved}/.venv ") and "making" in err
    assert not set(_environments(moved)) & set(first), "what nothing uses any more is removed"


def test_an_environment_that_is_half_made_is_not_used(small):
    fifo = small / "requirements.lock.pip"
    os.mkfifo(fifo)
    (small / "requirements.lock").write_text(f"-r {fifo.name}\n")  # pip waits here until it is killed
    process = _start(small)
    limit = Deadline(60)
    while not list(small.glob(".cache/venv/*/bin/python3")) and not limit.expired:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(_environments(small)) == 1 and not (small / ".venv").exists()
    (small / "requirements.lock").write_text("")
    code, _, err = _inv(small)
    assert code == 0 and "making" in err and len(_environments(small)) == 1


def test_ctrl_c_leaves_no_half_environment(small):
    fifo = small / "requirements.lock.pip"
    os.mkfifo(fifo)
    (small / "requirements.lock").write_text(f"-r {fifo.name}\n")
    process = _start(small)
    limit = Deadline(60)
    while not list(small.glob(".cache/venv/*/bin/python3")) and not limit.expired:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert _environments(small) == [] and not (small / ".venv").is_symlink()


def test_two_at_once_make_one(small):
    both = [_start(small, "a"), _start(small, "b")]
    results = [p.communicate(timeout=120) for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert "".join(err for _, err in results).count("making") == 1
    assert len(_environments(small)) == 1


def test_a_package_without_its_hash_is_refused(small):
    (small / "requirements.lock").write_text("invoke==3.0.3\n")
    code, out, err = _inv(small)
    assert (code, out) == (3, "")
    assert "Hashes are required" in err
    assert err.endswith(f"  the whole log: {small}/.cache/venv.log\nexit 3: this host\n")
    assert _environments(small) == [] and not (small / ".venv").exists()


@pytest.mark.root
def test_a_directory_of_somebody_else_is_named(small):
    for directory in (*small.parents, small):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/") and "pytest-of" in str(directory):
            directory.chmod(0o755)
    code, _, err = _inv(small, user=65534, group=65534, extra_groups=[])
    assert code == 3
    assert err.splitlines()[0].startswith(f"error: {small}/.cache/venv can't be written to by ")
    assert err.splitlines()[-1] == "exit 3: this host"
