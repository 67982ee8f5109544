import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import appliance
from harness.appliance import ConntrackGoal, ServerSize, load, select
from harness.errors import DescriptionError

GOOD = """\
appliances:
  relay:
    description: a relay
    release: bookworm
    elements: [voip-appliance, conntrack, rtpengine]
    server: {memory: 2048}
    rtpengine:
      version: 10.5.3.5
      sources:
        - kind: git
          version: 10.5.3.5
          url: ../rtpengine
          tag: mr10.5.3.5
          commit: 0123456789abcdef0123456789abcdef01234567
        - kind: debian-source
          package: rtpengine
          version: 10.5.3.5-1+deb12u1
          sha256: 29834b592e3970ec0012a9ed12e242ce35232227df243fe61156f160644e72f0
    conntrack: {calls: 100, headroom: 1.5}
"""


def _load(tmp_path: Path, text: str | bytes) -> dict[str, appliance.Appliance]:
    file = tmp_path / "appliances.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load(file)


def _complaints(tmp_path: Path, text: str | bytes) -> list[str]:
    with pytest.raises(DescriptionError) as caught:
        _load(tmp_path, text)
    return caught.value.message.splitlines()


def test_the_projects_own_description_is_valid(project):
    relay = load(project / "appliances.yaml")["rtpengine"]
    assert relay.rtpengine and [s.kind for s in relay.rtpengine.sources] == ["debian-source", "debian-packages"]
    assert relay.conntrack


def test_what_is_said_and_what_is_left_out(tmp_path):
    relay = select(_load(tmp_path, GOOD), "relay")
    assert (relay.name, relay.release, relay.kernel, relay.line) == ("relay", "bookworm", "linux-image-cloud-amd64", 2)
    assert relay.server == ServerSize(memory=2048, cpus=2, disk=4)
    assert relay.conntrack == ConntrackGoal(calls=100, headroom=1.5)
    assert relay.rtpengine and relay.rtpengine.no_fallback and relay.rtpengine.table == 0
    assert (relay.rtpengine.learning, relay.rtpengine.endpoint_learning) == ("nat", "heuristic")
    assert relay.kernel_held
    follow = GOOD.replace("    release:", "    kernel_upgrades: follow\n    release:", 1)
    assert not select(_load(tmp_path, follow), "relay").kernel_held
    known = select(_load(tmp_path, GOOD.replace("      sources:", "      learning: known\n      sources:", 1)), "relay")
    assert known.rtpengine and known.rtpengine.endpoint_learning == "off"
    git, debian = relay.rtpengine.sources
    assert (git.kind, git.tag, git.line) == ("git", "mr10.5.3.5", 10)
    assert (debian.kind, debian.package, debian.line) == ("debian-source", "rtpengine", 15)


@pytest.mark.parametrize(("written", "endpoint", "here"), [
    ("false", "", False), ("true", "127.0.0.1:6379/1", True), ("localhost:6380/2", "localhost:6380/2", True),
    ("192.0.2.5:6379/1", "192.0.2.5:6379/1", False), ('"[2001:db8::5]:6379/0"', "[2001:db8::5]:6379/0", False)])
def test_where_calls_are_kept(tmp_path, written, endpoint, here):
    text = GOOD.replace("      sources:", f"      redis: {written}\n      sources:")
    relay = _load(tmp_path, text)["relay"].rtpengine
    assert relay and (relay.redis_endpoint, relay.redis_here) == (endpoint, here)


def test_an_unknown_appliance_is_named_with_those_there_are(tmp_path):
    with pytest.raises(DescriptionError, match="no appliance 'rely'\n  known: relay"):
        select(_load(tmp_path, GOOD), "rely")


