"""Property: what is wrong with the published routers of tensor-train experts, one by one, and must not be wrong here.

The numbers are those of the list of their defects: names and order (4), whole numbers (5), kinds (6), noise, padding,
and gradients when deciding (7), re-wiring in every step (8), decisions parked in globals (9), infinite losses (14).
"""

from threading import Thread

import pytest
import torch
from pydantic import ValidationError

from moesaic.adapters import attach
from moesaic.artefacts.adapter import StoredExpert
from moesaic.artefacts.base import Base
from moesaic.artefacts.router import StoredRouter
from moesaic.compose.mixture import assemble
from moesaic.config import Feature
from moesaic.data.batches import Tokens
from moesaic.errors import CompatibilityError
from moesaic.kinds import at_site
from moesaic.model.deciding import Decider
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts, read
from moesaic.model.mixture import AdapterMixture
from moesaic.routing import Gates, Selection, States
from moesaic.routing.routers import ROUTERS, AttentionRouter, MLPRouter, TrainedRouter
from moesaic.sections.routers import RouterSpec
from moesaic.testing import prefilled, tiny_decoder, toy_expert
from moesaic.tokenizer import Tokenizer
from moesaic.train.mixture_loss import computed, language
from moesaic.train.routers import Labelled, fresh, train_router

D, E = 32, 3
ROWS = [[5, 17, 3, 8, 60, 2], [9], [4, 4, 31]]
KINDS = ["linear", "mlp", "attention"]


pytestmark = pytest.mark.usefixtures("double")


def router_of(kind: str, noise: bool = True) -> TrainedRouter:
    made = (
        AttentionRouter(D, E, 8, 2, 0.5, noise)
        if kind == "attention"
        else MLPRouter(D, E, [8][: kind == "mlp"], 0.5, True, noise)
    )
    return made.eval()


def base() -> Base:
    return Base(tiny_decoder(), Tokenizer.train(["one two"], 257), "0" * 64)


def feature_of(kind: str) -> Feature:
    return Feature.parse("embedding_tokens" if kind == "attention" else "embedding_mean")


def mixture(kind: str) -> AdapterMixture:
    decoder, plain = tiny_decoder(), tiny_decoder()
    attach(decoder, [toy_expert(plain, seed) for seed in range(E)])
    decider = Decider.over(decoder, ("a", "b", "c"), router_of(kind), feature_of(kind), Selection(kind="soft"))
    return AdapterMixture(decoder, decider, 0)


def batch(rows: list[list[int]] = ROWS) -> Prompts:
    return Prompts.pad(rows, [""] * len(rows))


def test_4_experts_are_joined_by_name_in_the_routers_order_however_they_are_listed():
    plain, names = tiny_decoder(), ("b", "c", "a")
    experts = {name: StoredExpert(toy_expert(plain, seed), {}) for seed, name in enumerate(sorted(names))}
    stored = StoredRouter(router_of("linear"), "linear", names, "embedding_mean", Selection(), {})
    found = assemble(at_site("linear"), base(), experts, stored)
    assert found.names == names
    ids = torch.tensor([[1, 2, 3]])
    for place, name in enumerate(names):
        alone = tiny_decoder()
        attach(alone, [experts[name].lora])
        expected = alone(ids, None, Gates.one(0, 1, 1, torch.zeros(1))).logits
        torch.testing.assert_close(found.score(ids, Gates.one(place, 1, 3, torch.zeros(1))), expected)
    with pytest.raises(CompatibilityError, match="the router decides between other experts"):
        assemble(at_site("linear"), base(), {"a": experts["a"], "b": experts["b"]}, stored)


def test_5_states_are_never_rounded_to_whole_numbers():
    decoder = tiny_decoder()
    with torch.no_grad():
        decoder.embed_tokens.weight.uniform_(-0.9, 0.9)
        for kind in ("embedding_mean", "embedding_tokens"):
            found = read(Feature.parse(kind), decoder, 1, batch([[7]]))
            states = found.values if isinstance(found, States) else found
            assert states.is_floating_point() and states[0].equal(decoder.embed_tokens.weight[7])


