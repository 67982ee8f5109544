"""The examples of docs/events.md run as they stand there, against the stand-in, which is not OpenSIPS."""

import re
import threading

from tests.opensips_double import opensips_double


def text_of(project):
    return (project / "docs/events.md").read_text()


def test_the_examples_run_and_print(project, tmp_path, capsys):
    texts = re.findall(r"^```python\n(.*?)^```", text_of(project), re.MULTILINE | re.DOTALL)
    assert len(texts) == 3
    with opensips_double("4.0.1", tmp_path) as double:
        timer = threading.Timer(0.5, lambda: double.happened("E_PIKE_BLOCKED", {"ip": "192.0.2.66"}))
        timer.start()
        names = {"MI": double.places[0]}
        for text in texts:
            exec(compile(text, "docs/events.md", "exec"), names)
        timer.join()
        assert all(one.expire == 0 for known in double.subscribers.values() for one in known)
    printed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"E_PIKE_BLOCKED \{'ip': '192.0.2.66'\} \d+\.\d+ tcp", printed[0])
    assert printed[1:3] == ["nothing lost", "E_CALL_REFUSED(code=404, reason='Not Found')"]
    assert printed[3].startswith("4.0.1 ") and "ttl=30" in printed[4]
    assert printed[5].startswith("400 OpenSIPS refused evi:subscribe: 400 Bad parameter value")


def test_every_module_and_example_is_named(project):
    text = text_of(project)
    modules = {path.stem for path in (project / "harness/opensips").glob("*.py")} - {"__init__"}
    examples = {path.name for path in (project / "docs/examples").glob("*.py")}
    assert {name for name in modules | examples if f"`{name}`" not in text} == set()
