"""Tables of an evaluation, as plain text or in the terminal's colours.

Knows nothing about how the numbers came about: it reads the dict of `verdict.judge`, `router.tried` and `written`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from textwrap import fill
from typing import TYPE_CHECKING, Any

from moesaic.evaluate.statistics import ALL, UNSEEN
from moesaic.evaluate.units import label, ranked, size, unit_of
from moesaic.evaluate.wording import one_run, spoken

if TYPE_CHECKING:
    from rich.console import Group

GAP = "  "
NOTHING = "-"
AHEAD = "mixture better by"
DOMAIN_MEAN = "domain mean"
TRIED = {  # key -> heading of the columns of "Routers tried"
    "kind": "router",
    "feature": "feature",
    "selection": "selection",
    "level": "level",
    "loss": "loss",
    "examples": "examples",
    "validation_macro_f1": "val F1",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "utilisation_evenness": "evenness",
}


@dataclass(frozen=True)
class Grid:
    """Cells of a table. The first `words` columns are text, the others numbers; `marked`: index of the marked row."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    words: int
    marked: int | None = None
    note: str = ""

    @property
    def widths(self) -> list[int]:
        return [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]


def plain(evaluation: Mapping[str, Any], width: int = 100) -> str:
    """Format the evaluation as aligned text: the verdict, then every contender, then the routers that were tried."""
    tables = (_text(grid, width) for grid in _grids(evaluation, width))
    return "\n\n".join(["\n".join(_opening(evaluation, width)), *tables])


