"""An appliance: a named, versioned description of what is built, launched and checked.

Read from appliances.yaml, validated against appliance.schema.json; every error bears file, line and column.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, Final

import jsonschema
import yaml

from harness import debian, generation, yamlfile
from harness.errors import DescriptionError
from harness.firmware import Firmware

SOURCE_KINDS = ("git", "tarball", "debian-source", "debian-packages")

OWN_REDIS = "127.0.0.1:6379/1"
"""The Redis on the appliance, and the database of it that has the calls."""


@dataclass(frozen=True)
class SourceSpec:
    """Where the software comes from: one pinned way.

    git: url, tag, commit. tarball: url, sha256. debian-source: package, version, sha256 of the .dsc.
    debian-packages: version, packages (name to SHA-256 of the .deb). A url may be a path, which is absolute then.
    """

    kind: str
    version: str
    url: str = ""
    tag: str = ""
    commit: str = ""
    sha256: str = ""
    package: str = ""
    packages: Mapping[str, str] | None = None
    line: int = 0


@dataclass(frozen=True)
class Rtpengine:
    """Settings of the relay in the image; ports are UDP."""

    version: str
    sources: tuple[SourceSpec, ...]
    table: int = 0
    no_fallback: bool = True
    port_min: int = 30000
    port_max: int = 40000
    ng_port: int = 2223
    log_level: int = 6
    log_facility: str = "local1"
    redis: bool | str = False
    """True: one on the appliance; a text: elsewhere, HOST:PORT/DATABASE."""
    tos: int = 184
    """TOS octet, or traffic class, of what it sends: 184 is expedited forwarding (RFC 3246)."""
    learning: str = "nat"

    @property
    def generation(self) -> generation.Generation:
        """That of the version; load() refuses a version that is of none."""
        found = generation.of(self.version)
        assert found
        return found

    @property
    def redis_endpoint(self) -> str:
        """As the daemon takes it, HOST:PORT/DATABASE; empty where calls are kept nowhere."""
        return OWN_REDIS if self.redis is True else self.redis or ""

    @property
    def redis_here(self) -> bool:
        """Whether that is a Redis on the appliance."""
        return self.redis_endpoint.startswith(("127.", "localhost:", "[::1]:"))

    @property
    def endpoint_learning(self) -> str:
        """The daemon's option: how it finds out where the ends of a call are."""
        return _ENDPOINT_LEARNING[self.learning]


_ENDPOINT_LEARNING: Final = {"nat": "heuristic", "known": "off"}


@dataclass(frozen=True)
class PackageRepository:
    """Where a project publishes packages itself. `key` is the file of the one key that may sign it (a relative path is
    beside appliances.yaml), `fingerprint` that key's."""

    url: str
    suite: str
    components: tuple[str, ...]
    key: Path
    fingerprint: str
    line: int


@dataclass(frozen=True)
class Opensips:
    """Settings of the SIP proxy in the image; `version` is that of its packages. Without a repository no image of it
    can be built."""

    version: str
    repository: PackageRepository | None = None
    packages: tuple[str, ...] = ()
    """Further ones of the repository, such as opensips-rabbitmq-modules."""
    port: int = 5060
    """SIP's, UDP and TCP."""
    relays: tuple[str, ...] = ()
    """ADDRESS:PORT of the ng protocol of the relays that carry media."""
    domains: tuple[str, ...] = ()
    """Names and addresses besides its own that it answers for."""
    pike_density: int = 100
    pike_seconds: int = 2
    """From that many requests of one address in that time on they are a flood."""
    shared_memory: int = 64
    private_memory: int = 8
    """MiB, of all processes and of each."""
    shared_threshold: int = 80
    private_threshold: int = 80
    """Percent of it in use from which the core's events are raised; 0 never."""
    log_level: int = 3
    log_facility: str = "local0"
    line: int = 0


@dataclass(frozen=True)
class ConntrackGoal:
    """What the connection tracking table is sized for: calls, and clients that keep a flow of their own to the server.

    With `stateless` the relay's ports are not tracked at all.
    """

    calls: int
    clients: int = 0
    legs: int = 2
    rtcp: bool = True
    headroom: float = 2.0
    udp_timeout: int = 30
    udp_timeout_stream: int = 120
    stateless: bool = False


@dataclass(frozen=True)
class ServerSize:
    """Memory in MiB, root disk in GiB, and what starts the server."""

    memory: int = 1024
    cpus: int = 2
    disk: int = 4
    firmware: Firmware = Firmware.BIOS


