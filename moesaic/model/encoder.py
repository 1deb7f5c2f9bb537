"""The one encoder: BERT (arXiv 1810.04805) and RoBERTa (arXiv 1907.11692) in raw PyTorch, with slots for experts.

Knows nothing about experts, routers, tokenizers or files. Modules have the names of Hugging Face checkpoints except
`layers` (`encoder.layer`) and the head's parts.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.config import EncoderConfig
from moesaic.nn import Linear
from moesaic.routing import Gates

Mask = Bool[Tensor, "b 1 1 t"]
Hidden = Float[Tensor, "b t d"]


class Output(NamedTuple):
    """The last states, and the head's `logits`, or the output of a bare pooler."""

    hidden: Hidden
    logits: Float[Tensor, "b t v"] | Float[Tensor, "b c"] | None
    pooled: Float[Tensor, "b d"] | None


class Encoder(nn.Module):
    """Token ids -> states, each of which has seen the whole text.

    `attention_mask`: 1 (or true) at tokens, 0 at padding; by default every id is a token.
    """

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.pooler = Pooler(config) if config.head == "pooler" else None
        self.head: MaskedHead | ClassificationHead | None = None
        if config.head == "mlm":
            self.head = MaskedHead(config)
        elif config.head == "classification":
            self.head = ClassificationHead(config)
        self.tie()

    def tie(self) -> None:
        """Share the embedding with a masked head's decoder, also after either was replaced."""
        if self.head is not None:
            self.head.tie(self.embeddings.word_embeddings)

    def forward(
        self,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Int[Tensor, "b t"] | Bool[Tensor, "b t"] | None = None,
        token_type_ids: Int[Tensor, "b t"] | None = None,
        gates: Gates | None = None,
    ) -> Output:
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None]
        x = self.embeddings(input_ids, token_type_ids)
        for layer in self.layers:
            x = layer(x, mask, gates)
        logits = None if self.head is None else self.head(x, gates)
        return Output(x, logits, None if self.pooler is None else self.pooler(x, gates))

    def embed(self, ids: Int[Tensor, "b t"], types: Int[Tensor, "b t"] | None) -> Hidden:
        return self.embeddings(ids, types)

    def blocks(self, x: Hidden, layers: range, gates: Gates | None, real: Bool[Tensor, "b t"]) -> Hidden:
        for layer in layers:
            x = self.layers[layer](x, real[:, None, None], gates)
        return x

    def top(self, x: Hidden) -> Hidden:
        """The last block's states, which that block has normed."""
        return x

    def first(self, x: Hidden, gates: Gates | None) -> Float[Tensor, "b d"]:
        """The first token's state, through the pooler if the encoder has one."""
        return x[:, 0] if self.pooler is None else self.pooler(x, gates)


class Embeddings(nn.Module):
    """norm(word + position + token type); token type 0 where none are given."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.num_positions, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.token_types, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, ids: Int[Tensor, "b t"], types: Int[Tensor, "b t"] | None) -> Hidden:
        words = self.word_embeddings(ids) + self.position_embeddings(self.positions(ids))
        return self.LayerNorm(words + self.token_type_embeddings(torch.zeros_like(ids) if types is None else types))

    def positions(self, ids: Int[Tensor, "b t"]) -> Int[Tensor, "#b t"]:
        """The columns; in RoBERTa `pad` + the number of tokens so far, and `pad` for padding."""
        if not self.config.positions_skip_padding:
            return torch.arange(ids.shape[1], device=ids.device)[None]
        tokens = ids != self.config.pad
        return tokens.cumsum(1) * tokens + self.config.pad


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + ffn(x))."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Dense(config.hidden_size, config.intermediate_size)
        self.output = Added(config.intermediate_size, config)

    def forward(self, x: Hidden, mask: Mask | None, gates: Gates | None) -> Hidden:
        x = self.attention(x, mask, gates)
        return self.output(F.gelu(self.intermediate.dense(x, gates)), x, gates)


class Attention(nn.Module):
    """norm(x + self-attention(x)): every token sees every token that is not padding."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.self = Projections(config)
        self.output = Added(config.hidden_size, config)

    def forward(self, x: Hidden, mask: Mask | None, gates: Gates | None) -> Hidden:
        q, k, v = self.self(x, gates)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.output(y.transpose(1, 2).flatten(2), x, gates)


class Projections(nn.Module):
    """Queries, keys and values, head by head."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.heads = config.num_heads
        self.query, self.key, self.value = (Linear(config.hidden_size, config.hidden_size, bias=True) for _ in range(3))

    def forward(self, x: Hidden, gates: Gates | None) -> list[Float[Tensor, "b h t hd"]]:
        every = (linear(x, gates) for linear in (self.query, self.key, self.value))
        return [y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in every]


class Added(nn.Module):
    """norm(dense(y) + x)."""

    def __init__(self, inner: int, config: EncoderConfig):
        super().__init__()
        self.dense = Linear(inner, config.hidden_size, bias=True)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.norm_eps)

    def forward(self, y: Float[Tensor, "b t i"], x: Hidden, gates: Gates | None) -> Hidden:
        return self.LayerNorm(self.dense(y, gates) + x)


class Dense(nn.Module):
    """A linear slot under the name that checkpoints give it."""

    def __init__(self, inner: int, outer: int):
        super().__init__()
        self.dense = Linear(inner, outer, bias=True)


class Pooler(nn.Module):
    """tanh(dense(the first token's state))."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=True)

    def forward(self, x: Hidden, gates: Gates | None) -> Float[Tensor, "b d"]:
        return self.dense(x[:, :1], gates).tanh()[:, 0]


class MaskedHead(nn.Module):
    """Logits over the vocabulary for the token at each position; `decoder` shares the weights of the embedding."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.dense = Linear(config.hidden_size, config.hidden_size, bias=True)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.decoder = Linear(config.hidden_size, config.vocab_size, bias=True)

    def tie(self, words: nn.Embedding) -> None:
        self.decoder.weight = words.weight  # type: ignore[assignment]  # a Parameter

    def forward(self, x: Hidden, gates: Gates | None) -> Float[Tensor, "b t v"]:
        return self.decoder(self.LayerNorm(F.gelu(self.dense(x, gates))), gates)


class ClassificationHead(nn.Module):
    """A logit for each label, from the first token; the same in BERT and RoBERTa but for the names of tensors."""

    def __init__(self, config: EncoderConfig):
        super().__init__()
        self.pooler = Pooler(config)
        self.out_proj = Linear(config.hidden_size, len(config.labels), bias=True)

    def tie(self, words: nn.Embedding) -> None:
        """Share nothing: no weight is the embedding's."""

    def forward(self, x: Hidden, gates: Gates | None) -> Float[Tensor, "b c"]:
        return self.out_proj(self.pooler(x, gates)[:, None], gates)[:, 0]
