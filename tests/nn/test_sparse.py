"""Does a sparse ffn equal a loop over tokens, compute only the experts that were chosen, and choose as it is told?"""

import pytest
import torch

from moesaic.config import DecoderConfig
from moesaic.model.decoder import Decoder, initialise
from moesaic.nn import GLU, SparseFFN
from moesaic.nn.sparse import separated
from moesaic.ops import grouped as products

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


def matrices(ffn: SparseFFN, expert: int) -> tuple[torch.Tensor, ...]:
    """Gate, up and down of one expert."""
    gate, up = ffn.experts.gate_up_proj[expert].chunk(2)
    return gate, up, ffn.experts.down_proj[expert]


def text(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def naive(ffn: SparseFFN, x: torch.Tensor) -> torch.Tensor:
    """One token at a time: scores of all experts, the largest few, each expert by itself."""
    out = torch.zeros_like(x)
    for row in range(x.shape[0]):
        for t in range(x.shape[1]):
            p = ffn.scores((ffn.gate.weight @ x[row, t])[None])[0]
            ranked = p if ffn.balance_bias is None else p + ffn.balance_bias
            chosen = ranked.argsort(descending=True)[: ffn.chosen]
            total = p[chosen].sum() if ffn.renormalise else 1.0
            for e in chosen:
                gate, up, down = matrices(ffn, e)
                out[row, t] += p[e] / total * (down @ (torch.nn.functional.silu(gate @ x[row, t]) * (up @ x[row, t])))
    return out


EXACTLY = {torch.float64: {"rtol": 1e-12, "atol": 1e-12}, torch.float32: {"rtol": 1e-5, "atol": 1e-5}}


@pytest.mark.parametrize("dtype", EXACTLY)  # in float64 one product for each expert, in float32 one for all
@pytest.mark.parametrize("changes", [{}, {"renormalise": False}, {"router_scores": "sigmoid", "balance_bias": True}])
@pytest.mark.parametrize("chosen", [1, 2, 5])
def test_it_equals_a_loop_over_tokens_and_so_do_its_gradients(dtype, changes, chosen):
    ffn, x = sparse(dtype, experts_per_token=chosen, **changes), text(2, 7, 16, dtype=dtype)
    found, routing = ffn(x, None)
    expected = naive(ffn, x)
    torch.testing.assert_close(found, expected, **EXACTLY[dtype])
    assert ((routing.weights > 0).sum(-1) == chosen).all()
    weights = [weight for weight in ffn.parameters() if weight.requires_grad]
    ours = torch.autograd.grad(found.sum(), weights)  # the gradient of a sum is expanded
    theirs = torch.autograd.grad(expected.sum(), weights, materialize_grads=True, allow_unused=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_bias_changes_who_is_chosen_and_no_weight():
    ffn, x = sparse(router_scores="sigmoid", balance_bias=True), text(2, 7, 16)
    ffn.balance_bias.copy_(torch.tensor([0.0, 9.0, 0.0, 5.0, 0.0]))
    _, routing = ffn(x, None)
    s = torch.sigmoid(x.flatten(0, 1) @ ffn.gate.weight.T)[:, [1, 3]]
    torch.testing.assert_close(routing.weights[:, [1, 3]], s / s.sum(-1, keepdim=True))
    assert (routing.weights.sum(-1) - 1).abs().max() < 1e-12


@torch.no_grad()
def test_scores_that_all_vanish_give_no_nan():
    ffn, x = sparse(router_scores="sigmoid"), text(2, 7, 16).abs()
    ffn.gate.weight.fill_(-1e4)
    assert ffn(x, None)[0].isfinite().all()


@torch.no_grad()
def test_routing_says_what_each_token_chose():
    ffn, x = sparse(), text(2, 7, 16)
    _, routing = ffn(x, None)
    p = torch.softmax(x.flatten(0, 1) @ ffn.gate.weight.T, -1)
    assert routing.best.tolist() == p.argmax(-1).tolist()
    torch.testing.assert_close(routing.weights.sum(-1), torch.ones(14, dtype=torch.float64))


@torch.no_grad()
def test_select_means_skip_a_sparse_expert_without_tokens_is_never_multiplied(monkeypatch):
    ffn, seen = sparse(), []
    ffn.gate.weight[:, 0] = torch.tensor([9.0, -9.0, 8.0, -9.0, -9.0])
    x = text(2, 7, 16) * 0.01
    x[..., 0] = 1.0
    linear = torch.nn.functional.linear
    monkeypatch.setattr(products.F, "linear", lambda x, w, *b: seen.append((len(x), w.shape[0])) or linear(x, w, *b))
    ffn(x, None)
    assert seen[1:] == [(14, 24), (14, 24), (14, 16), (14, 16)], "two experts, each twice, with all its tokens"


@torch.no_grad()
def test_matrices_of_single_experts_are_views_of_the_tensor_that_holds_them():
    ffn = sparse()
    parts = separated("layers.0.mlp.experts.gate_up_proj", ffn.experts.gate_up_proj)
    parts |= separated("layers.0.mlp.experts.down_proj", ffn.experts.down_proj)
    assert len(parts) == 15 and all(part.is_contiguous() for part in parts.values())
    gate, up, down = matrices(ffn, 3)
    for name, own in (("gate", gate), ("up", up), ("down", down)):
        part = parts[f"layers.0.mlp.experts.3.{name}_proj.weight"]
        assert part.equal(own) and part.data_ptr() == own.data_ptr()
    assert [*separated("layers.0.mlp.down_proj.weight", gate)] == ["layers.0.mlp.down_proj.weight"]


def test_under_autocast_the_router_stays_exact_and_the_experts_do_not():
    ffn, x = sparse(torch.float32), text(1, 50, 16, dtype=torch.float32)
    exact = ffn(x, None)[1]
    with torch.autocast("cpu", torch.bfloat16):
        y, routing = ffn(x, None)
    assert routing.logits.equal(exact.logits) and routing.weights.equal(exact.weights)
    torch.testing.assert_close(y, ffn(x, None)[0], rtol=0.1, atol=0.1 * y.abs().max().item())
    assert not y.equal(ffn(x, None)[0])
    y.square().sum().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in ffn.parameters())


@torch.no_grad()
def test_in_bfloat16_the_choice_is_weighed_in_float32():
    ffn, x = sparse(torch.bfloat16), text(1, 50, 16, dtype=torch.bfloat16)
    y, routing = ffn(x, None)
    assert y.dtype == torch.bfloat16 and routing.weights.dtype == torch.float32
    assert (routing.weights.sum(-1) - 1).abs().max() < 1e-6


def test_a_model_may_have_dense_layers_among_sparse_ones():
    decoder = initialise(Decoder(config(dense_layers=(1,))), torch.Generator().manual_seed(0))
    assert [type(layer.mlp) for layer in decoder.layers] == [SparseFFN, GLU, SparseFFN]
    assert decoder.layers[0].mlp.experts.down_proj.shape == (5, 16, 12)
    assert decoder.layers[1].mlp.down_proj.in_features == 24
    routings = decoder(torch.tensor([[1, 2, 3]])).routings
    assert [routing is None for routing in routings] == [False, True, False]


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch reads it between two graphs
def test_it_compiles_where_torch_has_no_compiled_groups():
    ffn = sparse(torch.float32)
    compiled = torch.compile(ffn, backend="aot_eager")
    for tokens in (7, 9, 3):
        x = text(2, tokens, 16, dtype=torch.float32).requires_grad_()
        (ours,) = torch.autograd.grad(compiled(x, None)[0].square().sum(), x)
        (exact,) = torch.autograd.grad(ffn(x, None)[0].square().sum(), x)
        torch.testing.assert_close(ours, exact, rtol=1e-4, atol=1e-4)
