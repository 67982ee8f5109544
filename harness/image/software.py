"""Looks at what must be in an image: its kernel, the relay or the proxy, and what configures them at boot."""

from __future__ import annotations

import posixpath
import re
import stat
from collections import deque

from harness import relayoptions
from harness.deadline import Deadline
from harness.image import configuration, elf, signing
from harness.image.finding import Check, Expectation, Seen, all_of, equal, few, none_of
from harness.image.packages import installed
from harness.image.root import Root

DAEMON = "/usr/sbin/rtpengine"
LIBRARIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib")
LOG = "/var/log/rtpengine.log"
PROXY_LOG = "/var/log/opensips.log"
PROXY_CONFIGURATION = "/etc/opensips/opensips.cfg"
PROXY_BUILT_IN = ("proto_udp.so", "proto_tcp.so")
"""What is loaded like modules and is a part of OpenSIPS itself (net/ in its source)."""
NOTRACK = "/etc/conntrack/notrack.rules"
_REBUILD = "./inv build --force builds it again"


def extension_paths(root: Root) -> list[str]:
    """The relay's extensions in the directories in which iptables looks for them."""
    return [f"{directory}/xtables/{name}" for directory in LIBRARIES for name in root.names(f"{directory}/xtables")
            if re.fullmatch(r"lib.*_RTPENGINE\.so", name)]


def kernels(root: Root, expect: Expectation) -> Seen:
    seen = [name.removeprefix("vmlinuz-") for name in root.names("/boot") if name.startswith("vmlinuz-")]
    return equal(expect.kernel, ", ".join(seen), hint=_REBUILD)


def boot_files(root: Root, expect: Expectation) -> Seen:
    menu = root.text("/boot/grub/grub.cfg")
    started = dict.fromkeys(re.findall(r"^\s*linux\s+\S*/vmlinuz-(\S+)", menu, re.MULTILINE))
    initrds = dict.fromkeys(re.findall(r"^\s*initrd\s+\S*/initrd\.img-(\S+)", menu, re.MULTILINE))
    there = root.exists(f"/boot/initrd.img-{expect.kernel}")
    seen = f"kernel {few(started) or 'none'}, initrd {few(initrds) or 'none'}{'' if there else ' (no such file)'}"
    return Seen(there and [*started] == [*initrds] == [expect.kernel],
                f"kernel {expect.kernel}, initrd {expect.kernel}", seen, hint=_REBUILD)


def kernel_held(root: Root, expect: Expectation) -> Seen:
    packages = [p for p in installed(root) if p.name.startswith("linux-image-")]
    free = [p.name for p in packages if not p.held]
    if not packages:
        return Seen(False, "held" if expect.kernel_held else "not held", "no kernel package is installed")
    if not expect.kernel_held:
        held = [p.name for p in packages if p.held]
        return Seen(not held, "none held", f"held: {few(held)}" if held else "none held",
                    hint="kernel_upgrades: follow in appliances.yaml; apt-mark unhold")
    return Seen(not free, f"held: {few(p.name for p in packages)}", f"not held: {few(free)}" if free else "all held",
                because="an upgrade would bring a kernel without the relay's module" if expect.relay else "",
                hint="apt-mark hold, in elements/voip-appliance/post-install.d")


def module_trees(root: Root, expect: Expectation) -> Seen:
    return equal(expect.kernel, ", ".join(root.names("/usr/lib/modules")),
                 hint="modules of another kernel cannot be loaded; " + _REBUILD)


def vermagic(root: Root, expect: Expectation) -> Seen:
    assert expect.relay
    module = expect.relay.generation.module
    path = expect.relay.generation.module_path(expect.kernel)
    elsewhere = [p for p in root.files("/usr/lib/modules") if p.rsplit("/", 1)[1].startswith(f"{module}.ko")]
    if path not in elsewhere:
        return Seen(False, path, few(elsewhere) or "no such module", hint=_REBUILD)
    with root.open(path) as file:
        magic = elf.modinfo(file).get("vermagic", "")
    return equal(expect.kernel, magic.split(" ")[0], because=f"the kernel refuses a module whose vermagic is {magic!r}",
                 hint="./inv build --force compiles it for the image's kernel")


def signature(root: Root, expect: Expectation) -> Seen:
    assert expect.certificate and expect.relay
    path = expect.relay.generation.module_path(expect.kernel)
    good = signing.signed_by(root.read(path), expect.certificate, Deadline(60))
    return Seen(good, f"signed by the key of {expect.certificate.name}", "so" if good else "not so",
                because="with Secure Boot on the kernel refuses it", hint=_REBUILD)


