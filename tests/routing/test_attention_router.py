"""Property: the attention router pools each prompt by itself as torch's attention does, with the published numbers."""

import pytest
import torch
from torch import nn

from moesaic.errors import RecipeError
from moesaic.routing import States
from moesaic.routing.routers import AttentionRouter, MLPRouter

pytestmark = pytest.mark.usefixtures("double")


def made(heads: int = 2, width: int = 8) -> AttentionRouter:
    router = AttentionRouter(5, 3, width, heads, dropout=0.5)
    router.mean.normal_()
    router.deviation.uniform_(0.5, 2)
    router.temperature.fill_(0.7)
    return router.eval()


def padded(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(len(lengths), max(lengths), 5), torch.tensor(lengths)


@pytest.mark.parametrize("heads", [1, 2, 4])
@torch.no_grad()
def test_it_is_torchs_attention_with_one_query_for_all_prompts(heads):
    """The products that ours leaves out are the identity there; the padding is masked there."""
    router, width = made(heads), 8
    theirs = nn.MultiheadAttention(width, heads, batch_first=True)
    theirs.in_proj_weight.copy_(torch.cat([torch.eye(width), router.key.weight, router.value.weight]))
    theirs.in_proj_bias.copy_(torch.cat([torch.zeros(2 * width), router.value.bias]))
    theirs.out_proj.weight.copy_(torch.eye(width))
    theirs.out_proj.bias.zero_()
    x, lengths = padded([4, 1, 6])
    tokens = torch.relu(router.inner((x - router.mean) / router.deviation))
    pads = torch.arange(6) >= lengths[:, None]
    query = router.query.reshape(1, 1, width).expand(3, 1, width)
    pooled, _ = theirs(query, tokens, tokens, key_padding_mask=pads)
    torch.testing.assert_close(router.pooled(States.of(x, lengths)), pooled[:, 0], rtol=1e-10, atol=1e-10)
    expected = router.outer(pooled[:, 0]) / router.temperature
    torch.testing.assert_close(router(States.of(x, lengths)), expected, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_a_row_gets_the_same_alone_and_in_a_batch_and_order_within_a_prompt_is_nothing_to_it():
    router, (x, lengths) = made(), padded([4, 1, 6])
    together = router(States.of(x, lengths))
    for row, length in enumerate(lengths.tolist()):
        alone = router(States(x[row, :length], torch.tensor([length])))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-12, atol=1e-12)
        turned = router(States(x[row, :length].flip(0), torch.tensor([length])))
        torch.testing.assert_close(turned, alone, rtol=1e-12, atol=1e-12)


def test_every_parameter_is_learned_and_the_gradients_are_right():
    router, (x, lengths) = made(), padded([3, 2])
    router(States.of(x, lengths)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in router.parameters())
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: router(States.of(x, lengths)), (x,))


def test_heads_that_do_not_share_the_width_evenly_are_refused():
    what = "heads: the number of heads does not divide the width; expected a divisor of 8; got 3"
    with pytest.raises(RecipeError, match=what):
        AttentionRouter(5, 3, 8, 3)


def size(router: nn.Module) -> int:
    return sum(p.numel() for p in router.parameters())


@pytest.mark.parametrize(("experts", "published"), [(6, 24_582), (17, 69_649)])
def test_the_published_linear_router_with_its_noise_has_as_many_parameters(experts, published):
    """E (2 x hidden + 1): logits of the last state without a bias, the size of their noise of the mean one with it."""
    assert size(MLPRouter(2048, experts, [], bias=False, noise=True)) == published == experts * (2 * 2048 + 1)


def test_the_other_published_routers_by_formula():
    d, w, e = 768, 1024, 4
    assert size(MLPRouter(d, e, [])) == e * (d + 1)
    assert size(MLPRouter(d, e, [w])) == w * (d + 1) + e * (w + 1)
    # one query for all prompts: less than attention from every token by its query's and its outer product
    assert size(AttentionRouter(d, e, w, 4)) == w * (d + 1) + w + w * w + w * (w + 1) + e * (w + 1)
