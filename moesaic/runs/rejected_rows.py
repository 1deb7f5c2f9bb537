"""The list of a run's rows that were left out, file by file, written before anything is made from the others.

Knows nothing about what makes a row bad, nor about the use of rows.
"""

from collections.abc import Callable
from typing import Any

from moesaic.data.rejects import Rejects
from moesaic.files import disk, write_bytes
from moesaic.files.plain import encoded
from moesaic.runs.directory import RunDir
from moesaic.runs.progress import Progress

Files = dict[str, dict[str, Any]]
"""The rows of every file: read, used, and skipped by reason."""


def take_stock(run: RunDir, rejects: Rejects, read: Callable[[], Files], progress: Progress) -> None:
    """Where bad rows are skipped, read every text that the recipe names and list the bad rows; drop an older list.

    All texts are read before any work, so that the list is complete and too many bad rows cost no training. `read`
    reads every file and counts its rows; `rejects` collects the bad ones meanwhile.
    """
    at = run.rejects_at
    if run.recipe.bad_rows == "stop":
        disk.remove(at)
        return
    try:
        files = read()
    finally:  # the error about too many rows refers to the list
        if listed := rejects.listed():
            named = [{**reject, "path": run.from_data(reject["path"])} for reject in listed]
            write_bytes(at, b"".join(encoded(reject) for reject in named))
        else:
            disk.remove(at)
    for path, rows in files.items():
        if bad := rows["read"] - rows["used"]:
            progress.note(f"{bad} of {rows['read']} rows of {path} skipped: see {at.name}")
