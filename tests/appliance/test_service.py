"""Relay's service."""

import ipaddress

import pytest

from harness.plugin import expect
from harness.relayoptions import outdated

UNIT = "rtpengine.service"
ROOM = 1 << 20
"""Octets that the kernel lets a socket of the daemon hold: more than a second of a call's media, 4 KiB a packet."""


def test_service_enabled(units, rtpengine):
    """the service starts at boot"""
    state = units[UNIT]["UnitFileState"]
    expect(state == "enabled", f"{UNIT} enabled", state or "no such unit")


@pytest.mark.after("test_service_enabled")
def test_no_outdated_options(configured):
    """the daemon is given no option that RTPEngine has no more"""
    gone = outdated(configured)
    expect(not gone, "no option of old manuals", ", ".join(option.written for option in gone),
           "write " + ", ".join(dict.fromkeys(option.instead for option in gone)))


@pytest.mark.after("test_service_enabled", "test_module_loaded", "test_no_outdated_options")
def test_service_active(host, units, rtpengine):
    """the service is active and was never restarted"""
    now = units[UNIT]
    state = f"{now['ActiveState']} ({now['SubState']}), {now['NRestarts']} restarts, result {now['Result']}"
    expect(now["ActiveState"] == "active" and now["NRestarts"] == "0", f"{UNIT} active, 0 restarts", state,
           lambda: host.run("journalctl -b -u %s -o cat -n 5", UNIT).stdout.strip())


@pytest.mark.after("test_service_active")
@pytest.mark.parametrize("name, field", [
    ("no-fallback", "no_fallback"), ("log-level", "log_level"), ("log-facility", "log_facility"),
    ("port-min", "port_min"), ("port-max", "port_max"), ("tos", "tos"), ("endpoint-learning", "endpoint_learning")])
def test_option_in_force(daemon, rtpengine, name, field):
    """the daemon runs with the description's option"""
    wanted = getattr(rtpengine, field)
    seen = daemon.option(name, "not set")
    same = (seen in {"true", "1"}) == wanted if isinstance(wanted, bool) else seen == str(wanted)
    expect(same, f"{name} = {str(wanted).lower()}", f"{name} = {seen}")


def test_sockets_have_room(read, rtpengine):
    """the sockets of a daemon that does not run for a second lose nothing"""
    file = "/proc/sys/net/core/rmem_default"
    octets = int(read(file)[file])
    expect(octets >= ROOM, f"net.core.rmem_default = {ROOM} or more", str(octets))


@pytest.mark.after("test_service_active")
def test_pidfile(read, daemon):
    """the pid file names the daemon"""
    file = daemon.option("pidfile")
    expect(file != "", "an option pidfile", "none")
    written = read(file).get(file, "").strip()
    expect(written == str(daemon.pid), f"{daemon.pid} in {file}", written)


@pytest.mark.after("test_service_active")
def test_control_port_listening(host, daemon, rtpengine):
    """the daemon listens for ng commands on every address"""
    port = rtpengine.ng_port
    lines = host.check_output("ss -Hlunp sport = :%s", str(port)).splitlines()
    sockets = [line.split()[3] for line in lines if f"pid={daemon.pid}," in line]
    expect(any(s in {f"*:{port}", f"0.0.0.0:{port}", f"[::]:{port}"} for s in sockets),
           f"UDP port {port} on every address, by the daemon", ", ".join(sockets),
           f"listen-ng = {daemon.option('listen-ng', 'not set')}")


@pytest.mark.after("test_service_active")
def test_interfaces_of_server(host, daemon, server):
    """the daemon relays on the server's own addresses"""
    spoken = [value.split("/")[-1].split("!")[0] for value in daemon.options.get("interface", [])]
    lines = host.check_output("ip -o address show up scope global").splitlines()
    present = [line.split()[3].partition("/")[0] for line in lines]
    expect(server.internal_ip in spoken, f"interface {server.internal_ip}", ", ".join(spoken))
    strange = [a for a in spoken if ipaddress.ip_address(a) not in map(ipaddress.ip_address, present)]
    expect(not strange, "only addresses that the server has", ", ".join(strange))


@pytest.mark.after("test_service_active")
def test_advertised_address(daemon, advertised):
    """the daemon advertises the address that the server's metadata gives, and none without"""
    seen = [value.split("!")[1] for value in daemon.options.get("interface", []) if "!" in value]
    expect(seen == advertised, f"advertised: {', '.join(advertised) or 'none'}", ", ".join(seen) or "none")


def test_redis_as_described(find, units, daemon, rtpengine):
    """Redis is installed, and runs only where the description asks for it; the daemon keeps calls there"""
    expect(bool(find("/usr/bin/redis-server")), "redis-server installed", "it is not there")
    now = {name: units["redis-server.service"][name] for name in ("ActiveState", "UnitFileState")}
    wanted = {"ActiveState": "active", "UnitFileState": "enabled"} if rtpengine.redis_here else \
        {"ActiveState": "inactive", "UnitFileState": "disabled"}
    expect(now == wanted, f"redis-server.service {' and '.join(wanted.values())}", " and ".join(now.values()))
    endpoint = daemon.option("redis")
    expect(endpoint == rtpengine.redis_endpoint, f"redis = {rtpengine.redis_endpoint or 'not set'}",
           f"redis = {endpoint or 'not set'}")
