"""Two runs side by side: their contenders, and the differences between their recipes.

Knows nothing about HTML, and judges nothing: no interval was computed across runs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from moesaic.errors import RecipeError
from moesaic.evaluate.statistics import UNSEEN
from moesaic.evaluate.units import Unit, ranked, unit_of
from moesaic.report.figures import Figures, number_at
from moesaic.report.reading import Run
from moesaic.report.sections import domains_of
from moesaic.sections import document

IGNORED = ("name", "workers", "data_root")
"""Settings that change nothing about the result."""


class Side:
    """One of two runs with its figures, which carry its letter."""

    def __init__(self, run: Run, letter: str):
        self.run, self.letter, self.evaluation = run, letter, run.evaluation
        self.name = run.folder.resolve().name
        self.figure = Figures(run.evaluation, letter)

    @property
    def stages(self) -> list[str]:
        return list(self.evaluation.get("timing", {}).get("stages", {}))

    def minus(self, other: "Side", style: str, *path: str | int) -> Markup:
        mine, its = number_at(self.evaluation, path), number_at(other.evaluation, path)
        value = None if mine is None or its is None else mine - its
        return Figures(None, f"{self.letter}-{other.letter}").markup(style, value, path)


@dataclass(frozen=True)
class Alike:
    """Which figures of two runs can be compared: `other` has the domains with other rows or another tokenizer."""

    other: list[str]

    @property
    def all(self) -> bool:
        return not [domain for domain in self.other if domain != UNSEEN]


def judged_alike(a: Run, b: Run) -> Alike:
    """Compare the token ids that both runs were judged on; what a run does not know is not alike."""
    mine, its = (run.evaluation.get("rows_sha256", {}) for run in (a, b))
    domains = merged(domains_of(a.evaluation), domains_of(b.evaluation))
    return Alike([domain for domain in domains if mine.get(domain) is None or mine.get(domain) != its.get(domain)])


def shared_contenders(a: Run, b: Run) -> list[str]:
    """All contenders of either run: those of `a`, the best first, then those that only `b` has."""
    return merged(ranked(a.evaluation), b.evaluation["controls"])


def shared_unit(a: Run, b: Run) -> Unit:
    """The unit of both runs. A run that writes and a run that classifies cannot be compared."""
    unit, other = unit_of(a.evaluation), unit_of(b.evaluation)
    if unit is not other:
        what, hint = "the two runs have different measures", "compare runs of one kind"
        raise RecipeError(what, path=b.folder, expected=unit.words, got=other.words, hint=hint)
    return unit


def merged(*some: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(name for names in some for name in names))


def recipe_differences(a: Run, b: Run) -> list[tuple[str, str | None, str | None]] | str:
    """Every setting that differs, with both values; or the reason why the recipes cannot be compared."""
    for run in (a, b):
        if run.recipe is None:
            return f"{run.folder.resolve().name}: {run.missing['recipe.yaml']}"
    try:
        mine, its = (dict(flattened(document.load(run.recipe or "").value)) for run in (a, b))
    except RecipeError as error:
        return f"A recipe cannot be read: {error.what}."
    keys = [key for key in merged(mine, its) if mine.get(key) != its.get(key) and key not in IGNORED]
    return [(key, mine.get(key), its.get(key)) for key in keys]


def flattened(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Every setting by its path, as in `router.compare[0].kind`; a list of plain values is one setting."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from flattened(inner, f"{place}.{key}".removeprefix("."))
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for number, inner in enumerate(value):
            yield from flattened(inner, f"{place}[{number}]")
    else:
        yield place, document.dump(value).removesuffix("\n...\n").strip()
