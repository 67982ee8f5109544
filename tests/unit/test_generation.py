import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from harness import appliance, debian, generation
from harness.appliance import SourceSpec
from harness.errors import BuildError, Fault
from harness.image import compile, dib
from harness.image.builder import Kernel
from harness.image.sources import FetchedSource
from tests.stand_in import write_tree

OLD, MIDDLE, NEW = generation.GENERATIONS


@pytest.mark.parametrize(("version", "found"), [
    ("10.4.9.9", None), ("10.5.0.0", OLD), ("10.5.3.5", OLD), ("11.5.1.99", OLD), ("12.0.1.1", MIDDLE),
    ("12.5.1.31", MIDDLE), ("13.5.1.1", MIDDLE), ("14.0.1.1", MIDDLE), ("14.1.1.1", NEW), ("26.0.1.26", NEW),
    ("27.0.1.1", None)])
def test_the_version_alone_says_which_generation_it_is_of(version: str, found: generation.Generation | None) -> None:
    assert generation.of(version) is found


def test_generations_follow_each_other_without_a_gap() -> None:
    assert [before.end for before in generation.GENERATIONS[:-1]] == [g.first for g in generation.GENERATIONS[1:]]


def test_every_release_of_a_generation_is_one_that_images_are_made_of() -> None:
    built = {release for g in generation.GENERATIONS for release in g.libraries}
    assert built == set(debian.RELEASES) == set(
        appliance.schema()["$defs"]["appliance"]["properties"]["release"]["enum"])


def test_the_rule_of_a_family_and_table() -> None:
    old, new, newest = (g.rule("ip6", 3) for g in generation.GENERATIONS)
    assert (old.show, old.line) == ("ip6tables -w -S INPUT", "-A INPUT -p udp -j RTPENGINE --id 3")
    assert old.delete == "ip6tables -w -D INPUT -p udp -j RTPENGINE --id 3"
    assert new.insert == "/usr/sbin/rtpengine --table=3 --nftables-family=ip6 --nftables-start"
    assert new.delete == "ip6tables -w -F rtpengine"
    assert newest == replace(new, delete="ip6tables -w -F rtpengine_3")


def test_the_generation_reaches_the_element(project: Path) -> None:
    kernel = Kernel("6", "linux-image-6", "6-1")
    described = appliance.load(project / "appliances.yaml")
    names = [f"DIB_RTPENGINE_{name}" for name in ("MODULE", "EXTENSION", "RULES", "CHAIN")]
    seen = [[dib.settings_of(described[name], kernel)[n] for n in names]
            for name in ("rtpengine", "rtpengine-12", "rtpengine-26")]
    assert seen == [["xt_RTPENGINE", "libxt_RTPENGINE.so", "unit", ""], ["xt_RTPENGINE", "", "daemon", "rtpengine"],
                    ["nft_rtpengine", "", "daemon", "rtpengine_{table}"]]


def test_a_source_of_another_generation_is_refused_before_it_is_compiled(tmp_path: Path) -> None:
    source = FetchedSource(SourceSpec("tarball", "10.5.3.5", url="x", sha256="0" * 64, line=7),
                           write_tree(tmp_path), {})
    compile.require(source, OLD)
    with pytest.raises(BuildError, match=r"tarball 10.5.3.5 holds no daemon/nftables.c") as error:
        compile.require(source, MIDDLE)
    assert error.value.fault is Fault.DESCRIPTION and "appliances.yaml:7" in (error.value.hint or "")
    (tmp_path / "iptables-extension/Makefile").unlink()
    with pytest.raises(BuildError, match="holds no iptables-extension/Makefile"):
        compile.require(source, OLD)


def test_the_signature_of_an_archive_is_no_archive(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "rtpengine_10.5.3.5.orig.tar.xz", "w:xz") as archive:
        archive.add(write_tree(tmp_path / "tree"), arcname=".")
    (tmp_path / "rtpengine_10.5.3.5.orig.tar.xz.asc").write_text("-----BEGIN PGP SIGNATURE-----\n")
    spec = SourceSpec("debian-source", "10.5.3.5-1", package="rtpengine", line=9)
    compile.require(FetchedSource(spec, tmp_path, {}), OLD)


def test_what_packages_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = FetchedSource(SourceSpec("debian-packages", "12.5.1.31-1", packages={}), tmp_path, {})
    files = {"usr/bin/rtpengine", "usr/src/rtpengine-12.5.1.31/xt_RTPENGINE.c"}
    monkeypatch.setattr(compile, "contents", lambda source: files)
    compile.require(source, MIDDLE)
    with pytest.raises(BuildError, match=r"holds no libxt_RTPENGINE.so"):
        compile.require(source, OLD)
    with pytest.raises(BuildError, match=r"holds no nft_rtpengine.c"):
        compile.require(source, replace(MIDDLE, module="nft_rtpengine"))
