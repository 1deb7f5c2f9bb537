"""TT-LoRA as it is trained and used here, against PEFT's LoRA and against the two ways it is computed elsewhere.

Core by core: the published contraction, a product with the tokens for every core. Rebuilt: the whole matrix in every
step, added to the weight. Here: the cores of either side multiplied out to LoRA's pair, once a call in training and
once for all in use. Times are those that one thread computes, not those that pass: other programs may run beside it.
"""

import statistics
import time
from collections.abc import Callable
from functools import cache
from math import prod

import torch
from jaxtyping import Float
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import RobertaConfig, RobertaModel

from benchmarks import decoding, mixed_rows
from benchmarks.timing import best_decile, laps
from moesaic import published_ttlora
from moesaic.adapters import Cores, Design, Factors, LoRA, LoRADesign, TensorTrain, TrainDesign, attach
from moesaic.adapters.factors import Choice
from moesaic.adapters.lora import linears, wrap
from moesaic.config import published_encoder
from moesaic.model.decoder import Decoder, initialise
from moesaic.model.encoder import Encoder
from moesaic.nn import Linear
from moesaic.routing import Gates

ROWS, TOKENS, LAYERS, ROUNDS = 4, 64, range(12), 7
TARGETS = ["query", "value"]
SETTINGS = published_ttlora("roberta-base")
DEEP = Factors((12, 8, 8), (8, 8, 12))
SHAPES: dict[str, tuple[int, Choice]] = {
    "64, 4, 3 | 3, 4, 64, rank 4": (SETTINGS.rank, "published"),
    "12, 8, 8 | 8, 8, 12, rank 10": (10, dict.fromkeys(TARGETS, DEEP)),
}
"""Those of RoBERTa-base in TT-LoRA MoE, and of the first paper's search (arXiv 2408.01008)."""
EXPERTS = 8


class CoreByCore(nn.Module):
    """The linear slot as the published code fills it: every core takes or gives one digit of the tokens' states."""

    def __init__(self, base: Linear, cores: Cores, alpha: float):
        super().__init__()
        self.base, self.alpha = base, alpha
        self.inputs, self.outputs = (nn.ParameterList(core.clone() for core in side) for side in cores)

    def forward(self, x: Float[Tensor, "n t i"], gates: Gates | None) -> Float[Tensor, "n t o"]:
        state = x.reshape(*x.shape[:2], *(core.shape[1] for core in reversed([*self.inputs])))[:, None]
        for core in self.inputs:
            state = torch.einsum("br...m,rmp->bp...", state, core)
        for core in self.outputs:
            state = torch.einsum("br...,rnp->bp...n", state, core)
        return self.base(x, gates) + self.alpha * state.reshape(*x.shape[:2], -1)


class Rebuilt(CoreByCore):
    """The linear slot with the whole matrix made of the cores, and added to the weight, in every call."""

    def forward(self, x: Float[Tensor, "n t i"], gates: Gates | None) -> Float[Tensor, "n t o"]:
        whole, p = self.inputs[0], len(self.inputs)
        for core in (*self.inputs[1:], *self.outputs):
            whole = torch.tensordot(whole, core, dims=1)
        whole = whole[0, ..., 0].permute(*reversed(range(p)), *range(p, whole.ndim - 2))
        matrix = whole.reshape(prod(whole.shape[:p]), -1).t()
        return F.linear(x, self.base.weight + self.alpha * matrix, self.base.bias)


def report(quick: bool) -> str:
    rounds = 1 if quick else ROUNDS
    torch.set_num_threads(1)
    intro = "RoBERTa-base's size, adapters on query and value of all layers, float32; milliseconds of one thread."
    return (
        "\n\n".join(
            [
                intro,
                *(training(name, *shape, rounds) for name, shape in SHAPES.items()),
                decodings(rounds),
                mixed(rounds),
            ]
        )
        + "\n"
    )


