"""Do gates learn which expert a token needs, balanced in training and as they are in evaluation?"""

import copy
from functools import cache

import pytest
import torch

from moesaic.adapters import token_ffn
from moesaic.adapters.feedforward import FFN
from moesaic.adapters.slots import slots_of
from moesaic.compose.token_gates import GATES, Reader, Texts
from moesaic.data.batches import Tokens, pad
from moesaic.model.decoder import Decoder
from moesaic.nn import SparseFFN
from moesaic.ops.expert_load import least_load
from moesaic.sections.training import Train
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Tokenizer
from moesaic.train import language
from moesaic.train.balance import counts_of
from moesaic.train.gate_training import GateTraining, gates_in
from moesaic.train.loop import fit

LAYERS = 2
STEPS = Train(steps=60, batch=16, length=16, evaluate_every=20)


def rows(domain: int, start: int, count: int) -> list[Tokens]:
    """Texts that count up, or down, after a token that says which."""
    step = 1 - 2 * domain
    return [
        Tokens([40 + domain, *((7 * n + step * i) % 30 for i in range(13))], 1, str(n)) for n in range(start, count)
    ]


TRAIN, HELD_OUT = ([rows(domain, *where) for domain in (0, 1)] for where in ((0, 24), (24, 30)))

EVERY, KEPT = ([row for some in split for row in some] for split in (TRAIN, HELD_OUT))


def base() -> Decoder:
    return tiny_decoder(0, torch.float32, num_layers=LAYERS, hidden_size=32)


def trained(decoder: Decoder, some: list[Tokens]) -> Decoder:
    """A decoder whose blocks have learned from texts."""
    decoder.requires_grad_(False)
    parameters = {name: one.requires_grad_() for name, one in decoder.named_parameters() if ".mlp." in name}
    loss = language.loss_of(decoder, lambda rows: None)
    fit(parameters, lambda step: pad(some), loss, lambda: 0.0, STEPS, 1e-2, lambda row: None)
    return decoder


@cache
def experts() -> list[FFN]:
    return [FFN.of(trained(base(), some), range(LAYERS)) for some in TRAIN]


@cache
def start(word: str) -> dict[str, torch.Tensor]:
    reader = Reader(base(), Tokenizer.train(["a text"], 257), torch.Generator().manual_seed(0))
    made = GATES[word].rows(reader, [Texts([row.ids for row in some]) for some in TRAIN])
    return {f"layers.{layer}.mlp": own for layer, own in enumerate(made)}


def mixed(gates: dict[str, torch.Tensor], chosen: int = 2, some: int = 1, balanced: bool = False) -> Decoder:
    """Each expert `some` times, with gates in every layer."""
    decoder = base()
    several = [expert for expert in experts() for _ in range(some)]
    token_ffn.attach(decoder, decoder.config, several, gates, chosen, balanced=balanced)
    return decoder


def nats(decoder: Decoder) -> float:
    return language.mean_nats(decoder, lambda rows: None, KEPT, 16)


def learned(decoder: Decoder, balance: str, strength: float, settings: Train = STEPS) -> GateTraining:
    lesson = GateTraining(decoder, EVERY, KEPT, 16, balance, strength, 0, settings.accumulate)
    inputs = lesson.parameters, lesson.batch, lesson.loss, lesson.validate, settings, 3e-2
    found = fit(*inputs, lambda row: None, after=lesson.after)
    decoder.load_state_dict(found.state, strict=False)
    return lesson


def test_trained_gates_are_better_than_the_best_untrained_and_nothing_else_is_trained():
    untrained = {word: nats(mixed(start(word))) for word in ("ridge", "means", "hidden", "random")}
    decoder = mixed(start("ridge"))
    before = copy.deepcopy(decoder.state_dict())
    learned(decoder, "none", 0.0)
    assert nats(decoder) < min(untrained.values()) - 0.05
    moved = {name for name, one in decoder.state_dict().items() if not one.equal(before[name])}
    assert moved == {f"layers.{layer}.mlp.sparse.gate.weight" for layer in range(LAYERS)}
    assert gates_in(decoder.state_dict()).keys() == {"layers.0.mlp", "layers.1.mlp"}


@pytest.mark.parametrize(("balance", "strength"), [("loss", 5.0), ("sign", 0.1), ("quantiles", 0.3)])
def test_every_way_to_balance_spreads_the_tokens_and_validation_has_no_bias(balance, strength):
    towards = {path: 3 * one.mean(0) for path, one in start("means").items()}  # where every token lies
    gates = {path: torch.cat([one + towards[path], one - towards[path]]) for path, one in start("ridge").items()}
    decoder = mixed(gates, some=2, balanced=balance != "loss")
    lesson = learned(decoder, balance, strength)

    def loads() -> list[float]:
        return [least_load(counts) for counts in counts_of(decoder(pad(EVERY).ids).routings)]

    alone = mixed(gates, some=2)
    learned(alone, "none", 0.0)
    unbalanced = min(least_load(counts) for counts in counts_of(alone(pad(EVERY).ids).routings))
    assert min(loads()) > unbalanced + 0.05
    slots = slots_of(decoder, SparseFFN).values()
    biases = [slot.balance_bias for slot in slots]
    with_bias, validated = nats(decoder), lesson.validate()
    for slot in slots:
        slot.balance_bias = None
    assert validated == pytest.approx(nats(decoder), abs=1e-9)
    assert (balance == "loss") == all(bias is None for bias in biases)
    assert balance == "loss" or with_bias != pytest.approx(validated, abs=1e-6)


def test_four_micro_batches_are_balanced_as_one_batch():
    decoder = mixed(start("ridge"))
    whole = GateTraining(decoder, EVERY[:16], KEPT, 16, "loss", 0.5)
    parts = GateTraining(decoder, EVERY[:16], KEPT, 4, "loss", 0.5, accumulate=4)
    total, scored = whole.loss(whole.batch(0))
    sums = [parts.loss(parts.batch(micro)) for micro in range(4)]
    assert scored == sum(count for _, count in sums)
    assert sum(one.item() for one, _ in sums) == pytest.approx(total.item(), rel=1e-5)
