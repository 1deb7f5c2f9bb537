"""Do the counts that follow from sizes equal those of the modules, and of torch's counter of operations?"""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moesaic.config import PUBLISHED, TRAITS, DecoderConfig, published, sized
from moesaic.lab.arms import ARMS
from moesaic.model.decoder import Decoder, initialise
from moesaic.ops.counts import counts_of, training_flops

SMALL = {"vocab_size": 61, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "context": 64}
SPARSE = {"num_experts": 4, "experts_per_token": 2, "expert_size": 24}


def parameters(config: DecoderConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in Decoder(config).parameters())


@pytest.mark.parametrize(
    "changes",
    [
        *({"family": family, **TRAITS[family]} for family in TRAITS),
        *({"tie_embeddings": False, "head_filling": filling} for filling in ("mixer", "residual_mixer", "gate")),
        {"attention_bias": True, "mlp_bias": True, "head_dim": 12},
        {**SPARSE, "dense_layers": (1,), "shared_size": 20},
        {**SPARSE, "expert_size": 0, "router_scores": "sigmoid", "balance_bias": True},
    ],
    ids=str,
)
def test_all_parameters_are_counted(changes: dict) -> None:
    config = DecoderConfig(**SMALL, intermediate_size=48, **changes)
    assert counts_of(config).total == parameters(config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_parameters_of_published_models_are_counted(name: str) -> None:
    assert counts_of(published(name)).total == parameters(published(name))


def test_of_a_sparse_decoder_only_the_chosen_experts_are_active() -> None:
    counts = counts_of(DecoderConfig(**SMALL, intermediate_size=48, **SPARSE, dense_layers=(1,)))
    assert counts.total - counts.active == 2 * 2 * 3 * 32 * 24  # two layers, two of four experts
    dense = counts_of(sized("wide-8", 32_000))
    assert dense.total == dense.active == dense.multiplied + 32_000 * 1024 + 17 * 1024


@pytest.mark.parametrize("name", ARMS)
def test_operations_are_those_that_torch_counts(name: str) -> None:
    """In float64 experts are multiplied one by one, and attention by matrix products: the counter knows only these."""
    sizes = {**SMALL, "num_kv_heads": 4, "vocab_size": 97, "tie_embeddings": False, "intermediate_size": 96}
    config = ARMS[name].changes(DecoderConfig(**sizes))
    decoder = initialise(Decoder(config).double(), torch.Generator().manual_seed(0))
    ids = torch.randint(97, (2, 40), generator=torch.Generator().manual_seed(1))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        decoder(ids).logits.square().sum().backward()
    assert training_flops(config, attended=40) * ids.numel() == pytest.approx(counter.get_total_flops(), rel=0.01)
