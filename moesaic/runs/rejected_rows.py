"""What is told of a run's texts before anything is made from them: the rows that were left out, file by file.

Knows nothing about what makes a row bad, nor which rows are for what.
"""

from collections.abc import Callable
from typing import Any

from moesaic.data.rejects import Rejects
from moesaic.files import disk, write_bytes
from moesaic.files.plain import encoded
from moesaic.runs.directory import RunDir
from moesaic.runs.progress import Progress

Files = dict[str, dict[str, Any]]
"""The rows read, used, and skipped by reason of every file."""


def take_stock(run: RunDir, rejects: Rejects, read: Callable[[], Files], progress: Progress) -> None:
    """Where bad rows are skipped, read every text that the recipe names and list those rows; a list that is old goes.

    All at once and first, so that the list is whole whatever is made next, and too many of them cost no training.
    `read` reads every file and counts its rows; `rejects` collects the bad ones meanwhile.
    """
    at = run.rejects_at
    if run.recipe.bad_rows == "stop":
        disk.remove(at)
        return
    try:
        files = read()
    finally:  # of too many, too, as the error says to look there
        listed = rejects.listed()
        if listed:
            write_bytes(at, b"".join(encoded(reject) for reject in listed))
        else:
            disk.remove(at)
    for path, rows in files.items():
        if bad := rows["read"] - rows["used"]:
            progress.note(f"{bad} of {rows['read']} rows of {path} skipped: see {at.name}")
