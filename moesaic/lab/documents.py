"""Nats of a model on unseen documents, with their bytes: what perplexity and bits per byte are made of.

Every token of a document is scored once, after the tokens before it, but for the first and for special tokens; neither
counts in nats, tokens or bytes. Knows nothing about how a model was trained.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from moesaic.data.batches import Tokens, by_length, pad
from moesaic.errors import DataError
from moesaic.ops.losses import UNSCORED
from moesaic.tokenizer import Tokenizer

RowNats = Callable[[Int[Tensor, "b t"], Int[Tensor, "b t"]], Float[Tensor, " b"]]
"""(token ids, the token after each) -> the summed nats of each row's scored tokens."""


@dataclass(frozen=True)
class Unseen:
    """Documents to score: pieces as long as a model's rows, the document of each, and each document's scored bytes."""

    rows: list[Tokens]
    owners: list[int]
    bytes: Int[np.ndarray, " documents"]
    special: tuple[int, ...]

    @staticmethod
    def of(documents: Sequence[list[int]], tokenizer: Tokenizer, length: int) -> "Unseen":
        """Cut documents into pieces; a document without a scored byte is left out. DataError where none is left.

        A piece begins with the last token of the piece before it.
        """
        tokens = tokenizer.inner.get_added_tokens_decoder().items()
        special = {id for id, token in tokens if token.special} | {*tokenizer.ends, *tokenizer.start}
        rows, owners, sizes = list[Tokens](), list[int](), list[int]()
        for ids in documents:
            size = len(tokenizer.decode(ids).encode()) - len(tokenizer.decode(ids[:1]).encode())
            if size <= 0:
                continue
            starts = range(0, len(ids) - 1, length)
            rows += [Tokens(ids[start : start + length + 1], 1, str(len(sizes))) for start in starts]
            owners += [len(sizes)] * len(starts)
            sizes.append(size)
        if not sizes:
            raise DataError("no unseen text to score", hint="add texts, or raise unseen")
        return Unseen(rows, owners, np.array(sizes), tuple(sorted(special)))

    @torch.no_grad()
    def scored(
        self, nats_of: RowNats, batch: int
    ) -> tuple[Float[np.ndarray, " documents"], Int[np.ndarray, " documents"]]:
        """Summed nats and number of scored tokens of every document."""
        nats, counts = np.zeros(len(self.bytes)), np.zeros(len(self.bytes), dtype=np.int64)
        special = torch.tensor(self.special, dtype=torch.long)
        for places in by_length([len(row.ids) for row in self.rows], batch):
            given = pad([self.rows[place] for place in places], score_prompt=True)
            targets = given.targets.masked_fill(torch.isin(given.targets, special), UNSCORED)
            owners = [self.owners[place] for place in places]
            np.add.at(nats, owners, nats_of(given.ids, targets).double().numpy())
            np.add.at(counts, owners, (targets != UNSCORED).sum(1).numpy())
        return nats, counts
