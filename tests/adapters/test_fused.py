"""Is a pair of gate and up together the same function as their own pairs?"""

import pytest
import torch

from moesaic.adapters import LoRA, merge
from moesaic.adapters.fused import fused
from moesaic.model.decoder import Decoder
from moesaic.testing import tiny_decoder, toy_expert

pytestmark = pytest.mark.usefixtures("double")
IDS = torch.randint(61, (2, 6), generator=torch.Generator().manual_seed(1))


def sparse() -> Decoder:
    return tiny_decoder(num_experts=3, experts_per_token=2)


def logits(lora: LoRA) -> torch.Tensor:
    decoder = sparse()
    merge(decoder, [lora], [1.0])
    return decoder(IDS).logits


def apart(up: int) -> LoRA:
    """Gate of rank 3 and up of another rank as pairs of their own."""
    one, two = toy_expert(sparse(), 1, targets=["gate_proj"]), toy_expert(sparse(), 2, rank=up, targets=["up_proj"])
    return LoRA(3, 6.0, {**one.pairs, **two.pairs})


@torch.no_grad()
@pytest.mark.parametrize(
    ("lora", "rank", "alpha"),
    [(apart(3), 6, 12.0), (apart(2), 5, 5.0), (toy_expert(sparse(), 1, targets=["up_proj", "q_proj"]), 3, 6.0)],
    ids=["one rank", "two scales", "up alone"],
)
def test_the_function_stays_and_ranks_add_up(lora, rank, alpha):
    found = fused(lora)
    path = "layers.1.mlp.experts.2.gate_up_proj"
    assert found.targets == ["gate_up_proj", *(["q_proj"] if "q_proj" in lora.targets else [])]
    assert found.rank_of(path) == rank and found.scale_of(path) == alpha / rank
    torch.testing.assert_close(logits(found), logits(lora), rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_experts_of_several_ranks_get_one():
    small, large = toy_expert(sparse(), 1, rank=1, targets=["up_proj"]), toy_expert(sparse(), 1, targets=["up_proj"])
    path = "layers.0.mlp.experts.1.up_proj"
    mixed = LoRA(3, 6.0, {**large.pairs, path: small.pairs[path]}, {path: 2.0})
    found = fused(mixed)
    assert {len(a) for a, _ in found.pairs.values()} == {3}
    torch.testing.assert_close(logits(found), logits(mixed), rtol=1e-12, atol=1e-12)


def test_what_has_no_pairs_of_gate_or_up_alone_stays_as_it_is():
    lora = toy_expert(sparse(), 1)
    found = fused(lora)
    assert found.pairs.keys() == lora.pairs.keys() and found.alphas == lora.alphas
    assert all(found.pairs[path][0] is a for path, (a, _) in lora.pairs.items())