@pytest.mark.parametrize(("old", "new", "complaint"), [
    ("version: 10.5.3.5\n      sources", 'version: "10.5"\n      sources',
     'appliances.yaml:8:7: appliances.relay.rtpengine.version: "10.5" is not a full version (like 10.5.3.5)'),
    ("release: bookworm", "release: sarge",
     "appliances.yaml:4:5: appliances.relay.release: 'sarge' is not one of ['bookworm', 'trixie', 'forky']"),
    ("release: bookworm", "release: bookworm\n    kernel_upgrades: never",
     "appliances.yaml:5:5: appliances.relay.kernel_upgrades: 'never' is not one of ['hold', 'follow']"),
    ("    release: bookworm\n", "",
     "appliances.yaml:2:3: appliances.relay: 'release' is missing"),
    ("release: bookworm", "release: bookworm\n    colour: red",
     "appliances.yaml:5:5: appliances.relay.colour: unknown key; known: architecture, checks, conntrack, "
     "datasources, description, elements, image_mirrors, kernel, kernel_upgrades, opensips, ports, release, "
     "rtpengine, server, user"),
    ("release: bookworm", "release: bookworm\n    image_mirrors: {main: packages.example.org}",
     'appliances.yaml:5:21: appliances.relay.image_mirrors.main: "packages.example.org" is not an address of packages '
     "(like https://packages.example.org/debian)"),
    ("release: bookworm", "release: bookworm\n    image_mirrors: {security: https://a/b}",
     "appliances.yaml:5:5: appliances.relay.image_mirrors: 'main' is a dependency of 'security'"),
    ("memory: 2048", "memory: 12",
     "appliances.yaml:6:14: appliances.relay.server.memory: 12 is less than the minimum of 256"),
    ("memory: 2048", "firmware: u-boot",
     "appliances.yaml:6:14: appliances.relay.server.firmware: 'u-boot' is not one of ['bios', 'uefi', 'secure-boot']"),
    ("memory: 2048", "memory: 2048.0",
     "appliances.yaml:6:14: appliances.relay.server.memory: 2048.0 is not of type 'integer'"),
    ("      sources:", "      redis: 192.0.2.5:6379\n      sources:",
     'appliances.yaml:9:7: appliances.relay.rtpengine.redis: "192.0.2.5:6379" is not a Redis and a database of it '
     '(like 192.0.2.5:6379/1)'),
    ("      sources:", "      redis-db: 1\n      sources:",
     "appliances.yaml:9:7: appliances.relay.rtpengine.redis-db: is gone; write redis: HOST:PORT/DATABASE, like "
     "192.0.2.5:6379/1"),
    ("headroom: 1.5", "headroom: .nan",
     "appliances.yaml:19:29: appliances.relay.conntrack.headroom: nan is not of type 'number'"),
    ("headroom: 1.5", f"headroom: 1{'0' * 309}",
     "appliances.yaml:19:29: appliances.relay.conntrack.headroom: 1" + "0" * 309 + " is greater than the maximum of "),
    ("headroom: 1.5", "headroom: 0.5",
     "appliances.yaml:19:29: appliances.relay.conntrack.headroom: 0.5 is less than the minimum of 1"),
    ("headroom: 1.5", "headroom: 1.0e+308",
     "appliances.yaml:19:29: appliances.relay.conntrack.headroom: 1e+308 is greater than the maximum of 100"),
    ("calls: 100,", f"calls: 1{'0' * 309},",
     "appliances.yaml:19:17: appliances.relay.conntrack.calls: 1" + "0" * 309 + " is greater than the maximum of "),
    ("calls: 100,", f"calls: 100, clients: 1{'0' * 309},",
     "appliances.yaml:19:29: appliances.relay.conntrack.clients: 1" + "0" * 309 + " is greater than the maximum of "),
    ("tag: mr10.5.3.5", "tag: mr10.5.3.5\n          branch: main",
     "appliances.yaml:14:11: appliances.relay.rtpengine.sources.0.branch: unknown key; known: commit, kind, tag, url, "
     "version"),
    ("          tag: mr10.5.3.5\n", "",
     "appliances.yaml:10:11: appliances.relay.rtpengine.sources.0: 'tag' is missing"),
    ("kind: git", "kind: svn",
     "appliances.yaml:10:11: appliances.relay.rtpengine.sources.0.kind: 'svn' is not one of ['git', 'tarball', "
     "'debian-source', 'debian-packages']"),
    ("commit: 0123456789abcdef0123456789abcdef01234567", "commit: HEAD",
     "appliances.yaml:14:11: appliances.relay.rtpengine.sources.0.commit: \"HEAD\" is not a commit's hash (like 40 "
     "hexadecimal digits)"),
    ("[voip-appliance, conntrack, rtpengine]", "[voip-appliance, rtpengine]",
     "appliances.yaml:5:5: appliances.relay.elements: the element conntrack and the section conntrack need each other"),
    ("    conntrack: {calls: 100, headroom: 1.5}\n", "",
     "appliances.yaml:5:5: appliances.relay.elements: the element conntrack and the section conntrack need each other"),
    ("release: bookworm", "release: trixie",
     "appliances.yaml:4:5: appliances.relay.release: RTPEngine 10.5.3.5 can't be built for trixie; its generation is "
     "for bookworm"),
    ("      sources:", "      port_max: 20000\n      sources:",
     "appliances.yaml:9:7: appliances.relay.rtpengine.port_max: the port range 30000 to 20000 is empty"),
    ("      sources:", "      learning: always\n      sources:",
     "appliances.yaml:9:7: appliances.relay.rtpengine.learning: 'always' is not one of ['nat', 'known']"),
    ("      sources:", "      tos: 256\n      sources:",
     "appliances.yaml:9:7: appliances.relay.rtpengine.tos: 256 is greater than the maximum of 255"),
    ("version: 10.5.3.5-1+deb12u1", "version: 10.5.3.4-1",
     "appliances.yaml:17:11: appliances.relay.rtpengine.sources.1.version: 10.5.3.4-1 is not version 10.5.3.5 of the "
     "appliance"),
    ("version: 10.5.3.5-1+deb12u1", "version: 10.5.3.51-1",
     "appliances.yaml:17:11: appliances.relay.rtpengine.sources.1.version: 10.5.3.51-1 is not version 10.5.3.5 of the "
     "appliance"),
    ("description: a relay", "description: a relay\n    description: another",
     "appliances.yaml:4:5: appliances.relay.description: the key is there twice"),
    ("description: a relay", "description: [a relay", "appliances.yaml:4:"),
    ("  relay:", "  Relay!:", "appliances.yaml:1:1: appliances: 'Relay!' "),
    ("  relay:", "  17:", "appliances.yaml:2:3: appliances: a key is not text"),
    ("description: a relay", "description: a relay\n    1: one",
     "appliances.yaml:4:5: appliances.relay: a key is not text"),
])
def test_a_mistake_is_named_with_its_place(tmp_path, old, new, complaint):
    assert old in GOOD
    lines = _complaints(tmp_path, GOOD.replace(old, new, 1))
    assert lines[0].startswith(complaint), lines
    assert len(lines) == 1


