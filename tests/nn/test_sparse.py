"""Does a sparse ffn equal a loop over tokens, and compute only the experts that were chosen?"""

import pytest
import torch

from moesaic.config import DecoderConfig
from moesaic.model.decoder import Decoder, initialise
from moesaic.nn import GLU, SparseFFN

SIZES = {"vocab_size": 61, "hidden_size": 16, "num_layers": 3, "num_heads": 2, "num_kv_heads": 1, "context": 32}


def config(**changes) -> DecoderConfig:
    sparse = {"num_experts": 5, "experts_per_token": 2, "expert_size": 12}
    return DecoderConfig(**{**SIZES, "intermediate_size": 24, **sparse, **changes})


def sparse(dtype: torch.dtype = torch.float64, **changes) -> SparseFFN:
    ffn = SparseFFN(config(**changes)).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in ffn.parameters():
            weight.normal_(0, 0.5, generator=generator)
    return ffn


def text(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def naive(ffn: SparseFFN, x: torch.Tensor) -> torch.Tensor:
    """One token at a time: softmax over all experts, the largest few, each expert by itself."""
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            p = torch.softmax(ffn.gate.weight @ x[row, t], 0)
            chosen = p.argsort(descending=True)[: ffn.chosen]
            total = p[chosen].sum() if ffn.renormalise else 1.0
            for e in chosen:
                out[row, t] += p[e] / total * ffn.experts[e](x[row, t][None, None], None)[0, 0]
    return out


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("chosen", [1, 2, 5])
def test_it_equals_a_loop_over_tokens_and_so_do_its_gradients(renormalise, chosen):
    ffn, x = sparse(renormalise=renormalise, experts_per_token=chosen), text(2, 7, 16)
    found, own = ffn(x, None), ffn.choose(x, None)
    expected = naive(ffn, x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert ((own.weights > 0).sum(-1) == chosen).all()
    ours = torch.autograd.grad((found * text(2, 7, 16)).sum(), list(ffn.parameters()), allow_unused=True)
    theirs = torch.autograd.grad((expected * text(2, 7, 16)).sum(), list(ffn.parameters()), allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_each_token_chooses_the_experts_of_largest_share():
    ffn, x = sparse(), text(2, 7, 16)
    own = ffn.choose(x, None)
    p = torch.softmax(x.flatten(0, 1) @ ffn.gate.weight.T, -1)
    assert own.weights.argmax(-1).tolist() == p.argmax(-1).tolist()
    torch.testing.assert_close(own.weights.sum(-1), torch.ones(14, dtype=torch.float64))


@torch.no_grad()
def test_select_means_skip_a_sparse_expert_without_tokens_is_never_called(monkeypatch):
    ffn, seen = sparse(), []
    ffn.gate.weight[1] = 0
    ffn.gate.weight[:, 0] = torch.tensor([9.0, -9.0, 8.0, -9.0, -9.0])
    x = text(2, 7, 16) * 0.1
    x[..., 0] = 1.0
    forward = GLU.forward
    monkeypatch.setattr(
        GLU, "forward", lambda self, x, gates: seen.append((self, x.shape[1])) or forward(self, x, gates)
    )
    ffn(x, None)
    assert seen == [(ffn.experts[0], 14), (ffn.experts[2], 14)], "two experts, each once, with all its tokens"


@torch.no_grad()
def test_in_bfloat16_the_choice_is_weighed_in_float32():
    ffn, x = sparse(torch.bfloat16), text(1, 50, 16, dtype=torch.bfloat16)
    own = ffn.choose(x, None)
    assert ffn(x, None).dtype == torch.bfloat16 and own.weights.dtype == torch.float32
    assert (own.weights.sum(-1) - 1).abs().max() < 1e-6


def test_a_model_may_have_dense_layers_among_sparse_ones():
    decoder = initialise(Decoder(config(dense_layers=(1,))), torch.Generator().manual_seed(0))
    assert [type(layer.mlp) for layer in decoder.layers] == [SparseFFN, GLU, SparseFFN]
    assert decoder.layers[0].mlp.experts[0].down_proj.in_features == 12
    assert decoder.layers[1].mlp.down_proj.in_features == 24
    assert decoder(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