def module_index(root: Root, expect: Expectation) -> Seen:
    assert expect.relay
    directory = f"/usr/lib/modules/{expect.kernel}"
    entry = f"extra/{expect.relay.generation.module}.ko:"
    line = next((line for line in root.text(f"{directory}/modules.dep").splitlines() if line.startswith(entry)), None)
    if line is None or entry.encode() not in root.read(f"{directory}/modules.dep.bin"):
        return Seen(False, f"{entry[:-1]} in modules.dep", "not in modules.dep" if line is None
                    else "not in modules.dep.bin", because="modprobe finds modules by this index", hint="depmod -a")
    missing = [path for path in line.partition(":")[2].split() if not root.exists(f"{directory}/{path}")]
    return Seen(not missing, f"{entry[:-1]} and all that it depends on", f"without {few(missing)}" if missing
                else f"all of {len(line.split())} modules", hint=_REBUILD)


def module_at_boot(root: Root, expect: Expectation) -> Seen:
    assert expect.relay
    module = expect.relay.generation.module
    states = {True: f"{module} is loaded", False: f"{module} is not loaded"}
    return equal(states[expect.relay.table >= 0], states[module in configuration.modules_loaded(root)],
                 hint="a file in /etc/modules-load.d names it; table = -1 is without the module")


def programs(root: Root, expect: Expectation) -> Seen:
    assert expect.relay
    wanted = expect.relay.generation.extension
    extensions = extension_paths(root)
    daemon = [DAEMON] if root.exists(DAEMON) and root.lstat(DAEMON).st_mode & 0o111 == 0o111 else []
    good = daemon and [posixpath.basename(path) for path in extensions] == ([wanted] if wanted else [])
    return Seen(bool(good), f"{DAEMON} to execute, {f'one {wanted}' if wanted else 'no extension'} for iptables",
                few((*daemon, *extensions)) or "neither", hint=_REBUILD)


def shared_libraries(root: Root, expect: Expectation) -> Seen:
    queue = deque(path for path in (DAEMON, *extension_paths(root)) if root.exists(path))
    if not queue:
        return Seen(False, "every shared library is there", "neither daemon nor extension is there", hint=_REBUILD)
    known: set[str] = set()
    missing = []
    while queue:
        path = queue.popleft()
        with root.open(path) as file:
            dynamic = elf.dynamic(file)
        wanted = [name for name in dict.fromkeys((*dynamic.needed, dynamic.interpreter)) if name and name not in known]
        known.update(wanted)
        own = [d.replace("$ORIGIN", posixpath.dirname(path)) for d in dynamic.search]
        for name in wanted:
            candidates = [name] if name.startswith("/") else [f"{d}/{name}" for d in (*own, *LIBRARIES)]
            found = next((candidate for candidate in candidates if root.exists(candidate)), None)
            if found:
                queue.append(found)
            else:
                missing.append(f"{name} (for {posixpath.basename(path)})")
    return Seen(not missing, "every shared library is there", f"missing: {few(missing)}" if missing
                else f"all {len(known)} are there", hint="the artifact names the packages that bring its libraries")


def units(root: Root, expect: Expectation) -> Seen:
    own = [*(["rtpengine.service"] if expect.relay else []), *(["opensips.service"] if expect.proxy else [])]
    wanted = ["ssh.service", *own, *(["rsyslog.service"] if own else [])]
    return all_of(wanted, configuration.enabled_units(root), hint="systemctl enable, in post-install.d of the element")


def redis_unit(root: Root, expect: Expectation) -> Seen:
    assert expect.relay
    states = {True: "enabled", False: "not enabled"}
    return equal(states[expect.relay.redis_here], states["redis-server.service" in configuration.enabled_units(root)],
                 hint="rtpengine.redis in appliances.yaml says whether Redis runs on the appliance")


def relay_configuration(root: Root, expect: Expectation) -> Seen:
    assert expect.relay
    wanted = {"table": str(expect.relay.table), "no-fallback": str(expect.relay.no_fallback).lower(),
              "port-min": str(expect.relay.port_min), "port-max": str(expect.relay.port_max),
              "log-level": str(expect.relay.log_level), "log-facility": expect.relay.log_facility,
              "tos": str(expect.relay.tos), "endpoint-learning": expect.relay.endpoint_learning,
              "listen-ng port": str(expect.relay.ng_port), "redis": expect.relay.redis_endpoint or "not set"}
    try:
        options = relayoptions.of_file(root.text("/etc/rtpengine/rtpengine.conf"))
    except ValueError as error:
        return Seen(False, "/etc/rtpengine/rtpengine.conf with a section [rtpengine]", str(error))
    if gone := relayoptions.outdated(options):
        return Seen(False, "no option of old manuals", few(option.written for option in gone),
                    hint="write " + few(dict.fromkeys(option.instead for option in gone)))
    seen = {"redis": "not set"} | {name: values[-1] for name, values in options.items()}
    seen["listen-ng port"] = seen.get("listen-ng", "").rpartition(":")[2]
    return _compared(wanted, seen, "rtpengine in appliances.yaml and /etc/rtpengine/rtpengine.conf disagree")


