"""Are sparse layers balanced one by one, over the whole batch of a step, and led out of a collapse in few steps?"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import distributed

from moesaic.model.decoder import Decoder
from moesaic.nn import SparseFFN
from moesaic.ops.expert_load import max_violation
from moesaic.routing import Routing
from moesaic.testing import tiny_config, tiny_decoder
from moesaic.train.balance import Balancer, Quantiles, Rule, SignBias, counts_of, loss_of_balance, with_counts
from moesaic.train.ranks import spread

SPARSE = {"num_layers": 2, "num_experts": 4, "experts_per_token": 2, "expert_size": 16}


def decoder(**changes: int | float | bool | str) -> Decoder:
    return tiny_decoder(0, torch.float32, **{**SPARSE, **changes})


def rows(number: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(61, (number, 12), generator=torch.Generator().manual_seed(seed))


def gradients(model: Decoder, loss: torch.Tensor) -> list[torch.Tensor]:
    return [*torch.autograd.grad(loss, [layer.mlp.gate.weight for layer in model.layers], retain_graph=True)]


@pytest.mark.parametrize("scores", ["softmax", "sigmoid"])
@pytest.mark.parametrize("sizes", [(2, 2, 2, 2), (1, 4, 2, 1)])
def test_four_micro_batches_have_the_loss_and_the_gradient_of_one_batch(sizes: tuple[int, ...], scores: str) -> None:
    model, text = decoder(router_scores=scores), rows(8)
    whole = loss_of_balance(model, model(text).routings)
    micro = list(text.split(sizes))
    batch = with_counts(micro.__getitem__, lambda ids: model(ids).routings, 4)
    parts = [
        (len(ids) / 8, loss_of_balance(model, model(ids).routings, counts)) for ids, counts in map(batch, range(4))
    ]
    together = sum(share * loss for share, loss in parts)
    torch.testing.assert_close(together, whole, rtol=1e-6, atol=1e-8)
    for one, other in zip(gradients(model, together), gradients(model, whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
    alone = sum(len(ids) / 8 * loss_of_balance(model, model(ids).routings) for ids in micro)
    assert abs(alone - whole) > 1e-6, "each by itself asks for more"


def test_one_micro_batch_is_not_read_twice() -> None:
    batch = with_counts(lambda i: i, lambda _: pytest.fail("read twice"), 1)
    assert batch(3) == (3, None)


@torch.no_grad()
def test_every_layer_is_balanced_by_itself_and_padding_does_not_count() -> None:
    model = decoder(num_experts=2, experts_per_token=1)
    collapsed: list[Routing | None] = []
    for expert in (0, 1):
        logits = torch.full((6, 2), -50.0)
        logits[:, expert] = 50.0
        collapsed.append(Routing((logits > 0).float(), logits))
    assert loss_of_balance(model, collapsed, weight=1, z_weight=0).item() == pytest.approx(2)
    real = torch.tensor([True, True, False, True, False, False])
    assert counts_of(collapsed, real).tolist() == [[3, 0], [0, 3]]
    even = Routing(torch.eye(2).repeat(3, 1), torch.zeros(6, 2))
    assert loss_of_balance(model, [even, even], weight=1, z_weight=0).item() == pytest.approx(1)
    assert loss_of_balance(model, [even, even], weight=0, z_weight=1).item() == pytest.approx(0.4804530139182014)


def collapsed(scores: str) -> tuple[Decoder, Callable[[int], list[Routing | None]]]:
    """One layer whose router gives expert 0 most, expert 1 next, to 2,048 random tokens of a step."""
    config = tiny_config(
        num_layers=1, num_experts=8, experts_per_token=2, expert_size=4, router_scores=scores, balance_bias=True
    )
    model = Decoder(config)
    layer, lead = model.layers[0].mlp, torch.tensor([4.0, 2.0, 0, 0, 0, 0, 0, 0])

    def step(number: int) -> list[Routing | None]:
        logits = torch.randn(2048, 8, generator=torch.Generator().manual_seed(number)) + lead
        experts, values = layer.choose(logits)
        return [Routing(torch.zeros(2048, 8).scatter(1, experts, values), logits)]

    return model, step


@torch.no_grad()
@pytest.mark.parametrize(
    ("rule", "scores", "most"),
    [
        (SignBias(), "sigmoid", 250),
        (Quantiles(), "sigmoid", 40),
        (Quantiles(), "softmax", 40),
    ],
)
def test_a_collapsed_layer_is_led_to_balance_and_stays_there(rule: Rule, scores: str, most: int) -> None:
    model, step = collapsed(scores)
    balancer, found = Balancer(model, rule), []
    for number in range(most + 50):
        routings = step(number)
        found.append(max_violation(counts_of(routings)[0]))
        for part in (slice(0, 700), slice(700, 2048)):
            balancer.see([routing[part] for routing in routings if routing is not None])
        balancer.step()
    assert found[0] > 2.9
    assert min(found[:most]) < 0.5
    assert sum(found[-50:]) / 50 <= 0.15
    assert model.layers[0].mlp.balance_bias.mean().abs() < 1e-5


@torch.no_grad()
def test_a_moved_bias_changes_no_weight_of_those_that_are_chosen() -> None:
    layer = SparseFFN(tiny_config(**SPARSE, router_scores="sigmoid", balance_bias=True))
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(2))
    layer.balance_bias.copy_(torch.tensor([0.5, -0.2, 0.1, -0.4]))
    experts, values = layer.choose(logits)
    own = logits.sigmoid().gather(1, experts)
    torch.testing.assert_close(values, own / own.sum(1, keepdim=True))


def test_biases_are_kept_and_restored_with_the_parameters_and_reach_no_optimiser() -> None:
    model = decoder(router_scores="sigmoid", balance_bias=True)
    balancer, parameters = Balancer(model, SignBias(0.1)), dict(model.named_parameters())
    output = model(rows(4))
    balancer.see(output.routings)
    output.logits.square().mean().backward()
    torch.optim.AdamW(parameters.values(), 0.1, weight_decay=0.5).step()
    assert all(layer.mlp.balance_bias.equal(torch.zeros(4)) for layer in model.layers)
    balancer.step()
    biases = [name for name in parameters if name.endswith("balance_bias")]
    assert len(biases) == 2 and all(parameters[name].abs().max() > 0.01 for name in biases)


def test_biases_that_processes_hold_in_pieces_move_as_whole_ones(tmp_path: Path) -> None:
    plain, pieces = (decoder(router_scores="sigmoid", balance_bias=True) for _ in range(2))
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        model, ranks = spread(pieces, "fsdp")
        for rule in (SignBias(0.1), Quantiles()):
            for one, balancer in ((plain, Balancer(plain, rule)), (model, Balancer(pieces, rule, ranks))):
                balancer.see(one(rows(4)).routings)
                balancer.step()
            for layer, other in zip(plain.layers, pieces.layers, strict=True):
                torch.testing.assert_close(ranks.full(other.mlp.balance_bias), layer.mlp.balance_bias)
    finally:
        distributed.destroy_process_group()
