"""Three domains whose rows each carry a mark of their own, and a witness of the rows that a run puts through models.

The witness looks where every row must pass, at the lookup of token ids and at the call of a router, so it needs no name
inside the package.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

MARK = re.compile(r"<\d{3}>")

# Listed against the alphabet, two of one size. No two splits of all domains together have equally many rows.
SIZES = {
    "sums": {"train": 12, "validation": 5, "test": 6},
    "birds": {"train": 12, "validation": 5, "test": 6},
    "acts": {"train": 8, "validation": 4, "test": 5},
}
LABELS = {"sums": ("odd", "even"), "birds": ("wren", "owl", "crow"), "acts": ("stays", "goes")}
"""Those of each domain, listed against the alphabet as well."""

Marks = dict[str, dict[str, set[str]]]
"""Domain -> split -> the marks of its rows."""


@dataclass
class Seen:
    """The inputs of models and routers, by `phase`: ids also by whether a gradient was wanted, vectors by whether the
    router was in training mode.
    """

    phase: str = ""
    ids: dict[tuple[str, bool], set[tuple[int, ...]]] = field(default_factory=lambda: defaultdict(set))
    vectors: dict[tuple[str, bool], set[tuple[float, ...]]] = field(default_factory=lambda: defaultdict(set))
    texts: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Journey:
    """A finished run and the rows that it read."""

    root: Path
    seen: Seen
    marks: Marks
    leaked: str
    evaluation: dict[str, Any]
    tokenizer: tokenizers.Tokenizer

    def marks_in(self, phase: str, learning: bool) -> set[str]:
        rows = self.seen.ids[phase, learning]
        return {mark for row in rows for mark in MARK.findall(self.tokenizer.decode(list(row)))}

    def learned(self, phase: str) -> set[str]:
        """The marks of all rows that models read in a phase for a gradient."""
        return self.marks_in(phase, True)

    def measured(self, phase: str) -> set[str]:
        """The marks of all rows that models read in a phase without a gradient."""
        return self.marks_in(phase, False)

    def read(self, phase: str) -> set[str]:
        """The marks of all rows that models read in a phase."""
        return self.learned(phase) | self.measured(phase)

    def texts(self, phase: str) -> set[str]:
        """The marks of all texts that a tokenizer or a keyword router read in a phase."""
        return set(MARK.findall("\n".join(self.seen.texts[phase])))

    def together(self, split: str) -> set[str]:
        """The marks of one split of all domains."""
        return set().union(*(own[split] for own in self.marks.values()))


@contextmanager
def watching() -> Iterator[Seen]:
    """A witness of all rows that models look up and routers decide on."""
    seen = Seen()

    def look(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        if not given:
            return
        (first, *_) = given
        if type(module).__name__.endswith("Router"):
            if isinstance(first, list):
                seen.texts[seen.phase].extend(first)
            else:
                assert isinstance(first, torch.Tensor)
                seen.vectors[seen.phase, module.training].update(map(tuple, first.tolist()))
        elif isinstance(first, torch.Tensor) and first.dtype == torch.long and first.ndim == 2:
            seen.ids[seen.phase, torch.is_grad_enabled()].update(map(tuple, first.tolist()))

    handle = register_module_forward_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


def write(folder: Path, row_of: Callable[[str, str, int], dict[str, str]]) -> tuple[Marks, str]:
    """Put the files of all domains into a folder: their marks, and that of a row which `sums` would learn from although
    `birds` is judged on it. `row_of`: a row of a domain with a mark and a number.
    """
    marks: Marks = {}
    number, shared, leaked = 0, dict[str, str](), ""
    for domain, sizes in SIZES.items():
        marks[domain] = {}
        for split, size in sizes.items():
            numbers = range(number, number := number + size)
            rows = [row_of(domain, f"<{n:03d}>", n) for n in numbers]
            marks[domain][split] = {f"<{n:03d}>" for n in numbers}
            put(folder / f"{domain}_{split}.jsonl", rows)
            if (domain, split) == ("birds", "test"):
                shared, leaked = rows[0], f"<{numbers[0]:03d}>"
    if "label" in shared:
        shared = {**shared, "label": LABELS["sums"][0]}
    with (folder / "sums_train.jsonl").open("a") as file:
        file.write(json.dumps(shared) + "\n")
    return marks, leaked


def put(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def files_of(domain: str) -> dict[str, str]:
    """The files of a domain, as a recipe names them."""
    return {split: f"{domain}_{split}.jsonl" for split in SIZES[domain]}


ROUTER: dict[str, Any] = {
    "kind": "linear",
    "feature": "embedding_mean",
    "epochs": 3,
    "compare": [{"kind": "centroid", "feature": "embedding_mean"}],
}
TRAIN = {"steps": 4, "batch": 4, "length": 48, "lr": [1e-2, 3e-2], "evaluate_every": 0}
