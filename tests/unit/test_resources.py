import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from harness import resources
from harness.deadline import Deadline
from harness.errors import HostError
from harness.resources import Resource, mounts_below, processes_with, remove_path, remove_process


@pytest.fixture
def token() -> str:
    return f"dialtone-test-{uuid.uuid4()}"


def test_a_process_is_found_by_a_token_inside_an_argument_and_ended(token):
    process = subprocess.Popen(["sh", "-c", "exec sleep 60", f"--name={token},x"], start_new_session=True)
    bystander = subprocess.Popen(["sleep", "61"])
    try:
        marked = subprocess.Popen([f"{token}:sleep", "60"], executable="/bin/sleep")
        limit = Deadline(10)
        while marked.pid not in processes_with(token) and not limit.expired:
            time.sleep(0.02)  # while a program is being loaded its command line reads as empty
        assert marked.pid in processes_with(token)
        remove_process(Resource("process", token))
        assert marked.wait(5) == -15
        assert bystander.poll() is None
        remove_process(Resource("process", token))
    finally:
        for child in (process, bystander):
            child.kill()
            child.wait()


def test_a_process_that_ignores_sigterm_is_killed(token, monkeypatch):
    program = "import signal, sys, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", program, token], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    monkeypatch.setattr(resources, "PATIENCE", 0.3)
    remove_process(Resource("process", token))
    assert process.wait(5) == -9
    process.stdout.close()


def test_who_asks_for_the_removal_is_not_removed(token):
    """`sudo ./inv destroy TOKEN` has the token in its own command line, and in that of sudo."""
    program = (f"from harness.resources import *; remove_process(Resource('process', {token!r})); print('done')")
    done = subprocess.run(["sh", "-c", '"$@"; echo "and the shell: $0"', token, sys.executable, "-c", program],
                          capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == f"done\nand the shell: {token}\n"


def test_files_trees_links_and_what_is_gone(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    link = tmp_path / "link"
    link.symlink_to(kept)
    dangling = tmp_path / "dangling"
    dangling.symlink_to("nowhere")
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "out").symlink_to(kept)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (link, dangling, tree, pipe, tmp_path / "never was"):
        remove_path(Resource("path", str(path)))
    assert [p.name for p in tmp_path.iterdir()] == ["kept"] and (kept / "file").exists()


def test_a_tree_that_another_removes_meanwhile_is_removed(monkeypatch, tmp_path):
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    rmtree = shutil.rmtree

    def overtaken(path):
        monkeypatch.setattr(shutil, "rmtree", rmtree)
        (tree / "a").rmdir()
        raise FileNotFoundError(2, "No such file or directory", str(tree / "a"))

    monkeypatch.setattr(shutil, "rmtree", overtaken)
    remove_path(Resource("path", str(tree)))
    assert not tree.exists()


def test_mount_points_come_innermost_first(monkeypatch, tmp_path):
    table = tmp_path / "mounts"
    table.write_text("proc /x/y/proc proc rw 0 0\ntmpfs /x tmpfs rw 0 0\ntmpfs /xy tmpfs rw 0 0\n"
                     "tmpfs /x/with\\040blank tmpfs rw 0 0\ntmpfs /x/tab\\011tab tmpfs rw 0 0\n")
    monkeypatch.setattr(resources, "MOUNTS", table)
    assert next(mounts_below(Path("/x"))) == Path("/x/y/proc")
    assert set(mounts_below(Path("/x"))) == {Path("/x"), Path("/x/y/proc"), Path("/x/with blank"), Path("/x/tab\ttab")}
    assert list(mounts_below(Path("/x/y"))) == [Path("/x/y/proc")]


def test_a_tree_with_a_mount_in_it_is_refused(monkeypatch, tmp_path):
    inside = tmp_path / "tree" / "inside"
    inside.mkdir(parents=True)
    table = tmp_path / "mounts"
    table.write_text(f"tmpfs {inside} tmpfs rw 0 0\n")
    monkeypatch.setattr(resources, "MOUNTS", table)
    with pytest.raises(HostError, match="still mounted"):
        remove_path(Resource("path", str(tmp_path / "tree")))
    assert inside.exists()
