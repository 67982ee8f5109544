"""Relay's programs."""

from harness.plugin import expect


def test_daemon_version(host, rtpengine):
    """the daemon has the version of the description"""
    said = host.run("/usr/sbin/rtpengine --version")
    version = (said.stdout + said.stderr).strip()
    expect(rtpengine.version in version, f"version {rtpengine.version}", version)


def test_iptables_extension(host, find, generation):
    """the iptables extension lies in the xtables directory and is usable, where the generation has one"""
    found = [path.rsplit("/", 1)[1] for path in find("/usr/lib/*/xtables/lib*_RTPENGINE.so")]
    wanted = generation.extension
    expect(found == ([wanted] if wanted else []), f"{wanted or 'none'} in the xtables directory", ", ".join(found))
    if not wanted:
        return
    usage = host.run("iptables -j RTPENGINE --help")
    expect(usage.rc == 0 and "\nRTPENGINE (version" in usage.stdout, "iptables knows the target RTPENGINE",
           usage.stderr.strip() or "its help does not mention RTPENGINE")
