"""Classifiers: one label space, finite whatever the gates, and a row gets the same alone and in any batch."""

import math

import pytest
import torch

from moesaic.adapters import attach
from moesaic.config import Feature
from moesaic.model.classifier import EPSILON, Classifier, ClassifierMixture, Head, Shape, usual_pool, usual_shape
from moesaic.model.deciding import Decider
from moesaic.model.features import Body, Prompts, read_all
from moesaic.routing import Gates, Routing, Selection
from moesaic.testing import FixedRouter, tiny_decoder, tiny_encoder, toy_expert

LABELS = {"one": ("no", "yes"), "two": ("red", "green", "blue")}
ROWS = [[2, 7, 9, 11, 3], [2, 8, 3], [2, 5, 6, 7, 8, 9, 10, 3]]


@pytest.fixture(autouse=True)
def doubles():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def prompts(rows=ROWS, types=True):
    kinds = [[0] * (len(row) // 2) + [1] * (len(row) - len(row) // 2) for row in rows] if types else None
    return Prompts.pad(rows, [""] * len(rows), types=kinds)


def classifier(body, pool=None, experts=True) -> Classifier:
    targets = ["query", "value"] if hasattr(body, "embeddings") else ["q_proj", "v_proj"]
    if experts:
        attach(body, [toy_expert(body, seed, targets=targets) for seed in (1, 2)])
    pool = pool or usual_pool(body)
    draw = torch.Generator().manual_seed(5)
    heads = {name: Head.fresh(usual_shape(body, pool, own), 32, draw) for name, own in LABELS.items()}
    for head in heads.values():
        with torch.no_grad():
            for weight in head.parameters():
                weight.normal_(0, 1, generator=draw)
    return Classifier(body, heads, pool)


BODIES = {
    "bert": lambda: tiny_encoder("bert", "pooler"),
    "roberta": lambda: tiny_encoder("roberta", "none"),
    "decoder": tiny_decoder,
}


@pytest.fixture(params=BODIES.values(), ids=BODIES.keys())
def body(request):
    return request.param()


def test_a_row_under_one_expert_gets_its_own_softmax_and_the_others_share_epsilon(body):
    model = classifier(body)
    rows = prompts(types=hasattr(body, "embeddings") and body.config.token_types > 1)
    gates = Gates.one(1, 3, 2, torch.zeros(1))
    own = model.heads[1](model.state(rows, gates)).softmax(-1)
    found = model(rows, gates).exp()
    assert model.labels == ("one/no", "one/yes", "two/red", "two/green", "two/blue")
    torch.testing.assert_close(found[:, 2:], (1 - EPSILON) * own)
    torch.testing.assert_close(found[:, :2], torch.full((3, 2), EPSILON / 2))


def test_soft_gates_mix_probabilities_and_what_they_leave_is_even(body):
    model = classifier(body)
    rows = prompts(types=False)
    weights = torch.tensor([[0.3, 0.7], [0.2, 0.5], [0.0, 0.0]])
    gates = Gates.of(weights)
    states = model.state(rows, gates)
    each = [model.smoothed(e, model.heads[e](states)).exp() for e in range(2)]
    expected = sum(weights[:, e, None] * each[e] for e in range(2)) + (1 - weights.sum(1, keepdim=True)) / 5
    found = model(rows, gates)
    torch.testing.assert_close(found.exp(), expected)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3))


def test_a_misrouted_row_is_a_wrong_answer_and_never_an_infinite_loss(body):
    model = classifier(body)
    with torch.no_grad():
        model.heads[0].out.weight.mul_(1e4)  # an expert that is certain of its own labels
    rows = prompts(types=False)
    for weights in ([[1.0, 0.0]] * 3, [[0.0, 1.0]] * 3, [[0.0, 0.0]] * 3, [[1e-30, 1.0]] * 3):
        gates = Gates.dense(torch.tensor(weights, requires_grad=True))
        found = model(rows, gates)
        assert found.isfinite().all()
        (slope,) = torch.autograd.grad(found[:, 1].sum(), gates.weights)
        assert slope.isfinite().all()
    alone = model(rows, Gates.one(0, 3, 2, torch.zeros(1)))
    assert alone[:, 2:].argmax(1).tolist() == [0, 0, 0] and alone[0, 2].item() == pytest.approx(math.log(EPSILON / 3))


