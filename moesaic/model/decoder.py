"""The one decoder: raw PyTorch, Llama-shaped, with slots where experts go in.

Knows nothing about experts, routers, tokenizers or files. Gates go down as an argument, Routing comes up as a
return value; the cache is an argument, so cached and uncached are one model.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from moesaic.config import DecoderConfig
from moesaic.nn import Attention, Cache, Linear, RMSNorm, Rope, Span, SwiGLU
from moesaic.routing import Gates, Routing


class Output(NamedTuple):
    """Next-token logits, and the decisions of layers that route by themselves (None: the layer does not)."""

    logits: Float[Tensor, "b t v"]
    routings: list[Routing | None]


class Decoder(nn.Module):
    """Token ids -> next-token logits."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.rope = Rope(config.head_dim, config.context, config.rope_theta)
        if config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight  # type: ignore[assignment]  # torch types it as Tensor

    def forward(self, ids: Int[Tensor, "b t"], cache: Cache | None = None, gates: Gates | None = None) -> Output:
        """Logits after every token. With a cache the tokens follow those in it; the caller advances it."""
        x, routings = self.run(self.embed_tokens(ids), cache, range(len(self.layers)), gates)
        return Output(self.head(x, gates), routings)

    def run(
        self, x: Float[Tensor, "b t d"], cache: Cache | None, layers: range, gates: Gates | None
    ) -> tuple[Float[Tensor, "b t d"], list[Routing | None]]:
        """Pass a chunk through a range of blocks."""
        span, routings = self.span(x, cache), []
        for layer in layers:
            x, routing = self.layers[layer](x, span, cache, gates)
            routings.append(routing)
        return x, routings

    def head(self, x: Float[Tensor, "b t d"], gates: Gates | None) -> Float[Tensor, "b t v"]:
        return self.lm_head(self.norm(x), gates)

    def span(self, x: Float[Tensor, "b t d"], cache: Cache | None) -> Span:
        if cache is None:
            return self.rope.span(torch.arange(x.shape[1], device=x.device)[None], None)
        positions = cache.positions(x.shape[1])
        return self.rope.span(positions, cache.visible(positions))


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self, x: Float[Tensor, "b t d"], span: Span, cache: Cache | None, gates: Gates | None
    ) -> tuple[Float[Tensor, "b t d"], Routing | None]:
        x = x + self.self_attn(self.input_layernorm(x), span, cache, gates)
        y, routing = self.mlp(self.post_attention_layernorm(x), gates)
        return x + y, routing


def initialise(decoder: Decoder, generator: torch.Generator) -> Decoder:
    """Fresh weights: normal with deviation 0.02, residual outputs scaled down by the depth (GPT-2's rule)."""
    residual_std = 0.02 / (2 * decoder.config.num_layers) ** 0.5
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if weight.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                weight.normal_(0.0, residual_std if residual else 0.02, generator=generator)
            else:
                weight.fill_(1.0)
    return decoder
