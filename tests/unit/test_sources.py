"""Sources: the first that can be had, pinned by hash, whole or not in the cache."""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.appliance import SourceSpec
from harness.deadline import Deadline
from harness.errors import BuildError, Fault
from harness.image import apt, sources
from harness.image.apt import AptState, MirrorError
from harness.image.mirrors import AptMirrors
from harness.image.sources import SourceChoice, fetch_first
from harness.process import CommandFailed
from harness.run import Run
from harness.settings import Settings
from tests.web import Handler, serving

VERSION = "10.5.3.5"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.load(tmp_path, environment={})


@pytest.fixture
def run(settings: Settings) -> Run:
    return Run.create(settings.runs, "relay", "local")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "tree/kernel-module").mkdir(parents=True)
    (tmp_path / "tree/kernel-module/Makefile").write_text("modules:\n")
    return tmp_path / "tree"


def no_apt() -> AptState:
    raise AssertionError("this kind asks no mirror")


def fetch(settings: Settings, run: Run, *specs: SourceSpec, state: Callable[[], AptState] = no_apt) -> SourceChoice:
    return fetch_first(specs, settings, run, lambda text: None, Deadline(60), sources.kinds(state, state))


def in_cache(settings: Settings) -> list[str]:
    return sorted(p.name for p in (settings.cache / "sources").iterdir())


@pytest.fixture
def tarball(tree: Path, tmp_path: Path) -> SourceSpec:
    file = tmp_path / "rtpengine.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        archive.add(tree, arcname="rtpengine-10.5.3.5")
    return SourceSpec("tarball", VERSION, url=str(file), sha256=hashlib.sha256(file.read_bytes()).hexdigest(), line=9)


@pytest.fixture
def repository(tree: Path) -> SourceSpec:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", tree, "-c", "user.name=x", "-c", "user.email=x@example.org", *words],
                              check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "one")
    git("tag", "--annotate", "--message", "tag", "mr10.5.3.5")
    return SourceSpec("git", VERSION, url=str(tree), tag="mr10.5.3.5", commit=git("rev-parse", "HEAD"), line=9)


def test_tarball_from_a_path(settings: Settings, run: Run, tarball: SourceSpec) -> None:
    choice = fetch(settings, run, tarball)
    assert (choice.used.path / "kernel-module/Makefile").read_text() == "modules:\n"
    assert choice.used.hashes == {"rtpengine.tar.gz": tarball.sha256}
    assert choice.skipped == ()
    assert run.journal.outstanding() == []


def test_tarball_by_url(settings: Settings, run: Run, tarball: SourceSpec) -> None:
    choice = fetch(settings, run, replace(tarball, url=f"file://{tarball.url}"))
    assert (choice.used.path / "kernel-module").is_dir()


def test_git_of_an_annotated_tag(settings: Settings, run: Run, repository: SourceSpec) -> None:
    choice = fetch(settings, run, repository)
    assert [p.name for p in choice.used.path.iterdir()] == ["kernel-module"]
    assert choice.used.hashes == {"commit": repository.commit}


def test_what_was_fetched_once_is_not_fetched_again(settings: Settings, run: Run, tarball: SourceSpec) -> None:
    first = fetch(settings, run, tarball)
    Path(tarball.url).unlink()
    assert fetch(settings, run, tarball).used == first.used


def test_another_hash_is_another_place_in_the_cache(settings: Settings, run: Run, tarball: SourceSpec) -> None:
    fetch(settings, run, tarball)
    with pytest.raises(BuildError):
        fetch(settings, run, replace(tarball, sha256="0" * 64))


@pytest.mark.parametrize("kind", ["tarball", "git"])
def test_a_wrong_hash_is_an_error_and_never_passed_over(
        settings: Settings, run: Run, tarball: SourceSpec, repository: SourceSpec, kind: str) -> None:
    wrong = replace(tarball, sha256="1" * 64) if kind == "tarball" else replace(repository, commit="1" * 40)
    right = tarball.sha256 if kind == "tarball" else repository.commit
    with pytest.raises(BuildError, match="is not what was pinned") as error:
        fetch(settings, run, wrong, tarball)
    assert right in error.value.message and "1" * 40 in error.value.message
    assert "appliances.yaml:9" in (error.value.hint or "")
    assert in_cache(settings) == []
    assert run.journal.outstanding() == []


