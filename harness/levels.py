"""How much is checked on a server."""

from __future__ import annotations

from enum import StrEnum

from harness.errors import DescriptionError


class Level(StrEnum):
    """Each level runs its own checks and those of the levels before it.

    BASIC looks at the server, ACCEPTANCE uses it as its users will: calls with media. LOAD measures how many.
    """

    BASIC = "basic"
    ACCEPTANCE = "acceptance"
    LOAD = "load"

    @classmethod
    def named(cls, name: str) -> Level:
        """Raises DescriptionError where there is no such level."""
        if name not in list(cls):
            raise DescriptionError(f"--level is {name!r}", hint=f"it can be {' or '.join(cls)}")
        return cls(name)

    @property
    def rank(self) -> int:
        return list(Level).index(self)

    @property
    def after_reboot(self) -> Level:
        """What a night checks after the reboot: load is measured once, it takes minutes."""
        return Level.ACCEPTANCE if self is Level.LOAD else self
