"""What differs between the releases of Debian that images are made of, as far as an image and its checks show it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """`cloud_init` is the unit whose one process runs all stages of cloud-init, `ran` its status text when they all
    ran; `stages` are the units of the stages."""

    cloud_init: str
    ran: str
    stages: tuple[str, ...]


_ONE_PROCESS = Release(
    cloud_init="cloud-init-main.service", ran="Completed",
    stages=("cloud-init-local.service", "cloud-init-network.service", "cloud-config.service", "cloud-final.service"))
"""From 24.3 on cloud-init runs its stages in one process itself."""

RELEASES = {
    "bookworm": Release(
        cloud_init="cloud-init-stages.service",
        ran="cloud-init ran here: init --local, init, modules --mode=config, modules --mode=final",
        stages=("cloud-init-local.service", "cloud-init.service", "cloud-config.service", "cloud-final.service")),
    "trixie": _ONE_PROCESS,
    "forky": _ONE_PROCESS,
}
