"""`evaluate --unseen`: prints the nats of a model on files of rows, as text or as JSON.

Knows nothing about how they are computed: see `evaluate.unseen`.
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