@pytest.mark.parametrize("address", ["https://oauth2:hush@git.example.org/relay.git", "https://hush@git.example.org/x",
                                     "ssh://git:hush@git.example.org/relay.git"])
def test_a_secret_in_an_address_is_refused_and_not_repeated(tmp_path, address):
    text = re.sub(r"url: \S+", f"url: {address}", GOOD, count=1)
    [said] = _complaints(tmp_path, text)
    assert "appliances.relay.rtpengine.sources.0.url: there is a password or a token in the address" in said
    assert "hush" not in said


def test_who_logs_in_by_ssh_is_no_secret(tmp_path):
    assert _load(tmp_path, re.sub(r"url: \S+", "url: ssh://git@git.example.org/relay.git", GOOD, count=1))


def test_a_version_of_no_known_generation(tmp_path):
    [said] = _complaints(tmp_path, GOOD.replace("10.5.3.5", "9.5.3.5"))
    assert said == ("appliances.yaml:8:7: appliances.relay.rtpengine.version: 9.5.3.5 is of no generation of RTPEngine "
                    "that is known: 10.5 to before 12, 12 to before 14.1, 14.1 to before 27")


def test_packages_that_its_generation_is_made_of(tmp_path):
    text = GOOD.replace("kind: debian-source\n          package: rtpengine", "kind: debian-packages")
    text = text.replace("sha256: 29834b592e3970ec0012a9ed12e242ce35232227df243fe61156f160644e72f0",
                        "packages: {rtpengine-daemon: " + "a" * 64 + "}")
    assert _complaints(tmp_path, text) == [
        "appliances.yaml:17:11: appliances.relay.rtpengine.sources.1.packages: rtpengine-kernel-dkms, "
        "rtpengine-iptables must be among them"]


