"""Test doubles, shipped with the package: tiny models, toy experts, a byte tokenizer, fixed routers. For tests only."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from moesaic.adapters import LoRA
from moesaic.adapters.feedforward import FFN
from moesaic.config import ENCODER_TRAITS, DecoderConfig, EncoderConfig, Head
from moesaic.model.decoder import Decoder, initialise
from moesaic.model.encoder import Encoder
from moesaic.model.features import Prompts
from moesaic.model.mixture import Routed, Session
from moesaic.routing import Routing
from moesaic.routing.routers import Features, Router
from moesaic.tokenizer import Conversation, Exchange
from moesaic.tokenizer.conversation import plain

ALL_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tiny_config(**changes: Any) -> DecoderConfig:
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2}
    return DecoderConfig(**{**sizes, "intermediate_size": 48, "context": 64, **changes})


def tiny_decoder(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Decoder:
    """A random decoder whose weights are large enough that every layer matters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        decoder = initialise(Decoder(tiny_config(**changes)), torch.Generator().manual_seed(seed))
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        for weight in decoder.parameters():
            if weight.ndim >= 2:
                weight.mul_(5)
    return decoder.eval()


def toy_expert(
    decoder: Decoder | Encoder, seed: int, rank: int = 3, targets: list[str] = ALL_TARGETS, layers: range = range(99)
) -> LoRA:
    """A random LoRA expert that changes the output of every linear it adapts."""
    generator = torch.Generator().manual_seed(seed)
    expert = LoRA.fresh(decoder, rank, 2.0 * rank, targets, layers, generator)
    for _, b in expert.pairs.values():
        b.normal_(0, 0.3, generator=generator)
    return expert


def toy_ffn(decoder: Decoder, seed: int, layers: range = range(99)) -> FFN:
    """A random feed-forward expert: the base's own blocks in these layers plus large noise."""
    generator = torch.Generator().manual_seed(seed)
    expert = FFN.of(decoder, layers)
    for block in expert.blocks.values():
        for part in block:
            part.add_(torch.empty_like(part).normal_(0, 0.3, generator=generator))
    return expert


def prefilled(
    mixture: Routed, prompts: Prompts, new: int, forced: Routing | None = None
) -> tuple[torch.Tensor, Session[Any]]:
    """Logits and session of prompts in a new room with space for `new` more tokens each."""
    room = mixture.room(len(prompts.ids), prompts.ids.shape[1] + new)
    return mixture.prefill(prompts, room, room.spare.take(len(prompts.ids)), forced)


def tiny_encoder(
    family: str = "bert", head: Head = "none", seed: int = 0, dtype: torch.dtype = torch.float64, vocab_size: int = 61
) -> Encoder:
    """A random encoder, three labels where it classifies, in which every tensor matters."""
    sizes: Any = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "context": 20}
    labels = ("no", "perhaps", "yes") if head == "classification" else ()
    sizes |= {"vocab_size": vocab_size, "family": family, "head": head, "labels": labels}
    encoder = Encoder(EncoderConfig(**sizes, **ENCODER_TRAITS[family])).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            weight.normal_(float(name.endswith("LayerNorm.weight")), 0.3, generator=generator)
    return encoder.eval()


class FixedRouter:
    """Returns the logits of entry i for row i, whatever the features."""

    def __init__(self, logits: list[list[float]], dtype: torch.dtype = torch.float64):
        self.logits = torch.tensor(logits, dtype=dtype)
        self.num_parameters = self.num_encoder_parameters = 0

    def __call__(self, features: Features) -> torch.Tensor:
        return self.logits[: len(features)]


class FunctionRouter:
    """Returns a function's logits of the features."""

    def __init__(self, logits_of: Callable[[Any], torch.Tensor]):
        self.logits_of = logits_of
        self.num_parameters = self.num_encoder_parameters = 0

    def __call__(self, features: Features) -> torch.Tensor:
        return self.logits_of(features)


class ByteTokenizer:
    """Bytes as tokens: no files, no merges. Ids 0-255 are bytes, 256 ends a text."""

    vocab_size, eos, start = 257, 256, ()

    @property
    def ends(self) -> tuple[int, ...]:
        return (self.eos,)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def begin(self, prompt: str | Conversation, raw: bool = False) -> list[int]:
        return self.encode(prompt if isinstance(prompt, str) else plain(prompt))

    def beginnings(self, texts: Iterable[str]) -> Iterator[list[int]]:
        return map(self.encode, texts)

    def exchanges(self, exchanges: Iterable[Exchange]) -> Iterator[tuple[list[int], list[int]]]:
        return ((self.begin(one.prompt), [*self.encode("\n" + one.response), self.eos]) for one in exchanges)

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


_: type[Router] = FixedRouter
