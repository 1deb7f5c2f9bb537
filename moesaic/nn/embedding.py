"""Token ids -> vectors, scaled where the config says so. Knows nothing about the layers above."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moesaic.config import DecoderConfig


class ScaledEmbedding(nn.Embedding):
    """Embeddings times the square root of their size, rounded to the type of the weights (arXiv 2403.08295).

    At size 640 in bfloat16 the factor is 25.25, not 25.298, as in the models' training.
    """

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        return super().forward(ids) * torch.tensor(self.embedding_dim**0.5, dtype=self.weight.dtype, device="cpu")


def embedding(config: DecoderConfig) -> nn.Embedding:
    kind = ScaledEmbedding if config.scaled_embedding else nn.Embedding
    return kind.from_pretrained(torch.empty(config.vocab_size, config.hidden_size), freeze=False)
