"""The content of each section of a report, in order and with positions on scales, ready for the template.

Knows nothing about HTML, and rounds nothing: the template looks numbers up by their path in evaluation.json.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from moesaic.evaluate.statistics import ALL, UNSEEN
from moesaic.evaluate.tokens import BASE
from moesaic.evaluate.units import label, ranked, unit_of
from moesaic.report.figures import number_at

MEANINGS = {
    "base": "the model that the experts share, alone",
    "expert:": "one expert for every row, whatever its domain",
    "joint": "one adapter trained on all domains together",
    "joint_wide": "one adapter trained on all domains together, with the rank of all experts together",
    "average": "all experts merged into one model by their mean",
    "uniform": "all experts with equal weights",
    "random": "the mean over the experts: an even draw for each row",
    "keyword": "the mixture with a router that only counts words",
    "router": "the mixture: the router chooses from the prompt",
    "oracle": "the expert of each row's own domain, the base where there is none",
    "oracle_best": "for each row the best of the base and the experts: a bound, not for use",
}
OF_LABELS = {
    "base": "the most frequent label of the row\N{RIGHT SINGLE QUOTATION MARK}s task, with the task given",
    "joint": "one adapter trained on all tasks together, with one head over all labels",
    "average": "all adapters merged into one model by their mean, answering by the mean of all heads",
}
WORDS = {
    "bound": "a contender to compare with, not to use: an oracle knows the domains or the answers",
    "chance": "a contender to compare with, not to use: it draws an expert for each row",
    "tied": "not clearly different from the best contender: the interval of the difference contains 0",
    "gap closed": "of the distance from the best of the base and the experts alone to the oracle, the share that the "
    "mixture covers",
    "active": "the weights that one token reads: those of the base and of the chosen experts",
    "macro F1": "the mean of the F1 of each domain, so that a small domain weighs as much as a large one",
    "evenness": "how evenly the rows are shared among the experts: the entropy of the shares, as part of its maximum",
    "expected calibration error": "the distance between confidence and accuracy in the bins, as a mean over rows",
    "groups": "rows of one conversation, or equal rows, are one group; the intervals draw whole groups",
    "truncated": "evaluated rows that were cut to the longest text that is read",
    "tokens cut": "the share of the tokens of all rows that was cut off, and so neither learned nor judged",
    "dropped": "rows that were left out, such as repeated rows and those that another split has too",
}
BOUNDS = {"random": "chance", "oracle": "bound", "oracle_best": "bound"}
"""Contenders that nobody can use, and the note on each."""
RIVALS = ("joint", "joint_wide")
NEAR = 3
STRENGTHS = (1, 2, 4)
"""Margins over the base, in nats, from which a token has a colour, and at which it gets stronger."""

HEAD, TAIL = 480, 320
"""Visible characters of a reference's beginning and of a prompt's end; the rest is folded."""


@dataclass(frozen=True)
class Forest:
    """A difference from the mixture on the axis of all contenders, in percent of its width.

    `low` and `high` are cut at the ends of the axis, `left` and `right` tell where; `mean` is None beyond them.
    """

    low: float
    mean: float | None
    high: float
    left: bool
    right: bool


@dataclass(frozen=True)
class Contender:
    """A row of the first table; the mixture has no `forest`."""

    name: str
    notes: list[str]
    chosen: bool
    bound: bool
    forest: Forest | None


@dataclass(frozen=True)
class Contenders:
    """The first table, best first. `zero`: position of the mixture in percent; `ends`: the axis, in the unit."""

    rows: list[Contender]
    domains: list[str]
    zero: float
    ends: tuple[float, float]
    meanings: dict[str, str]


@dataclass(frozen=True)
class HeatCell:
    """`weight`: distance from the base, 100 for the farthest cell; `best`: the best expert on this domain."""

    domain: str
    weight: float
    better: bool
    best: bool


@dataclass(frozen=True)
class Piece:
    """A token, or text without owners.

    `owner`: number of the expert that is worth a colour, None for the base, for a small margin and without owners.
    """

    text: str
    owner: int | None = None
    strength: int = 0
    title: str = ""


@dataclass(frozen=True)
class Sample:
    """One prompt. The beginning of a long prompt and the end of a long reference are folded.

    `cut`: the prompt was longer than a row and lost its beginning.
    """

    number: int
    folded_prompt: list[Piece]
    prompt: list[Piece]
    reference: list[Piece]
    folded_reference: list[Piece]
    cut: bool
    owners: list[tuple[str, float]]
    weights: list[tuple[str, int | None]]


def experts_of(evaluation: Mapping[str, Any]) -> list[str]:
    """The experts in the order of the evaluation; the index of an expert is its colour."""
    return [name.partition(":")[2] for name in evaluation["controls"] if name.startswith("expert:")]


def domains_of(evaluation: Mapping[str, Any]) -> list[str]:
    """The domains in the order of the recipe, then other domains with scores; `unseen` is last."""
    key = unit_of(evaluation).key
    scored = [name for control in evaluation["controls"].values() for name in control[key] if name != ALL]
    named = [name for name in evaluation.get("domains", []) if name in scored]
    return sorted(dict.fromkeys([*named, *scored]), key=lambda name: name == UNSEEN)


def contenders(evaluation: Mapping[str, Any]) -> Contenders:
    """All contenders, the best first, each with its position on one axis of differences from the mixture."""
    controls, verdict = evaluation["controls"], evaluation["verdict"]
    spans = {name: versus for name, control in controls.items() if (versus := control.get("versus_router"))}
    low, high = axis(spans, {*RIVALS, *verdict.get("tied", [])})

    def at(value: float) -> float:
        return round(100 * (min(max(value, low), high) - low) / (high - low), 2)

    def forest(name: str) -> Forest | None:
        if name not in spans:
            return None
        (left, right), mean = spans[name]["interval"], spans[name]["difference"]
        return Forest(at(left), at(mean) if low <= mean <= high else None, at(right), left < low, right > high)

    def notes(name: str) -> Iterator[str]:
        if name == verdict["use"]:
            yield "use this"
        elif name in verdict.get("tied", []):
            yield "tied"
        if name in BOUNDS:
            yield BOUNDS[name]

    rows = [
        Contender(name, list(notes(name)), name == verdict["use"], name in BOUNDS, forest(name))
        for name in ranked(evaluation)
    ]
    words = MEANINGS | (OF_LABELS if unit_of(evaluation).rises else {})
    known = {name.partition(":")[0] + (":" if ":" in name else "") for name in controls}
    shown = {key: "expert:\N{HORIZONTAL ELLIPSIS}" if key == "expert:" else label(key) for key in known}
    meanings = {shown[key]: text for key, text in words.items() if key in known}
    return Contenders(rows, domains_of(evaluation), at(0.0), (low, high), meanings)


def axis(spans: Mapping[str, Mapping[str, Any]], rivals: Collection[str]) -> tuple[float, float]:
    """The ends of an axis on which the mixture's rivals are told apart: all of them, and the `NEAR` nearest, fit.

    What is much worse lies beyond the axis, so that it does not squeeze the others into one dot.
    """

    def reach(name: str) -> float:
        return max(abs(number_at(spans, (name, "interval", end)) or 0.0) for end in (0, 1))

    nearest = sorted(spans, key=reach)[:NEAR]
    ends = [spans[name]["interval"][end] for name in spans if name in rivals or name in nearest for end in (0, 1)]
    low, high = min([0.0, *ends]), max([0.0, *ends])
    least = (high - low) / 20 or 1.0
    return min(low, -least), max(high, least)


def heat(evaluation: Mapping[str, Any]) -> dict[str, list[HeatCell]]:
    """Distance of each expert and the mixture from the base on each domain; empty without base or experts."""
    controls, domains = evaluation["controls"], domains_of(evaluation)
    names = [*(name for name in controls if name.startswith("expert:")), *(["router"] if "router" in controls else [])]
    if "base" not in controls or not experts_of(evaluation):
        return {}
    unit = unit_of(evaluation)
    said = {name: {d: number_at(controls, (name, unit.key, d)) or 0.0 for d in domains} for name in ("base", *names)}
    sign = -1 if unit.rises else 1
    off = {name: {d: sign * (said[name][d] - said["base"][d]) for d in domains} for name in names}
    most = max(abs(value) for row in off.values() for value in row.values()) or 1.0
    least = {d: min(off[name][d] for name in names if name != "router") for d in domains}
    return {
        name: [
            HeatCell(d, round(100 * abs(value) / most, 1), value < 0, name != "router" and value == least[d])
            for d, value in row.items()
        ]
        for name, row in off.items()
    }


def merged_shares(tried: list[Mapping[str, Any]]) -> list[str]:
    """Whom any of the routers sends rows to."""
    return list(dict.fromkeys(name for router in tried for name in router.get("utilisation", {})))


def samples(evaluation: Mapping[str, Any]) -> list[Sample]:
    numbers = {name: number for number, name in enumerate(experts_of(evaluation))}
    return [_sample(sample, number, numbers) for number, sample in enumerate(evaluation.get("samples", []))]


def _sample(sample: Mapping[str, Any], number: int, numbers: Mapping[str, int]) -> Sample:
    prompt, reference = _pieces(sample, numbers)
    if reference and reference[0].text.startswith("\n"):  # a response begins with one
        reference[0] = replace(reference[0], text=reference[0].text[1:])
    visible = _reach([len(piece.text) for piece in reversed(prompt)], TAIL)
    keep = _reach([len(piece.text) for piece in reference], HEAD)
    names, scored = {number: name for name, number in numbers.items()}, sum(bool(p.title) for p in prompt + reference)
    coloured = Counter(names[piece.owner] for piece in prompt + reference if piece.owner is not None)
    owners = [(name, count / scored) for name, count in coloured.most_common()]
    heard = sorted(sample["weights"].items(), key=lambda item: -item[1])
    return Sample(
        number,
        prompt[: len(prompt) - visible],
        prompt[len(prompt) - visible :],
        reference[:keep],
        reference[keep:],
        bool(sample.get("cut")),
        owners,
        [(name, numbers.get(name)) for name, weight in heard if weight >= 0.005],
    )


def _pieces(sample: Mapping[str, Any], numbers: Mapping[str, int]) -> tuple[list[Piece], list[Piece]]:
    """Split the prompt and the reference into tokens where their owners are known, else into lines."""
    if not sample.get("tokens"):
        return _words(sample["prompt"]), _words(sample["reference"])
    prompt, reference, read = list[Piece](), list[Piece](), 0
    for text, owner, nats, base in sample["tokens"]:
        (prompt if read < len(sample["prompt"]) else reference).append(_piece(text, owner, nats, base, numbers))
        read += len(text)
    return prompt, reference


def _piece(text: str, owner: str | None, nats: float | None, base: float | None, numbers: Mapping[str, int]) -> Piece:
    if owner is None or nats is None or base is None:
        return Piece(text)
    if owner == BASE:
        return Piece(text, title=f"base {base:.2f}")
    strength, title = sum(base - nats >= limit for limit in STRENGTHS), f"{owner} {nats:.2f}, base {base:.2f}"
    return Piece(text, numbers.get(owner), strength, title) if strength else Piece(text, title=title)


def _words(text: str) -> list[Piece]:
    return [Piece(part) for part in text.splitlines(keepends=True)]


def _reach(lengths: list[int], limit: int) -> int:
    """Count the first pieces within `limit` characters: at least one, and all where few characters would be left."""
    total, count = 0, 0
    for length in lengths:
        if count and total + length > limit and sum(lengths) > limit * 1.25:
            return count
        total, count = total + length, count + 1
    return count


def counted(part: str, parts: Collection[str]) -> str:
    """The label of a count of parameters; evaluation.json counts experts given by path under `trained` too."""
    if part != "trained":
        return part
    return "experts, heads and router" if "heads" in parts else "experts and router"


def labels_of(data: Mapping[str, Any]) -> dict[str, list[str]]:
    """Domain -> the labels of its rows in any split, for domains with labels."""
    facts = data.get("facts", {}).items()
    found = {domain: [label for split in one.get("labels", {}).values() for label in split] for domain, one in facts}
    return {domain: list(dict.fromkeys(labels)) for domain, labels in found.items() if labels}


def text_rows(data: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Domain -> split -> the key of the number of rows in data.json."""
    found: dict[str, dict[str, str]] = {}
    for key in data.get("rows", {}):
        domain, _, split = key.rpartition("/")
        found.setdefault(domain, {})[split] = key
    return found