def test_6_every_kind_is_what_it_is_called():
    kinds = {kind: RouterSpec(kind=kind) for kind in KINDS}
    made = {kind: fresh(spec, D, E) for kind, spec in kinds.items()}
    assert {kind: type(one) for kind, one in made.items()} == {kind: ROUTERS[kind] for kind in KINDS}
    assert len(made["linear"].inner) == 0 and len(made["mlp"].inner) == 1
    with pytest.raises(ValidationError):
        RouterSpec(kind="multi_layer")  # type: ignore[arg-type]
    noiseless = RouterSpec(kind="linear", feature="hidden_last", bias=False)
    assert fresh(noiseless, D, E).noise is None, "the published one fails without its noise"


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_7_deciding_draws_nothing_and_padding_is_not_seen(kind):
    found, prompts = mixture(kind), batch()
    before = torch.get_rng_state()
    weights = found.route(prompts).weights
    assert found.route(prompts).weights.equal(weights) and torch.get_rng_state().equal(before)
    prompts.ids[torch.arange(6) >= prompts.lengths[:, None]] = 42
    torch.testing.assert_close(found.route(prompts).weights, weights, rtol=1e-12, atol=1e-12)
    for place, row in enumerate(ROWS):
        alone = found.route(batch([row])).weights[0]
        torch.testing.assert_close(weights[place], alone, rtol=1e-12, atol=1e-12)


def test_7_features_are_read_once_and_training_passes_through_no_base(monkeypatch):
    passes: list[int] = []
    run = Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda self, *args: passes.append(1) or run(self, *args))
    with torch.no_grad():
        features = read(Feature.parse("hidden_mean"), tiny_decoder(), 1, batch())
    assert isinstance(features, torch.Tensor) and len(passes) == 1 and not features.requires_grad
    rows = Labelled(features, torch.arange(3))
    train_router(RouterSpec(kind="linear", epochs=4, loss={"expert": 21.0}), rows, rows, {}, E, 0, lambda row: None)
    assert len(passes) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_8_deciding_and_answering_leave_every_module_as_it_is(kind):
    found = mixture(kind)
    modules = {name: (id(part), type(part), part.__dict__.keys()) for name, part in found.named_modules()}
    tensors = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    prefilled(found, batch(), 2)
    assert {name: (id(part), type(part), part.__dict__.keys()) for name, part in found.named_modules()} == modules
    assert all(tensors[name].equal(tensor) for name, tensor in found.state_dict().items())


@torch.no_grad()
def test_9_threads_that_decide_at_the_same_time_do_not_hear_of_each_other():
    found = mixture("attention")
    alone = {place: prefilled(found, batch([row]), 1)[0] for place, row in enumerate(ROWS)}
    answers: dict[tuple[int, int], torch.Tensor] = {}

    def answer(turn: int) -> None:
        for place, row in enumerate(ROWS[turn:] + ROWS[:turn]):
            answers[turn, (place + turn) % 3] = prefilled(found, batch([row]), 1)[0]

    threads = [Thread(target=answer, args=(turn,)) for turn in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 9 and all(answers[turn, place].equal(alone[place]) for turn, place in answers)


def test_14_whoever_answers_a_row_its_loss_is_finite_and_so_are_the_slopes():
    found = mixture("linear").requires_grad_(False)
    rows = [Tokens([*row, 1], len(row), "") for row in ROWS]
    for expert in range(E):
        weights = torch.eye(E)[[expert] * 3].requires_grad_()
        lost, _ = computed(language(found.decoder, rows))(torch.arange(3), weights)
        lost.sum().backward()
        assert torch.isfinite(lost).all() and torch.isfinite(weights.grad).all()
