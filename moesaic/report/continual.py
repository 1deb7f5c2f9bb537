"""The comparison of strategies of continual learning as a page.

Knows nothing about how the strategies were trained or scored: everything comes from continual.json.
"""

from pathlib import Path
from typing import Any

from moesaic.files import read_sealed, write_bytes
from moesaic.report.charts import Curve, curves, dash_of
from moesaic.report.figures import Figures
from moesaic.report.page import FOLDER, filled_in

FILE, PAGE = "continual.json", "continual.html"


def write_continual(run: Path) -> Path:
    """Write the page of a run's comparison, and return its path."""
    found = read_sealed(run / FILE)
    page = filled_in(
        "continual.html",
        run / FILE,
        found=found,
        figure=Figures(found, FILE),
        lines=[(name, number, dash_of(number)) for number, name in enumerate(found["strategies"])],
        chart=curves([line(found, name, number) for number, name in enumerate(found["strategies"])], "nats", "tasks"),
    )
    path = run / FOLDER / PAGE
    write_bytes(path, page.encode())
    return path


def line(found: dict[str, Any], strategy: str, number: int) -> Curve:
    """The mean of the nats on all tasks, before the first and after each."""
    rows = [found["before"]["nats"], *found["strategies"][strategy]["nats"]]
    return Curve([*range(len(rows))], [sum(row) / len(row) for row in rows], (), number)
