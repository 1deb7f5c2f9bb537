"""A run directory in use: locked, its signals heard, and the pool of processes that works in it.

Knows nothing about what is made in it.
"""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moesaic.errors import RecipeError
from moesaic.files import disk, lock
from moesaic.runs.jobs import Jobs
from moesaic.runs.progress import Progress
from moesaic.runs.signals import listening
from moesaic.runs.tensorboard import Recorder
from moesaic.train.ranks import world_size


@contextmanager
def working(root: Path, workers: int, progress: Progress) -> Iterator[tuple[Progress, Jobs]]:
    """Lock a run directory and start its pool of processes; also gives the progress that records their steps.

    Where all trainings are finished, no folder of their states is left.
    """
    if multiprocessing.parent_process() is not None:
        hint = 'call it under `if __name__ == "__main__":`, because processes of the pool import the script again'
        raise RecipeError("a run was started while a process of its own pool was starting", hint=hint)
    once = world_size() > 1  # torchrun passes on what its processes have heard from a terminal
    with listening(once), lock(root), Recorder(root, progress) as shown, Jobs(workers, shown) as jobs:
        yield shown, jobs
        if not any(path.is_file() for path in (root / "checkpoints").rglob("*")):
            disk.remove(root / "checkpoints")
