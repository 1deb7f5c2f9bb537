"""The memory of one training step, counted in a dry step: one on tensors that have sizes and no values.

A dry step makes every allocation of a real one, so that families, kinds of experts and attention need no formulas.
Knows nothing about files.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from moesaic.adapters import LoRA, attach, feedforward
from moesaic.adapters.feedforward import FFN
from moesaic.adapters.lora import layer_of, linears
from moesaic.interop.outline import MODELS, Config, Shape
from moesaic.kinds.gates import alone
from moesaic.kinds.kind import Body, Footprint
from moesaic.model.recomputing import recompute
from moesaic.ops.losses import Targets, summed_nll

SHALLOW = 2, 3
"""Numbers of layers of two dry steps where all layers are alike; more layers follow in a line."""


@dataclass(frozen=True)
class Step:
    """Bytes of a training step: `kept` for its backward pass, and `more` at its peak: logits, gradients, a layer at
    work. `trained`: values of trained weights, in bytes.
    """

    kept: int
    more: int
    trained: int

    def deeper(self, other: "Step", layers: int) -> "Step":
        """The step of a model with so many layers more than `other`, which has one more than this one."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Step(*(last + layers * (last - first) for first, last in pairs))


def dry_step(config: Config, expert: Footprint | None, rows: int, tokens: int, dtype: torch.dtype, again: bool) -> Step:
    """Count a step of training an expert, or without one the whole model, on so many rows and scored tokens of each.

    `again`: layers recompute their activations. Of a sparse model only the experts that answer one token are counted.
    """
    pairs = None if expert is None or expert.config else expert.pairs
    config, rest = dense(config), (expert, rows, tokens, dtype, again)
    if config.num_layers <= SHALLOW[1] or not alike(pairs, config.num_layers):
        return step(config, *rest)
    first, last = (step(shallow(config, layers), *rest) for layers in SHALLOW)
    return first.deeper(last, config.num_layers - SHALLOW[1])


def alike(pairs: Mapping[str, Shape] | None, layers: int) -> bool:
    """Whether an adapter has the same pairs in every layer."""
    found: list[set[tuple[str, Shape]]] = [set() for _ in range(layers)]
    for path, shape in (pairs or {}).items():
        found[layer_of(path)].add((path.split(".", 2)[-1], shape))
    return all(one == found[0] for one in found)


def shallow(config: Any, layers: int) -> Config:
    """The same model with fewer layers."""
    if config.decodes and config.local_layers:
        near = tuple(layer for layer in config.local_layers if layer < layers)
        config = replace(config, local_layers=near, window=config.window if near else 0)
    return replace(config, num_layers=layers)


def dense(config: Any) -> Config:
    """The model with dense blocks of the width that one token passes: a dry step cannot route."""
    if not (config.decodes and config.num_experts):
        return config
    return replace(
        config,
        intermediate_size=config.ffn_width,
        num_experts=0,
        experts_per_token=0,
        expert_size=0,
        dense_layers=(),
        router_scores="softmax",
        balance_bias=False,
    )


def step(config: Config, expert: Footprint | None, rows: int, tokens: int, dtype: torch.dtype, again: bool) -> Step:
    """Count a step of a dense model."""
    with default(dtype):
        ids, real = torch.zeros(rows, tokens, dtype=torch.long), torch.ones(rows, tokens, dtype=torch.bool)
        targets, layers, gates = Targets.of(ids), range(config.num_layers), alone(rows).ready([(0,)])
        with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
            body: Any = MODELS[type(config)](config)
            trained = begun(body, expert)
            if again:
                recompute(body)
            held = live.most = live.now
            states = body.top(body.blocks(body.embed(ids, None), layers, gates if expert else None, real))
            kept = live.now - held
            loss = summed_nll(body.lm_head, config.vocab_size, states, targets)[0] if config.decodes else states.sum()
            loss.backward()
            return Step(kept, live.most - held - kept, trained)


def begun(body: Body, expert: Footprint | None) -> int:
    """Put an untrained expert into a body, which has no values either: an adapter, blocks, or the whole body.

    Returns the bytes of the trained weights.
    """
    if expert is not None and expert.config is None:
        body.requires_grad_(False)
        if expert.pairs is None:
            feedforward.attach(body, [FFN.of(body, range(body.config.num_layers))])
        else:
            adaptable = linears(body)
            sizes = {path: shape for path, shape in expert.pairs.items() if path in adaptable}
            pairs = {path: (torch.empty(r, i), torch.empty(r, o)) for path, (r, i, o) in sizes.items()}
            attach(body, [LoRA(1, 1.0, pairs)])
    return sum(weight.numel() * weight.element_size() for weight in body.parameters() if weight.requires_grad)


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    """Make new tensors of this type in the `with` block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that are alive: now, and at most since the last mark."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.most = 0, 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self.meet(tensor.untyped_storage())
        return made

    def meet(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            weakref.finalize(storage, self.lose, key, size)
            self.now += size
            self.most = max(self.most, self.now)

    def lose(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size
