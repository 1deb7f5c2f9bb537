"""What is told of a run's texts before anything is made from them: the rows that were left out, file by file.

Knows nothing about what makes a row bad, nor which rows are for what.
"""

from moesaic.files import disk, write_bytes
from moesaic.files.plain import encoded
from moesaic.runs.progress import Progress
from moesaic.runs.workshop import Workshop


def take_stock(workshop: Workshop, progress: Progress) -> None:
    """Where bad rows are skipped, read every text that the recipe names and list those rows; a list that is old goes.

    All at once and first, so that the list is whole whatever is made next, and too many of them cost no training.
    """
    at = workshop.rejects_at
    if workshop.recipe.bad_rows == "stop":
        disk.remove(at)
        return
    try:
        files = workshop.files
    finally:  # of too many, too, as the error says to look there
        rejects = workshop.rejects.listed()
        if rejects:
            write_bytes(at, b"".join(encoded(reject) for reject in rejects))
        else:
            disk.remove(at)
    for path, rows in files.items():
        if bad := rows["read"] - rows["used"]:
            progress.note(f"{bad} of {rows['read']} rows of {path} skipped: see {at.name}")
