"""Are several models' distributions one as the formulas say, and exactly a model's own where it alone is asked?"""

import pytest
import torch

from moesaic.ops.ensemble import Answer, combined

F64 = torch.float64
ROWS = [[0, 1, 3], [1, 2, 3], [3]]
SHARES = torch.tensor([[1.0, 0, 0], [0.25, 0.75, 0], [0, 1.0, 0], [0.2, 0.3, 0.5]], dtype=F64)


def parts(weights: torch.Tensor = SHARES) -> list[Answer]:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(len(rows), 2, 7, generator=generator, dtype=F64) * 3 for rows in ROWS]
    return [
        Answer(torch.tensor(rows), one, weights[rows, e][:, None].expand(-1, 2))
        for e, (rows, one) in enumerate(zip(ROWS, logits, strict=True))
    ]


def own(some: list[Answer], row: int) -> list[tuple[float, torch.Tensor]]:
    """The weight and the logits of each model that answers a row."""
    return [(p.weights[at, 0], p.logits[at]) for p in some for at, r in enumerate(p.rows.tolist()) if r == row]


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_a_mixture_is_the_weighted_sum_of_probabilities():
    found = combined(parts(), 4, "mixture").softmax(-1)
    for row in range(4):
        close(found[row], sum(w * z.softmax(-1) for w, z in own(parts(), row)))


def test_a_product_is_the_normalised_product_of_powers():
    found = combined(parts(), 4, "product").softmax(-1)
    for row in range(4):
        powers = torch.stack([z.softmax(-1) ** w for w, z in own(parts(), row)]).prod(0)
        close(found[row], powers / powers.sum(-1, keepdim=True))


@pytest.mark.parametrize("how", ["mixture", "product"])
def test_a_model_that_is_asked_alone_is_given_exactly(how):
    found = combined(parts(), 4, how)
    for row in (0, 2):
        ((_, alone),) = own(parts(), row)
        assert found[row].equal(alone)
    (part, *_) = parts()
    assert combined([Answer(torch.arange(3), part.logits, part.weights)], 3, how) is part.logits


@pytest.mark.parametrize("how", ["mixture", "product"])
def test_models_that_agree_give_their_logits(how):
    logits = torch.randn(3, 2, 7, dtype=F64) * 5
    shares = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.3, 0.7]], dtype=F64)
    agreed = [Answer(torch.arange(3), logits, shares[:, e, None].expand(-1, 2)) for e in range(2)]
    close(combined(agreed, 3, how), logits)


def test_who_has_no_say_at_a_position_has_none():
    """At level `token` a model may answer some positions of a row only."""
    generator = torch.Generator().manual_seed(1)
    one, two = (torch.randn(1, 3, 7, generator=generator, dtype=F64) for _ in range(2))
    shares = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]], dtype=F64)
    found = combined([Answer(torch.tensor([0]), z, shares[..., e]) for e, z in enumerate((one, two))], 1, "mixture")
    assert found[0, 0].equal(one[0, 0]) and found[0, 1].equal(two[0, 1])
    close(found[0, 2].softmax(-1), (one[0, 2].softmax(-1) + two[0, 2].softmax(-1)) / 2)


@pytest.mark.parametrize("how", ["mixture", "product"])
def test_gradients_reach_weights_and_logits_and_are_numbers(how):
    shares = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.4, 0.6]]], dtype=F64, requires_grad=True)
    logits = [torch.randn(1, 3, 7, dtype=F64, requires_grad=True) for _ in range(2)]

    def loss(shares, *logits):
        both = [Answer(torch.tensor([0]), z, shares[..., e]) for e, z in enumerate(logits)]
        return combined(both, 1, how).log_softmax(-1)[0, :, 3].sum()

    for found in torch.autograd.grad(loss(shares, *logits), [shares, *logits]):
        assert found.isfinite().all() and found[0, 2].any()
    mixed = [shares[:, 2:], *(z[:, 2:] for z in logits)]
    assert torch.autograd.gradcheck(loss, [part.detach().requires_grad_() for part in mixed])


def test_float32_does_not_lose_a_rare_token():
    sure = torch.full((1, 1, 3), -80.0)
    sure[..., 0] = 80.0
    even = torch.zeros(1, 1, 3)
    both = [Answer(torch.tensor([0]), z, torch.tensor([[w]])) for z, w in ((sure, 0.999), (even, 0.001))]
    found = combined(both, 1, "mixture").log_softmax(-1)[0, 0]
    torch.testing.assert_close(found[1], torch.tensor(0.001 / 3).log(), rtol=1e-5, atol=1e-5)
