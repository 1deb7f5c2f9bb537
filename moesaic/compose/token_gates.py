"""Gates of a sparse model from prompts of its experts: rows for every layer, without a training.

The prompts are read by the base. Knows nothing about files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.errors import RecipeError
from moesaic.model.decoder import Decoder
from moesaic.ops.gate_rows import means, ridge, sharpened, unit
from moesaic.tokenizer import Conversation, Tokenizer

Prompt = str | Conversation
Layers = list[Tensor]
"""For each layer, a row (d) for each expert or a state (d) for each token."""
Ids = Sequence[int]


@dataclass(frozen=True)
class Reader:
    """A dense base that reads prompts. `generator`: of random gates."""

    decoder: Decoder
    tokenizer: Tokenizer
    generator: torch.Generator

    def marked(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt behind the `bos` token, whether or not sequences begin with it, as in mergekit."""
        bos = self.tokenizer.special.bos
        return [*([] if bos is None else [bos]), *self.tokenizer.encode(require_text(prompt))]

    def begun(self, prompt: Prompt) -> list[int]:
        """Ids of a prompt as the model reads it: a text as it is, a conversation in the chat template."""
        return self.tokenizer.begin(prompt, raw=isinstance(prompt, str))

    def states(self, ids: Ids, place: Callable[[nn.Module], nn.Module]) -> Layers:
        """The states (t, d) that enter a module of every layer."""
        found: Layers = []

        def keep(_: nn.Module, given: tuple[Any, ...]) -> None:
            found.append(given[0][0].detach())

        hooks = [place(layer).register_forward_pre_hook(keep) for layer in self.decoder.layers]
        try:
            with torch.inference_mode():
                self.decoder(torch.tensor([[*ids][: self.decoder.config.context]]))
        finally:
            for hook in hooks:
                hook.remove()
        return found


@dataclass(frozen=True)
class Prompted:
    """The prompts of an expert, and those of what it is not for."""

    positive: Sequence[Prompt]
    negative: Sequence[Prompt] = ()


@dataclass(frozen=True)
class Texts:
    """The same as token ids."""

    positive: Sequence[Ids]
    negative: Sequence[Ids] = ()


@dataclass(frozen=True)
class Gate:
    """A way to make rows: `rows` of every layer, from the texts of each expert; `encode` makes a text of a prompt."""

    rows: Callable[[Reader, Sequence[Texts]], Layers]
    encode: Callable[[Reader, Prompt], list[int]] = Reader.begun

    def __call__(self, reader: Reader, experts: Sequence[Prompted]) -> Layers:
        def read(prompts: Sequence[Prompt]) -> list[list[int]]:
            return [self.encode(reader, prompt) for prompt in prompts]

        return self.rows(reader, [Texts(read(one.positive), read(one.negative)) for one in experts])


def require_text(prompt: Prompt) -> str:
    if not isinstance(prompt, str):
        raise RecipeError("a conversation, which this gate does not read", expected="a text")
    return prompt


def residual(layer: nn.Module) -> nn.Module:
    """The place where mergekit reads: before the layer."""
    return layer


def routed(layer: nn.Module) -> nn.Module:
    """The place where a router reads: before the feed-forward block."""
    return layer.get_submodule("mlp")


# --- mergekit's -------------------------------------------------------------------------------------------------------


def hidden(reader: Reader, experts: Sequence[Texts]) -> Layers:
    """The last state of each text before every layer, its mean over the texts less that of the negative ones."""

    def mean(texts: Sequence[Ids]) -> Tensor:
        last = [torch.stack([one[-1] for one in reader.states(ids, residual)]) for ids in texts]
        return torch.stack(last).mean(0)

    return layered([unit(less(mean, one)) for one in experts])


def cheap_embed(reader: Reader, experts: Sequence[Texts]) -> Layers:
    """The sum of the embeddings of all tokens of the texts, the same in every layer."""
    layers, table = len(reader.decoder.layers), reader.decoder.embed_tokens.weight.detach()

    def total(texts: Sequence[Ids]) -> Tensor:
        whole = torch.stack([table[[*ids]].float().sum(0) for ids in texts]).sum(0)
        return unit(whole).expand(layers, -1)

    return layered([unit(less(total, one)) for one in experts])


def less(of: Callable[[Sequence[Ids]], Tensor], expert: Texts) -> Tensor:
    own = of(expert.positive)
    return own - of(expert.negative) if expert.negative else own


def normal(count: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, width, generator=generator)


def uniform(count: int, width: int, generator: torch.Generator) -> Tensor:
    """Rows as those of a new linear layer."""
    return (2 * torch.rand(count, width, generator=generator) - 1) * width**-0.5


RANDOM: dict[str, Callable[[int, int, torch.Generator], Tensor]] = {"random": normal, "uniform_random": uniform}
"""Word -> rows of so many experts that no prompt decides."""


def drawn(rows: Callable[[int, int, torch.Generator], Tensor]) -> Gate:
    """Gates without texts."""

    def gates(reader: Reader, experts: Sequence[Texts]) -> Layers:
        width = reader.decoder.config.hidden_size
        return [rows(len(experts), width, reader.generator) for _ in reader.decoder.layers]

    return Gate(gates)


def layered(experts: Sequence[Tensor]) -> Layers:
    """Rows (layers, d) of every expert as rows (e, d) of every layer."""
    return [*torch.stack([*experts], 1).float()]


# --- at the router's true input ---------------------------------------------------------------------------------------


def fitted(fit: Callable[[Sequence[Tensor]], Tensor]) -> Gate:
    """Gates that `fit` makes of the states of all tokens of each expert's texts where a router reads them."""

    def gates(reader: Reader, experts: Sequence[Texts]) -> Layers:
        if any(one.negative for one in experts):
            what, hint = "this gate learns no negative prompts", "use them with the gate 'hidden' or 'cheap_embed'"
            raise RecipeError(what, field="negative_prompts", hint=hint)
        read = [[reader.states(ids, routed) for ids in one.positive] for one in experts]
        rows: Layers = []
        for layer in range(len(reader.decoder.layers)):
            states = [torch.cat([text[layer] for text in texts]) for texts in read]
            rows.append(sharpened(fit(states), states).float())
        return rows

    return Gate(gates)


GATES: dict[str, Gate] = {
    "ridge": fitted(ridge),
    "means": fitted(means),
    "hidden": Gate(hidden, Reader.marked),
    "cheap_embed": Gate(cheap_embed, Reader.marked),
    **{word: drawn(rows) for word, rows in RANDOM.items()},
}
"""Word -> the way to make the rows of every layer."""

ALIKE = 5.0
"""Condition number of a layer's rows from which mergekit calls them degenerate."""


def gate_named(word: str) -> Gate:
    if word not in GATES:
        raise RecipeError("unknown gate", field="gate", expected=f"one of {', '.join(GATES)}", got=word)
    return GATES[word]


def alike(gates: Layers) -> list[int]:
    """The layers whose rows are so alike that some experts will see few tokens."""
    return [layer for layer, rows in enumerate(gates) if float(torch.linalg.cond(rows.double())) > ALIKE]
