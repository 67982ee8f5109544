"""Kernel module."""

import re

import pytest

from harness.plugin import expect

MODULE = "xt_RTPENGINE"


@pytest.fixture(scope="module")
def modinfo(host, rtpengine):
    """What modinfo(8) says of the module that modprobe would load; empty where there is none."""
    lines = host.run("modinfo %s", MODULE).stdout.splitlines()
    return dict(re.split(r":\s+", line, maxsplit=1) for line in lines if re.match(r"\w+:\s", line))


def test_module_fits_kernel(modinfo, kernel, console):
    """the module is built for the running kernel"""
    expect(bool(modinfo), f"a module {MODULE} for kernel {kernel}", "none: modinfo does not find it")
    built_for = modinfo["vermagic"].split()[0]
    expect(built_for == kernel, f"vermagic {kernel}, the kernel that runs", built_for,
           f"no module {MODULE} can be loaded: it is built for {built_for}, the server runs {kernel}",
           lambda: console.lines(rf"{MODULE}.*version magic"))


def test_module_in_extra(host, rtpengine, kernel):
    """the module lies in extra/ and depmod knows it"""
    base = f"/lib/modules/{kernel}"
    listed = host.run("grep -o '^[^:]*/%s[.]ko[^:]*' %s", MODULE, f"{base}/modules.dep").stdout.split()
    expect(any(path.startswith("extra/") for path in listed), f"{base}/extra/{MODULE}.ko in {base}/modules.dep",
           " ".join(listed) or "no such module in modules.dep")
    expect(host.file(f"{base}/{listed[0]}").is_file, f"the file {base}/{listed[0]}", "it is not there")


@pytest.mark.after("test_module_fits_kernel", "test_module_in_extra")
def test_module_loaded(host, table, console):
    """the module is loaded since boot"""
    loaded = host.run("grep -w %s /proc/modules", MODULE)
    named = host.run("grep -lrw %s /etc/modules-load.d /usr/lib/modules-load.d", MODULE).stdout.split()
    expect(loaded.rc == 0, f"{MODULE} in /proc/modules", "it is not loaded",
           "no file below /etc/modules-load.d names it" if not named else
           lambda: host.run("journalctl -b -u systemd-modules-load -o cat | grep %s", MODULE).stdout.strip(),
           lambda: console.lines(MODULE))


@pytest.mark.after("test_module_loaded")
def test_module_control_files(host, table):
    """/proc/rtpengine/control and list are there"""
    listing = host.run("stat -c '%A %n' /proc/rtpengine/control /proc/rtpengine/list")
    modes = {line.split()[1].rsplit("/", 1)[1]: line.split()[0] for line in listing.stdout.splitlines()}
    expect("w" in modes.get("control", ""), "/proc/rtpengine/control, writable", modes.get("control", "not there"))
    expect("r" in modes.get("list", ""), "/proc/rtpengine/list, readable", modes.get("list", "not there"))
    readable = host.run("cat /proc/rtpengine/list")
    expect(readable.rc == 0, "/proc/rtpengine/list can be read", readable.stderr.strip())


def test_kernel_held(host, rtpengine, kernel):
    """the kernel's package is held, so that no upgrade ends kernel forwarding"""
    package = f"linux-image-{kernel}"
    held = host.check_output("apt-mark showhold").split()
    following = host.check_output(
        "dpkg-query -W -f '${Package} ${Depends} \\n' 'linux-image-*' | awk -v p=%s '$2 == p { print $1 }'",
        package).split()
    missing = [p for p in [package, *following] if p not in held]
    expect(not missing, "on hold: " + ", ".join([package, *following]), "not on hold: " + ", ".join(missing))


def test_no_compiler(host):
    """no compiler and no kernel headers are in the image"""
    tools = host.run("for p in gcc cc clang make dkms; do command -v $p; done").stdout.split()
    headers = host.run("ls -d /usr/src/linux-headers-* /lib/modules/*/build 2>/dev/null").stdout.split()
    expect(not tools, "no compiler, no make, no dkms", ", ".join(tools))
    expect(not headers, "no kernel headers", ", ".join(headers))
