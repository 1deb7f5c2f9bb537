"""Is a fine-tuned model's difference held as well as its rank allows, and is what is lost told?"""

import pytest
import torch

from moesaic.adapters import attach, merge
from moesaic.errors import CompatibilityError
from moesaic.kinds import difference as room
from moesaic.kinds.difference import difference, truncated
from moesaic.routing import Gates
from moesaic.testing import tiny_decoder, toy_expert

IDS = torch.randint(61, (2, 6), generator=torch.Generator().manual_seed(0))


def tuned(*experts):
    decoder = tiny_decoder()
    merge(decoder, list(experts), [1.0] * len(experts))
    return decoder


@torch.no_grad()
def test_a_difference_of_low_rank_is_held_whole():
    expert = toy_expert(tiny_decoder(), 1, rank=3, targets=["q_proj", "down_proj"], layers=range(1, 3))
    found = difference(tiny_decoder(), tuned(expert), 5)
    assert found.kept == pytest.approx(1, abs=1e-6) and found.outside == 0 and found.changed == {}
    assert found.lora.pairs.keys() == expert.pairs.keys(), "linears that did not change are left out"
    assert {len(a) for a, _ in found.lora.pairs.values()} == {3}, "no rank that nothing needs"
    again = tiny_decoder()
    merge(again, [found.lora], [1.0])
    torch.testing.assert_close(again(IDS).logits, tuned(expert)(IDS).logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_what_is_kept_is_the_energy_of_the_largest_singular_values():
    some = [toy_expert(tiny_decoder(), seed, rank=3, targets=["v_proj"], layers=range(1)) for seed in (1, 2)]
    change = tuned(*some).layers[0].self_attn.v_proj.weight - tiny_decoder().layers[0].self_attn.v_proj.weight
    values = torch.linalg.svdvals(change).square()
    found = difference(tiny_decoder(), tuned(*some), 2)
    assert found.kept == pytest.approx((values[:2].sum() / values.sum()).item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("rank", [1, 4])
def test_a_large_matrix_is_held_as_well_by_its_largest_values_alone(rank, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(size, 50, generator=generator))[0] for size in (60, 70))
    change = left @ torch.diag(0.9 ** torch.arange(50)) @ right.t()
    (a, b), whole = truncated(change, rank)
    monkeypatch.setattr(room, "SMALL", 8)
    (c, d), some = truncated(change, rank)
    assert some == pytest.approx(whole, rel=1e-3)
    assert (d.t() @ c - b.t() @ a).norm() < 0.05 * (b.t() @ a).norm()


@torch.no_grad()
def test_what_lies_outside_the_linears_is_told_by_its_share_and_how_far_it_moved():
    decoder = tuned(toy_expert(tiny_decoder(), 1, targets=["q_proj"]))
    decoder.norm.weight.mul_(1.5)
    decoder.embed_tokens.weight[3] += 1.0  # which is the head's, too, and counts once
    found = difference(tiny_decoder(), decoder, 8)
    assert found.changed.keys() == {"norm.weight", "embed_tokens.weight"}
    assert found.changed["norm.weight"] == pytest.approx(0.5)
    q = sum((b.t() @ a).square().sum().item() for a, b in found.lora.pairs.values())
    lost = 32 * 0.25 + 32
    assert found.outside == pytest.approx(lost / (q + lost), rel=1e-3)
    assert found.kept == pytest.approx(1, abs=1e-6)


@torch.no_grad()
def test_a_model_in_which_no_linear_changed_is_no_expert():
    with pytest.raises(CompatibilityError, match="no linear differs .*the same weights"):
        difference(tiny_decoder(), tiny_decoder(), 4)
    decoder = tiny_decoder()
    decoder.norm.weight.mul_(2)
    with pytest.raises(CompatibilityError, match=r"no linear differs .*changes in norm\.weight"):
        difference(tiny_decoder(), decoder, 4)


@torch.no_grad()
def test_what_changed_in_the_experts_of_a_sparse_base_is_held_too():
    base, changed = (tiny_decoder(num_experts=3, experts_per_token=2) for _ in range(2))
    merge(changed, [toy_expert(base, 1, targets=["q_proj", "gate", "down_proj"])], [1.0])
    changed.layers[1].mlp.experts.gate_up_proj[2].chunk(2)[1].mul_(1.1)
    changed.layers[0].input_layernorm.weight.mul_(1.1)
    found = difference(base, changed, 32)
    assert found.lora.targets == ["down_proj", "gate", "q_proj", "up_proj"] and 0 < found.outside < 1
    assert found.changed == {"layers.0.input_layernorm.weight": pytest.approx(0.1)} and found.kept > 0.999
    base.layers[0].input_layernorm.weight.mul_(1.1)
    expected = changed(IDS).logits
    attach(base, [found.lora])
    torch.testing.assert_close(base(IDS, None, Gates.one(0, 2, 1, expected)).logits, expected, rtol=1e-5, atol=1e-5)
