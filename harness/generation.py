"""Generations of RTPEngine as data: what is compiled, what lies in an image, who makes the rules, what checks look for.

The generation follows from the version alone. Nobody but this module compares versions of RTPEngine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """The rule that hands UDP packets of one address family to the kernel module, in commands of a root shell.

    `show` prints `line` once where it is in force; `insert` may be carried out again, `delete` needs it to be there.
    """

    show: str
    line: str
    insert: str
    delete: str


@dataclass(frozen=True)
class Generation:
    """Versions from `first` to before `end`, compared by as many numbers as these have.

    `own_count` says whether the counts of a port in the module's list are its own; where not, they are shared with the
    daemon, which counts there what it forwards itself, and only the total of packets in the kernel is the module's.
    `extension` is the file of the iptables extension, empty where there is none. `maker` says who makes the rules: the
    service's `unit` before it starts the daemon, or the `daemon`, which puts them into the iptables chain `chain` (with
    `{table}` for the table; empty where the unit makes them). `files` are those of a forwarding table in
    /proc/rtpengine; `refusal` is what the daemon says last where it may not do without the module.

    `source` are files that its whole source has, `packages` Debian's packages that bring what the image needs of it
    (the kernel module's source, the daemon, the extension). `libraries` are, by Debian release, the packages that
    compiling its daemon without transcoding needs besides a compiler: a release that is not there is none for it.
    """

    first: tuple[int, ...]
    end: tuple[int, ...]
    module: str
    extension: str
    maker: str
    chain: str
    rule_template: Rule
    files: tuple[str, ...]
    own_count: bool
    refusal: str
    source: tuple[str, ...]
    packages: tuple[str, ...]
    libraries: Mapping[str, tuple[str, ...]]

    def module_path(self, kernel: str) -> str:
        """Where the module for the kernel release `kernel` lies in an image."""
        return f"/usr/lib/modules/{kernel}/extra/{self.module}.ko"

    def rule(self, family: str, table: int) -> Rule:
        """That of the address family `ip` or `ip6` and the module's table."""
        words = {"family": family, "iptables": f"{family}tables", "table": table,
                 "chain": self.chain.format(table=table)}
        template = self.rule_template
        return Rule(*(text.format(**words) for text in (template.show, template.line, template.insert,
                                                        template.delete)))

    def __str__(self) -> str:
        return f"{_dotted(self.first)} to before {_dotted(self.end)}"


_XTABLES = "-p udp -j RTPENGINE --id {table}"
_BY_UNIT = Rule(show="{iptables} -w -S INPUT", line=f"-A INPUT {_XTABLES}",
                insert=f"{{iptables}} -w -C INPUT {_XTABLES} 2>/dev/null || {{iptables}} -w -I INPUT {_XTABLES}",
                delete=f"{{iptables}} -w -D INPUT {_XTABLES}")
_OPTIONS = "/usr/sbin/rtpengine --table={table} --nftables-family={family}"
_BY_DAEMON = Rule(show=f"{_OPTIONS} --nftables-status", line="Netfilter rules check SUCCESSFUL",
                  insert=f"{_OPTIONS} --nftables-start", delete="{iptables} -w -F {chain}")

_LIBRARIES = ("libcurl4-openssl-dev", "libevent-dev", "libglib2.0-dev", "libhiredis-dev", "libiptc-dev",
              "libjson-glib-dev", "libpcap0.8-dev", "libssl-dev", "libsystemd-dev", "libwebsockets-dev",
              "libxtables-dev", "zlib1g-dev")

GENERATIONS = (
    Generation(
        first=(10, 5), end=(12,), module="xt_RTPENGINE", extension="libxt_RTPENGINE.so", maker="unit",
        chain="", rule_template=_BY_UNIT,
        files=("blist", "control", "list", "status"), own_count=True,
        refusal="fallback disallowed",
        source=("daemon/Makefile", "iptables-extension/Makefile", "kernel-module/xt_RTPENGINE.c"),
        packages=("rtpengine-kernel-dkms", "rtpengine-daemon", "rtpengine-iptables"),
        libraries={"bookworm": (*_LIBRARIES, "libpcre3-dev", "libxmlrpc-core-c3-dev")},
    ),
    Generation(
        first=(12,), end=(14, 1), module="xt_RTPENGINE", extension="", maker="daemon",
        chain="rtpengine", rule_template=_BY_DAEMON,
        files=("calls", "control", "list", "status"), own_count=False,
        refusal="Failed to create nftables chains or rules",
        source=("daemon/nftables.c", "kernel-module/xt_RTPENGINE.c"),
        packages=("rtpengine-kernel-dkms", "rtpengine-daemon"),
        libraries={"trixie": (*_LIBRARIES, "libmnl-dev", "libnftnl-dev", "libpcre2-dev", "libxmlrpc-core-c3-dev")},
    ),
    Generation(
        first=(14, 1), end=(27,), module="nft_rtpengine", extension="", maker="daemon",
        chain="rtpengine_{table}", rule_template=_BY_DAEMON,
        files=("calls", "control", "list", "status"), own_count=False,
        refusal="Failed to create nftables chains or rules",
        source=("daemon/nftables.c", "kernel-module/nft_rtpengine.c"),
        packages=("rtpengine-kernel-dkms", "rtpengine-daemon"),
        libraries={"forky": (*_LIBRARIES, "libjwt-dev", "libmariadb-dev", "libncurses-dev", "libopus-dev",
                             "libpcre2-dev")},
    ),
)


def of(version: str) -> Generation | None:
    """The generation of a full version of RTPEngine, like 12.5.1.31; None where none is known."""
    numbers = tuple(map(int, version.split(".")))
    return next((g for g in GENERATIONS if g.first <= numbers[:len(g.first)] and numbers[:len(g.end)] < g.end), None)


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
