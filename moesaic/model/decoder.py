"""The one decoder: raw PyTorch, with slots for experts. Families differ in the fields of its config.

Knows nothing about experts, routers, tokenizers or files. Gates go down as an argument, Routing comes up as a
return value; the cache is an argument, so cached and uncached are one model.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from moesaic.config import DecoderConfig
from moesaic.errors import CompatibilityError
from moesaic.nn import Attention, Cache, Linear, Mask, Rope, Span, apart, embedding, ffn, norm
from moesaic.ops.losses import Targets, summed_nll
from moesaic.routing import Gates, Routing

Hidden = Float[Tensor, "b t d"]


class Output(NamedTuple):
    """Next-token logits, each layer's own decisions (None: it makes none), and the states that give the logits."""

    logits: Float[Tensor, "b t v"]
    routings: list[Routing | None]
    hidden: Hidden


class Scored(NamedTuple):
    """The summed nats of targets, with a gradient; those of each row, without one; and each layer's own decisions."""

    nats: Float[Tensor, ""]
    rows: Float[Tensor, " b"]
    routings: list[Routing | None]


class Decoder(nn.Module):
    """Token ids -> next-token logits."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = embedding(config)
        block = SandwichBlock if config.sandwich_norms else Block
        self.layers = nn.ModuleList(block(config, layer) for layer in range(config.num_layers))
        self.norm = norm(config, config.hidden_size)
        self.lm_head = Linear(config.hidden_size, config.vocab_size)
        self.rope = Rope(config.head_dim, config.context, config.rope_theta, config.rope_scaling)
        self.local_rope = self.rope
        if config.local_rope_theta:
            self.local_rope = Rope(config.head_dim, config.context, config.local_rope_theta)
        self.tie()

    def tie(self) -> None:
        """Share the embedding with the head if the config says so."""
        if self.config.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight  # type: ignore[assignment]  # torch types it as Tensor

    def forward(
        self,
        ids: Int[Tensor, "b t"],
        cache: Cache | None = None,
        gates: Gates | None = None,
        mask: Mask | None = None,
        targets: Targets | None = None,
    ) -> Output | Scored:
        """Logits after every token. With a cache the tokens follow the cached ones; the caller advances the cache.

        `mask`: 0 at padding, on either side, else the number of the token's text in its row, which sees no other.
        `targets`: to be scored in place of logits; no expert changes the head.
        """
        x, routings = self.run(self.embed_tokens(ids), cache, range(len(self.layers)), gates, mask)
        hidden = self.norm(x)
        if targets is not None:
            return Scored(*summed_nll(self.lm_head, self.config.vocab_size, hidden, targets), routings)
        return Output(self.lm_head(hidden, gates), routings, hidden)

    def score(
        self, ids: Int[Tensor, "b t"], gates: Gates | None, at: Bool[Tensor, "b t"] | None = None
    ) -> Float[Tensor, "*p v"]:
        """Next-token logits (b, t, v) of whole sequences; `at`: (k, v), after the tokens at these positions alone."""
        x, _ = self.run(self.embed_tokens(ids), None, range(len(self.layers)), gates)
        return self.head(x, gates) if at is None else self.head(x[at][None], None)[0]  # no expert changes the head

    def run(
        self, x: Hidden, cache: Cache | None, layers: range, gates: Gates | None, mask: Mask | None = None
    ) -> tuple[Hidden, list[Routing | None]]:
        """Pass a chunk through a range of blocks."""
        near, routings = self.config.local_layers, []
        span = self.span(x, cache, mask)
        local = self.span(x, cache, mask, local=True) if near else span
        for layer in layers:
            x, routing = self.layers[layer](x, local if layer in near else span, cache, gates)
            routings.append(routing)
        return x, routings

    def embed(self, ids: Int[Tensor, "b t"], types: Int[Tensor, "b t"] | None) -> Hidden:
        """Embed ids; `types`, of encoders, are ignored."""
        return self.embed_tokens(ids)

    def blocks(self, x: Hidden, layers: range, gates: Gates | None, real: Bool[Tensor, "b t"]) -> Hidden:
        """Pass x through blocks without a cache; `real` is ignored, as no token sees the padding behind it."""
        return self.run(x, None, layers, gates)[0]

    def top(self, x: Hidden) -> Hidden:
        return self.norm(x)

    def first(self, x: Hidden, gates: Gates | None) -> Float[Tensor, "b d"]:
        """The first token's state; `gates`, for poolers of encoders, are ignored."""
        return x[:, 0]

    def head(self, x: Hidden, gates: Gates | None) -> Float[Tensor, "b t v"]:
        return self.lm_head(self.norm(x), gates)

    def span(self, x: Hidden, cache: Cache | None, mask: Mask | None = None, local: bool = False) -> Span:
        """Positions and visibility of a chunk's tokens; `local`: in the layers with a window."""
        t, (rope, window) = x.shape[1], (self.local_rope, self.config.window) if local else (self.rope, 0)
        rope.reserve(t if cache is None else cache.capacity, x)
        if cache is not None and mask is not None:
            hint = "pad on the right and advance the cache by each row's length"
            raise CompatibilityError("a cache takes no mask", field="mask", hint=hint)
        if cache is not None:
            positions = cache.positions(t)
            return rope.span(positions, cache.mask(positions, window))
        if mask is None and not 0 < window < t:
            return rope.span(torch.arange(t, device=x.device)[None], None)
        return rope.span(*apart(torch.ones_like(x[:1, :, 0], dtype=torch.bool) if mask is None else mask, window))


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.input_layernorm = norm(config, config.hidden_size)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = norm(config, config.hidden_size)
        self.mlp = ffn(config, layer)

    def forward(self, x: Hidden, span: Span, cache: Cache | None, gates: Gates | None) -> tuple[Hidden, Routing | None]:
        x = x + self.self_attn(self.input_layernorm(x), span, cache, gates)
        y, routing = self.mlp(self.post_attention_layernorm(x), gates)
        return x + y, routing


