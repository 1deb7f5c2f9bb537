"""Prints evaluations, routings, samples and sizes on stdout: in colour on a terminal, otherwise plain.

Knows nothing about how they are measured.
"""

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from moesaic.errors import clipped

PLAIN_WIDTH = 100
SAMPLE_LINES = 3
UNTRAINED = {
    "arrow": "made from the weights of the experts alone (arrow)",
    "gates": "gates in every layer route every token, by least squares on prompts",
}
OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that a terminal obeys: controls, C1 among them, and changes of the direction of writing."""


def stdout() -> Console:
    """Console for results; texts are never markup."""
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def stderr() -> Console:
    """Console for all that is no result; texts are never markup."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def width_of(console: Console) -> int:
    return console.width if console.is_terminal else PLAIN_WIDTH


def harmless(text: str) -> str:
    """Text of models and files, with what a terminal would obey spelled out."""
    return OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


def json_text(value: Any, indent: int | None = None) -> str:
    """A result as readable JSON, with what a terminal would obey escaped; its values stay the same."""
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return OBEYED.sub(lambda found: json.dumps(found[0])[1:-1], text)


def routed(chosen: str, weights: Mapping[str, float]) -> str:
    """Describe a routing, as `math (math 98%, code 2%)`; the base alone has no weights."""
    shares = shown(weights)
    return f"{chosen} ({shares})" if shares else chosen


def shown(shares: Mapping[str, float]) -> str:
    """The largest shares first, as `math 98%, code 2%`."""
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ordered if share >= 0.005)


def router_in_words(kind: str, feature: str) -> str:
    return UNTRAINED.get(kind, f"{kind} on {feature}")


def size(count: float) -> str:
    for unit, digits in (("bytes", 0), ("kB", 1), ("MB", 1)):
        if count < 1000:
            return f"{count:.{digits}f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def aligned(rows: Iterable[tuple[str, str]], indent: str = "") -> list[str]:
    rows = list(rows)
    longest = max((len(label) for label, _ in rows), default=0)
    return [f"{indent}{label:<{longest}}  {text}" for label, text in rows]


def show_evaluation(evaluation: Mapping[str, Any]) -> None:
    from moesaic.evaluate.table import plain, render

    console = stdout()
    if console.is_terminal:
        console.print(render(evaluation, console.width))
    else:
        console.print(plain(evaluation, PLAIN_WIDTH))


def show_run(evaluation: Mapping[str, Any], root: Path) -> None:
    """Print the evaluation, samples, times and files of a finished run, and the next command."""
    from moesaic.evaluate.units import label
    from moesaic.report.figures import CUT

    console = stdout()
    show_evaluation(evaluation)
    if evaluation["samples"]:
        console.print("\nSamples", style="bold")
    for sample in evaluation["samples"]:
        console.print(f"\n{sample['domain']}, routed to {routed(sample['chosen'], sample['weights'])}", style="dim")
        room = width_of(console) - 2
        start = CUT if sample.get("cut") else ""
        console.print(f"> {clipped(start + harmless(sample['prompt']), room)}", style="cyan")
        answers = {"base": sample["base"]} if "base" in sample else {}  # a label is not compared with the base's
        for name, text in {**answers, sample["chosen"]: sample["text"]}.items():
            console.print(f"{name}:", style="dim")
            for line in harmless(text).strip().splitlines()[:SAMPLE_LINES]:
                console.print(f"  {clipped(line, room)}")
    files = {"run": root, "mixture": root / "mixture", "evaluation": root / "evaluation.json"}
    files["report"] = root / "report" / "index.html"
    console.print("\nTime", style="bold")
    stages = evaluation["timing"]["stages"]
    times = {**stages, "all": sum(stages.values())}
    console.print("\n".join(aligned((name, f"{seconds:7.1f} s") for name, seconds in times.items())))
    writes = "tokens_per_second" in evaluation["timing"]  # a classifier decodes no tokens
    if writes:
        rates = evaluation["timing"]["tokens_per_second"].items()
        shown = ", ".join(f"{label(name)} {rate:.0f}" for name, rate in rates)
        console.print(f"decoding, one row at a time, tokens per second: {shown}")
    console.print("\nFiles", style="bold")
    console.print("\n".join(aligned((name, str(path)) for name, path in files.items())))
    console.print(f'\nNext: moesaic {"generate" if writes else "classify"} {shlex.quote(str(root))} "..."')


def show_routing(found: Mapping[str, Any], as_json: bool) -> None:
    """Print the comparison of routers: as JSON, or as a table of Markdown and a sentence."""
    from moesaic.evaluate.routing_table import sentence, table

    text = json_text(found, 1) if as_json else f"{table(found)}\n{sentence(found)}"
    stdout().print(text)


def show_continual(found: Mapping[str, Any], root: Path) -> None:
    """Print the figures of every strategy of continual learning, with their intervals, and the verdict."""
    console, names = stdout(), [*found["strategies"]["oracle"]["figures"]]
    rows = [["", *(name.replace("_", " ") for name in names)]]
    for strategy, some in found["strategies"].items():
        signs = ("" if name == "OP" else "+" for name in names)
        both = zip(signs, (some["figures"][name] for name in names), strict=True)
        rows.append([strategy, *(with_interval(one["value"], one["interval"], sign) for sign, one in both)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{one:>{width}}" for one, width in zip(row[1:], widths[1:], strict=True))
        console.print("  ".join([f"{row[0]:<{widths[0]}}", *cells]), style=None if row[0] else "bold")
    console.print(f"\n{found['sentence']}")
    files = {"figures": root / "continual.json", "report": root / "report" / "continual.html"}
    console.print("\n".join(["", *aligned((name, str(path)) for name, path in files.items())]))


def with_interval(value: float, interval: Sequence[float], sign: str = "") -> str:
    low, high = interval
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def show_verified(experts: list[dict[str, Any]]) -> None:
    """Print the figures of verified experts, and of the base for experts that write."""
    if "metrics" in experts[0]:
        for expert in experts:
            figures = ((key.removeprefix("validation_"), f"{value:.4f}") for key, value in expert["metrics"].items())
            stdout().print("\n".join([expert["name"], *aligned(figures, "  ")]))
        stdout().print("validation figures equal the manifests bit for bit; all files are unchanged")
        return
    longest = max([len("expert"), *(len(expert["name"]) for expert in experts)])
    lines = [
        f"{expert['name']:<{longest}}  {expert['validation_nats']:10.3f}  {expert['base']:8.3f}  {expert['gain']:+8.3f}"
        for expert in experts
    ]
    console = stdout()
    console.print(f"{'expert':<{longest}}  {'validation':>10}  {'base':>8}  {'gain':>8}", style="bold")
    console.print("\n".join(lines))
    console.print("validation in nats per token, of the expert and of the base alone; all files are unchanged")