def test_the_next_source_is_used_and_why(settings: Settings, run: Run, tarball: SourceSpec,
                                         repository: SourceSpec) -> None:
    missing = replace(tarball, url="/nowhere/rtpengine.tar.gz", sha256="2" * 64)
    untagged = replace(repository, tag="mr0", commit="3" * 40)
    choice = fetch(settings, run, missing, untagged, tarball)
    assert choice.used.spec == tarball
    assert [why for _, why in choice.skipped] == [
        "/nowhere/rtpengine.tar.gz: No such file or directory", f"{repository.url} has no tag mr0"]


def test_none_to_be_had_names_every_reason(settings: Settings, run: Run, tarball: SourceSpec) -> None:
    specs = [replace(tarball, url=f"/nowhere/{n}.tar.gz", sha256=str(n) * 64) for n in (1, 2)]
    with pytest.raises(BuildError, match=r"none of the sources.*/nowhere/1.tar.gz.*/nowhere/2.tar.gz") as error:
        fetch(settings, run, *specs)
    assert error.value.fault is Fault.HOST


class Half(Handler):
    """Answers that end before their end."""

    def answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"x" * 60)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(Half) as address:
        yield address


@pytest.mark.parametrize(("url", "why"), [
    ("http://127.0.0.1:x/a.tar.gz", "nonnumeric port: 'x'"),
    ("HOST/other.tar.gz", "what answers there is no web server: 'SSH-2.0-x'"),
    ("HOST/short.tar.gz", "ended before its end: 40 octets are missing")])
def test_an_address_that_gives_no_file_is_passed_over(settings: Settings, run: Run, tarball: SourceSpec, host: str,
                                                      url: str, why: str) -> None:
    url = url.replace("HOST", host)
    choice = fetch(settings, run, replace(tarball, url=url, sha256="2" * 64), tarball)
    assert [said for _, said in choice.skipped] == [f"{url}: {why}"]


def test_an_interrupted_fetch_leaves_nothing(settings: Settings, run: Run, tarball: SourceSpec,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(settings, run, tarball)
    assert in_cache(settings) == []
    assert run.journal.outstanding() == []


class Refusing(AptState):
    """apt that answers with an error; the text is what apt says."""

    output = ""

    def refresh(self, deadline: Deadline, *, older_than: float = 0) -> None:
        if not self.output:
            raise MirrorError("the package lists can't be fetched: no route to host")

    def apt_get(self, *arguments: str, deadline: Deadline, cwd: Path) -> None:  # type: ignore[override]
        raise CommandFailed(["apt-get", *arguments], 100, self.output)


DEBIAN = SourceSpec("debian-source", "10.5.3.5-1", package="rtpengine", sha256="4" * 64)


@pytest.mark.parametrize(("said", "reason"), [
    ("Err:1 http://mirror.example bookworm/main rtpengine 10.5.3.5-1 (tar)\n  404  Not Found [IP: 192.0.2.1 80]\n"
     "E: Failed to fetch http://mirror.example/r/rtpengine_10.5.3.5.orig.tar.xz  404  Not Found [IP: 192.0.2.1 80]\n"
     "E: Failed to fetch some archives.\n",
     "the mirror answers 404 Not Found for rtpengine_10.5.3.5.orig.tar.xz"),
    ("E: Unable to find a source package for rtpengine\n", "Unable to find a source package for rtpengine"),
    ("", "the package lists can't be fetched: no route to host"),
])
def test_what_apt_says_is_the_reason(settings: Settings, run: Run, tarball: SourceSpec, tmp_path: Path,
                                     said: str, reason: str) -> None:
    class State(Refusing):
        output = said

    state = State(tmp_path / "apt", AptMirrors("http://a", "http://b"), "bookworm", "amd64")
    choice = fetch(settings, run, DEBIAN, tarball, state=lambda: state)
    assert choice.skipped == ((DEBIAN, reason),)


def test_names_of_a_dependency_field() -> None:
    assert apt.names("libc6 (>= 2.36), a | b, python3:any (>= 1.5),") == ["libc6", "a", "python3"]
