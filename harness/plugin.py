"""The pytest plugin of appliance checks: fixtures that reach the server, and an explanation for every failure.

A check is a test whose docstring's first line is its title. It fails by expect(), by raising Mismatch, or by a plain
assert, in its body or a fixture. What is not the image's fault (the connection, the cloud, this host, the description)
makes it an error, never a failure.
"""

from __future__ import annotations

import base64
import json
import re
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from harness import appliance as appliances_file
from harness.access import namespace, reach
from harness.access.readiness import tail
from harness.access.shell import ConnectionLost, Shell, ShellBackend
from harness.appliance import SECTIONS, Appliance, ConntrackGoal, Opensips, Rtpengine
from harness.cloud import Route, Server
from harness.errors import DialtoneError, Fault, HostError
from harness.levels import Level
from harness.results import Figure, Series
from harness.run import Run
from harness.voip.endpoint import Endpoint
from harness.voip.ng import NgClient
from harness.voip.remote import Agent


class Mismatch(AssertionError):
    """What a check expected and what it saw; `because` only where the cause was found, never guessed."""

    def __init__(self, expected: str, seen: str, because: str = "", console: Sequence[str] = ()) -> None:
        super().__init__(f"expected {expected}; seen {seen}" + (f"; because {because}" if because else ""))
        self.expected, self.seen, self.because, self.console = expected, seen, because, list(console)


def expect(holds: bool, expected: str, seen: object, because: str | Callable[[], str] = "",
           console: Callable[[], Sequence[str]] | Sequence[str] = ()) -> None:
    """Raise Mismatch unless `holds`. Where finding the cause costs something, `because` is a function."""
    __tracebackhide__ = True
    if not holds:
        raise Mismatch(expected, str(seen) if str(seen) else "nothing", because() if callable(because) else because,
                       console() if callable(console) else console)


@dataclass(frozen=True)
class Console:
    """The server's serial console."""

    log: Path

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def lines(self, pattern: str, most: int = 3) -> list[str]:
        """The last lines that `pattern` is found in."""
        return [line for line in tail(self.text(), 10_000).splitlines() if re.search(pattern, line)][-most:]


@dataclass
class Session:
    """What one pytest process checks, and the results so far. `context` comes from harness.checks."""

    config: Path
    appliance: Appliance
    server: Server
    phase: str
    results: Path
    failed: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    """Checks in a row that lost the connection."""
    running: dict[str, Any] | None = None
    """The entry of the check that is not at its end yet."""

    @classmethod
    def load(cls, context: Path) -> Session:
        data = json.loads(context.read_text(encoding="utf-8"))
        described = appliances_file.select(appliances_file.load(Path(data["appliances"])), data["appliance"])
        return cls(Path(data["ssh_config"]), described, Server.from_json(json.dumps(data["server"])),
                   data["phase"], Path(data["results"]))

    @property
    def run(self) -> Run:
        """The run that the server is of; whoever runs the checks holds it."""
        return Run.open(self.results.parent)

    def record(self, entry: dict[str, Any]) -> None:
        with self.results.open("a", encoding="utf-8") as out:
            out.write(json.dumps(entry) + "\n")


_MOST_LOST = 2
"""Losing the connection may be an accident; when the next check can't get it back, the others won't."""

_SESSION = pytest.StashKey[Session]()
_ENTRY = pytest.StashKey[dict[str, Any]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--appliance-context", type=Path, help="what is to be checked; written by harness.checks")
    parser.addoption("--level", choices=list(Level), default=Level.BASIC, help="which checks run")
    parser.addoption("--host-backend", choices=["shell", "ssh"], default="shell",
                     help="how `host` runs commands: our one root shell, or testinfra's ssh backend to compare with")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "after(*names): of no use when one of these checks failed: then it is skipped")
    config.addinivalue_line("markers", "last: runs when all others have")
    config.addinivalue_line("markers", "level(name): runs at this --level and above; without it at every level")
    context = config.getoption("--appliance-context")
    if context is None:
        raise pytest.UsageError("appliance checks run by `./inv check`, which knows the server")
    config.stash[_SESSION] = Session.load(context)
    # A check that is ended at its deadline, or by the user, deletes the calls that it placed first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    config.pluginmanager.register(_Unreadable(config.stash[_SESSION]))


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config) -> Session:
    return pytestconfig.stash[_SESSION]


