"""Who claims an image in Glance, and when it goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from harness.cloud import glance
from harness.cloud.removal import Removal
from harness.resources import Resource

OURS, THEIRS = "0123456789ab", "ba9876543210"
RUN, OTHER = "20260101-000000-relay-beef", "20260101-000001-relay-cafe"


def an_image(*tags: str, owner: str = OURS) -> Any:
    return SimpleNamespace(id="1", name="relay", tags=["dialtone", *tags],
                           properties={"dialtone_owner": owner, "dialtone_run": RUN})


class Images:
    """An image service with one image; it notes what is asked of it."""

    name = "lab"

    def __init__(self, image: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.image = image
        self.asked: list[str] = []
        monkeypatch.setattr(glance, "images_of", lambda api: self)

    def get(self, what: str, action: Callable[[], Any]) -> Any:
        return action()

    def images(self, **query: str) -> list[Any]:
        return [self.image]

    def remove_tag(self, image: Any, tag: str) -> None:
        self.asked.append(f"untag {tag}")

    def delete_image(self, image: str, **_: bool) -> None:
        self.asked.append("delete")

    def release(self, data: Mapping[str, str]) -> list[str]:
        Removal(self).removers["os-image"](Resource("os-image", "relay", data))  # type: ignore[arg-type]
        return self.asked


@pytest.mark.parametrize(("tags", "owner", "users"), [
    ((f"run:{OURS}:{RUN}", f"run:{OURS}:{OTHER}"), OURS, [RUN, OTHER]),
    ((f"run:{OURS}:{OTHER}",), THEIRS, [OTHER]),
    ((f"run:{OURS}:{OTHER}", f"run:{THEIRS}:{RUN}"), OURS, [OTHER]),
    ((f"run:{THEIRS}:{RUN}",), OURS, []),
    ((), OURS, [RUN]),
    ((), THEIRS, []),
])
def test_only_claims_of_our_own_are_swept(tags: tuple[str, ...], owner: str, users: list[str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    image = an_image(*tags, owner=owner)
    assert glance.users(image, OURS) == users
    api: Any = Images(image, monkeypatch)
    assert glance.of_owner(api, OURS) == ([image] if users else [])


@pytest.mark.parametrize(("tags", "asked"), [
    ((f"run:{OURS}:{RUN}",), [f"untag run:{OURS}:{RUN}", "delete"]),
    ((f"run:{OURS}:{RUN}", f"run:{OURS}:{OTHER}"), [f"untag run:{OURS}:{RUN}"]),
    ((f"run:{OURS}:{RUN}", f"run:{THEIRS}:{RUN}"), [f"untag run:{OURS}:{RUN}"]),
    ((f"run:{THEIRS}:{RUN}",), []),
])
def test_an_image_goes_with_the_last_claim_of_anybody(tags: tuple[str, ...], asked: list[str],
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(an_image(*tags), monkeypatch)
    assert images.release({"cloud": "lab", "run": RUN, "owner": OURS}) == asked


def test_a_journal_that_names_no_owner_releases_a_claim_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    images = Images(an_image(f"run:{RUN}"), monkeypatch)
    assert images.release({"cloud": "lab", "run": RUN}) == [f"untag run:{RUN}", "delete"]
