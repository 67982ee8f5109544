"""The examples of docs/voip.md run as they stand there, against the test double of a relay."""

import re

import pytest

from tests.relay_double import Faults, relay_double


def examples(project):
    return re.findall(r"^```python\n(.*?)^```", (project / "docs/voip.md").read_text(), re.MULTILINE | re.DOTALL)


def run_all(project, faults):
    """One after another: the later use the imports of the earlier. Returns all their names."""
    with relay_double(faults) as relay:
        names = {"RELAY": "127.0.0.1", "PORT": relay.port, "SSH": ["sh", "-c"]}
        for text in examples(project):
            exec(compile(text, "docs/voip.md", "exec"), names)
        assert not relay.calls
    return names


def test_the_examples_run_and_print(project, capsys):
    names = run_all(project, Faults())
    printed = capsys.readouterr().out
    assert len(examples(project)) == 5
    assert names["result"].to_callee.lost == 0 and names["result"].to_callee.sent > 40
    assert re.search(r"^\d+ sent, 0 lost, jitter \d+\.\d\d ms, latency \d+\.\d\d ms, MOS 4\.\d+, from", printed)
    assert "\n0 lost\n" in printed and "Unknown call-id" in printed and "pong {'sessionstotal': 0} []" in printed
    assert "packets received, counted at the host net1" in printed and names["there"].to_callee.lost == 0
    # The double lets everybody in: the example must see it.
    assert names["injected"] == names["intruder"].sent > 20 and names["stolen"] == 0


def test_the_examples_see_faults(project, capsys):
    names = run_all(project, Faults(lose=lambda number: number == 30))
    assert names["result"].to_callee.lost == 1
    assert sum(result.to_callee.lost for result in names["after"]) == 10
    assert "\n10 lost\n" in capsys.readouterr().out


def test_every_module_is_named(project):
    text = (project / "docs/voip.md").read_text()
    modules = {path.stem for path in (project / "harness/voip").glob("*.py")} - {"__init__"}
    assert {name for name in modules if f"`{name}`" not in text} == set()


@pytest.mark.parametrize("name", ["lost", "reordered", "jitter", "latency", "mos", "expected", "duplicates"])
def test_the_figures_that_are_explained_exist(project, name):
    from harness.voip.mediastats import MediaStats

    assert name in MediaStats.__dataclass_fields__
