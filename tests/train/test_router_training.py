"""Property: routers learn what separates the experts, small ones too, and are chosen and calibrated as promised."""

import math

import pytest
import torch
from torch.nn import functional as F

from moesaic.routing.routers import KeywordRouter, MLPRouter, TreeRouter
from moesaic.sections.routers import RouterSpec
from moesaic.train.routers import (
    Labelled,
    best_temperature,
    fit_centroids,
    fit_layers,
    learn_words,
    metrics,
    train_router,
)


def clouds(sizes: list[int], spread: float, seed: int, distance: float = 3.0) -> Labelled:
    """Points around one corner for each expert."""
    generator = torch.Generator().manual_seed(seed)
    features = [
        distance * F.one_hot(torch.tensor(e), 4).float() + spread * torch.randn(size, 4, generator=generator)
        for e, size in enumerate(sizes)
    ]
    return Labelled(torch.cat(features), torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)))


def ignore(row) -> None:
    return


def by_hand(found: list[int], labels: list[int], num_experts: int) -> tuple[float, float]:
    """Accuracy and macro-F1 by their definitions."""
    f1 = []
    for e in range(num_experts):
        hits = sum(a == b == e for a, b in zip(found, labels, strict=True))
        total = found.count(e) + labels.count(e)
        f1.append(2 * hits / total if total else 0.0)
    return sum(a == b for a, b in zip(found, labels, strict=True)) / len(labels), sum(f1) / num_experts


@pytest.mark.parametrize("kind", ["centroid", "linear", "mlp"])
def test_separable_features_are_routed_without_a_mistake(kind):
    trained = {} if kind == "centroid" else {"epochs": 25, "lr": 0.05}
    trained |= {"dropout": 0.0} if kind == "mlp" else {}
    spec = RouterSpec(kind=kind, **trained, **({"hidden": [8]} if kind == "mlp" else {}))
    train, validation = clouds([40, 40, 40], 0.2, 0), clouds([9, 9, 9], 0.2, 1)
    router, found = train_router(spec, train, validation, {}, 3, 0, ignore)
    assert not router.training
    assert router(validation.features).argmax(-1).equal(validation.labels)
    assert found["accuracy"] == found["macro_f1"] == 1.0
    assert found["nll"] <= found["nll_uncalibrated"] + 1e-6
    assert router.temperature.item() == pytest.approx(found["temperature"])


def test_the_same_seed_trains_the_same_router():
    spec = RouterSpec(kind="mlp", hidden=[4], epochs=2)
    train, validation = clouds([30, 30], 1.0, 0), clouds([9, 9], 1.0, 1)
    one, two, other = (train_router(spec, train, validation, {}, 2, seed, ignore)[0] for seed in (1, 1, 2))
    assert all(one.state_dict()[name].equal(tensor) for name, tensor in two.state_dict().items())
    assert not one.outer.weight.equal(other.outer.weight)


def test_an_expert_with_few_examples_is_learnt_as_well_as_one_with_many():
    """20 to 1, overlapping: without class weights nearly every row would go to the large expert.

    The validation is so easy that every epoch gets it right: it cannot choose one that happens to be balanced.
    """
    spec = RouterSpec(kind="linear", epochs=15, lr=0.03, patience=0)
    train, validation = clouds([400, 20], 1.0, 0, distance=1.2), clouds([5, 5], 0.1, 1, distance=9.0)
    router, found = train_router(spec, train, validation, {}, 2, 0, ignore)
    assert found["accuracy"] == 1.0
    rows = clouds([200, 200], 1.0, 2, distance=1.2)
    chosen = router(rows.features).argmax(-1)
    recalls = [(chosen[rows.labels == e] == e).double().mean().item() for e in range(2)]
    assert min(recalls) > 0.65, recalls
    ideal = (rows.features[:, 1] > rows.features[:, 0]).long()
    assert sum(recalls) / 2 > (ideal == rows.labels).double().mean().item() - 0.1


def test_the_epoch_of_best_macro_f1_is_kept():
    """A validation of few rows and a rate too high: epochs differ, and the last is not the best."""
    spec = RouterSpec(kind="linear", epochs=12, lr=1.0, batch=16, patience=0)
    train, validation = clouds([60, 60, 10], 2.0, 0, 2.0), clouds([20, 20, 20], 2.0, 1, 2.0)
    rows: list[dict] = []
    router = fit_layers(spec, train, validation, 3, 0, rows.append).eval()
    scores = [-row["score"] for row in rows if "score" in row]
    assert len(scores) == 12 and len(set(scores)) > 6
    found = router(validation.features).argmax(-1).tolist()
    f1 = by_hand(found, validation.labels.tolist(), 3)[1]
    nll = F.cross_entropy(router(validation.features), validation.labels).item()
    assert min(scores) == pytest.approx(-f1 + 1e-3 * min(nll, 10), abs=1e-6)
    assert scores[-1] > min(scores) + 0.01
    assert round(-min(scores), 1) == round(f1, 1), "F1 decides, the loss only among equals"


