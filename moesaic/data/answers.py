"""Token ids of rows with labels.

Knows nothing about files, models, or the labels of other tasks.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from moesaic.data.rows import Example
from moesaic.errors import DataError
from moesaic.hardware import sent
from moesaic.tokenizer.pairs import Writer


@dataclass(frozen=True)
class LabelledTokens:
    """A row as token ids, with the index of its label among those of its task, or of all tasks.

    `text`: the text of the row. `lost`: the number of ids that were cut off. `source`: file and line, for people.
    """

    ids: list[int]
    types: list[int]
    label: int
    text: str
    group: str
    lost: int = 0
    source: str = field(default="", compare=False)

    @property
    def prompt(self) -> int:
        """Number of ids that a router may read: all."""
        return len(self.ids)

    @property
    def judged_by(self) -> list[Any]:
        """All that the score of the row depends on."""
        return [self.ids, self.prompt, self.label]


def encode_labelled(
    examples: Iterable[Example], writer: Writer, length: int, labels: Sequence[str], start: int = 0
) -> list[LabelledTokens]:
    """Encode examples as at most `length` ids each; `start`: index of the first of `labels`."""
    indices = {label: index for index, label in enumerate(labels, start)}
    rows = []
    for example in examples:
        ids, types, lost = writer(example.texts, length)
        if not ids:
            raise DataError("the tokenizer gives no tokens for this text", path=example.source, got=example.prompt)
        label = indices[example.response]
        rows.append(LabelledTokens(ids, types, label, example.prompt, example.group, lost, example.source))
    return rows


def targets_of(rows: Sequence[LabelledTokens], device: torch.device | None = None) -> Int[Tensor, " n"]:
    return sent(torch.tensor([row.label for row in rows]), device)
