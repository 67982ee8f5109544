"""How the accelerator is chosen and remembered; the probe itself boots a guest in the integration tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.cloud import accelerator
from harness.cloud.accelerator import Accelerator, boot_sector, choose
from harness.errors import DescriptionError, HostError
from harness.settings import Settings
from tests.conftest import lacking


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    if shutil.which(accelerator.PROGRAM) is None:
        lacking(f"{accelerator.PROGRAM} is not installed")
    return Settings.load(tmp_path, {})


@pytest.fixture(autouse=True)
def _a_kvm_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerator, "_absent", lambda name: None)


def booting(*names: str, asked: list[str] | None = None) -> Callable[[str, float], str | None]:
    def probe(name: str, seconds: float) -> str | None:
        if asked is not None:
            asked.append(name)
        return None if name in names else "a guest printed nothing within 3 s"

    return probe


def test_boot_sector_is_one() -> None:
    sector = boot_sector()
    assert len(sector) == 512
    assert sector[-2:] == b"\x55\xaa"
    assert accelerator.GREETING in sector


def test_kvm_comes_first_where_it_boots(settings: Settings) -> None:
    assert choose(settings, booting("kvm", "tcg")).name == "kvm"


def test_kvm_that_hangs_counts_as_none_and_says_so(settings: Settings) -> None:
    chosen = choose(settings, booting("tcg"))
    assert chosen == Accelerator("tcg", "not kvm: a guest printed nothing within 3 s")


@pytest.mark.parametrize(("emulated", "accelerated", "name"), [
    (0.1, 0.9, "kvm"), (0.1, 1.1, "tcg"), (0.1, 3.0, "tcg"), (2.0, 9.0, "kvm"), (2.0, 11.0, "tcg")])
def test_kvm_that_is_much_slower_than_emulation_counts_as_none(settings: Settings, monkeypatch: pytest.MonkeyPatch,
                                                               emulated: float, accelerated: float, name: str) -> None:
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])

    def probe(asked: str, seconds: float) -> str | None:
        takes = emulated if asked == "tcg" else accelerated
        now[0] += min(takes, seconds)
        return None if takes <= seconds else "too late"

    assert choose(settings, probe).name == name


def test_kvm_alone_gets_all_the_time(settings: Settings) -> None:
    given: dict[str, float] = {}

    def probe(name: str, seconds: float) -> str | None:
        given[name] = seconds
        return "no such accelerator" if name == "tcg" else None

    assert choose(settings, probe).name == "kvm"
    assert given["kvm"] == given["tcg"] >= 30


def test_answer_is_remembered(settings: Settings) -> None:
    asked: list[str] = []
    choose(settings, booting("tcg", asked=asked))
    assert choose(settings, booting("kvm", asked=asked)).name == "tcg"
    assert asked == ["tcg", "kvm"]


def test_another_machine_is_asked_anew(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(settings, booting("tcg"))
    monkeypatch.setattr(accelerator, "_machine", lambda: "another")
    assert choose(settings, booting("kvm")).name == "kvm"


def test_damaged_memory_is_no_memory(settings: Settings) -> None:
    choose(settings, booting("tcg"))
    (settings.cache / "accelerator.json").write_text("{")
    assert choose(settings, booting("kvm")).name == "kvm"


def test_setting_overrides_without_a_probe(settings: Settings) -> None:
    asked: list[str] = []
    assert choose(replace(settings, accelerator="kvm"), booting("tcg", asked=asked)).name == "kvm"
    assert not asked


def test_unknown_accelerator_is_refused(settings: Settings) -> None:
    with pytest.raises(DescriptionError, match="xen"):
        choose(replace(settings, accelerator="xen"), booting("tcg"))


def test_none_that_boots_is_an_error_with_each_reason(settings: Settings) -> None:
    with pytest.raises(HostError) as raised:
        choose(settings, booting())
    assert "kvm: a guest printed nothing" in str(raised.value)
    assert "tcg: a guest printed nothing" in str(raised.value)
    assert not (settings.cache / "accelerator.json").exists()