def test_balance_and_z_losses_do_what_they_are_for():
    train, validation = clouds([60, 20], 2.0, 0), clouds([30, 30], 2.0, 1)

    def trained(**loss) -> torch.Tensor:
        spec = RouterSpec(kind="linear", epochs=6, lr=0.03, patience=0, loss={"expert": 1.0, **loss})
        router = fit_layers(spec, train, validation, 2, 0, ignore).eval()
        return router(train.features)

    assert trained(z=1.0).logsumexp(-1).square().mean() < 0.8 * trained().logsumexp(-1).square().mean()

    def imbalance(logits: torch.Tensor) -> float:
        return (logits.softmax(-1).mean(0)[0] - 0.5).abs().item()

    assert imbalance(trained(balance=5.0)) < imbalance(trained())


def test_metrics_by_hand_and_a_row_that_abstains_is_wrong():
    logits = torch.tensor([[2.0, 0, 0], [0, 1.0, 0], [0, 0, 3.0], [1.0, 0, 0], [float("-inf")] * 3])

    class Fixed(KeywordRouter):
        def forward(self, features):
            return logits

    labels = torch.tensor([0, 1, 1, 0, 0])
    found = metrics(Fixed([[], [], []]), Labelled([""] * 5, labels), 3)
    accuracy, f1 = by_hand([0, 1, 2, 0, -1], labels.tolist(), 3)
    assert (found["accuracy"], found["macro_f1"]) == (pytest.approx(accuracy), pytest.approx(f1))
    spoken = zip(logits[:4].tolist(), labels[:4].tolist(), strict=True)
    nats = [math.log(sum(math.exp(v) for v in row)) - row[label] for row, label in spoken]
    assert found["nll"] == pytest.approx((sum(nats) + math.log(3)) / 5, rel=1e-5)


# --- centroids, temperature, words ------------------------------------------------------------------------------------


def test_centroids_are_means_around_the_mean_of_means():
    """An expert with more examples does not pull the centre."""
    features = torch.tensor([[0.0, 0], [2.0, 0], [4.0, 0], [10.0, 4.0]])
    router = fit_centroids(features, torch.tensor([0, 0, 0, 1]), 2)
    assert router.centre.tolist() == [6.0, 2.0]
    assert router.centroids.tolist() == [[-4.0, -2.0], [4.0, 2.0]]
    shared = fit_centroids(features + 1000.0, torch.tensor([0, 0, 0, 1]), 2)
    torch.testing.assert_close(shared(features + 1000.0), router(features), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scale", [0.05, 1.0, 40.0])
def test_the_temperature_is_the_best_of_a_fine_grid(scale):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (80,), generator=generator)
    logits = scale * (F.one_hot(labels, 3) + torch.randn(80, 3, generator=generator))
    found = best_temperature(logits, labels)

    def loss(temperature: float) -> float:
        return F.cross_entropy(logits.double() / temperature, labels).item()

    grid = [10 ** (place / 50) for place in range(-150, 151)]
    best = min(grid, key=loss)
    assert loss(found) <= loss(best) + 1e-12
    assert best / 10**0.02 <= found <= best * 10**0.02


def test_the_temperature_stays_in_bounds_where_the_loss_has_no_minimum():
    logits = torch.tensor([[3.0, 0], [0, 2.0]])
    sharp = best_temperature(logits, torch.tensor([0, 1]))
    assert 1e-3 <= sharp < 0.1, "as sharp as a double can tell"
    assert best_temperature(logits, torch.tensor([1, 0])) == pytest.approx(1e3, rel=1e-3)


TEXTS = ["Add the sum", "the total sum 12", "sum of the parts", "def the function", "the function returns", "function"]