@pytest.fixture(scope="session")
def host(session: Session, pytestconfig: pytest.Config) -> Iterator[Host]:
    """The server as root, by testinfra's modules and `host.run(command)`."""
    if pytestconfig.getoption("--host-backend") == "ssh":
        yield Host.get_host(f"ssh://{session.server.name}", ssh_config=str(session.config), sudo=True)
        return
    shell = Shell(session.config, session.server.name)
    reached = Host(ShellBackend(shell))
    reached.backend.set_host(reached)
    yield reached
    shell.close()


@pytest.fixture(scope="session")
def find(host: Host) -> Callable[..., list[str]]:
    """find(*patterns): paths on the server that match one of the glob(7) patterns."""
    if isinstance(host.backend, ShellBackend):
        return host.backend.shell.find
    return lambda *patterns: host.run(f"ls -d {' '.join(patterns)} 2>/dev/null").stdout.split()


@pytest.fixture(scope="session")
def read(host: Host) -> Callable[..., dict[str, str]]:
    """read(*patterns): what the files that match hold, by path. Starts no process on the server."""
    def by_shell(*patterns: str) -> dict[str, str]:
        return {path: text.decode(errors="replace") for path, text in host.backend.shell.read(*patterns).items()}

    def by_command(*patterns: str) -> dict[str, str]:
        printed = host.run(f"for f in {' '.join(patterns)}; do [ -f $f ] || continue; "
                           "printf '%s\\0' $f; base64 -w 0 <$f; printf '\\0'; done").stdout
        fields = printed.split("\0")[:-1]
        return {path: base64.b64decode(text).decode(errors="replace")
                for path, text in zip(fields[::2], fields[1::2], strict=True)}

    return by_shell if isinstance(host.backend, ShellBackend) else by_command


@pytest.fixture(scope="session")
def appliance(session: Session) -> Appliance:
    """The appliance's description."""
    return session.appliance


def _part(session: Session, name: str) -> Any:
    """A section of the description: pytest_collection_modifyitems selects no check of a part that is not there."""
    return session.appliance.parts()[name]


@pytest.fixture(scope="session")
def rtpengine(session: Session) -> Rtpengine:
    """The relay as the description wants it. A check that uses this, itself or by a fixture, is for appliances with a
    relay only; so it is with the other parts."""
    found: Rtpengine = _part(session, "rtpengine")
    return found


@pytest.fixture(scope="session")
def opensips(session: Session) -> Opensips:
    """The SIP proxy as the description wants it."""
    found: Opensips = _part(session, "opensips")
    return found


@pytest.fixture(scope="session")
def conntrack(session: Session) -> ConntrackGoal:
    """What the connection tracking table is sized for."""
    found: ConntrackGoal = _part(session, "conntrack")
    return found


@pytest.fixture(scope="session")
def server(session: Session) -> Server:
    """The server's name and addresses."""
    return session.server


@pytest.fixture(scope="session")
def phase(session: Session) -> str:
    """`first boot` or `after reboot`."""
    return session.phase


@pytest.fixture(scope="session")
def console(session: Session) -> Console:
    return Console(session.server.console_log)


@pytest.fixture(scope="session")
def relay_client(session: Session, rtpengine: Rtpengine) -> Iterator[Callable[[], NgClient]]:
    """relay_client(): a client of the relay's control port, by the same route as the server; one for each thread.

    Closed at the end.
    """
    route, port = session.server.routes[0], rtpengine.ng_port
    with ExitStack() as opened:
        yield lambda: opened.enter_context(
            NgClient(route.address, port, partial(reach.open_datagrams, session.config, route, port)))


@pytest.fixture(scope="session")
def relay(relay_client: Callable[[], NgClient]) -> NgClient:
    """The relay's control port."""
    return relay_client()


