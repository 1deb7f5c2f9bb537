"""Property: do routers learn from what each of the losses says, and do draws depend on the seed and the step alone?"""

import math

import pytest
import torch
from torch.nn import functional as F

from moesaic.ops.losses import load_balancing, router_z
from moesaic.routing import States
from moesaic.routing.routers import AttentionRouter, LayeredRouter, MLPRouter
from moesaic.sections.routers import RouterSpec
from moesaic.train.mixture_loss import Table
from moesaic.train.routers import Labelled, fit_layers, fresh, train_router

GUMBEL, NOISY = {"kind": "gumbel"}, {"kind": "noisy_top_k"}
ALONE = {"task": 1.0, "expert": 0.0}


def ignore(row) -> None:
    return


def corners(sizes: list[int], seed: int, spread: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return 3 * F.one_hot(labels, 4).float() + spread * torch.randn(len(labels), 4, generator=generator), labels


def table(best: torch.Tensor, worse: float = 2.0) -> Table:
    """One token a row; the expert `best` loses 1 nat on it, every other `worse` more. Linear in the weights."""
    sums = 1 + worse * (1 - F.one_hot(best, 3).float())
    return Table(sums, torch.ones(len(best), dtype=torch.long), sums[:, None].expand(-1, 3, -1).clone())


def linear(best: torch.Tensor, worse: float = 2.0):
    """The same of any weights; what they leave of 1 is the base's, which is better than the wrong expert."""
    sums = 1 + worse * (1 - F.one_hot(best, 3).float()) - (1 + worse / 2)
    return lambda rows, weights: (
        (weights * sums[rows]).sum(-1) + (1 + worse / 2),
        torch.ones(len(rows), dtype=torch.long),
    )


def labelled(sizes: list[int], seed: int, task=None, shift: int = 0) -> Labelled:
    """`shift`: the best expert of a row is so many behind its own."""
    features, labels = corners(sizes, seed)
    return Labelled(features, labels, features, task((labels + shift) % 3) if task else None)


LINEAR = {"kind": "linear", "epochs": 15, "lr": 0.1, "patience": 0, "batch": 16}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "task"),
    [
        ({"exploration": GUMBEL}, table),
        ({"exploration": GUMBEL | {"temperature": 0.5}}, table),
        ({"selection": "soft"}, linear),
        ({"renormalise": False}, linear),
        ({"selection": "top_k", "k": 2}, linear),
        ({"selection": "top_k", "k": 2, "exploration": NOISY}, linear),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_taught_by_the_task_alone_it_sends_rows_to_who_answers_best_not_to_whose_they_are(how, task):
    spec = RouterSpec(**LINEAR | how | {"loss": ALONE})
    train, validation = (labelled([30, 30, 30], seed, task, shift=1) for seed in (0, 1))
    router, found = train_router(spec, train, validation, {}, 3, 0, ignore)
    assert router(validation.features).argmax(-1).equal((validation.labels + 1) % 3)
    assert found["accuracy"] == 0.0 and found["task"] < 1.5


def test_where_the_task_teaches_nothing_the_router_stays_as_it_was():
    spec = RouterSpec(**LINEAR | {"loss": ALONE, "weight_decay": 0.0})
    assert spec.untaught
    train, validation = (labelled([30, 30, 30], seed, table, shift=1) for seed in (0, 1))
    router = fit_layers(spec, train, validation, 3, 0, ignore)
    torch.manual_seed(0)
    for name, start in fresh(spec, 4, 3).named_parameters():
        torch.testing.assert_close(router.get_parameter(name), start, rtol=0, atol=0, msg=name)


def test_both_losses_together_follow_the_heavier():
    """The task says another expert than the label."""

    def trained(expert: float) -> tuple[float, float]:
        spec = RouterSpec(**LINEAR | {"selection": "soft", "loss": {"task": 1.0, "expert": expert}})
        train, validation = (labelled([30, 30, 30], seed, linear, shift=1) for seed in (0, 1))
        found = train_router(spec, train, validation, {}, 3, 0, ignore)[1]
        return found["accuracy"], found["task"]

    followed, obeyed = trained(0.01), trained(21.0)
    assert followed[0] == 0.0 and obeyed[0] > 0.9 and followed[1] < 1.5 < 2.0 < obeyed[1]


def test_a_steps_loss_is_the_weighed_sum_of_its_terms():
    features, labels = corners([6, 3, 3], 0)
    terms = {"task": 0.5, "expert": 2.0, "balance": 0.25, "z": 0.125}
    spec = RouterSpec(kind="linear", epochs=1, batch=12, selection="soft", loss=terms)
    rows = Labelled(features, labels, None, linear(labels))
    log: list[dict] = []
    fit_layers(spec, rows, rows, 3, 5, log.append)
    torch.manual_seed(5)
    router = fresh(spec, 4, 3)
    router.mean.copy_(features.mean(0))
    router.deviation.copy_(features.std(0))
    logits = router(features)
    counted = (12 / (3 * torch.tensor([6.0, 3, 3])))[labels]
    task = (counted * linear(labels)(torch.arange(12), logits.softmax(-1))[0]).sum() / counted.sum()
    expert = (counted * F.cross_entropy(logits, labels, reduction="none")).sum() / counted.sum()
    expected = 0.5 * task + 2.0 * expert + 0.25 * load_balancing(logits) + 0.125 * router_z(logits)
    assert log[0]["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_balanced_counts_experts_alike_and_proportional_counts_rows():
    """One feature that says nothing: what is learned is how often an expert is expected."""
    labels = torch.tensor(([0] * 80 + [1] * 10) * 40)
    features = torch.randn(len(labels), 2, generator=torch.Generator().manual_seed(0))

    def share(mix: str, loss: dict[str, float]) -> float:
        spec = RouterSpec(kind="linear", epochs=1, batch=90, lr=0.1, mix=mix, loss=loss, selection="soft")
        lost = torch.stack([-(labels == e).float() for e in range(2)], 1)
        task = lambda rows, w: (-(w * -lost[rows]).sum(-1).clamp_min(1e-6).log(), torch.ones_like(rows))  # noqa: E731
        rows = Labelled(features, labels, None, task)
        return fit_layers(spec, rows, rows, 2, 0, ignore).eval()(0 * features[:1]).softmax(-1)[0, 1].item()

    for loss in ({"expert": 1.0}, ALONE):
        assert share("balanced", loss) == pytest.approx(0.5, abs=0.08)
        assert share("proportional", loss) == pytest.approx(1 / 9, abs=0.05)


# --- what draws -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [{"exploration": GUMBEL, "loss": {"task": 1.0}}, {"exploration": NOISY}])
def test_draws_depend_on_seed_and_step_alone(how):
    train, validation = (labelled([20, 20, 20], seed, table) for seed in (0, 1))

    def curve(seed: int, noise_before: int = 0) -> list[float]:
        torch.manual_seed(noise_before)
        before = torch.get_rng_state()
        log: list[dict] = []
        fit_layers(RouterSpec(**LINEAR | how | {"epochs": 2}), train, validation, 3, seed, log.append)
        assert torch.get_rng_state().equal(before), "a training leaves the generator as it was"
        return [row["loss"] for row in log]

    assert curve(1) == curve(1, noise_before=9) != curve(2)


@pytest.mark.parametrize("how", [{"exploration": GUMBEL, "loss": {"task": 1.0}}, {"exploration": NOISY}, {}])
def test_nothing_is_drawn_when_a_router_decides(how, monkeypatch):
    train, validation = (labelled([20, 20, 20], seed, table) for seed in (0, 1))
    router, _ = train_router(RouterSpec(**LINEAR | how | {"epochs": 2}), train, validation, {}, 3, 0, ignore)
    for draw in ("randn_like", "rand_like", "empty_like"):
        monkeypatch.setattr(torch, draw, lambda *_: pytest.fail("a draw"))
    before = torch.get_rng_state()
    found = router.train()(validation.features)  # not even in training is it the router that draws
    assert torch.get_rng_state().equal(before) and router.eval()(validation.features).equal(found)


def test_the_size_of_the_noise_is_learned_from_the_means_and_kept_with_the_router():
    features, labels = corners([30, 30, 30], 0)
    spec = RouterSpec(**LINEAR | {"feature": "hidden_last", "bias": False, "exploration": NOISY})
    train, validation = Labelled(features, labels, features + 5.0), labelled([9, 9, 9], 1)
    router = fit_layers(spec, train, validation, 3, 0, ignore)
    torch.manual_seed(0)
    start = fresh(spec, 4, 3)
    assert isinstance(router, LayeredRouter) and router.noise is not None and start.noise is not None
    assert router.outer.bias is None and router.shape["noise"]
    moved = (router.noise.weight - start.noise.weight).abs()
    assert moved.max() > 0.05, "noise that hurts is turned down where it does"
    shifted = fit_layers(spec, Labelled(features, labels, 7 * features), validation, 3, 0, ignore)
    torch.testing.assert_close(shifted.noise.weight, router.noise.weight, rtol=1e-3, atol=1e-4)


# --- attention --------------------------------------------------------------------------------------------------------


def sentences(sizes: list[int], seed: int) -> Labelled:
    """Each prompt is noise but for one token, somewhere in it, which says whose it is."""
    generator = torch.Generator().manual_seed(seed)
    told, labels = corners(sizes, seed, 0.1)
    rows, lengths = [], torch.randint(2, 9, (len(labels),), generator=generator)
    for row, length in zip(told, lengths.tolist(), strict=True):
        tokens = torch.randn(length, 4, generator=generator)
        tokens[int(torch.randint(length, (1,), generator=generator))] = 2 * row
        rows.append(tokens)
    return Labelled(States(torch.cat(rows), lengths), labels)


def test_attention_finds_the_token_that_tells():
    spec = RouterSpec(kind="attention", hidden=[16], heads=2, epochs=40, lr=0.02, batch=30, dropout=0.0)
    train, validation = sentences([60, 60, 60], 0), sentences([20, 20, 20], 1)
    router, found = train_router(spec, train, validation, {}, 3, 0, ignore)
    assert isinstance(router, AttentionRouter) and found["accuracy"] > 0.95
    torch.testing.assert_close(router.mean, train.features.values.mean(0))
    torch.testing.assert_close(router.deviation, train.features.values.std(0))
    pooled = MLPRouter(4, 3, [])
    assert pooled.shape != router.shape


# --- calibration ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "calibrated"),
    [
        ({"selection": "soft", "loss": {"expert": 1.0}}, True),
        ({"selection": "soft", "loss": {"task": 1.0}}, False),
        ({"renormalise": False, "loss": {"task": 1.0}}, False),
        ({"exploration": GUMBEL, "loss": {"task": 1.0}}, True),
    ],
    ids=str,
)
def test_weights_that_the_task_has_set_are_not_calibrated_away(how, calibrated):
    spec = RouterSpec(**LINEAR | {"epochs": 3} | how)
    train, validation = (labelled([20, 20, 20], seed, linear) for seed in (0, 1))
    router, found = train_router(spec, train, validation, {}, 3, 0, ignore)
    assert (router.temperature.item() != 1.0) == calibrated
    assert math.isfinite(found["nll"]) and found["temperature"] == pytest.approx(router.temperature.item())


def test_with_a_loss_of_the_task_the_epoch_where_that_is_lowest_is_kept():
    spec = RouterSpec(**LINEAR | {"lr": 3.0, "epochs": 10, "selection": "soft", "loss": ALONE})
    train, validation = (labelled([30, 30, 30], seed, lambda best: linear(best, 30.0), shift=1) for seed in (0, 1))
    noisy = Labelled(
        validation.features + 2.0 * torch.randn(90, 4, generator=torch.Generator().manual_seed(3)),
        validation.labels,
        None,
        validation.task,
    )
    log: list[dict] = []
    router = fit_layers(spec, train, noisy, 3, 0, log.append).eval()
    tasks = [row["task"] for row in log if "task" in row]
    assert len(set(tasks)) > 3 and tasks[-1] > min(tasks)
    assert noisy.task(torch.arange(90), router(noisy.features).softmax(-1))[0].mean().item() == pytest.approx(
        min(tasks), rel=1e-5
    )
    assert all(row["score"] <= 1 for row in log if "score" in row), "the score that is told stays macro-F1"
