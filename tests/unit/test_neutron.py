"""What is asked of Neutron where another run is at the same thing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cloud import security
from harness.cloud.api import Refused
from harness.cloud.neutron import Neutron
from harness.deadline import Deadline
from harness.run import Journal

RULE = security.Rule("tcp", 22, 22, "0.0.0.0/0")


class Cloud:
    """One security group; whoever adds a rule to it is told `status`, and finds `added` in it from then on."""

    name = "lab"

    def __init__(self, status: int, *added: security.Rule) -> None:
        self.status, self.added = status, added
        self.rules: list[dict[str, Any]] = []
        self.sdk: Any = SimpleNamespace(network=SimpleNamespace(
            security_groups=lambda **query: [SimpleNamespace(id="1", name="web", security_group_rules=[*self.rules])],
            create_security_group_rule=self._refuse))

    def _refuse(self, **body: Any) -> None:
        self.rules += [security.to_api(rule, "1", "another run's") for rule in self.added]
        raise Refused("lab: a rule: refused", self.status)

    def get(self, what: str, action: Callable[[], Any]) -> Any:
        return action()

    def create(self, what: str, find: Callable[[], Any], action: Callable[[], Any], deadline: Deadline) -> Any:
        return action()


def asked(cloud: Cloud, tmp_path: Path) -> str:
    api: Any = cloud
    return Neutron(api, Journal(tmp_path / "journal.jsonl"), "mark", "run").named_group("web", [RULE], Deadline(1))


def test_a_rule_that_another_run_has_just_added_is_taken(tmp_path: Path) -> None:
    assert asked(Cloud(409, RULE), tmp_path) == "1"


@pytest.mark.parametrize("cloud", [Cloud(409), Cloud(403, RULE)])
def test_a_rule_that_is_refused_is_an_error(cloud: Cloud, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="refused"):
        asked(cloud, tmp_path)
