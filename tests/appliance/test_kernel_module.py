"""Kernel module."""

import re

import pytest

from harness.firmware import Firmware
from harness.plugin import expect


@pytest.fixture(scope="module")
def module(generation):
    """The name of the relay's kernel module."""
    return generation.module


@pytest.fixture(scope="module")
def modinfo(host, module):
    """What modinfo(8) says of the module that modprobe would load; empty where there is none."""
    lines = host.run("modinfo %s", module).stdout.splitlines()
    return dict(re.split(r":\s+", line, maxsplit=1) for line in lines if re.match(r"\w+:\s", line))


def test_module_fits_kernel(modinfo, module, kernel, console):
    """the module is built for the running kernel"""
    expect(bool(modinfo), f"a module {module} for kernel {kernel}", "none: modinfo does not find it")
    built_for = modinfo["vermagic"].split()[0]
    expect(built_for == kernel, f"vermagic {kernel}, the kernel that runs", built_for,
           f"no module {module} can be loaded: it is built for {built_for}, the server runs {kernel}",
           lambda: console.lines(rf"{module}.*version magic"))


def test_module_in_extra(read, find, module, kernel):
    """the module lies in extra/ and depmod knows it"""
    base = f"/lib/modules/{kernel}"
    dependencies = read(f"{base}/modules.dep").get(f"{base}/modules.dep", "")
    listed = re.findall(rf"^([^:\n]*/{module}\.ko[^:\n]*):", dependencies, re.MULTILINE)
    expect(any(path.startswith("extra/") for path in listed), f"{base}/extra/{module}.ko in {base}/modules.dep",
           " ".join(listed) or "no such module in modules.dep")
    expect(bool(find(f"{base}/{listed[0]}")), f"the file {base}/{listed[0]}", "it is not there")


@pytest.mark.after("test_module_fits_kernel", "test_module_in_extra")
def test_module_loaded(host, read, module, table, console):
    """the module is loaded since boot"""
    loaded = [line.split()[0] for line in read("/proc/modules")["/proc/modules"].splitlines()]
    named = [path for path, text in read("/etc/modules-load.d/*.conf", "/usr/lib/modules-load.d/*.conf").items()
             if module in text.split()]
    expect(module in loaded, f"{module} in /proc/modules", "it is not loaded",
           "no file below /etc/modules-load.d names it" if not named else
           lambda: host.run("journalctl -b -u systemd-modules-load -o cat | grep %s", module).stdout.strip(),
           lambda: console.lines(module))


@pytest.mark.after("test_module_loaded")
def test_module_control_files(find, table):
    """/proc/rtpengine/control and list are there"""
    seen = find("/proc/rtpengine/*")
    expect({"/proc/rtpengine/control", "/proc/rtpengine/list"} <= set(seen),
           "/proc/rtpengine/control and /proc/rtpengine/list", ", ".join(seen))


def test_kernel_held(host, rtpengine, appliance, kernel):
    """the kernel's package is held, or free to be upgraded, as described"""
    package = f"linux-image-{kernel}"
    listing = host.check_output("dpkg-query -W -f '${db:Status-Want} ${Package} ${Depends}\\n' 'linux-image-*'")
    wants = {words[1]: words[0] for words in map(str.split, listing.splitlines()) if package in words[1:]}
    wanted, other = ("on hold", "not on hold") if appliance.kernel_held else ("not on hold", "on hold")
    wrong = [name for name, want in wants.items() if (want == "hold") != appliance.kernel_held]
    expect(package in wants and not wrong, f"{wanted}: {package} and what depends on it",
           f"{other}: " + ", ".join(wrong) if wrong else f"no package {package}")


def test_upgrade_keeps_kernel(host, rtpengine, appliance):
    """a full upgrade would bring, change and remove no kernel, also if there were later ones"""
    if not appliance.kernel_held:
        pytest.skip("the description lets kernels be upgraded (kernel_upgrades: follow)")
    listing = host.check_output("dpkg-query -W -f '${db:Status-Status} ${Package} ${Architecture}\\n' 'linux-image-*'")
    later = "\n".join(f"Package: {name}\nVersion: 9999\nArchitecture: {architecture}\nFilename: later.deb\nSize: 1\n"
                      f"SHA256: {0:064d}\n"
                      for name, architecture in re.findall(r"^installed (\S+) (\S+)$", listing, re.MULTILINE))
    steps = host.check_output("(set -e; offered=$(mktemp -d); trap 'rm -r \"$offered\"' EXIT; chmod 755 \"$offered\"; "
                              "printf %%s %s >\"$offered/Packages\"; "
                              "apt-get -s -q full-upgrade --with-source \"$offered/Packages\")", later).splitlines()
    kernels = [" ".join(line.split()[:2]) for line in steps if re.match(r"(Inst|Remv) linux-image-", line)]
    expect(not kernels, "no package linux-image-... changed", ", ".join(kernels))


def test_next_kernel_has_module(host, server, read, find, module, table):
    """the kernel that the boot menu starts has its module, whichever runs now"""
    menu = "/boot/grub/grub.cfg"
    kernels = re.findall(r"^\s*linux\s+\S*/vmlinuz-(\S+)", read(menu).get(menu, ""), re.MULTILINE)
    expect(bool(kernels), f"a kernel in {menu}", "none")
    lacking = []
    for kernel in kernels:
        index = f"/lib/modules/{kernel}/modules.dep"
        file = re.search(rf"^([^:\n]*/{module}\.ko[^:\n]*):", read(index).get(index, ""), re.MULTILINE)
        if not file or not find(f"/lib/modules/{kernel}/{file[1]}"):
            lacking.append(kernel)
        elif server.firmware is Firmware.SECURE_BOOT and not host.run(
                "modinfo -k %s -F sig_id %s", kernel, module).stdout.strip():
            lacking.append(f"{kernel} (one that is not signed)")
    expect(not lacking, f"a module {module} for {', '.join(kernels)}", f"none for {', '.join(lacking)}",
           "no packet would be forwarded in the kernel after the next boot")


def test_no_compiler(find):
    """no compiler and no kernel headers are in the image"""
    names = ("gcc", "gcc-[0-9]*", "cc", "clang", "clang-[0-9]*", "make", "dkms")
    tools = find(*(f"{place}/{name}" for place in ("/usr/bin", "/usr/sbin", "/usr/local/bin") for name in names))
    headers = find("/usr/src/linux-headers-*", "/lib/modules/*/build")
    expect(not tools, "no compiler, no make, no dkms", ", ".join(tools))
    expect(not headers, "no kernel headers", ", ".join(headers))