@dataclass(frozen=True)
class Appliance:
    """`elements` are our own diskimage-builder elements, `ports` what a security group must let in."""

    name: str
    description: str
    release: str
    architecture: str
    kernel: str
    elements: tuple[str, ...]
    user: str
    datasources: tuple[str, ...]
    server: ServerSize
    ports: tuple[str, ...]
    checks: tuple[str, ...]
    rtpengine: Rtpengine | None
    opensips: Opensips | None
    conntrack: ConntrackGoal | None
    image_mirror: str
    image_security_mirror: str
    file: Path
    line: int
    kernel_upgrades: str = "hold"
    """hold: none; follow: those of the package `kernel`, and a new kernel is booted once it has its modules."""

    @property
    def kernel_held(self) -> bool:
        return self.kernel_upgrades == "hold"

    @property
    def version(self) -> str:
        """That of the software that the appliance is for."""
        software = self.rtpengine or self.opensips
        return software.version if software else ""

    @property
    def debian(self) -> debian.Release:
        """What differs between the releases."""
        return debian.RELEASES[self.release]

    def parts(self) -> dict[str, object]:
        """Its sections by name: what of the appliance there is to build, to inspect and to check."""
        sections = {name: getattr(self, name) for name in SECTIONS}
        return {name: section for name, section in sections.items() if section is not None}


SECTIONS: Final = ("rtpengine", "opensips", "conntrack")
"""Parts that an appliance may have. Element, section of the description and fixture of checks have the same name."""


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of appliances.yaml."""
    loaded: dict[str, Any] = json.loads(Path(__file__).with_name("appliance.schema.json").read_text(encoding="utf-8"))
    return loaded


@cache
def _validator() -> Any:
    """JSON Schema's validator, but 2.0 is no integer, and neither infinity nor NaN is a number."""
    draft: Any = jsonschema.Draft202012Validator
    extend: Any = jsonschema.validators.extend
    types = draft.TYPE_CHECKER.redefine_many({
        "integer": lambda _, value: isinstance(value, int) and not isinstance(value, bool),
        "number": lambda _, value: isfinite(value) if isinstance(value, float) else (
            isinstance(value, int) and not isinstance(value, bool)),
    })
    return extend(draft, type_checker=types)


def load(file: Path) -> dict[str, Appliance]:
    """All appliances of `file` by name. Raises DescriptionError with every mistake found, one a line."""
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DescriptionError(f"{file.name}: is not UTF-8 text: {error}") from error
    except OSError as error:
        raise DescriptionError(f"{file}: {error.strerror}",
                               hint="appliances.yaml describes what can be built") from error
    document = Document.parse(file, file.name, text)
    document.validate(schema())
    found = {name: _appliance(document, name, body) for name, body in document.value["appliances"].items()}
    problems = [p for name in found for p in _cross_checks(document, found[name])]
    if problems:
        raise DescriptionError("\n".join(problems))
    return found


def select(appliances: Mapping[str, Appliance], name: str) -> Appliance:
    """The appliance called `name`. Raises DescriptionError naming those there are."""
    if name not in appliances:
        raise DescriptionError(f"there is no appliance {name!r}", hint="known: " + ", ".join(sorted(appliances)))
    return appliances[name]


