"""Does a router of layers begin exactly where centroids decide, and go on from there?"""

import pytest
import torch

from moesaic.routing.routers import MLPRouter
from moesaic.sections.routers import RouterSpec
from moesaic.train.centroids import begin_at, reach
from moesaic.train.routers import Labelled, fit_centroids, fit_layers, metrics, train_router


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def clouds(n: int, seed: int, distance: float = 1.0) -> Labelled:
    """Three clouds of 7 dimensions, one elongated, far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    middles = torch.randn(3, 7, generator=torch.Generator().manual_seed(9)) * distance
    noise = torch.randn(3, n, 7, generator=generator) * torch.tensor([3.0, 1, 1, 1, 1, 1, 0.1])
    features = (middles[:, None] + noise + 20).flatten(0, 1)
    return Labelled(features, torch.arange(3).repeat_interleave(n))


@torch.no_grad()
@pytest.mark.parametrize("hidden", [[], [6], [17], [64, 6, 9]], ids=str)
def test_it_begins_with_the_decisions_of_the_centroids_and_their_logits_by_each_rows_distance(hidden):
    rows = clouds(50, 0)
    centroids = fit_centroids(rows.features, rows.labels, 3)
    said, usual = reach(centroids, rows.features)
    router = MLPRouter(7, 3, hidden)
    router.mean.copy_(rows.features.mean(0))
    router.deviation.copy_(rows.features.std(0))
    begin_at(router, centroids, 4.0, usual)
    far = (rows.features - centroids.centre).norm(dim=-1, keepdim=True) / usual
    expected = centroids(rows.features) * far
    torch.testing.assert_close(said, expected)
    torch.testing.assert_close(router.eval()(rows.features), 4.0 * expected, rtol=1e-9, atol=1e-9)
    assert router(rows.features).argmax(-1).equal(centroids(rows.features).argmax(-1))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_its_training_begins_there_and_makes_it_no_worse(kind):
    """At a rate of nothing it stays the centroid router; from there it learns, and what was drawn at random too."""
    train, validation = clouds(60, 0), clouds(40, 1)
    shape = {"hidden": [16]} if kind == "mlp" else {}
    centroids = fit_centroids(train.features, train.labels, 3)
    still = RouterSpec(kind=kind, init="centroids", epochs=1, lr=1e-12, **shape)
    router = fit_layers(still, train, validation, 3, 0, lambda row: None).eval()
    assert router(validation.features).argmax(-1).equal(centroids(validation.features).argmax(-1))
    assert 0.05 < router(validation.features).softmax(-1).max(-1).values.mean() < 0.99, "sure, and not beyond learning"
    learning = RouterSpec(kind=kind, init="centroids", epochs=20, lr=0.01, patience=0, **shape)
    learned, found = train_router(learning, train, validation, {}, 3, 0, lambda row: None)
    assert found["accuracy"] >= metrics(centroids, validation, 3)["accuracy"]
    if kind == "mlp":
        assert learned.outer.weight[:, 6:].abs().max() > 1e-3, "the other units have a say by now"


def test_rows_that_are_all_told_apart_leave_something_to_learn():
    train = clouds(30, 0, distance=40.0)
    spec = RouterSpec(kind="linear", init="centroids", epochs=1, lr=1e-12)
    router = fit_layers(spec, train, train, 3, 0, lambda row: None).eval()
    with torch.no_grad():
        assert router(train.features).softmax(-1).max(-1).values.median() < 0.999