def _compared(wanted: dict[str, str], seen: dict[str, str], hint: str) -> Seen:
    wrong = [key for key, value in wanted.items() if seen.get(key) != value]
    return Seen(not wrong, few(f"{key} = {wanted[key]}" for key in wrong) if wrong else f"{len(wanted)} settings",
                few(f"{key} = {seen.get(key, 'not set')}" for key in wrong) if wrong else f"{len(wanted)} settings",
                hint=hint)


def log_rule(root: Root, expect: Expectation) -> Seen:
    assert expect.relay
    return _logged(root, expect.relay.log_facility, LOG)


def proxy_log_rule(root: Root, expect: Expectation) -> Seen:
    assert expect.proxy
    return _logged(root, expect.proxy.log_facility, PROXY_LOG)


def _logged(root: Root, facility: str, log: str) -> Seen:
    rule = re.compile(rf"^\s*{re.escape(facility)}\.\*\s+-?{re.escape(log)}\s*$", re.MULTILINE)
    files = ["/etc/rsyslog.conf", *(f"/etc/rsyslog.d/{n}" for n in root.names("/etc/rsyslog.d") if n.endswith(".conf"))]
    seen = [path for path in files if root.exists(path) and rule.search(root.text(path))]
    return Seen(bool(seen), f"{facility}.* to {log}", few(seen) or "no such rule", hint="a file in /etc/rsyslog.d")


def log_rotation(root: Root, expect: Expectation) -> Seen:
    return _rotated(root, LOG)


def proxy_log_rotation(root: Root, expect: Expectation) -> Seen:
    return _rotated(root, PROXY_LOG)


def _rotated(root: Root, log: str) -> Seen:
    seen = [f"/etc/logrotate.d/{name}" for name in root.names("/etc/logrotate.d")
            if re.search(rf"^[^#\n]*{re.escape(log)}\b", root.text(f"/etc/logrotate.d/{name}"), re.MULTILINE)]
    return Seen(bool(seen), f"{log} is rotated", few(seen) or "no rule", hint="a file in /etc/logrotate.d")


def proxy_packages(root: Root, expect: Expectation) -> Seen:
    assert expect.proxy
    wanted = ("opensips", "opensips-http-modules", *expect.proxy.packages)
    versions = {package.name: package.version for package in installed(root)}
    return all_of([f"{name} {expect.proxy.version}" for name in wanted],
                  [f"{name} {version}" for name, version in versions.items()],
                  because=", ".join(f"{name} is {versions.get(name, 'not installed')}" for name in wanted
                                    if versions.get(name) != expect.proxy.version),
                  hint="opensips.version in appliances.yaml is the version of its packages; " + _REBUILD)


def proxy_configuration(root: Root, expect: Expectation) -> Seen:
    assert expect.proxy
    proxy = expect.proxy
    text = root.text(PROXY_CONFIGURATION)
    wanted = {
        "socket": f"tcp:*:{proxy.port}, udp:*:{proxy.port}", "log_level": str(proxy.log_level),
        "syslog_facility": f"LOG_{proxy.log_facility.upper()}", "event_shm_threshold": str(proxy.shared_threshold),
        "event_pkg_threshold": str(proxy.private_threshold), "reqs_density_per_unit": str(proxy.pike_density),
        "sampling_time_unit": str(proxy.pike_seconds), "socket_name": "udp:127.0.0.1:8080", "ip": "127.0.0.1",
        "relays": " ".join(proxy.relays), "domains": " ".join(proxy.domains),
    }
    values: dict[str, list[str]] = {}
    for parameter, setting, given, value in re.findall(
            r'^(?:modparam\("\w+", *"(\w+)", *|(\w+) *= *)(?:"([^"]*)"|([^\s")]+))', text, re.MULTILINE):
        values.setdefault(parameter or setting, []).append(given or value)
    seen = {name: ", ".join(sorted(found)) for name, found in values.items()}
    seen |= {name: " ".join(root.text(f"/etc/opensips/{name}").split()) for name in ("relays", "domains")}
    return _compared(wanted, seen, f"opensips in appliances.yaml and {PROXY_CONFIGURATION} disagree")


