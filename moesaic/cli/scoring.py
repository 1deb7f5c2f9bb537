"""`evaluate --unseen` and `--lm-eval`: prints the figures of a model on files of rows or on tasks, as text or as JSON.

Knows nothing about how they are computed: see `evaluate.unseen` and `evaluate.harness`.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from moesaic.cli.printing import aligned, harmless, stdout


def show_unseen(found: Mapping[str, Any], as_json: bool) -> None:
    """Print the figures of each file."""
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    console = stdout()
    console.print(harmless(found["model"]))
    for file, figures in found["files"].items():
        console.print(harmless(f"\n{file}"), style="bold")
        console.print("\n".join(aligned(lines(figures), "  ")))


def lines(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Labels and figures of one file."""
    yield "rows", f"{figures['rows']:,}, {figures['tokens']:,} scored tokens"
    yield "nats per token", f"{figures['nats']:.3f}"
    if "base_nats" in figures:
        apart = figures["difference"]
        interval = f"95% interval {apart['low']:+.3f} to {apart['high']:+.3f}"
        yield "its base", f"{figures['base_nats']:.3f}; the model minus its base: {apart['mean']:+.3f} ({interval})"
        yield "answered by", ", ".join(f"{name} {share:.1%}" for name, share in figures["chosen"].items())


def show_tasks(found: Mapping[str, Any], as_json: bool) -> None:
    """Print a table of all contenders: a column for each metric of each task, with its standard error."""
    if as_json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    console, contenders = stdout(), found["contenders"]
    columns = list(dict.fromkeys(column for tasks in contenders.values() for column in columns_of(tasks)))
    rows = [["", *(" ".join(column) for column in columns)]]
    rows += [[name, *(figure(tasks, *column) for column in columns)] for name, tasks in contenders.items()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    console.print(harmless(found["model"]))
    for row in rows:
        cells = [f"{row[0]:<{widths[0]}}", *(f"{one:>{width}}" for one, width in zip(row[1:], widths[1:], strict=True))]
        console.print(harmless("  ".join(cells)), style=None if row[0] else "bold")


def columns_of(tasks: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, str]]:
    """Task and metric of each column; the filter that made a metric is named where it did something."""
    for task, metrics in tasks.items():
        yield from ((task, key.removesuffix(",none")) for key in metrics if not key.partition(",")[0].endswith(ERROR))


def figure(tasks: Mapping[str, Mapping[str, float]], task: str, metric: str) -> str:
    name, _, made = metric.partition(",")
    metrics, made = tasks[task], made or "none"
    value, error = metrics[f"{name},{made}"], metrics.get(f"{name}{ERROR},{made}")
    return f"{value:.4f}" + ("" if error is None else f" \u00b1{error:.4f}")


ERROR = "_stderr"
"""The end of the name of a metric's standard error in the harness."""
