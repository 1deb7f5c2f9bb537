"""Texts -> one vector each, by an encoder with a tokenizer of its own; and a router over such vectors.

Knows nothing about files or bases. Padding never counts: a text has the same vector alone and in a batch.
"""

from collections.abc import Callable
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.model.encoder import Encoder
from moesaic.model.features import Prompts, pooled
from moesaic.routing.guard import Opinion
from moesaic.routing.routers import Router

Pool = Literal["mean", "cls"]


class SentenceEncoder(nn.Module):
    """The mean of a text's last states, or that of its first token, at unit length if `normalise`.

    `encode`: text -> ids with the tokens that begin and end it; a longer text is cut to `limit` ids, with its end
    token. Sentence-BERT (arXiv 1908.10084), section 3.
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
        rows, encoder = [self.cut(self.encode(text)) for text in texts], self.encoder
        device = encoder.embeddings.word_embeddings.weight.device
        batch = Prompts.pad(rows, texts, device, with_id=encoder.config.pad)
        states = encoder(batch.ids, batch.real).hidden
        x = states[:, 0] if self.pool == "cls" else pooled(states, batch.lengths, "mean")
        return F.normalize(x, dim=-1) if self.normalise else x

    def cut(self, ids: list[int]) -> list[int]:
        return ids if len(ids) <= self.limit else [*ids[: self.limit - 1], ids[-1]]

    def truncated(self, texts: list[str]) -> int:
        """The number of texts that are cut."""
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


class Through(nn.Module):
    """Texts and their wording -> the opinion of a guard that reads the texts' vectors by an encoder."""

    def __init__(self, sentences: SentenceEncoder, inner: nn.Module):
        super().__init__()
        self.sentences, self.inner = sentences, inner

    def forward(self, features: list[str], wording: Tensor) -> Opinion:
        return self.inner(self.sentences(features), wording)