def render(evaluation: Mapping[str, Any], width: int = 100) -> "Group":
    """Format the evaluation for a `rich` console of at least `width` columns."""
    from rich.box import SIMPLE
    from rich.console import Group, RenderableType
    from rich.table import Table
    from rich.text import Text

    sentence, *reasons = _opening(evaluation, width)
    parts: list[RenderableType] = [Text(sentence, style="bold"), *(Text(reason, style="dim") for reason in reasons)]
    for grid in _grids(evaluation, width):
        table = Table(box=SIMPLE, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
        for number, heading in enumerate(grid.columns):
            table.add_column(Text(heading), justify="left" if number < grid.words else "right", no_wrap=True)
        for number, row in enumerate(grid.rows):
            table.add_row(*map(Text, row), style="bold green" if number == grid.marked else None)
        parts += [Text(f"\n{grid.title}", style="bold"), table]
        if grid.note:
            parts.append(Text(f"\n{_lines(grid.note, width)}", style="dim"))
    return Group(*parts)


def _opening(evaluation: Mapping[str, Any], width: int) -> list[str]:
    verdict = evaluation["verdict"]
    reasons = [fill(text, width, initial_indent="- ", subsequent_indent="  ") for text in verdict["reasons"]]
    return [fill(spoken(evaluation), width), *reasons]


def _grids(evaluation: Mapping[str, Any], width: int) -> Iterator[Grid]:
    for grid in _contenders(evaluation, width):
        yield from _fitted(grid, width)
    if tried := evaluation.get("router", {}).get("tried"):
        columns = TRIED | {unit_of(evaluation).key: unit_of(evaluation).key}
        if not any(router.get("level") == "token" for router in tried):
            del columns["level"]
        rows = [[_cell(router.get(key)) for key in columns] for router in tried]
        words = 5 if "level" in columns else 4
        yield from _fitted(Grid("Routers tried", list(columns.values()), rows, words), width)
    for grid in _outside(evaluation.get("router", {})):
        yield from _fitted(grid, width)
    for domain, contenders in evaluation.get("written", {}).items():
        metrics = [name for name in contenders["base"] if name != "rows"]
        rows = [
            [label(name), *(_cell(scores.get(metric)) for metric in metrics)] for name, scores in contenders.items()
        ]
        title = f"Written after {contenders['base']['rows']:.0f} prompts of {domain}"
        marked = [*contenders].index("router")
        yield from _fitted(Grid(title, ["contender", *metrics], rows, words=1, marked=marked), width)
    if latency := evaluation.get("timing", {}).get("latency"):
        columns = {"median": "median", "p5": "5%", "p95": "95%", "tokens": "tokens"}
        rows = [[label(name), *(f"{one[key]:.3f}" for key in columns)] for name, one in latency.items()]
        title = "Seconds of an answer, one prompt at a time"
        yield from _fitted(Grid(title, ["contender", *columns.values()], rows, words=1), width)


def _outside(router: Mapping[str, Any]) -> Iterator[Grid]:
    """Text of no domain by kind, and the accuracy on prompts in every form."""
    if outside := router.get("outside"):
        inside = outside["inside"]
        note = f"Of {inside['rows']:,} test rows of domains {inside['abstained']:.1%} are left to the base."
        kinds = {ALL: outside, **outside["kinds"]}
        rows = [
            [kind, _count(one["rows"]), f"{one['abstained']:.1%}", _cell(one["auroc"])] for kind, one in kinds.items()
        ]
        yield Grid("Text of no domain", ["kind", "rows", "left to the base", "AUROC"], rows, words=1, note=note)
    if forms := router.get("forms"):
        rows = [
            [form, _count(one["rows"]), f"{one['accuracy']:.1%}", f"{one['by_form_alone']:.1%}"]
            for form, one in forms.items()
        ]
        yield Grid("Router by form of the prompt", ["form", "rows", "accuracy", "by the form alone"], rows, words=1)


def _contenders(evaluation: Mapping[str, Any], width: int) -> Iterator[Grid]:
    """Best to worst, the mixture marked. Domains that do not fit beside the other columns have a table of their own."""
    unit, names = unit_of(evaluation), ranked(evaluation)
    controls, speeds = evaluation["controls"], evaluation.get("timing", {}).get("tokens_per_second", {})
    first = controls[names[0]]
    domains = [domain for domain in first[unit.key] if domain not in (ALL, UNSEEN)]
    columns: dict[str, Callable[[str], str]] = {ALL: lambda name: _cell(controls[name][unit.key][ALL])}
    if "over_domains" in first:
        columns[DOMAIN_MEAN] = lambda name: _cell(controls[name]["over_domains"])
    if "router" in names:
        columns[AHEAD] = lambda name: _difference(controls[name]["versus_router"])
    if "accuracy" in first:
        columns["accuracy"] = lambda name: _cell(controls[name]["accuracy"]["value"])
    if UNSEEN in first[unit.key]:
        columns[UNSEEN] = lambda name: _cell(controls[name][unit.key][UNSEEN])
    if any("cost" in control for control in controls.values()):
        columns["active"] = lambda name: _size(controls[name].get("cost", {}).get("bytes"))
    if speeds:
        columns["tokens/s"] = lambda name: _count(speeds.get(name))
    shown = {name: f"{label(name)} <--" if name == "router" else name for name in names}
    one = Grid(
        f"{unit.words.capitalize()}, from the best to the worst",
        ["contender", *columns],
        [[shown[name], *(cell(name) for cell in columns.values())] for name in names],
        words=1,
        marked=names.index("router") if "router" in names else None,
        note=_note(evaluation),
    )
    by_domain = [[_cell(controls[name][unit.key][domain]) for domain in domains] for name in names]
    beside = replace(
        one,
        columns=[*one.columns, *domains],
        rows=[[*row, *cells] for row, cells in zip(one.rows, by_domain, strict=True)],
    )
    if _total(beside.widths) <= width:
        yield beside
        return
    yield one
    yield replace(
        one,
        title=f"{unit.words.capitalize()} by domain",
        columns=["contender", *domains],
        rows=[[shown[name], *cells] for name, cells in zip(names, by_domain, strict=True)],
        note="",
    )


def _note(evaluation: Mapping[str, Any]) -> str:
    """What the columns mean, and the figures that follow from them."""
    level, seed = evaluation["intervals"]["level"], evaluation["intervals"]["seed"]
    controls, part = evaluation["controls"], evaluation["best_part"]
    over = "tasks" if unit_of(evaluation).rises else "tokens"
    parts = [f"{ALL}: the mean over all {over}, which decides"]
    if "over_domains" in next(iter(controls.values())):
        parts.append(f"{DOMAIN_MEAN}: every domain counts the same")
    if "router" in controls:
        parts.append(f"{AHEAD}: negative where the contender is better")
    parts.append(f"in brackets the {level:.0%} interval over test rows, {one_run(seed)}")
    if "accuracy" in next(iter(controls.values())):
        parts.append("accuracy: of all rows of all tasks")
    if product := evaluation.get("router", {}).get("accuracy_x_score"):
        right, oracle = evaluation["router"]["accuracy"], controls["oracle"]["score"][ALL]
        parts.append(f"routing accuracy {right:.3f} x score of the oracle {oracle:.3f} = {product:.3f}")
    given = evaluation.get("definitions", {}).items()
    parts += [f"{domain}: {words}" for domain, figures in given for words in figures.values()]
    if evaluation["regret"]["value"] is not None:
        parts.append(f"regret, mixture minus oracle: {_estimate(evaluation['regret'], '{:.3f}')}")
    if part is not None:
        parts.append(f"the best of the base and the experts alone, chosen on {part['chosen_on']} rows: {part['name']}")
    if evaluation["gap_closed"]["value"] is not None:
        parts.append(
            f"gap closed, of the way from there to the oracle: {_estimate(evaluation['gap_closed'], '{:.1%}')}"
        )
    return "\n".join(parts)


def _fitted(grid: Grid, width: int) -> list[Grid]:
    """Cut the grid into as few pieces as `width` allows, as even as possible."""
    fewest = len(_pieces(grid, width))
    return next(pieces for narrow in range(width + 1) if len(pieces := _pieces(grid, narrow)) == fewest)


def _pieces(grid: Grid, width: int) -> list[Grid]:
    """Cut between columns: every piece repeats the columns of words and has at least one more."""
    words, numbers = range(grid.words), range(grid.words, len(grid.columns))
    cuts: list[list[int]] = [[]]
    for number in numbers:
        if cuts[-1] and _total([grid.widths[column] for column in (*words, *cuts[-1], number)]) > width:
            cuts.append([])
        cuts[-1].append(number)
    return [
        replace(
            grid,
            title=grid.title if piece is cuts[0] else f"{grid.title}, continued",
            columns=[grid.columns[column] for column in (*words, *piece)],
            rows=[[row[column] for column in (*words, *piece)] for row in grid.rows],
            note=grid.note if piece is cuts[-1] else "",
        )
        for piece in cuts
    ]


def _total(widths: list[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _text(grid: Grid, width: int) -> str:
    def line(cells: list[str]) -> str:
        aligned = (
            cell.ljust(size) if number < grid.words else cell.rjust(size)
            for number, (cell, size) in enumerate(zip(cells, grid.widths, strict=True))
        )
        return GAP.join(aligned).rstrip()

    lines = [grid.title, "", line(grid.columns), "-" * _total(grid.widths), *map(line, grid.rows)]
    return "\n".join([*lines, "", _lines(grid.note, width)] if grid.note else lines)


def _lines(note: str, width: int) -> str:
    return "\n".join(fill(line, width, subsequent_indent="  ") for line in note.splitlines())


def _cell(value: Any) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if isinstance(value, float | int) else str(value)


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def _size(count: int | None) -> str:
    return NOTHING if count is None else size(count)


def _difference(versus: Mapping[str, Any] | None) -> str:
    if versus is None:
        return NOTHING
    low, high = versus["interval"]
    return f"{versus['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _estimate(estimate: Mapping[str, Any], style: str) -> str:
    value, *ends = (style.format(number) for number in (estimate["value"], *(estimate["interval"] or ())))
    return f"{value} [{', '.join(ends)}]" if ends else value