def test_words_are_those_that_tell_an_expert_from_the_others():
    words = learn_words(TEXTS, torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    assert words[0][0] == "sum" and words[1][0] == "function"
    assert "the" not in (words[0][0], words[1][0])
    assert all(word == word.lower() and word.isalpha() and len(word) > 1 for some in words for word in some)
    assert "add" not in words[0], "seen once is no evidence"


def test_a_rarer_word_that_tells_more_stands_before_a_common_one():
    """Log-odds by hand: `sum` in 2 of 3 prompts against 0 of 3; `the` in 3 of 3 against 2 of 3."""
    texts = ["the sum", "the sum", "the rest", "the code", "the code", "code"]
    words = learn_words(texts, torch.tensor([0, 0, 0, 1, 1, 1]), 2)
    odds = {"sum": math.log((2.5 / 4) / (0.5 / 4)), "the": math.log((3.5 / 4) / (2.5 / 4))}
    assert words == [sorted(odds, key=odds.get, reverse=True), ["code", "the"]]
    assert words[0] == ["sum", "the"]


def test_at_most_20_words_an_expert_the_same_whatever_the_order():
    texts = [" ".join(f"word{chr(97 + i)}" for i in range(26))] * 2 + ["other", "other"]
    labels = torch.tensor([0, 0, 1, 1])
    words = learn_words(texts, labels, 2)
    assert words[0] == [f"word{chr(97 + i)}" for i in range(20)] and words[1] == ["other"]
    order = torch.tensor([3, 1, 0, 2])
    assert learn_words([texts[i] for i in order.tolist()], labels[order], 2) == words


def test_a_keyword_router_learns_words_unless_they_are_stated():
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    rows = Labelled(TEXTS, labels)
    spec = RouterSpec(kind="keyword")
    router, found = train_router(spec, rows, Labelled(["A SUM!", "a function"], torch.tensor([0, 1])), {}, 2, 0, ignore)
    assert isinstance(router, KeywordRouter) and found["accuracy"] == found["macro_f1"] == 1.0
    stated, _ = train_router(spec, rows, rows, {1: ["def"]}, 2, 0, ignore)
    assert stated.words == [learn_words(TEXTS, labels, 2)[0], ["def"]]


def test_a_keyword_router_of_the_first_match_learns_no_words():
    rows = Labelled(TEXTS, torch.tensor([0, 0, 0, 1, 1, 1]))
    router, _ = train_router(RouterSpec(kind="keyword", match="first"), rows, rows, {0: ["sum"]}, 2, 0, ignore)
    assert router.shape == {"words": [["sum"], []], "first": True}


GROUPS = [[2, 0], [1], [3]]


def tree_of(epochs: int = 30) -> RouterSpec:
    groups = {"even": ["a"], "one": ["b"], "three": ["c"]}  # `train_router` takes the indices
    return RouterSpec(kind="tree", groups=groups, hidden=[8], epochs=epochs, lr=0.03, patience=0, dropout=0.0)


def test_a_tree_routes_separable_features_and_calibrates_each_of_its_nodes():
    train, validation = clouds([40] * 4, 0.3, 0), clouds([12] * 4, 1.2, 1)
    router, found = train_router(tree_of(), train, validation, {}, 4, 0, ignore, groups=GROUPS)
    assert isinstance(router, TreeRouter) and router.groups == GROUPS and not router.training
    assert train_router(tree_of(), train, train, {}, 4, 0, ignore, groups=GROUPS)[1]["accuracy"] == 1.0
    assert found["nll"] < found["nll_uncalibrated"]
    assert found["temperature"] == max(node.router.temperature.item() for node in router.nodes)
    between, inside = router.nodes
    of_group = torch.tensor([0, 1, 0, 2])[validation.labels]
    assert between.router.temperature.item() == pytest.approx(
        best_temperature(between.router(validation.features) * between.router.temperature, of_group), rel=1e-4
    )
    mine = torch.isin(validation.labels, torch.tensor([0, 2]))
    labels, own = (validation.labels[mine] == 0).long(), inside.router(validation.features[mine])
    found_inside = best_temperature(own * inside.router.temperature, labels)
    assert inside.router.temperature.item() == pytest.approx(found_inside, rel=1e-4)


def test_the_nodes_of_a_tree_standardise_by_the_training_set():
    train, validation = clouds([20] * 4, 1.0, 0), clouds([5] * 4, 1.0, 1)
    router = fit_layers(tree_of(1), train, validation, 4, 0, ignore, groups=GROUPS)
    for node in router.nodes:
        torch.testing.assert_close(node.router.mean, train.features.mean(0))
        torch.testing.assert_close(node.router.deviation, train.features.std(0))


def test_a_linear_router_has_no_hidden_layer_and_standardises_by_the_training_set():
    train, validation = clouds([20, 20], 1.0, 0), clouds([5, 5], 1.0, 1)
    router = fit_layers(RouterSpec(kind="linear", epochs=1), train, validation, 2, 0, ignore)
    assert isinstance(router, MLPRouter) and router.shape == {"num_features": 4, "num_experts": 2, "hidden": []}
    torch.testing.assert_close(router.mean, train.features.sum(0) / 40)
    torch.testing.assert_close(router.deviation**2, ((train.features - router.mean) ** 2).sum(0) / 39)
