"""Relay's programs."""

from harness.plugin import expect


def test_daemon_version(host, rtpengine):
    """the daemon has the version of the description"""
    said = host.run("/usr/sbin/rtpengine --version")
    version = (said.stdout + said.stderr).strip()
    expect(rtpengine.version in version, f"version {rtpengine.version}", version)


def test_iptables_extension(host, find, rtpengine):
    """the iptables extension lies in the xtables directory and is usable"""
    found = find("/usr/lib/*/xtables/libxt_RTPENGINE.so")
    expect(len(found) == 1, "libxt_RTPENGINE.so in the xtables directory", ", ".join(found))
    usage = host.run("iptables -j RTPENGINE --help")
    expect(usage.rc == 0 and "\nRTPENGINE (version" in usage.stdout, "iptables knows the target RTPENGINE",
           usage.stderr.strip() or "its help does not mention RTPENGINE")
