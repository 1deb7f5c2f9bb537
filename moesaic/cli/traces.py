"""Routing traces: prints their summary, and how another router would have decided, as text or as JSON.

Knows nothing about how the figures are computed: see `generate.trace` and `evaluate.replay`.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from moesaic.cli.printing import aligned, harmless, json_text, stdout, width_of
from moesaic.errors import clipped

SHOWN = 10
FEW = 10  # different prompts, below which a bootstrap interval is too narrow
MARGIN = "  "


def show_trace(path: Path, as_json: bool) -> None:
    from moesaic.generate.trace import read_trace, summary

    found = summary(read_trace(path))
    if as_json:
        print(json_text({"kind": "trace", "path": str(path), **found}, indent=2))
        return
    stdout().print("\n".join(["trace", *aligned(facts(found), MARGIN)]))


def facts(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Labels and figures of a trace."""
    yield "rows", f"{found['rows']:,}, the prompt's text in {found['texts']:,} of them"
    if not found["rows"]:
        return
    yield "from", found["first"]
    yield "to", found["last"]
    yield "mixtures", ", ".join(f"{name} ({rows:,})" for name, rows in found["mixtures"].items())
    yield "forced", f"{found['forced']:,}: the caller chose the expert; all figures below leave these rows out"
    if found["rows"] == found["forced"]:
        return
    yield "utilisation", ", ".join(f"{name} {share:.1%}" for name, share in found["utilisation"].items())
    yield "abstained", f"{found['abstained']:,}"
    yield "confidence", number(found["confidence"])
    yield "corrected", f"{found['corrected']:,}"
    if found["corrected"]:
        yield "accuracy", f"{found['accuracy']:.1%} of the corrected"
    if found["unknown"]:
        yield "unknown", f"{', '.join(found['unknown'])}: no expert of the mixture, but named by corrections"


def show_replay(found: dict[str, Any], as_json: bool) -> None:
    """Print recorded decisions beside those of another router."""
    if as_json:
        print(json_text(found, indent=2))
        return
    console = stdout()
    rows, compared = found["rows"], found["compared"]
    console.print(f"{compared:,} of {rows:,} rows of {found['trace']}, replayed with {found['router']}")
    if found["left_out"]:
        console.print("left out: " + ", ".join(f"{count:,} {reason}" for reason, count in found["left_out"].items()))
    same = compared - len(found["differing"])
    console.print(f"agreement: {found['agreement']:.1%}, the same expert for {same:,} of {compared:,} rows\n")
    console.print("\n".join(table(found)))
    for which, who in (("only_recorded", "recorded"), ("only_replayed", "replayed")):
        if found[which]:
            console.print(f"only the {who} router has {', '.join(found[which])}")
    console.print()
    console.print("\n".join(judged(found["corrected"])))
    if found["differing"]:
        some = f", the first {SHOWN} of {len(found['differing']):,}" if len(found["differing"]) > SHOWN else ""
        console.print(f"\nDifferent decisions{some}", style="bold")
    room = width_of(console) - len(MARGIN)
    for one in found["differing"][:SHOWN]:
        right = f", should have been {one['correction']}" if one["correction"] else ""
        console.print(f"line {one['line']}: {one['recorded']}, replayed {one['replayed']}{right}", style="dim")
        console.print(f"{MARGIN}{clipped(harmless(one['prompt']), room)}", style="cyan")


def table(found: Mapping[str, Any]) -> Iterator[str]:
    """Utilisation and confidence of both routers; a dash for an expert that a router does not have."""
    sides = [found["recorded"], found["replayed"]]
    names = dict.fromkeys(name for side in sides for name in side["utilisation"])
    longest = max(len(name) for name in [*names, "mean confidence"])
    yield f"{'utilisation':<{longest}}  {'recorded':>8}  {'replayed':>8}"
    for name in names:
        shares = [side["utilisation"].get(name) for side in sides]
        yield f"{name:<{longest}}  " + "  ".join(f"{'-' if x is None else f'{x:.1%}':>8}" for x in shares)
    yield f"{'mean confidence':<{longest}}  " + "  ".join(f"{number(side['confidence']):>8}" for side in sides)


def judged(found: Mapping[str, Any] | None) -> Iterator[str]:
    """Accuracy of both routers on corrected rows."""
    if found is None:
        yield "accuracy unknown: no row has a correction"
        return
    low, high = found["interval"]
    yield f"accuracy on {found['rows']:,} corrected rows of {found['prompts']:,} different prompts:"
    yield (
        f"{MARGIN}recorded {found['recorded']:.1%}, replayed {found['replayed']:.1%}, "
        f"difference {found['difference']:+.1%} [{low:+.1%}, {high:+.1%}]"
    )
    if found["prompts"] < FEW:
        yield f"{MARGIN}the interval of fewer than {FEW} prompts is too narrow"
    if found["unknown"]:
        yield f"{MARGIN}corrections name {', '.join(found['unknown'])}, which neither router has"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