def training(name: str, rank: int, factors: Choice, rounds: int) -> str:
    """Whole training steps with trains of one shape beside all others."""

    def train(module: nn.Module) -> TensorTrain:
        return train_for(module, rank, factors)

    contenders = {
        "PEFT, LoRA of rank 8": peft_step(),
        "LoRA of rank 8": own_step(lambda module: LoRA.fresh(module, 8, 16, TARGETS, LAYERS, seeded()).adapt(module)),
        "TT-LoRA": own_step(lambda module: train(module).adapt(module)),
        "TT-LoRA, core by core": own_step(lambda module: filled(module, train(module), CoreByCore)),
        "TT-LoRA, rebuilt": own_step(lambda module: filled(module, train(module), Rebuilt)),
    }
    found, kept = (
        laps(contenders, rounds, 1, time.process_time),
        {name: saved(step) for name, step in contenders.items()},
    )
    ours = found["TT-LoRA"]
    rows = [
        f"## A whole training step: {ROWS} rows of {TOKENS} tokens, AdamW, factors {name}, {rounds} rounds",
        "",
        "| | median | best decile | TT-LoRA / this | best decile | saved for backward, MB | TT-LoRA / this |",
        "|---|---|---|---|---|---|---|",
    ]
    for who, times in found.items():
        middle, best = statistics.median(times), best_decile(times)
        rows.append(
            f"| {who} | {middle * 1e3:.0f} | {best * 1e3:.0f} | {statistics.median(ours) / middle:.2f} "
            f"| {best_decile(ours) / best:.2f} | {kept[who] / 1e6:.1f} | {kept['TT-LoRA'] / kept[who]:.2f} |"
        )
    return "\n".join(rows)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@cache
def weights() -> dict[str, Tensor]:
    """Random ones of RoBERTa-base's size, shared by all models of ours."""
    made = Encoder(published_encoder("roberta-base"))
    with torch.no_grad():
        for name, weight in made.named_parameters():
            weight.fill_(1.0) if "LayerNorm.weight" in name else weight.normal_(0.0, 0.02, generator=seeded())
    return made.state_dict()


def encoder() -> Encoder:
    with torch.device("meta"):
        made = Encoder(published_encoder("roberta-base"))
    made.load_state_dict(weights(), assign=True)
    return made.eval().requires_grad_(False)


def train_for(module: nn.Module, rank: int, factors: Choice, seed: int = 0) -> TensorTrain:
    """An adapter with cores that are all at work."""
    generator = torch.Generator().manual_seed(seed)
    present = [name for name in TARGETS if any(path.endswith(name) for path in linears(module))]
    return TensorTrain.fresh(module, rank, SETTINGS.alpha, present, LAYERS, generator, factors, "published")


def filled(module: Encoder, expert: TensorTrain, slot: type[CoreByCore]) -> None:
    wrap(module, expert.cores, lambda path, base: slot(base, expert.cores[path], expert.alpha))


Step = Callable[[], None]


def own_step(put: Callable[[Encoder], None]) -> Step:
    model, ids = encoder(), torch.randint(5, 50_000, (ROWS, TOKENS), generator=seeded())
    put(model)
    gates = Gates.one(0, ROWS, 1, torch.zeros(1))
    return stepping(model, lambda: model(ids, gates=gates).hidden)


def peft_step() -> Step:
    ids = torch.randint(5, 50_000, (ROWS, TOKENS), generator=seeded())
    model = get_peft_model(peer(), LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS)).eval()
    return stepping(model, lambda: model(input_ids=ids).last_hidden_state)


def peer() -> RobertaModel:
    """transformers' model of the same size."""
    config = published_encoder("roberta-base")
    sizes = {"vocab_size": config.vocab_size, "max_position_embeddings": config.num_positions, "type_vocab_size": 1}
    return RobertaModel(RobertaConfig(**sizes), add_pooling_layer=False)


