"""What is measured as a process of its own, from its start to its end.

    python -m harness.bench.alone upload PROJECT APPLIANCE RUN    as the run whose directory is RUN
    python -m harness.bench.alone die PROJECT APPLIANCE

The settings come from DIALTONE_*; the image is the one that is built.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from harness.access import keys
from harness.appliance import Appliance, load, select
from harness.cloud.choose import choose
from harness.deadline import Deadline
from harness.errors import DescriptionError
from harness.image.build import Image, built
from harness.progress import Progress
from harness.run import Run
from harness.settings import Settings
from harness.stages import Work, server_spec


def upload(settings: Settings, appliance: Appliance, image: Image, run: Run) -> None:
    """Make the image known to the cloud."""
    Work(settings, appliance, choose(settings), run, Progress()).upload(image)


def die(settings: Settings, appliance: Appliance, image: Image) -> None:
    """Launch a server as a run, and be killed as soon as it is ACTIVE."""
    cloud = choose(settings)
    run = Run.create(settings.runs, appliance.name, cloud.name)
    known = Work(settings, appliance, cloud, run, Progress()).upload(image)
    cloud.launch(run, [server_spec(settings, appliance, run, known, keys.create(run).public, "server1")],
                 Deadline(600))
    os.kill(os.getpid(), signal.SIGKILL)


def main(what: str, project: str, name: str, *directories: str) -> None:
    settings = Settings.load(Path(project))
    appliance = select(load(settings.appliances), name)
    image = built(appliance, settings)
    if image is None:
        raise DescriptionError(f"there is no image of {name}")
    if what == "upload":
        upload(settings, appliance, image, Run.open(Path(directories[0])))
    else:
        die(settings, appliance, image)


if __name__ == "__main__":
    main(*sys.argv[1:])
