"""Property: routers give the logits of their formulas, and come back from their shape and tensors."""

import json
import math

import pytest
import torch

from moesaic.errors import RecipeError
from moesaic.routing import States, controls
from moesaic.routing.routers import (
    ROUTERS,
    ArrowRouter,
    AttentionRouter,
    CentroidRouter,
    GatesRouter,
    KeywordRouter,
    MLPRouter,
    Router,
    TrainedRouter,
    TreeRouter,
)

SILENT = float("-inf")


def filled(router: TrainedRouter, seed: int = 0) -> TrainedRouter:
    """Other values than the fresh ones in every tensor; positive, as deviations and temperatures are."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in router.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return router.eval()


def routers() -> dict[str, TrainedRouter]:
    return {
        "keyword": KeywordRouter([["sum", "add"], ["def"]]),
        "centroid": filled(CentroidRouter(5, 2)),
        "linear": filled(MLPRouter(5, 2, [])),
        "mlp": filled(MLPRouter(5, 2, [7, 3], dropout=0.5)),
        "attention": filled(AttentionRouter(5, 2, 8, 4, dropout=0.5, noise=True)),
        "tree": filled(TreeRouter(5, 2, [[1], [0]], [3], dropout=0.5)),
        "gates": filled(GatesRouter({"layers.0.mlp": 4, "layers.1.mlp": 6}, 2, 1, renormalise=False)),
        "arrow": filled(ArrowRouter({"layers.0.self_attn.q_proj": 4, "layers.0.mlp.down_proj": 6}, 2)),
    }


FEATURES = {
    "keyword": ["the sum", "def f", "none"],
    "attention": States(torch.randn(7, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([4, 1, 2])),
    "gates": torch.tensor([[0.25, 0.75], [1.0, 0.0], [0.5, 0.5]]),
    "arrow": torch.randn(3, 2 * 2, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("kind", ROUTERS)
def test_a_router_comes_back_from_its_shape_and_tensors(kind):
    router = routers()[kind]
    assert isinstance(router, Router)
    features = FEATURES.get(kind, torch.randn(3, 5, generator=torch.Generator().manual_seed(1)))
    again = ROUTERS[kind](**json.loads(json.dumps(router.shape)))
    again.load_state_dict({name: tensor.clone() for name, tensor in router.state_dict().items()})
    found = again.eval()(features)
    assert found.shape == (3, 2) and found.equal(router(features))


def test_the_shape_of_a_router_without_the_options_of_later_versions_is_as_it_was():
    assert MLPRouter(5, 2, [7]).shape == {"num_features": 5, "num_experts": 2, "hidden": [7]}
    own = MLPRouter(5, 2, [], bias=False, noise=True)
    assert own.shape == {"num_features": 5, "num_experts": 2, "hidden": [], "bias": False, "noise": True}
    assert {*own.state_dict()} - {"mean", "deviation", "temperature"} == {"outer.weight", "noise.weight", "noise.bias"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hi", [1.0, 0]),
        ("this chip hides", [SILENT, SILENT]),
        ("Hi, HI! hi-hi", [4.0, 0]),
        ("oh_hi and hi5", [SILENT, SILENT]),
        ("I like C++ and c++, not C", [0, 2.0]),
        ("say hi in c++.", [1.0, 1.0]),
        ("two lines\nhi", [1.0, 0]),
        ("", [SILENT, SILENT]),
    ],
)
def test_keywords_match_whole_words_in_any_case_or_abstain(text, expected):
    assert KeywordRouter([["hi"], ["c++", "a.b"]])([text])[0].tolist() == expected


def test_keywords_are_no_patterns_and_an_expert_may_have_none():
    router = KeywordRouter([["a.b"], []])
    assert router(["axb", "a.b", ""]).tolist() == [[SILENT, SILENT], [1, 0], [SILENT, SILENT]]


def test_phrases_count_and_of_two_words_that_overlap_one_does():
    assert KeywordRouter([["for loop"], ["loop"]])(["a for loop"]).tolist() == [[1, 1]]
    assert KeywordRouter([["new", "new york"]])(["new york"]).tolist() == [[1]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("this chip", 1),  # 'hi' inside a word
        ("say hi", 1),
        ("ADD this", 0),  # in any case, and the first of two experts wins
        ("this, then add", 0),  # by the order of experts, not of words in the text
        ("a b", 2),
        ("", 2),
    ],
)
def test_with_first_the_first_expert_with_a_word_anywhere_wins_and_one_without_words_takes_the_rest(text, expected):
    router = KeywordRouter([["add", "sum"], ["hi"], []], first=True)
    assert router([text]).tolist() == [[0.0 if expert == expected else SILENT for expert in range(3)]]
    assert router.shape == {"words": [["add", "sum"], ["hi"], []], "first": True}


def test_with_first_and_words_for_all_experts_a_text_without_any_abstains():
    assert KeywordRouter([["add"], ["hi"]], first=True)(["a b"]).tolist() == [[SILENT, SILENT]]


def test_the_expert_without_words_takes_the_rest_wherever_it_is_listed():
    assert KeywordRouter([[], ["hi"]], first=True)(["this", "that"]).argmax(-1).tolist() == [1, 0]


def tree(groups: list[list[int]], experts: int = 5) -> TreeRouter:
    router = TreeRouter(4, experts, groups, [7], dropout=0.5).eval()
    for seed, node in enumerate(router.nodes):
        filled(node.router, seed)
        node.router.get_buffer("temperature").fill_(0.5 + seed)
    return router


@pytest.mark.parametrize("groups", [[[3, 0], [2], [1, 4]], [[0, 1, 2, 3], [4]], [[4], [3], [2], [1], [0]]], ids=str)
@torch.no_grad()
def test_probabilities_of_a_tree_are_products_of_those_of_its_nodes(groups):
    router, x = tree(groups), torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    found = router(x).softmax(-1)
    between = router.between(x).softmax(-1)
    inside = iter(router.inside)
    for index, members in enumerate(groups):
        torch.testing.assert_close(found[:, members].sum(-1), between[:, index])
        within = next(inside)(x).softmax(-1) if len(members) > 1 else torch.ones(6, 1)
        torch.testing.assert_close(found[:, members], between[:, [index]] * within)
    torch.testing.assert_close(router(x).exp(), found)


@pytest.mark.parametrize(
    "groups",
    [[[0, 1, 2]], [[0, 1], []], [[0, 1], [1, 2]], [[0, 1], [3]], [[0], [1]], [[0, 1], [2, 3]], []],
    ids=str,
)
def test_groups_that_do_not_divide_the_experts_are_refused_before_memory_is_taken(groups):
    with pytest.raises(RecipeError, match="groups: groups do not divide the experts; expected each of 3 experts"):
        TreeRouter(4, 3, groups, [2**40])


def test_centroid_is_the_cosine_around_the_centre_over_the_temperature():
    router = CentroidRouter(2, 3)
    router.centre.copy_(torch.tensor([1.0, 1.0]))
    router.centroids.copy_(torch.tensor([[2.0, 0], [0, 5.0], [-1.0, -1.0]]))
    router.temperature.fill_(0.5)
    half = math.sqrt(0.5)
    torch.testing.assert_close(
        router(torch.tensor([[4.0, 1.0], [2.0, 2.0]])), torch.tensor([[1.0, 0, -half], [half, half, -1.0]]) / 0.5
    )
    assert torch.isfinite(router(router.centre[None])).all(), "the centre itself is no direction"


def test_an_mlp_without_hidden_layers_is_exactly_linear():
    router = filled(MLPRouter(5, 3, [], dropout=0.9)).double()
    x = torch.randn(4, 5, dtype=torch.float64)
    slope = router.outer.weight / router.deviation / router.temperature
    offset = (router.outer.bias - router.outer.weight @ (router.mean / router.deviation)) / router.temperature
    torch.testing.assert_close(router(x), x @ slope.t() + offset, rtol=1e-12, atol=1e-12)
    middle = router((x[:2] + x[2:]) / 2)
    torch.testing.assert_close(middle, (router(x)[:2] + router(x)[2:]) / 2, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_an_mlp_equals_its_formula_one_number_at_a_time():
    router = filled(MLPRouter(3, 2, [4])).double()
    x = torch.randn(3, dtype=torch.float64)
    standard = [(x[i] - router.mean[i]) / router.deviation[i] for i in range(3)]
    inner = []
    for o in range(4):
        z = sum(float(router.inner[0].weight[o, i] * standard[i]) for i in range(3)) + float(router.inner[0].bias[o])
        inner.append(z * 0.5 * (1 + math.erf(z / math.sqrt(2))))
    for o in range(2):
        y = sum(float(router.outer.weight[o, i]) * inner[i] for i in range(4)) + float(router.outer.bias[o])
        assert router(x[None])[0, o].item() == pytest.approx(y / router.temperature.item(), rel=1e-12)


def test_dropout_is_for_training_only():
    router = filled(MLPRouter(5, 2, [32], dropout=0.5))
    x = torch.randn(2, 5)
    assert router(x).equal(router(x))
    router.train()
    torch.manual_seed(0)
    assert not router(x).equal(router(x))


def test_features_of_another_width_are_refused():
    with pytest.raises(RuntimeError):
        MLPRouter(5, 2, [])(torch.zeros(2, 4))


def test_controls_look_at_nothing_or_at_the_answer():
    assert controls.uniform(2, 4).tolist() == [[0.25] * 4] * 2
    assert controls.fixed(1, 2, 3).tolist() == [[0, 1, 0]] * 2
    assert controls.fixed(-1, 2, 3).tolist() == [[0, 0, 0]] * 2
    assert controls.oracle(torch.tensor([2, -1, 0]), 3).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_arrow_averages_what_an_expert_reacts_with_over_the_linears_that_it_adapts():
    router = ArrowRouter({"layers.0.self_attn.q_proj": 4, "layers.0.mlp.down_proj": 6}, 2)
    router.mean.copy_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    router.deviation.copy_(torch.tensor([[0.5, 1.0], [2.0, 1.0]]))
    router.adapts[1, 1] = 0.0
    router.spread.copy_(torch.tensor([1.0, 2.0]))
    found = router(torch.tensor([[2.0, 5.0, 7.0, 99.0]]))  # q_proj of both experts, then down_proj of both
    expected = torch.tensor([[(1 / 0.5 + 4 / 2.0) / 2, (3 / 1.0) / 2.0]])
    torch.testing.assert_close(found, expected)
