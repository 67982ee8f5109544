"""What dpkg has installed in an image (deb-control(5), /var/lib/dpkg/status)."""

from __future__ import annotations

from dataclasses import dataclass

from harness.image.root import Root


@dataclass(frozen=True)
class Package:
    """`held`: an upgrade leaves it as it is (apt-mark hold)."""

    name: str
    version: str
    architecture: str
    held: bool


def installed(root: Root) -> tuple[Package, ...]:
    """Installed packages by name; removed ones whose configuration is left are not among them."""
    found = []
    for paragraph in root.text("/var/lib/dpkg/status").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        wanted, _, state = (fields.get("Status", "") + "  ").split(" ")[:3]
        if state == "installed":
            found.append(Package(fields["Package"], fields["Version"], fields["Architecture"], wanted == "hold"))
    return tuple(sorted(found, key=lambda p: (p.name, p.architecture)))