class _Loader(yamlfile.Loader):
    """A date stays the text that it is: the schema judges it, and JSON has no dates."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yamlfile.Loader.yaml_implicit_resolvers.items()}


@dataclass(frozen=True)
class Document:
    """A YAML file whose values know where they stand; `name` is what errors call it."""

    file: Path
    name: str
    value: Any
    marks: Mapping[tuple[str | int, ...], tuple[int, int]]

    @classmethod
    def parse(cls, file: Path, name: str, text: str) -> Document:
        """Raises DescriptionError with the place."""
        try:
            node = yaml.compose(text, Loader=_Loader)
            value = yaml.load(text, Loader=_Loader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark
            where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
            raise DescriptionError(f"{where}: {error.problem or 'is not YAML'}") from error
        except yaml.YAMLError as error:
            raise DescriptionError(f"{name}: {str(error).splitlines()[0]}") from error
        marks: dict[tuple[str | int, ...], tuple[int, int]] = {(): (1, 1)}
        try:
            if node is not None:
                _collect(name, node, (), marks)
        except RecursionError:
            raise DescriptionError(f"{name}: an alias refers to what it is in") from None
        return cls(file, name, value, marks)

    def validate(self, schema: Mapping[str, Any]) -> None:
        """Raises DescriptionError with everything that is not as `schema` has it, one a line."""
        errors = sorted(_validator()(schema).iter_errors(self.value), key=self.position)
        if errors:
            raise DescriptionError("\n".join(dict.fromkeys(self.describe(e) for e in errors)))

    def at(self, path: Iterable[str | int]) -> str:
        """NAME:LINE:COLUMN of the value with these keys and indices."""
        line, column = self.marks.get(tuple(path), (1, 1))
        return f"{self.name}:{line}:{column}"

    def position(self, error: jsonschema.ValidationError) -> tuple[int, int]:
        return self.marks.get(tuple(error.absolute_path), (1, 1))

    def describe(self, error: jsonschema.ValidationError) -> str:
        path = list(error.absolute_path)
        where = f"{self.at(path)}: {_dotted(path)}"
        rule = error.schema if isinstance(error.schema, dict) else {}
        if error.validator == "additionalProperties" and isinstance(error.instance, dict):
            known = set(rule.get("properties", {}))
            extra = next(k for k in error.instance if k not in known)
            here = [*path, extra]
            instead = rule.get("x-instead", {}).get(str(extra).replace("-", "_"))
            return f"{self.at(here)}: {_dotted(here)}: " + (
                f"is gone; write {instead}" if instead else f"unknown key; known: {', '.join(sorted(known))}")
        if error.validator == "required":
            return f"{where}: {error.message.replace(' is a required property', ' is missing')}"
        if error.validator == "pattern" and "x-example" in rule:
            return (f"{where}: {json.dumps(error.instance)} is not "
                    f"{rule['x-what']} (like {rule['x-example']})")
        return f"{where}: {error.message}"


def _dotted(path: Iterable[str | int]) -> str:
    return ".".join(str(p) for p in path) or "the file"


_Path = tuple[str | int, ...]


_MERGE = "tag:yaml.org,2002:merge"


def _collect(name: str, node: yaml.Node, path: _Path, marks: dict[_Path, tuple[int, int]]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.tag == _MERGE:
                continue
            place = (key.start_mark.line + 1, key.start_mark.column + 1)
            where = f"{name}:{place[0]}:{place[1]}"
            if key.tag != "tag:yaml.org,2002:str":
                raise DescriptionError(f"{where}: {_dotted(path)}: a key is not text", hint="quote it")
            here = (*path, key.value)
            if here in marks:
                raise DescriptionError(f"{where}: {_dotted(here)}: the key is there twice")
            marks[here] = place
            _collect(name, value, here, marks)
        # What is merged in (<<) comes last: a key of the mapping's own wins over it.
        for value in (v for k, v in node.value if k.tag == _MERGE):
            for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                merged: dict[_Path, tuple[int, int]] = {}
                _collect(name, part, path, merged)
                marks.update({p: m for p, m in merged.items() if p not in marks})
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            marks[(*path, number)] = (value.start_mark.line + 1, value.start_mark.column + 1)
            _collect(name, value, (*path, number), marks)


def _appliance(document: Document, name: str, body: Mapping[str, Any]) -> Appliance:
    path = ("appliances", name)
    mirrors = body.get("image_mirrors", {})
    relay = body.get("rtpengine")
    proxy = body.get("opensips")
    goal = body.get("conntrack")
    return Appliance(
        name=name,
        description=body["description"],
        release=body["release"],
        architecture=body.get("architecture", "amd64"),
        kernel=body.get("kernel", "linux-image-cloud-amd64"),
        elements=tuple(body["elements"]),
        user=body.get("user", "debian"),
        datasources=tuple(body.get("datasources", ("ConfigDrive", "OpenStack", "NoCloud"))),
        server=_server(body.get("server", {})),
        ports=tuple(body.get("ports", ())),
        checks=tuple(body.get("checks", ("tests/appliance",))),
        rtpengine=None if relay is None else Rtpengine(
            version=relay["version"],
            sources=tuple(_source(document, (*path, "rtpengine", "sources", number), source)
                          for number, source in enumerate(relay["sources"])),
            **{k: v for k, v in relay.items() if k not in {"version", "sources"}},
        ),
        opensips=None if proxy is None else _opensips(document, (*path, "opensips"), proxy),
        conntrack=None if goal is None else ConntrackGoal(**goal),
        image_mirror=mirrors.get("main", ""),
        image_security_mirror=mirrors.get("security", ""),
        file=document.file,
        line=document.marks[path][0],
        kernel_upgrades=body.get("kernel_upgrades", "hold"),
    )


def _source(document: Document, path: _Path, body: Mapping[str, Any]) -> SourceSpec:
    found = SourceSpec(line=document.marks[path][0], **body)
    # As git tells them apart: HOST:PATH, of ssh, has no slash before its colon.
    remote = "://" in found.url or (found.kind == "git" and re.match(r"[^/]+:", found.url))
    if not found.url or remote:
        return found
    return replace(found, url=os.fspath((document.file.parent / found.url).absolute()))


def _server(body: Mapping[str, Any]) -> ServerSize:
    return ServerSize(**{**body, "firmware": Firmware(body.get("firmware", ServerSize.firmware))})


def _opensips(document: Document, path: _Path, body: Mapping[str, Any]) -> Opensips:
    given: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in body.items()}
    if source := body.get("repository"):
        given["repository"] = PackageRepository(
            url=source["url"].rstrip("/"), suite=source["suite"], components=tuple(source.get("components", ("main",))),
            key=document.file.parent / source["key"], fingerprint=source["fingerprint"].replace(" ", "").upper(),
            line=document.marks[(*path, "repository")][0])
    return Opensips(**given, line=document.marks[path][0])


def _cross_checks(document: Document, appliance: Appliance) -> Iterable[str]:
    path = ("appliances", appliance.name)
    relay = appliance.rtpengine
    elements = (*path, "elements")
    for name in SECTIONS:
        if (name in appliance.elements) != (name in appliance.parts()):
            yield (f"{document.at(elements)}: {_dotted(elements)}: "
                   f"the element {name} and the section {name} need each other")
    yield from _port_checks(document, appliance)
    yield from _secrets_in_addresses(document, appliance)
    if relay is None:
        if appliance.conntrack and appliance.conntrack.stateless:
            here = (*path, "conntrack", "stateless")
            yield f"{document.at(here)}: {_dotted(here)}: there is no relay whose ports could be left untracked"
        return
    yield from _generation_checks(document, appliance.release, path, relay)
    for number, source in enumerate(relay.sources):
        if source.version.split("-")[0] != relay.version:
            version = (*path, "rtpengine", "sources", number, "version")
            yield (f"{document.at(version)}: {_dotted(version)}: "
                   f"{source.version} is not version {relay.version} of the appliance")


def _port_checks(document: Document, appliance: Appliance) -> Iterable[str]:
    path: _Path = ("appliances", appliance.name)
    for number, port in enumerate(appliance.ports):
        first, last = ([int(one) for one in port.split("/")[0].split("-")] * 2)[:2]
        if not 0 < first <= last < 65536:
            here: _Path = (*path, "ports", number)
            yield f"{document.at(here)}: {_dotted(here)}: there are no ports {port}"
    relay = appliance.rtpengine
    if relay and relay.port_min >= relay.port_max:
        here = (*path, "rtpengine", "port_max")
        yield f"{document.at(here)}: {_dotted(here)}: the port range {relay.port_min} to {relay.port_max} is empty"
    if relay and relay.port_min <= relay.ng_port <= relay.port_max:
        here = (*path, "rtpengine", "ng_port")
        here = here if here in document.marks else here[:-1]
        yield f"{document.at(here)}: {_dotted(here)}: the control port {relay.ng_port} is among the ports of media"


def _secrets_in_addresses(document: Document, appliance: Appliance) -> Iterable[str]:
    """Addresses are in the manifest, the report and the lists of processes; what opens them is not to be."""
    path = ("appliances", appliance.name)
    relay, proxy = appliance.rtpengine, appliance.opensips
    addresses: dict[_Path, str] = {
        **{(*path, "rtpengine", "sources", number, "url"): source.url
           for number, source in enumerate(relay.sources if relay else ()) if source.url},
        **({(*path, "opensips", "repository", "url"): proxy.repository.url} if proxy and proxy.repository else {}),
        **{(*path, "image_mirrors", key): url for key, url in (
            ("main", appliance.image_mirror), ("security", appliance.image_security_mirror)) if url},
    }
    for here, address in addresses.items():
        # A user alone is a token of http's, and who logs in of ssh's (RFC 3986, 3.2.1).
        if re.match(r"https?://[^/?#]*@|[a-z+]+://[^/?#@:]*:[^/?#@]*@", address, re.IGNORECASE):
            yield (f"{document.at(here)}: {_dotted(here)}: there is a password or a token in the address; take it "
                   "away: git and apt have files of their own for it (~/.netrc, apt_auth.conf(5))")


def _generation_checks(document: Document, release: str, path: _Path, relay: Rtpengine) -> Iterable[str]:
    """Whether version, release and packages are of one generation of RTPEngine."""
    found = generation.of(relay.version)
    if found is None:
        here = (*path, "rtpengine", "version")
        known = ", ".join(map(str, generation.GENERATIONS))
        yield (f"{document.at(here)}: {_dotted(here)}: {relay.version} is of no generation of RTPEngine that is known: "
               f"{known}")
        return
    if release not in found.libraries:
        here = (*path, "release")
        yield (f"{document.at(here)}: {_dotted(here)}: RTPEngine {relay.version} can't be built for {release}; "
               f"its generation is for {', '.join(found.libraries)}")
    for number, source in enumerate(relay.sources):
        missing = [name for name in found.packages if name not in (source.packages or {})]
        if source.kind == "debian-packages" and missing:
            here = (*path, "rtpengine", "sources", number, "packages")
            yield f"{document.at(here)}: {_dotted(here)}: {', '.join(missing)} must be among them"
