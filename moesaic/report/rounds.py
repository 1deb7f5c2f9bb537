"""The rounds of a continuous training as pages, one for each day.

Knows nothing about how a round was trained: everything comes from its row in the log.
"""

from pathlib import Path
from typing import Any

from moesaic.files import read_jsonl, write_bytes
from moesaic.report.charts import Curve, curves, dash_of
from moesaic.report.figures import Figures
from moesaic.report.page import filled_in

LOG = "rounds.jsonl"


def write_day(folder: Path, day: str) -> Path:
    """Write the page of the rounds that ended on a day (UTC, as 2026-11-30) beside their log, and return its path."""
    every = [row for _, row in read_jsonl(folder / LOG)]
    rounds = [row for row in every if row["timing"]["ended"].startswith(day)]
    judged = [row for row in rounds if "domains" in row]
    domains = list(dict.fromkeys(name for row in judged for name in row["domains"]))
    page = filled_in(
        "rounds.html",
        folder / LOG,
        day=day,
        rounds=[(row, Figures(row, f"{LOG}:{row['round']}")) for row in rounds],
        domains=[(name, number, dash_of(number)) for number, name in enumerate(domains)],
        kept=sum(row["outcome"] == "kept" for row in rounds),
        chart=curves([standing(judged, name, number) for number, name in enumerate(domains)], "nats", "rounds"),
    )
    path = folder / f"{day}.html"
    write_bytes(path, page.encode())
    return path


def standing(rounds: list[dict[str, Any]], domain: str, number: int) -> Curve:
    """The loss of a domain through the mixture that each round has left."""
    found = [(row["round"], row["domains"][domain], row["outcome"]) for row in rounds if domain in row["domains"]]
    losses = [figures["after" if outcome == "kept" else "before"] for _, figures, outcome in found]
    return Curve([step for step, _, _ in found], losses, (), number)
