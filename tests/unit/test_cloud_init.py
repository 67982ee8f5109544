"""The templates that cloud-init is given."""

from __future__ import annotations

from pathlib import Path
from string import Template

import pytest
import yaml

from tests.conftest import PROJECT

TEMPLATES = sorted((PROJECT / "cloud-init").glob("*.yaml"))
VALUES = {"hostname": "relay", "ssh_public_key": "ssh-ed25519 AAAA x", "advertised_address": "203.0.113.7",
          "relay": "192.0.2.5:2223", "domain": "sip.example.org", "event": "E_PIKE_BLOCKED",
          "subscriber": "udp:192.0.2.9:9999"}


def filled(template: Path) -> str:
    return Template(template.read_text()).substitute(VALUES)


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_template_is_cloud_config_when_it_is_filled_in(template: Path) -> None:
    text = filled(template)
    assert text.startswith("#cloud-config\n")
    assert "$" not in text
    assert isinstance(yaml.safe_load(text), dict)
