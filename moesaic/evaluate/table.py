"""Tables of an evaluation, as plain text or in the terminal's colours.

Knows nothing about how the numbers came about: it reads the dict of `verdict.judge`, `router.tried` and `written`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from textwrap import fill
from typing import TYPE_CHECKING, Any

from moesaic.evaluate.statistics import ALL, UNSEEN
from moesaic.evaluate.units import label, ranked, unit_of

if TYPE_CHECKING:
    from rich.console import Group

GAP = "  "
NOTHING = "-"
AHEAD = "mixture better by"
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
            parts.append(Text(f"\n{fill(grid.note, width)}", style="dim"))
    return Group(*parts)


def _opening(evaluation: Mapping[str, Any], width: int) -> list[str]:
    verdict = evaluation["verdict"]
    reasons = [fill(text, width, initial_indent="- ", subsequent_indent="  ") for text in verdict["reasons"]]
    return [fill(verdict["sentence"], width), *reasons]


def _grids(evaluation: Mapping[str, Any], width: int) -> Iterator[Grid]:
    yield from _fitted(_contenders(evaluation), width)
    if tried := evaluation.get("router", {}).get("tried"):
        columns = TRIED | {unit_of(evaluation).key: unit_of(evaluation).key}
        if not any(router.get("level") == "token" for router in tried):
            del columns["level"]
        rows = [[_cell(router.get(key)) for key in columns] for router in tried]
        words = 5 if "level" in columns else 4
        yield from _fitted(Grid("Routers tried", list(columns.values()), rows, words), width)
    for domain, contenders in evaluation.get("written", {}).items():
        metrics = [name for name in contenders["base"] if name != "rows"]
        rows = [
            [label(name), *(_cell(scores.get(metric)) for metric in metrics)] for name, scores in contenders.items()
        ]
        title = f"Written after {contenders['base']['rows']:.0f} prompts of {domain}"
        marked = [*contenders].index("router")
        yield from _fitted(Grid(title, ["contender", *metrics], rows, words=1, marked=marked), width)


def _contenders(evaluation: Mapping[str, Any]) -> Grid:
    """Worst to best, the mixture marked. The most important columns come first, as domains may not fit beside them."""
    unit = unit_of(evaluation)
    names = ranked(evaluation)[::-1]
    controls = [(name, evaluation["controls"][name]) for name in names]
    versus = [AHEAD] if "router" in names else []
    seen = [UNSEEN] if UNSEEN in controls[0][1][unit.key] else []
    domains = [domain for domain in controls[0][1][unit.key] if domain not in (ALL, UNSEEN)]
    pooled = ["accuracy"] if "accuracy" in controls[0][1] else []
    rows = [
        [
            f"{label(name)} <--" if name == "router" else name,
            _cell(control[unit.key][ALL]),
            *([_difference(control["versus_router"])] if versus else []),
            *(_cell(control["accuracy"]["value"]) for _ in pooled),
            *(_cell(control[unit.key][domain]) for domain in [*seen, *domains]),
        ]
        for name, control in controls
    ]
    return Grid(
        f"{unit.words.capitalize()}, from the worst to the best",
        ["contender", ALL, *versus, *pooled, *seen, *domains],
        rows,
        words=1,
        marked=names.index("router") if versus else None,
        note=_note(evaluation),
    )


def _note(evaluation: Mapping[str, Any]) -> str:
    level, part = evaluation["intervals"]["level"], evaluation["best_part"]
    parts = []
    if "router" in evaluation["controls"]:
        parts.append(f"{AHEAD}: negative where the contender is better, with its {level:.0%} interval")
    if "accuracy" in next(iter(evaluation["controls"].values())):
        parts.append("accuracy: of all rows of all tasks")
    if product := evaluation.get("router", {}).get("accuracy_x_score"):
        right, oracle = evaluation["router"]["accuracy"], evaluation["controls"]["oracle"]["score"][ALL]
        parts.append(f"routing accuracy {right:.3f} x score of the oracle {oracle:.3f} = {product:.3f}")
    given = evaluation.get("definitions", {}).items()
    parts += [f"{domain}: {words}" for domain, figures in given for words in figures.values()]
    parts += [
        f"{key.replace('_', ' ')} {_estimate(evaluation[key], style)}"
        for key, style in (("regret", "{:.3f}"), ("gap_closed", "{:.1%}"))
        if evaluation[key]["value"] is not None
    ]
    if part is not None:
        parts.append(f"best part {part['name']}, chosen on {part['chosen_on']}")
    return "; ".join(parts)


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
    return "\n".join([*lines, "", fill(grid.note, width)] if grid.note else lines)


def _cell(value: Any) -> str:
    if value is None:
        return NOTHING
    return f"{value:.3f}" if isinstance(value, float | int) else str(value)


def _difference(versus: Mapping[str, Any] | None) -> str:
    if versus is None:
        return NOTHING
    low, high = versus["interval"]
    return f"{versus['difference']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _estimate(estimate: Mapping[str, Any], style: str) -> str:
    value, *ends = (style.format(number) for number in (estimate["value"], *(estimate["interval"] or ())))
    return f"{value} [{', '.join(ends)}]" if ends else value
