from pathlib import Path

import pytest

from harness.errors import DescriptionError
from harness.settings import Settings


def test_defaults_lie_below_the_project():
    settings = Settings.load(Path("/p"), {})
    assert settings.runs == Path("/p/runs") and settings.cache == Path("/p/.cache")
    assert settings.appliances == Path("/p/appliances.yaml")
    assert (settings.cloud, settings.keep, settings.egress) == ("local", "never", False)


def test_flags_win_over_environment_over_file(tmp_path):
    (tmp_path / "dialtone.toml").write_text('cloud = "file"\nkeep = "failed"\ncache = "/elsewhere"\n')
    assert Settings.load(tmp_path, {}).cloud == "file"
    environment = {"DIALTONE_CLOUD": "environment"}
    assert Settings.load(tmp_path, environment).cloud == "environment"
    assert Settings.load(tmp_path, environment, cloud="flag", keep=None).cloud == "flag"
    assert Settings.load(tmp_path, environment, keep=None).keep == "failed"
    assert Settings.load(tmp_path, {}).cache == Path("/elsewhere")
    assert Settings.load(tmp_path, {"DIALTONE_CLOUD": ""}).cloud == "file", "an empty variable is none"


@pytest.mark.parametrize(("text", "wanted"), [("true", True), ("YES", True), ("1", True), ("no", False), ("0", False)])
def test_yes_and_no(text, wanted):
    assert Settings.load(Path("/p"), {"DIALTONE_EGRESS": text}).egress is wanted


@pytest.mark.parametrize(("text", "complaint"), [
    ("clod = 'x'", "unknown setting 'clod'"),
    ("keep = 'sometimes'", "keep is 'sometimes'"),
    ("keep = ''", "keep is ''"),
    ("expired_mirrors = 'maybe'", "expired_mirrors is 'maybe'"),
    ("firmware = 'u-boot'", "firmware is 'u-boot'"),
    ("keep = 3", "keep is 3, which is no text"),
    ("egress = 'perhaps'", "egress is 'perhaps'"),
    ("egress = 1", "egress is 1, which is no true or false"),
    ("cache = true", "cache is True, which is no path"),
    ("project = '/x'", "unknown setting 'project'"),
    ("cloud = ", "dialtone.toml: "),
    ("cloud = 'a'\ncloud = 'b'", "dialtone.toml: "),
])
def test_a_mistake_in_the_file_is_named(tmp_path, text, complaint):
    (tmp_path / "dialtone.toml").write_text(text)
    with pytest.raises(DescriptionError) as caught:
        Settings.load(tmp_path, {})
    assert complaint in caught.value.message


def test_a_file_that_is_no_text_is_a_mistake_too(tmp_path):
    (tmp_path / "dialtone.toml").write_bytes(b"cloud = '\xff'")
    with pytest.raises(DescriptionError, match=r"dialtone\.toml"):
        Settings.load(tmp_path, {})


def test_a_misspelt_variable_is_not_passed_over():
    with pytest.raises(DescriptionError, match="DIALTONE_KEPP"):
        Settings.load(Path("/p"), {"DIALTONE_KEPP": "always"})