@pytest.mark.parametrize("port", ["40000-30000/udp", "0/tcp", "99999/udp", "5060-70000/udp"])
def test_ports_that_there_are_not_are_named(tmp_path: Path, port: str) -> None:
    text = GOOD.replace("    rtpengine:\n", f"    ports: [22/tcp, {port}]\n    rtpengine:\n")
    assert _complaints(tmp_path, text) == [
        f"appliances.yaml:7:21: appliances.relay.ports.1: there are no ports {port}"]


@pytest.mark.parametrize(("text", "place"), [
    ("ng_port: 30000", "9:7: appliances.relay.rtpengine.ng_port"),
    ("port_min: 2000", "7:5: appliances.relay.rtpengine")])
def test_a_control_port_among_the_ports_of_media_is_refused(tmp_path: Path, text: str, place: str) -> None:
    [complaint] = _complaints(tmp_path, GOOD.replace("      sources:", f"      {text}\n      sources:"))
    assert complaint.startswith(f"appliances.yaml:{place}: the control port ")


def test_ports_that_are_not_tracked_need_a_relay(tmp_path):
    text = GOOD[:GOOD.index("    rtpengine:")] + "    conntrack: {calls: 100, stateless: true}\n"
    assert _complaints(tmp_path, text.replace(", rtpengine]", "]")) == [
        "appliances.yaml:7:29: appliances.relay.conntrack.stateless: there is no relay whose ports could be left "
        "untracked"]


def test_all_mistakes_are_named_in_their_order(tmp_path):
    text = GOOD.replace("release: bookworm", "release: sarge").replace("calls: 100", "calls: 0")
    assert [line.split(":")[1] for line in _complaints(tmp_path, text)] == ["4", "19"]


@pytest.mark.parametrize("text", ["", "[]", "appliances:", "appliances: {}", "- appliances", "appliances: 3", "\x00",
                                  "a: &a [*a]", "appliances: !!python/object:os.system {}", b"\xff\xfe\xfa", "%", "\t"])
def test_what_is_no_description_at_all(tmp_path, text):
    assert all("appliances.yaml" in line for line in _complaints(tmp_path, text))


@pytest.mark.parametrize("value", ["!!int 1G", "!!bool 1G", "!!timestamp 1G", "!!float ''", "9" * 5000],
                         ids=lambda value: value[:12])
def test_a_value_that_yaml_cannot_read_is_not_repeated(tmp_path, value):
    assert _complaints(tmp_path, GOOD.replace("memory: 2048", f"memory: {value}")) == [
        "appliances.yaml:6:22: a value has a form that YAML can't read; quote it"]


@pytest.mark.parametrize(("kind", "url", "place"), [
    ("git", "../up", "{}/../up"), ("git", "up", "{}/up"), ("git", "./up:1", "{}/up:1"), ("git", "/srv/up", "/srv/up"),
    ("git", "https://git.example.org/up", "https://git.example.org/up"), ("git", "git@example.org:up", None),
    ("tarball", "up.tar.gz", "{}/up.tar.gz"), ("tarball", "up:1.tar.gz", "{}/up:1.tar.gz"),
    ("tarball", "file:///srv/up.tar.gz", "file:///srv/up.tar.gz")])
def test_a_path_is_beside_the_description(tmp_path, monkeypatch, kind, url, place):
    text = GOOD.replace("../rtpengine", url)
    if kind == "tarball":
        text = text.replace("kind: git", "kind: tarball").replace("          tag: mr10.5.3.5\n", "")
        text = re.sub(r"commit: \w+", f"sha256: {'a' * 64}", text)
    (tmp_path / "appliances.yaml").write_text(text)
    monkeypatch.chdir(tmp_path.parent)
    found = load(Path(tmp_path.name, "appliances.yaml"))["relay"].rtpengine
    assert found and found.sources[0].url == (place or url).format(tmp_path)


def test_what_is_nested_too_deeply(tmp_path):
    assert _complaints(tmp_path, "[" * 3000) == ["appliances.yaml: is nested too deeply"]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DescriptionError, match="No such file"):
        load(tmp_path / "appliances.yaml")


def test_parts_that_are_shared_by_yaml_means(tmp_path):
    text = GOOD.replace("  relay:", "  relay: &relay") + "  second:\n    <<: *relay\n    description: another\n"
    loaded = _load(tmp_path, text)
    assert loaded["second"].description == "another" and loaded["second"].rtpengine == loaded["relay"].rtpengine


