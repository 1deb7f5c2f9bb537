"""`study`: prints the verdict of a study, a line for each comparison, and the place of its page.

Knows nothing about how arms are compared.
"""

from pathlib import Path
from typing import Any

from rich.table import Table

from moesaic.cli.printing import harmless, stdout


def show_study(study: dict[str, Any], root: Path) -> None:
    """Print the figures of a study."""
    console = stdout()
    verdict = study["verdict"]
    console.print(harmless(verdict["sentence"]))
    console.print(comparisons(study))
    for reason in verdict["reasons"]:
        console.print(harmless(reason))
    console.print(f"page: {root / 'result' / 'index.html'}")


def comparisons(study: dict[str, Any]) -> Table:
    """A row for each arm and matching, with its difference in bits per byte and its interval."""
    table = Table(box=None, pad_edge=False)
    for title in ("arm", "at equal", "bits per byte", "interval", "verdict"):
        table.add_column(title, justify="right" if title in ("bits per byte", "interval") else "left")
    for one in study["comparisons"]:
        known = "mean" in one
        mean = f"{one['mean']:+.4f}" if known else ""
        interval = f"[{one['low']:+.4f}, {one['high']:+.4f}]" if known else ""
        told = f"{one['outcome']}: {one['why']}" if one["why"] else one["outcome"]
        table.add_row(harmless(one["arm"]), study["matchings"][one["matching"]]["title"], mean, interval, told)
    return table