def stepping(model: nn.Module, states: Callable[[], Tensor]) -> Step:
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, fused=True)

    def step() -> None:
        states().square().mean().backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def saved(step: Step) -> int:
    """Bytes that a step keeps for its backward pass, each storage once and weights left out."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def decodings(rounds: int) -> str:
    heading = (
        f"## Decoding with one expert: {decoding.CONFIG.num_layers} layers x {decoding.CONFIG.hidden_size}, prompt "
        f"{decoding.PROMPT}, {decoding.STEPS} greedy steps, rank 8 on all targets"
    )
    table = [
        "| rows | LoRA | TT-LoRA, cached pair | ratio of times | TT-LoRA, multiplied out in each call | ratio |",
        "|---|---|---|---|---|---|",
    ]
    return "\n".join([heading, "", *table, *(decoded(rows, rounds) for rows in (1, 8))])


def decoded(rows: int, rounds: int) -> str:
    every = range(decoding.CONFIG.num_layers)
    pair = LoRADesign(8, 2.0, decoding.TARGETS)
    train = TrainDesign(8, 2.0, decoding.TARGETS, init="published")

    def model(design: Design, trained: bool = False) -> Decoder:
        made = initialise(Decoder(decoding.CONFIG), seeded()).eval()
        fresh = design.fresh(made, every, seeded())
        if trained:
            fresh.adapt(made)
        else:
            attach(made, [fresh.lora()])
        return made

    models = {"lora": model(pair), "cached": model(train), "each": model(train, trained=True)}
    ids = torch.randint(1, decoding.CONFIG.vocab_size, (rows, decoding.PROMPT), generator=seeded())
    gates = Gates.one(0, rows, 1, torch.zeros(1))
    with torch.inference_mode():
        found = laps(
            {name: lambda decoder=decoder: decoding.decode(decoder, ids, gates) for name, decoder in models.items()},
            rounds,
            1,
            time.process_time,
        )
    times = {name: statistics.median(some) for name, some in found.items()}
    rate = {name: rows * decoding.STEPS / seconds for name, seconds in times.items()}
    return (
        f"| {rows} | {rate['lora']:.0f} tok/s | {rate['cached']:.0f} tok/s | {times['cached'] / times['lora']:.2f} "
        f"| {rate['each']:.0f} tok/s | {times['each'] / times['lora']:.2f} |"
    )


def mixed(rounds: int) -> str:
    heading = (
        f"## {EXPERTS} TT-LoRA experts of rank {SETTINGS.rank} in one batch, against PEFT's `adapter_names`, same pairs"
    )
    why = (
        "However fast the experts are, the base is computed too: `at most` is PEFT's time over the base's alone. The "
        "last column is of what the experts add to it."
    )
    table = [
        "| | base alone | PEFT | moesaic | PEFT / moesaic | at most | added by PEFT / added here |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join(
        [heading, "", why, "", *table, *(one_linear(tokens, rounds) for tokens in (1, 64)), *whole_model(rounds)]
    )


def one_linear(tokens: int, rounds: int) -> str:
    rows = 4 * EXPERTS
    single = nn.Module()
    single.layers = nn.ModuleList([nn.Module()])
    single.layers[0].query = Linear(768, 768)
    some = [train_for(single, SETTINGS.rank, "published", seed).lora() for seed in range(EXPERTS)]
    pairs = [lora.pairs["layers.0.query"] for lora in some]
    stacked = torch.stack([a for a, _ in pairs]), torch.stack([b * SETTINGS.alpha for _, b in pairs])
    ours, peft, x, choice = mixed_rows.both(EXPERTS, rows, tokens, stacked)
    gates, names = mixed_rows.gates_of(choice, EXPERTS), [f"e{c}" for c in choice]
    with torch.inference_mode():
        assert torch.allclose(ours(x, gates), peft(x, adapter_names=names), atol=1e-4)
        times = laps(
            {
                "base": lambda: ours.base(x, None),
                "peft": lambda: peft(x, adapter_names=names),
                "ours": lambda: ours(x, gates),
            },
            rounds,
            10,
            time.process_time,
        )
    return compared(f"one 768 x 768 linear, {rows} rows, {tokens} tokens each", times)


def whole_model(rounds: int) -> list[str]:
    plain, ours, lines = encoder(), encoder(), []
    attach(ours, [train_for(ours, SETTINGS.rank, "published", seed).lora() for seed in range(EXPERTS)])
    config = LoraConfig(r=SETTINGS.rank, lora_alpha=SETTINGS.alpha * SETTINGS.rank, target_modules=TARGETS)
    theirs = get_peft_model(peer(), config, adapter_name="e0").eval()
    for expert in range(1, EXPERTS):
        theirs.add_adapter(f"e{expert}", config)
    choice = [row % EXPERTS for row in range(EXPERTS)]
    gates, names = mixed_rows.gates_of(choice, EXPERTS), [f"e{c}" for c in choice]
    for tokens in (1, 64):
        ids = torch.randint(5, 50_000, (EXPERTS, tokens), generator=seeded())
        with torch.inference_mode():
            times = laps(
                {
                    "base": lambda: plain(ids),  # noqa: B023
                    "peft": lambda: theirs(input_ids=ids, adapter_names=names),  # noqa: B023
                    "ours": lambda: ours(ids, gates=gates),  # noqa: B023
                },
                rounds,
                1,
                time.process_time,
            )
        lines.append(compared(f"the whole model, {EXPERTS} rows, {tokens} tokens each", times))
    return lines


def compared(what: str, times: dict[str, list[float]]) -> str:
    middle = {name: statistics.median(some) * 1e3 for name, some in times.items()}
    base, peft, ours = (middle[name] for name in ("base", "peft", "ours"))
    # Two times that hardly differ leave nothing to divide by.
    added = f"{(peft - base) / (ours - base):.1f}" if ours > 1.01 * base else "-"
    return f"| {what} | {base:.2f} | {peft:.2f} | {ours:.2f} | {peft / ours:.1f} | {peft / base:.1f} | {added} |"
