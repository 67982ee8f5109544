"""Which Debian mirrors to use: those of this machine's own apt configuration, or of the settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HostError
from harness.process import run
from harness.settings import Settings

APT = Path("/etc/apt")
DEFAULT_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


@dataclass(frozen=True)
class Entry:
    """One source of packages as apt knows it (sources.list(5)); `keyring` is None where apt's own is used."""

    uri: str
    suites: tuple[str, ...]
    components: tuple[str, ...]
    keyring: Path | None = None


@dataclass(frozen=True)
class AptMirrors:
    """`main` serves the release and its updates, `security` the release's security suite."""

    main: str
    security: str
    keyring: Path | None = None
    further: tuple[Entry, ...] = ()
    """Sources of binary packages besides Debian's."""
    accept_expired: bool = False
    """Whether a Release file may be used after its Valid-Until."""

    def sources(self, release: str, *, source_packages: bool = False) -> str:
        """The text of a sources.list for `release`: what mmdebstrap reads from its standard input.

        Whether dates are compared is said in every line: this machine's apt may be told to let them be.
        """
        dates = f"check-date=yes check-valid-until={'no' if self.accept_expired else 'yes'}"
        option = f"[{dates}{f' signed-by={self.keyring}' if self.keyring else ''}] "
        suites = ((self.main, release), (self.main, f"{release}-updates"), (self.security, f"{release}-security"))
        kinds = ("deb", "deb-src") if source_packages else ("deb",)
        own = "".join(f"{kind} {option}{uri} {suite} main\n" for kind in kinds for uri, suite in suites)
        others = ((f"deb [{dates} signed-by={entry.keyring}] {entry.uri}", suite, " ".join(entry.components))
                  for entry in self.further for suite in entry.suites)
        return own + "".join(f"{' '.join(words)}\n" for words in others)


def apt_mirrors(settings: Settings, release: str = "bookworm", apt: Path = APT) -> AptMirrors:
    """The mirrors to use for `release`. A machine that runs another release serves this one from the same mirror.

    That this machine's apt compares no dates holds for its own mirrors, not for those that the settings name.
    Raises HostError where neither the settings nor the configuration below `apt` name one.
    """
    found = list(entries(apt))
    main = settings.mirror or _first(found, "", release)
    security = settings.security_mirror or _first(found, "-security", release)
    for kind, url, setting in (("Debian", main, "mirror"), ("Debian security", security, "security_mirror")):
        if not url:
            raise HostError(f"no {kind} mirror is configured in {apt}",
                            hint=f"name it in dialtone.toml ({setting}) or in {apt}/sources.list")
    keyrings = [e.keyring for e in found if e.keyring and e.uri.rstrip("/") == main.rstrip("/")]
    keyring = keyrings[0] if keyrings else DEFAULT_KEYRING
    named = settings.mirror or settings.security_mirror
    accept = settings.expired_mirrors == "accept" if settings.expired_mirrors or named else accepts_expired()
    return AptMirrors(main.rstrip("/"), security.rstrip("/"), keyring if keyring.exists() else None,
                      accept_expired=accept)


def accepts_expired() -> bool:
    """Whether this machine's apt is told to compare no dates (Acquire::Check-Valid-Until, apt.conf(5))."""
    return "V='false'" in run(["apt-config", "shell", "V", "Acquire::Check-Valid-Until/b"]).stdout.splitlines()


def entries(apt: Path = APT) -> Iterator[Entry]:
    """All enabled sources of binary packages below `apt`, one-line style first, in apt's order."""
    lists = [apt / "sources.list", *sorted((apt / "sources.list.d").glob("*.list"))]
    for file in lists:
        if file.is_file():
            yield from one_line(file.read_text(encoding="utf-8", errors="replace"))
    for file in sorted((apt / "sources.list.d").glob("*.sources")):
        yield from deb822(file.read_text(encoding="utf-8", errors="replace"))


def one_line(text: str) -> Iterator[Entry]:
    """Entries of a .list file: `deb [option=value ...] uri suite component...`."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<rest>[^#]*)", line)
        if match:
            signed = re.search(r"signed-by=(\S+)", match["options"] or "")
            yield Entry(match["uri"], (match["suite"],), tuple(match["rest"].split()),
                        _keyring(signed[1] if signed else ""))


def deb822(text: str) -> Iterator[Entry]:
    """Entries of a .sources file: paragraphs of fields, a field goes on in lines that begin with a blank."""
    for fields in _paragraphs(text.splitlines()):
        enabled = fields.get("enabled", "yes").lower() not in {"no", "false", "0"}
        if enabled and "deb" in fields.get("types", "").split():
            for uri in fields.get("uris", "").split():
                yield Entry(uri, tuple(fields.get("suites", "").split()), tuple(fields.get("components", "").split()),
                            _keyring(fields.get("signed-by", "")))


def _paragraphs(lines: Iterable[str]) -> Iterator[dict[str, str]]:
    fields: dict[str, str] = {}
    last = ""
    for line in [*lines, ""]:
        if line.startswith("#"):
            continue
        if not line.strip():
            if fields:
                yield fields
            fields, last = {}, ""
        elif line[0] in " \t" and last:
            fields[last] += "\n" + line.strip()
        elif ":" in line:
            name, value = line.split(":", 1)
            last = name.strip().lower()
            fields[last] = value.strip()


def _keyring(value: str) -> Path | None:
    """A Signed-By that names a file; a key in the field itself or a fingerprint is none."""
    first = value.split("\n")[0].strip()
    return Path(first) if first.startswith("/") else None


def _first(found: Iterable[Entry], suffix: str, release: str) -> str:
    """URI of the first entry whose suite is a Debian release's, with the wanted release preferred."""
    usable = [e for e in found if e.uri.startswith(("http://", "https://", "file:")) and "main" in e.components]
    for names in ((release,), _RELEASES):
        for entry in usable:
            if any(s.rstrip("/") == name + suffix for s in entry.suites for name in names):
                return entry.uri
    return ""


_RELEASES = ("bullseye", "bookworm", "trixie", "forky", "sid", "oldstable", "stable", "testing", "unstable")


def listed(uri: str) -> str:
    """How apt names the lists that it has from there (URItoFileName() in apt's strutl.cc), to their suite."""
    place = re.sub(r"^[a-z0-9+]+:(//([^/@]*@)?)?", "", uri).rstrip("/")
    quoted = re.sub(r"""[\\|{}\[\]<>"^~_=!@#$%&*\x00-\x20\x7f-\xff]""", lambda found: f"%{ord(found[0]):02x}", place)
    return quoted.replace("/", "_")
