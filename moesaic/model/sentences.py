"""Texts -> one vector each, by an encoder with a tokenizer of its own; and a router that reads such vectors.

Knows nothing about files or bases. Padding never counts: a text alone and in a batch reads the same.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.model.encoder import Encoder
from moesaic.routing.routers import Router

Pool = Literal["mean", "cls"]


class SentenceEncoder(nn.Module):
    """The mean of a text's last states, or that of its first token, at unit length if `normalise`.

    `encode` gives a text's ids with the tokens that begin and end it; of a text with more than `limit` of them the
    first are read, and the token that ends it. Sentence-BERT (arXiv 1908.10084), section 3.
    """

    def __init__(
        self,
        encoder: Encoder,
        encode: Callable[[str], list[int]],
        limit: int,
        pool: Pool = "mean",
        normalise: bool = False,
    ):
        super().__init__()
        self.encoder, self.encode, self.limit, self.pool, self.normalise = encoder, encode, limit, pool, normalise

    def forward(self, texts: list[str]) -> Float[Tensor, "b d"]:
        ids, mask = self.batch(texts)
        states = self.encoder(ids, mask).hidden
        if self.pool == "cls":
            x = states[:, 0]
        else:
            x = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return F.normalize(x, dim=-1) if self.normalise else x

    def batch(self, texts: list[str]) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Right-padded ids, and 1 where there is a token."""
        rows = [self.cut(self.encode(text)) for text in texts]
        width, device = max(map(len, rows)), self.encoder.embeddings.word_embeddings.weight.device
        pad = self.encoder.config.pad
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        return ids, mask

    def cut(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self.limit else [*ids[: self.limit - 1], ids[-1]]

    def truncated(self, texts: list[str]) -> int:
        """How many texts are longer than what is read of them."""
        return sum(len(self.encode(text)) > self.limit for text in texts)


class SentenceRouter(nn.Module):
    """Texts -> logits: a router over the vectors of an encoder."""

    def __init__(self, sentences: SentenceEncoder, router: Router):
        super().__init__()
        self.sentences, self.router = sentences, router

    @property
    def num_parameters(self) -> int:
        return self.router.num_parameters

    @property
    def num_encoder_parameters(self) -> int:
        return sum(weight.numel() for weight in self.sentences.parameters())

    def forward(self, features: list[str]) -> Float[Tensor, "n e"]:
        return self.router(self.sentences(features))