def proxy_modules(root: Root, expect: Expectation) -> Seen:
    text = root.text(PROXY_CONFIGURATION)
    path = re.search(r'^mpath="(.*?)/?"', text, re.MULTILINE)
    wanted = [name for name in re.findall(r'^loadmodule "(.*?)"', text, re.MULTILINE) if name not in PROXY_BUILT_IN]
    return all_of(wanted, root.names(path[1]) if path else [],
                  hint="opensips.packages in appliances.yaml names those that bring further modules")


def conntrack_module(root: Root, expect: Expectation) -> Seen:
    return all_of(["nf_conntrack"], configuration.modules_loaded(root),
                  because="systemd-sysctl passes over keys of a module that is not loaded",
                  hint="a file in /etc/modules-load.d names it")


def conntrack_buckets(root: Root, expect: Expectation) -> Seen:
    assert expect.conntrack
    seen = configuration.module_options(root, "nf_conntrack").get("hashsize", "")
    return equal(f"hashsize={expect.conntrack.buckets}", f"hashsize={seen or 'not set'}",
                 hint="options nf_conntrack hashsize=N, in /etc/modprobe.d")


def conntrack_sysctls(root: Root, expect: Expectation) -> Seen:
    assert expect.conntrack
    # The number of buckets is the module's parameter, looked at by itself.
    wanted = {k: v for k, v in expect.conntrack.sysctls.items() if k != "net.netfilter.nf_conntrack_buckets"}
    return _compared(wanted, configuration.sysctls(root), "the plan and the files in /etc/sysctl.d disagree")


def untracked_ports(root: Root, expect: Expectation) -> Seen:
    assert expect.conntrack
    wanted = f"{expect.relay.port_min}:{expect.relay.port_max}" if expect.relay and expect.stateless else "none"
    rules = root.text(NOTRACK) if "conntrack-notrack.service" in configuration.enabled_units(root) else ""
    seen = dict.fromkeys(re.findall(r"-p udp .*--[ds]port (\S+) -j CT --notrack$", rules, re.MULTILINE))
    return equal(wanted, few(seen) or "none",
                 hint="conntrack.stateless in appliances.yaml says whether the relay's ports are tracked")


def datasources(root: Root, expect: Expectation) -> Seen:
    seen = configuration.cloud_init(root).get("datasource_list")
    return equal(", ".join(expect.datasources), ", ".join(map(str, seen)) if isinstance(seen, list) else str(seen),
                 hint="datasource_list in /etc/cloud/cloud.cfg.d; the last file in alphabetical order wins")


def cloud_init_enabled(root: Root, expect: Expectation) -> Seen:
    switches = [path for path in ("/etc/cloud/cloud-init.disabled",) if root.exists(path)]
    if switches:
        return none_of("switch that disables cloud-init", switches)
    return all_of((expect.release.cloud_init, *expect.release.stages), configuration.enabled_units(root),
                  hint="systemctl enable, in elements/voip-appliance/post-install.d")


def world_writable(root: Root, expect: Expectation) -> Seen:
    found = [path for path, status in root.walk("/etc")
             if not stat.S_ISLNK(status.st_mode) and status.st_mode & stat.S_IWOTH]
    return none_of("configuration that everybody may change", found)


SYSTEM_CHECKS = (
    Check("exactly one kernel", kernels),
    Check("the boot menu starts that kernel", boot_files),
    Check("kernel packages are held as described", kernel_held),
    Check("modules of that kernel only", module_trees),
    Check("units are enabled", units),
    Check("cloud-init is enabled", cloud_init_enabled),
    Check("cloud-init data sources as described", datasources),
    Check("configuration is root's alone to change", world_writable),
)
RELAY_CHECKS = (
    Check("the relay's module is for that kernel", vermagic),
    Check("modprobe finds the relay's module", module_index),
    Check("the relay's module is loaded at boot", module_at_boot),
    Check("the relay's programs are in place", programs),
    Check("their shared libraries are in place", shared_libraries),
    Check("Redis as described", redis_unit),
    Check("rtpengine.conf as described", relay_configuration),
    Check("the relay logs to its own file", log_rule),
    Check("the relay's log is rotated", log_rotation),
)
SIGNATURE_CHECKS = (
    Check("the relay's module is signed", signature),
)
PROXY_CHECKS = (
    Check("OpenSIPS in the described version", proxy_packages),
    Check("opensips.cfg as described", proxy_configuration),
    Check("every module that opensips.cfg loads is in place", proxy_modules),
    Check("the proxy logs to its own file", proxy_log_rule),
    Check("the proxy's log is rotated", proxy_log_rotation),
)
CONNTRACK_CHECKS = (
    Check("nf_conntrack is loaded before its settings", conntrack_module),
    Check("conntrack hash size as planned", conntrack_buckets),
    Check("conntrack settings as planned", conntrack_sysctls),
    Check("UDP ports without connection tracking as described", untracked_ports),
)
