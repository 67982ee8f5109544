"""SIP proxy."""

import re

import pytest

from harness.plugin import expect

UNIT = "opensips.service"
PACKAGES = ("opensips", "opensips-http-modules")
MODULES = ("event_datagram", "event_stream", "event_routing", "event_virtual", "pike", "rtpengine", "mi_datagram",
           "mi_fifo", "mi_http", "usrloc", "registrar", "tm")
LOG = "/var/log/opensips.log"
ELSEWHERE = ("/var/log/syslog", "/var/log/messages", "/var/log/user.log")
MI = {"udp": 8080, "tcp": 8888}
FIFO = "/run/opensips/opensips_fifo"
SETTINGS = "/run/opensips/server.cfg"


def test_proxy_enabled(units, opensips):
    """the service starts at boot"""
    state = units[UNIT]["UnitFileState"]
    expect(state == "enabled", f"{UNIT} enabled", state or "no such unit")


@pytest.mark.after("test_proxy_enabled")
def test_proxy_active(host, units, opensips):
    """the service is active and was never restarted"""
    now = units[UNIT]
    state = f"{now['ActiveState']} ({now['SubState']}), {now['NRestarts']} restarts, result {now['Result']}"
    expect(now["ActiveState"] == "active" and now["NRestarts"] == "0", f"{UNIT} active, 0 restarts", state,
           lambda: host.run("journalctl -b -u %s -o cat -n 5", UNIT).stdout.strip())


def test_proxy_version(host, opensips):
    """the packages have the described version, and the program says so"""
    wanted = dict.fromkeys((*PACKAGES, *opensips.packages), opensips.version)
    printed = host.run("dpkg-query --show --showformat='${Package} ${Version}\\n' " + " ".join(wanted)).stdout
    found = dict(line.split() for line in printed.splitlines())
    expect(found == wanted, f"{', '.join(wanted)} {opensips.version}",
           ", ".join(f"{name} {version}" for name, version in found.items()) or "not installed")
    said = host.run("/usr/sbin/opensips -V").stdout
    number = re.match(r"[0-9.]+", opensips.version)[0]
    expect(re.search(rf"\b{re.escape(number)}\b", said) is not None, f"version: opensips {number}",
           said.splitlines()[0] if said else "nothing")


@pytest.fixture(scope="module")
def sockets(host, opensips):
    """Where the proxy's processes listen: (udp or tcp, address, port)."""
    lines = [line.split() for line in host.check_output("ss -Hlntup").splitlines() if '"opensips"' in line]
    return {(words[0], *words[4].rsplit(":", 1)) for words in lines}


@pytest.mark.after("test_proxy_active")
@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_proxy_listens(sockets, opensips, server, transport):
    """the proxy listens for SIP on the server's address"""
    wanted = (transport, server.internal_ip, str(opensips.port))
    here = sorted(f"{address}:{port}" for kind, address, port in sockets if kind == transport)
    expect(wanted in sockets, f"{transport} {server.internal_ip}:{opensips.port}", ", ".join(here))


@pytest.mark.after("test_proxy_active")
def test_management_on_loopback_only(sockets, find, opensips):
    """the Management Interface is there as datagrams, HTTP and FIFO, and for this server alone"""
    ways = {(kind, "127.0.0.1", str(port)) for kind, port in MI.items()}
    expect(ways <= sockets, ", ".join(f"{kind} {address}:{port}" for kind, address, port in sorted(ways)),
           ", ".join(" ".join(one) for one in sorted(sockets)))
    # Of UDP an ephemeral port may be open: events go out by it.
    open_to_others = [f"{kind} {address}:{port}" for kind, address, port in sorted(sockets)
                      if not address.startswith(("127.", "[::1]")) and port != str(opensips.port)
                      and (kind == "tcp" or port in map(str, MI.values()))]
    expect(not open_to_others, "nothing but SIP open to others", ", ".join(open_to_others))
    expect(find(FIFO) == [FIFO], FIFO, "it is not there")


@pytest.mark.after("test_proxy_active")
def test_proxy_modules(read, units, opensips):
    """the modules for events, management and media are loaded"""
    maps = f"/proc/{units[UNIT]['MainPID']}/maps"
    loaded = set(re.findall(r"/opensips/modules/(\w+)\.so$", read(maps).get(maps, ""), re.MULTILINE))
    missing = [name for name in MODULES if name not in loaded]
    expect(not missing, ", ".join(MODULES), f"without {', '.join(missing)}")


@pytest.mark.after("test_proxy_active")
def test_proxy_relays(read, opensips):
    """the proxy asks the described relays"""
    written = re.search(r'"rtpengine_sock", "(.*)"', read(SETTINGS).get(SETTINGS, ""))
    relays = [relay.removeprefix("udp:") for relay in written[1].split()] if written else []
    expect(relays == list(opensips.relays), ", ".join(opensips.relays) or "no relay", ", ".join(relays) or "no relay")


@pytest.mark.after("test_proxy_active")
def test_proxy_log_written(host, read, opensips):
    """what the proxy says is written to its own log, and not to the system's"""
    group = "/sys/fs/cgroup/system.slice/opensips.service/cgroup.procs"
    running = set(read(group).get(group, "").split())
    said = re.findall(r"opensips\[(\d+)\]", read(LOG).get(LOG, ""))
    expect(bool(running & set(said)), f"lines of the running processes in {LOG}",
           f"lines of {len(set(said))} processes, of none that runs" if said else "none")
    strays = host.run("grep -lE 'opensips\\[[0-9]+\\]' " + " ".join(ELSEWHERE)).stdout.split()
    expect(not strays, f"its lines in {LOG} only", "also in " + ", ".join(strays))


def test_proxy_log_rotated(rotated, opensips):
    """the proxy's log is rotated"""
    rotated(LOG)
