"""What is told of a run's texts before anything is made from them: the rows that were left out, file by file.

Knows nothing about what makes a row bad, nor which rows are for what.
"""

from typing import Any, Protocol, runtime_checkable

from moesaic.data.rejects import Rejects
from moesaic.files import disk, write_bytes
from moesaic.files.plain import encoded
from moesaic.runs.directory import RunDir
from moesaic.runs.progress import Progress


@runtime_checkable
class Texts(Protocol):
    """The texts of a run, as far as their bad rows are concerned."""

    rejects: Rejects

    @property
    def files(self) -> dict[str, dict[str, Any]]:
        """The rows read, used, and skipped by reason of every file; all of them are read."""


def take_stock(run: RunDir, materials: Texts, progress: Progress) -> None:
    """Where bad rows are skipped, read every text that the recipe names and list those rows; a list that is old goes.

    All at once and first, so that the list is whole whatever is made next, and too many of them cost no training.
    """
    at = run.rejects_at
    if run.recipe.bad_rows == "stop":
        disk.remove(at)
        return
    try:
        files = materials.files
    finally:  # of too many, too, as the error says to look there
        rejects = materials.rejects.listed()
        if rejects:
            write_bytes(at, b"".join(encoded(reject) for reject in rejects))
        else:
            disk.remove(at)
    for path, rows in files.items():
        if bad := rows["read"] - rows["used"]:
            progress.note(f"{bad} of {rows['read']} rows of {path} skipped: see {at.name}")