@pytest.fixture(scope="session")
def endpoint_towards(session: Session) -> Iterator[Callable[..., Endpoint]]:
    """endpoint_towards(address, port=0, tos=0): an RTP endpoint on this side of the route to an address of the server.

    It is where the route leaves for the server: on this host, in the router's namespace where the route leads through
    one; on the gateway, where there is one in between. It is closed at the end.
    """
    agents: dict[Route, Agent] = {}
    with ExitStack() as opened:
        def open_one(address: str, **options: Any) -> Endpoint:
            route = next((route for route in session.server.routes if route.address == address), None)
            if route is None:
                raise HostError(f"no route leads to {address} of the server")
            if route.gateway is None:
                return opened.enter_context(Endpoint(reach.own_address(route), open_socket=partial(
                    namespace.open_socket, route.namespace), **options))
            if route not in agents:
                agents[route] = opened.enter_context(reach.agent(session.config, route, session.run.journal))
            there = agents[route]
            return opened.enter_context(there.endpoint(there.address_towards(address), **options))

        yield open_one


@pytest.fixture
def seen(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """seen(text): what was measured; the report shows it of a check that passes, too."""
    def tell(text: str) -> None:
        request.node.stash[_ENTRY]["seen"] = text

    return tell


@dataclass(frozen=True)
class Measure:
    """Takes down numbers that a check measures, for the report; they stay when it fails or is ended afterwards."""

    entry: dict[str, Any]

    def figure(self, name: str, value: float, unit: str, better: str = "") -> None:
        """One number; `better` is `more` or `less`, empty where neither is."""
        self._keep("figures", asdict(Figure(name, value, unit, better)), "name")

    def series(self, plot: str, name: str, x: str, y: str, points: Iterable[tuple[float, float]]) -> None:
        """A curve of the plot titled `plot`, over axes `x` and `y` (with units); again with more points replaces it."""
        self._keep("series", asdict(Series(plot, name, x, y, tuple(points))), "plot", "name")

    def _keep(self, kind: str, new: dict[str, Any], *key: str) -> None:
        kept: list[dict[str, Any]] = self.entry[kind]
        kept[:] = [old for old in kept if any(old[part] != new[part] for part in key)] + [new]


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Measure:
    """What a check measures, in numbers: measure.figure(...), measure.series(...)."""
    return Measure(request.node.stash[_ENTRY])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is above the level, and what is of a part that the appliance does not have. Checks of lower levels
    and those that others wait for come first, and last those that are marked so; apart from that the order stays."""
    most = Level(config.getoption("--level")).rank
    absent = set(SECTIONS) - set(config.stash[_SESSION].appliance.parts())
    out = [item for item in items if _rank(item) > most or absent & set(getattr(item, "fixturenames", ()))]
    if out:
        config.hook.pytest_deselected(items=out)
    items[:] = sorted((item for item in items if item not in out), key=_rank)
    by_name = {_name(item): item for item in items}
    ordered: dict[pytest.Item, None] = {}

    def place(item: pytest.Item, above: tuple[str, ...]) -> None:
        if item in ordered:
            return
        for name in _after(item):
            if name in above:
                raise pytest.UsageError(f"{' -> '.join((*above, name))}: these checks wait for each other")
            if name in by_name:
                place(by_name[name], (*above, _name(item)))
        ordered[item] = None

    for item in items:
        place(item, ())
    items[:] = sorted(ordered, key=lambda item: item.get_closest_marker("last") is not None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    state = item.config.stash[_SESSION]
    state.running = item.stash.setdefault(_ENTRY, _blank(item))
    if state.lost >= _MOST_LOST:
        pytest.skip("not looked at, because the connection to the server is lost")
    failed = state.failed
    for name in _after(item):
        if name in failed:
            pytest.skip(f"not looked at, because another check failed: {failed[name]}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]
                              ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    entry = item.stash[_ENTRY]
    entry["seconds"] = round(entry["seconds"] + call.duration, 3)
    if report.skipped:
        entry["outcome"] = "skipped"
        entry["reason"] = report.longrepr[2].removeprefix("Skipped: ") if isinstance(report.longrepr, tuple) else ""
    # The first to fail says why: the relay that a check found dead can't delete its calls afterwards either.
    elif report.failed and call.excinfo is not None and entry["outcome"] not in {"failed", "error"}:
        error = call.excinfo.value
        if _not_the_image(error):
            # JUnit and pytest's own summary call it an error, not a failure, when it is not from the call.
            report.when = "setup"
        elif isinstance(error, AssertionError | DialtoneError) and report.when == "setup":
            # What a fixture measured on behalf of several checks is the image's as much as what a check does.
            report.when = "call"
        entry["outcome"] = "failed" if report.when == "call" else "error"
        entry |= _explain(error, call.excinfo)
    if call.when == "call" or report.failed:
        state = item.config.stash[_SESSION]
        broken = call.excinfo is not None and isinstance(call.excinfo.value, ConnectionLost)
        state.lost = state.lost + 1 if broken else 0
    if call.when == "teardown":
        _finish(item, entry)
    return report


class _Unreadable:
    """A file of checks that can't be read is an error in the results, too."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.session.record({**_blank_entry(self.session), "id": report.nodeid, "outcome": "error",
                                 "title": f"{report.nodeid} can be read", "message": report.longreprtext})


