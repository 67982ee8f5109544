"""The templates of cloud-init/ judged by the schema of the cloud-init that is in the image."""

from __future__ import annotations

import json
from pathlib import Path
from string import Template
from typing import Any

import jsonschema
import pytest
import yaml

from harness.deadline import Deadline
from harness.image.build import Image
from harness.image.root import root_of
from tests.conftest import PROJECT

pytestmark = [pytest.mark.root]

TEMPLATES = sorted((PROJECT / "cloud-init").glob("*.yaml"))
VALUES = {"hostname": "relay-1", "ssh_public_key": "ssh-ed25519 AAAA somebody", "advertised_address": "203.0.113.7",
          "relay": "192.0.2.5:2223", "domain": "sip.example.org", "event": "E_PIKE_BLOCKED",
          "subscriber": "udp:192.0.2.9:9999"}
SCHEMA = "usr/lib/python3/dist-packages/cloudinit/config/schemas/schema-cloud-config-v1.json"


@pytest.fixture(scope="module")
def schema(real_image: Image) -> Any:
    with root_of(real_image.path, Deadline(120)) as root:
        return json.loads(root.text(SCHEMA))


def judge(schema: Any, text: str) -> None:
    assert text.startswith("#cloud-config\n")
    jsonschema.Draft4Validator(schema).validate(yaml.safe_load(text))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_a_template_is_valid(schema: Any, template: Path) -> None:
    judge(schema, Template(template.read_text()).substitute(VALUES))


def test_a_template_that_is_not_valid_is_told(schema: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        judge(schema, "#cloud-config\nhostname: [relay]\nssh_authorized_keys: none\n")