def test_the_slope_at_a_weight_of_0_is_that_of_the_formula(body):
    model = classifier(body)
    states = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]], requires_grad=True)
    found = model.mixed(states, Gates.dense(weights))
    (slope,) = torch.autograd.grad(found[:, 3].sum(), weights)
    each = torch.stack([model.smoothed(e, model.heads[e](states))[:, 3].exp() for e in range(2)], 1)
    p = (weights.detach() * each).sum(1, keepdim=True)
    torch.testing.assert_close(slope, (each / p).detach())


def test_an_expert_without_rows_is_not_computed_nor_its_head(body):
    model = classifier(body)
    model.heads[0].forward = None  # not to be called
    model(prompts(types=False), Gates.one(1, 3, 2, torch.zeros(1)))


@pytest.mark.parametrize("pool", ["first", "mean", "last"])
def test_a_row_gets_the_same_alone_and_in_any_batch(body, pool):
    model, gates = classifier(body, pool), Gates.of(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.4, 0.6]]))
    together = model(prompts(types=False), gates)
    for place in range(3):
        alone = model(prompts([ROWS[place]], types=False), gates.select([place]))
        torch.testing.assert_close(together[place], alone[0], rtol=1e-12, atol=1e-12)


def test_a_lone_expert_has_its_own_softmax(body):
    attach(body, [toy_expert(body, 1, targets=["query" if hasattr(body, "embeddings") else "q_proj"])])
    head = Head.fresh(Shape(("a", "b")), 32, torch.Generator().manual_seed(0))
    model, gates = Classifier(body, {"it": head}, "mean"), Gates.one(0, 3, 1, torch.zeros(1))
    rows = prompts(types=False)
    torch.testing.assert_close(model(rows, gates), head(model.state(rows, gates)).log_softmax(-1))


@pytest.mark.parametrize("feature", ["embedding_mean", "hidden_mean", "hidden_last", "hidden@1", "hidden@1_last"])
def test_features_are_read_of_encoders_and_decoders_and_never_of_padding(body, feature):
    assert isinstance(body, Body)
    parsed = Feature.parse(feature)
    (together,) = read_all([parsed], body, 1, prompts(types=False))
    for place, row in enumerate(ROWS):
        (alone,) = read_all([parsed], body, 1, prompts([row], types=False))
        torch.testing.assert_close(together[place], alone[0], rtol=1e-12, atol=1e-12)


def mixed(body, router, disabled=()) -> ClassifierMixture:
    feature, selection = Feature.parse("hidden_mean"), Selection(kind="top_1")
    return ClassifierMixture(classifier(body), Decider.over(body, ("one", "two"), router, feature, selection, disabled))


def test_an_expert_that_is_disabled_is_never_chosen_and_answers_who_names_it(body):
    mixture, rows = mixed(body, FixedRouter([[5.0, 0.0], [0.0, 5.0], [5.0, 0.0]]), ["one"]), prompts(types=False)
    assert mixture.route(rows).best.tolist() == [1, 1, 1]
    named = mixture.route(rows).weights.flip(1)
    assert mixture.classify(rows, Routing(named, named)).routing.best.tolist() == [0, 0, 0]


def test_the_router_reads_the_base_alone_and_a_caller_may_decide_in_its_place(body):
    router = FixedRouter([[5.0, 0.0], [0.0, 5.0], [5.0, 0.0]])
    mixture = mixed(body, router)
    rows = prompts(types=False)
    answers = mixture.classify(rows)
    assert answers.routing.best.tolist() == [0, 1, 0] and mixture.names == ("one", "two")
    torch.testing.assert_close(answers.log_probabilities, mixture.classifier(rows, Gates.of(answers.routing.weights)))
    forced = mixture.classify(rows, mixture.route(rows)[torch.tensor([1, 0, 1])])
    assert forced.routing.best.tolist() == [1, 0, 1]


def test_a_fresh_head_is_the_same_for_the_same_seed():
    one, two = (Head.fresh(Shape(("a", "b"), dense=True), 32, torch.Generator().manual_seed(3)) for _ in range(2))
    for name, weight in one.state_dict().items():
        assert weight.equal(two.state_dict()[name])
    assert one.num_parameters == 32 * 32 + 32 + 2 * 32 + 2
    assert one.out.weight.std().item() == pytest.approx(0.02, rel=0.3) and not one.out.bias.any()