class SandwichBlock(nn.Module):
    """x + norm(attention(norm(x))), then x + norm(ffn(norm(x))). Norms have the names of Gemma's checkpoints."""

    def __init__(self, config: DecoderConfig, layer: int):
        super().__init__()
        self.input_layernorm = norm(config, config.hidden_size)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = norm(config, config.hidden_size)
        self.pre_feedforward_layernorm = norm(config, config.hidden_size)
        self.mlp = ffn(config, layer)
        self.post_feedforward_layernorm = norm(config, config.hidden_size)

    def forward(self, x: Hidden, span: Span, cache: Cache | None, gates: Gates | None) -> tuple[Hidden, Routing | None]:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), span, cache, gates))
        y, routing = self.mlp(self.pre_feedforward_layernorm(x), gates)
        return x + self.post_feedforward_layernorm(y), routing


def initialise(decoder: Decoder, generator: torch.Generator, deviation: float = 0.02) -> Decoder:
    """Draw weights with this deviation, scaled down by the depth for residual outputs (GPT-2's rule).

    Matrices that meet the outputs of heads keep their scale, or are 0 where the layer should begin as the identity.
    """
    config = decoder.config
    residual = deviation / (2 * config.num_layers) ** 0.5
    mixing = 0.0 if config.head_filling == "residual_mixer" else config.head_dim**-0.5
    own = {"o_proj": residual, "down_proj": residual, "head_mix": mixing}
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if weight.ndim >= 2:
                spread = own.get(name.removesuffix(".weight").rpartition(".")[2], deviation)
                weight.normal_(0.0, spread, generator=generator)
            else:
                weight.fill_(0.0 if name.endswith("bias") else 1.0 - config.norm_offset)
    return decoder
