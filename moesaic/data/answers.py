"""Rows with a label as ids, and batches of them.

Knows nothing about files, models, or which labels other tasks have.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from moesaic.data.rows import Example
from moesaic.errors import DataError
from moesaic.tokenizer.pairs import Writer


@dataclass(frozen=True)
class LabelledTokens:
    """One row as a model reads it, and the place of its label: among those of its task, or of all tasks.

    `text`: as it was before it became ids. `source` says to people where it was read.
    """

    ids: list[int]
    types: list[int]
    label: int
    text: str
    group: str
    truncated: bool = False
    source: str = field(default="", compare=False)

    @property
    def prompt(self) -> int:
        """How many of its ids a router may read: all."""
        return len(self.ids)

    @property
    def judged_by(self) -> list[Any]:
        """Everything that an answer to the row depends on, and its label."""
        return [self.ids, self.prompt, self.label]


def encode_labelled(
    examples: Iterable[Example], writer: Writer, length: int, labels: Sequence[str], start: int = 0
) -> list[LabelledTokens]:
    """Every example as at most `length` ids; `start`: the place of the first of `labels`."""
    places = {label: place for place, label in enumerate(labels, start)}
    rows = []
    for example in examples:
        ids, types, truncated = writer(example.texts, length)
        if not ids:
            raise DataError("the tokenizer makes nothing of this text", path=example.source, got=example.prompt)
        label = places[example.response]
        rows.append(LabelledTokens(ids, types, label, example.prompt, example.group, truncated, example.source))
    return rows


def targets_of(rows: Sequence[LabelledTokens]) -> Int[Tensor, " n"]:
    """The labels of rows."""
    return torch.tensor([row.label for row in rows])