def _finish(item: pytest.Item, entry: dict[str, Any]) -> None:
    state = item.config.stash[_SESSION]
    blocked = entry["outcome"] == "skipped" and any(name in state.failed for name in _after(item))
    if entry["outcome"] in {"failed", "error"}:
        state.failed[_name(item)] = entry["title"]
    elif blocked:
        # The chain goes on, by the title of the check that broke it.
        state.failed[_name(item)] = next(state.failed[name] for name in _after(item) if name in state.failed)
    state.record(entry)
    state.running = None


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A check that was ended in the middle leaves what it had measured until then."""
    state = session.config.stash[_SESSION]
    if state.running is not None:
        state.record({**state.running, "outcome": "error", "message": "it was ended in the middle"})


def _blank_entry(state: Session) -> dict[str, Any]:
    return {"id": "", "title": "", "group": "", "phase": state.phase, "server": state.server.name,
            "outcome": "passed", "seconds": 0.0, "expected": "", "seen": "", "because": "", "console": [],
            "message": "", "reason": "", "figures": [], "series": [], "blamed": ""}


def _blank(item: pytest.Item) -> dict[str, Any]:
    function = getattr(item, "function", None)
    module = getattr(item, "module", None)
    title = _first_line(function) or item.name
    parameters = re.search(r"\[(.*)\]$", item.name)
    return {**_blank_entry(item.config.stash[_SESSION]), "id": item.nodeid,
            "title": f"{title} ({parameters[1]})" if parameters else title,
            "group": _first_line(module) or Path(item.nodeid.split("::")[0]).stem}


def _first_line(thing: object) -> str:
    return (getattr(thing, "__doc__", None) or "").strip().split("\n")[0].rstrip(".")


def _explain(error: BaseException, info: pytest.ExceptionInfo[BaseException]) -> dict[str, Any]:
    if isinstance(error, Mismatch):
        return {"expected": error.expected, "seen": error.seen, "because": error.because, "console": error.console,
                "message": str(error)}
    if isinstance(error, DialtoneError):
        return {"seen": error.message, "message": str(error), "blamed": error.fault if _not_the_image(error) else ""}
    if isinstance(error, AssertionError):
        return {"message": info.exconly().removeprefix("AssertionError: ")}
    last = info.traceback[-1]
    return {"message": f"{info.exconly()} ({Path(last.path).name}:{last.lineno + 1})"}


def _not_the_image(error: BaseException) -> bool:
    return isinstance(error, DialtoneError) and error.fault is not Fault.IMAGE


def _name(item: pytest.Item) -> str:
    """The function's name: checks are told apart by it in `after`."""
    return getattr(item, "originalname", None) or item.name


def _rank(item: pytest.Item) -> int:
    mark = item.get_closest_marker("level")
    if mark is None:
        return Level.BASIC.rank
    if mark.args[0] not in list(Level):
        raise pytest.UsageError(f"{item.nodeid}: there is no level {mark.args[0]!r}")
    return Level(mark.args[0]).rank


def _after(item: pytest.Item) -> list[str]:
    return [str(name) for mark in item.iter_markers("after") for name in mark.args]
