"""Property: every family is adapted by the names of its linears, and what cannot be adapted is refused by name."""

import pytest
import torch

from moesaic.adapters import LoRA, TensorTrain, attach, merge
from moesaic.adapters.lora import linears
from moesaic.config import TRAITS, DecoderConfig
from moesaic.errors import CompatibilityError
from moesaic.model.decoder import Decoder, initialise
from moesaic.routing import Gates
from moesaic.testing import ALL_TARGETS, toy_expert

SIZES = {"vocab_size": 61, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "context": 32}
SPARSE = {"num_experts": 3, "experts_per_token": 2}
SPARSE_FAMILIES = {"mixtral": SPARSE, "qwen2_moe": {**SPARSE, "shared_size": 12}, "qwen3_moe": SPARSE}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


def decoder(family: str, **changes) -> Decoder:
    own = {**TRAITS[family], **SPARSE_FAMILIES.get(family, {}), **changes}
    config = DecoderConfig(**SIZES, intermediate_size=48, family=family, **own)
    made = initialise(Decoder(config), torch.Generator().manual_seed(0)).double().eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.mul_(5 if weight.ndim > 1 else 1)
    return made


@torch.no_grad()
@pytest.mark.parametrize("family", TRAITS)
def test_a_family_is_adapted_by_the_names_of_its_linears_and_merged_says_the_same(family):
    base = decoder(family)
    sparse = base.config.num_experts
    expert = toy_expert(base, 1, targets=[*ALL_TARGETS, "gate"] if sparse else ALL_TARGETS)
    shared = ["gate_proj", "up_proj"] if base.config.shared_size else []
    wanted = [*ATTENTION, "gate", "gate_up_proj", "down_proj", *shared] if sparse else ALL_TARGETS
    assert expert.targets == sorted(wanted)
    assert len(expert.pairs) == 2 * (5 + 2 * sparse + 3 * bool(shared) if sparse else 7)
    plain = base(IDS).logits
    attach(base, [expert])
    off, on = Gates.one(-1, 2, 1, plain), Gates.one(0, 2, 1, plain)
    assert base(IDS, None, off).logits.equal(plain)
    adapted = base(IDS, None, on).logits
    assert (adapted - plain).abs().max() > 0.1
    merged = decoder(family)
    merge(merged, [expert], [1.0])
    torch.testing.assert_close(merged(IDS).logits, adapted, rtol=1e-9, atol=1e-9)


def test_a_target_that_a_base_does_not_have_is_refused_by_name():
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(CompatibilityError, match=r"targets: .*some of .*k_proj.*; got c_attn, w1$"):
        LoRA.fresh(decoder("llama"), 2, 4.0, ["q_proj", "w1", "c_attn"], range(9), generator)


def test_a_matrix_of_an_expert_that_the_base_does_not_have_is_refused_by_name():
    def of(expert: int) -> LoRA:
        path = f"layers.0.mlp.experts.{expert}.up_proj"
        return LoRA(2, 4.0, {path: (torch.zeros(2, 32), torch.zeros(2, 48))})

    with pytest.raises(CompatibilityError, match=r"layers\.0\.mlp\.experts\.1\.up_proj: the base has no such module"):
        attach(decoder("llama"), [of(1)])
    with pytest.raises(CompatibilityError, match=r"layers\.0\.mlp\.experts\.3\.up_proj: the base has no such expert"):
        attach(decoder("mixtral"), [of(3)])
    base = decoder("mixtral")
    attach(base, [of(1)])
    with pytest.raises(CompatibilityError, match="already carries experts"):
        attach(base, [of(2)])


def test_tensor_trains_adapt_linears_alone():
    base, generator = decoder("mixtral"), torch.Generator().manual_seed(0)
    assert {path.rsplit(".", 1)[-1] for path in linears(base)} == {*ATTENTION, "gate", "lm_head"}
    with pytest.raises(CompatibilityError, match="got up_proj; only experts of kind lora adapt the matrices of sparse"):
        TensorTrain.fresh(base, 2, 4.0, ["q_proj", "up_proj"], range(9), generator)


def test_dense_layers_and_sparse_ones_are_adapted_by_the_same_names():
    base = decoder("qwen3_moe", dense_layers=(1,))
    assert list(toy_expert(base, 1, targets=["down_proj", "up_proj"]).pairs) == [
        *("layers.1.mlp.up_proj", "layers.1.mlp.down_proj"),
        *(f"layers.0.mlp.experts.{e}.{name}" for e in range(3) for name in ("up_proj", "down_proj")),
    ]