values = st.recursive(st.none() | st.booleans() | st.integers(-9, 70000) | st.text(max_size=8) | st.floats(),
                      lambda inner: st.lists(inner, max_size=3)
                      | st.dictionaries(st.text(max_size=5), inner, max_size=3),
                      max_leaves=6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_change_of_a_description_ends_in_anything_but_an_error_of_ours(tmp_path, data):
    document = yaml.safe_load(GOOD)
    node = document
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(node[key], dict | list) or not node[key] or data.draw(st.booleans()):
            break
        node = node[key]
    action = data.draw(st.sampled_from(["replace", "delete", "add"]))
    if action == "delete":
        del node[key]
    elif action == "add" and isinstance(node, dict):
        node[data.draw(st.text(max_size=5) | st.integers(0, 9) | st.none())] = data.draw(values)
    else:
        node[key] = data.draw(values)
    try:
        _load(tmp_path, yaml.safe_dump(document))
    except DescriptionError as error:
        assert "appliances.yaml:" in error.message


PROXY = """\
appliances:
  proxy:
    description: a proxy
    release: bookworm
    elements: [voip-appliance, conntrack, opensips]
    opensips:
      version: 4.0.1-1
      repository:
        url: https://packages.example.org/
        suite: bookworm
        components: [4.0-releases]
        key: keys/proxy.asc
        fingerprint: 0123 4567 89ab cdef 0123  4567 89ab cdef 0123 4567
      relays: [192.0.2.5:2223]
    conntrack: {calls: 100, clients: 1000, rtcp: false}
"""


def test_a_proxy_and_where_its_packages_come_from(tmp_path):
    found = _load(tmp_path, PROXY)["proxy"]
    assert (found.version, set(found.parts()), found.rtpengine) == ("4.0.1-1", {"opensips", "conntrack"}, None)
    assert found.opensips and (found.opensips.relays, found.opensips.port) == (("192.0.2.5:2223",), 5060)
    assert found.opensips.repository == appliance.PackageRepository(
        "https://packages.example.org", "bookworm", ("4.0-releases",), tmp_path / "keys/proxy.asc",
        "0123456789ABCDEF0123456789ABCDEF01234567", 8)


def test_a_proxy_may_lack_a_repository_until_it_is_built(project):
    found = load(project / "appliances.yaml")["opensips"]
    assert found.opensips and found.opensips.repository is None and found.opensips.line > 0


@pytest.mark.parametrize(("old", "new", "complaint"), [
    ("version: 4.0.1-1", "version: 3.4.5-1",
     'appliances.yaml:7:7: appliances.proxy.opensips.version: "3.4.5-1" is not a package version of OpenSIPS 3.6 or 4 '
     "(like 3.6.8-1)"),
    ("        suite: bookworm\n", "",
     "appliances.yaml:8:7: appliances.proxy.opensips.repository: 'suite' is missing"),
    ("        key: keys/proxy.asc\n", "",
     "appliances.yaml:8:7: appliances.proxy.opensips.repository: 'key' is missing"),
    ("url: https:", "url: ftp:",
     'appliances.yaml:9:9: appliances.proxy.opensips.repository.url: "ftp://packages.example.org/" is not an address '
     "of packages"),
    ("cdef 0123 4567\n", "cdef 0123\n",
     'appliances.yaml:13:9: appliances.proxy.opensips.repository.fingerprint: "0123 4567 89ab cdef 0123  4567 89ab '
     'cdef 0123" is not the fingerprint of a key (like 40 hexadecimal digits)'),
    ("192.0.2.5:2223", "192.0.2.5",
     'appliances.yaml:14:16: appliances.proxy.opensips.relays.0: "192.0.2.5" is not address and port of a relay\'s ng '
     "protocol (like 192.0.2.5:2223)"),
    ("conntrack, opensips]", "conntrack]",
     "appliances.yaml:5:5: appliances.proxy.elements: the element opensips and the section opensips need each other"),
    ("clients: 1000", "clients: -1",
     "appliances.yaml:15:29: appliances.proxy.conntrack.clients: -1 is less than the minimum of 0"),
])
def test_a_mistake_in_a_proxy_is_named_with_its_place(tmp_path, old, new, complaint):
    assert old in PROXY
    assert _complaints(tmp_path, PROXY.replace(old, new, 1))[0].startswith(complaint)
