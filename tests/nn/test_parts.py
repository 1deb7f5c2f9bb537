"""Property: norm, rotary positions, attention and ffn equal their formulas, one vector at a time in float64."""

import cmath
import math

import pytest
import torch

from moesaic.nn import GLU, Attention, Cache, Linear, RMSNorm, Rope
from moesaic.testing import tiny_config

CONFIG = tiny_config(num_layers=1)


pytestmark = pytest.mark.usefixtures("double")


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def random_weights(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, 0, 0.4, generator=generator)
    return module


def turned(x: torch.Tensor, position: int, theta: float) -> torch.Tensor:
    """Rotary positions as complex numbers: dimension j and j + half are one plane, turned by position x frequency."""
    half, turns = len(x) // 2, []
    for j in range(half):
        plane = complex(x[j], x[j + half]) * cmath.exp(1j * position * theta ** (-2 * j / len(x)))
        turns.append((plane.real, plane.imag))
    return torch.tensor([real for real, _ in turns] + [imag for _, imag in turns])


def naive_attention(attention: Attention, x: torch.Tensor, heads: int, kv_heads: int, theta: float) -> torch.Tensor:
    """One row (t, d): every head of every token by itself, softmax by its definition."""
    size, t = attention.head_dim, len(x)
    out = torch.zeros(t, heads * size)
    for head in range(heads):
        mine, shared = slice(head * size, (head + 1) * size), head // (heads // kv_heads)
        theirs = slice(shared * size, (shared + 1) * size)
        q = [turned(attention.q_proj.weight[mine] @ x[i], i, theta) for i in range(t)]
        k = [turned(attention.k_proj.weight[theirs] @ x[i], i, theta) for i in range(t)]
        v = [attention.v_proj.weight[theirs] @ x[i] for i in range(t)]
        for i in range(t):
            powers = [math.exp(float(q[i] @ k[j]) / math.sqrt(size)) for j in range(i + 1)]
            out[i, mine] = sum(power / sum(powers) * v[j] for j, power in enumerate(powers))
    return out @ attention.o_proj.weight.t()


@torch.no_grad()
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)], ids=["all", "grouped", "one"])
@pytest.mark.parametrize("cached", [False, True])
def test_attention_equals_a_loop_over_heads_and_tokens(heads, kv_heads, cached):
    config = tiny_config(num_layers=1, num_heads=heads, num_kv_heads=kv_heads, rope_theta=100.0)
    attention = random_weights(Attention(config, 0))
    x, rope = torch.randn(2, 5, 32), Rope(8, 16, 100.0)
    cache = Cache.empty(config, 2, 9, like=x) if cached else None
    positions = torch.arange(5)[None]
    mask = cache.visible(positions.expand(2, 5)) if cached else None
    span = rope.span(positions.expand(2, 5) if cached else positions, mask)
    found = attention(x, span, cache, None)
    for row in range(2):
        close(found[row], naive_attention(attention, x[row], heads, kv_heads, 100.0))


@torch.no_grad()
def test_grouped_queries_equal_repeated_key_and_value_heads():
    grouped = random_weights(Attention(tiny_config(num_kv_heads=2), 0))
    full = Attention(tiny_config(num_kv_heads=4), 0)
    full.q_proj.weight.copy_(grouped.q_proj.weight)
    full.o_proj.weight.copy_(grouped.o_proj.weight)
    for name in ("k_proj", "v_proj"):
        heads = getattr(grouped, name).weight.unflatten(0, (2, 8))
        getattr(full, name).weight.copy_(heads.repeat_interleave(2, 0).flatten(0, 1))
    x, span = torch.randn(2, 6, 32), Rope(8, 16, 10000.0).span(torch.arange(6)[None], None)
    close(grouped(x, span, None, None), full(x, span, None, None))


def test_rotated_products_depend_on_the_distance_only():
    rope, q, k = Rope(8, 64, 10000.0), torch.randn(8), torch.randn(8)

    def product(m: int, n: int) -> float:
        both = rope.span(torch.tensor([[m, n]]), None).rotate(torch.stack([q, k])[None, None])[0, 0]
        return float(both[0] @ both[1])

    for distance in (0, 3, 11):
        values = [product(start + distance, start) for start in (0, 1, 20, 50)]
        assert values == pytest.approx(values[:1] * 4, rel=1e-12)
    assert product(3, 0) != pytest.approx(product(0, 3), rel=1e-3), "ahead is not behind"
    assert product(7, 7) == pytest.approx(float(q @ k), rel=1e-12)


def test_rotation_equals_complex_multiplication_and_keeps_lengths():
    x = torch.randn(1, 2, 3, 8)
    found = Rope(8, 64, 500.0).span(torch.tensor([[0, 5, 63]]), None).rotate(x)
    for head in range(2):
        for place, position in enumerate((0, 5, 63)):
            close(found[0, head, place], turned(x[0, head, place], position, 500.0))
    close(found.norm(dim=-1), x.norm(dim=-1))


def test_positions_beyond_the_context_are_refused():
    with pytest.raises(IndexError):
        Rope(8, 16, 10000.0).span(torch.tensor([[16]]), None)


def test_rms_norm_equals_its_formula_in_any_shape():
    norm, x = RMSNorm(6, 0.1), torch.randn(2, 3, 6)
    norm.weight.data.copy_(torch.randn(6))
    for vector, found in zip(x.flatten(0, 1).tolist(), norm(x).flatten(0, 1).tolist(), strict=True):
        rms = math.sqrt(sum(value * value for value in vector) / 6 + 0.1)
        expected = [value / rms * weight for value, weight in zip(vector, norm.weight.tolist(), strict=True)]
        assert found == pytest.approx(expected, rel=1e-12)
    close(norm(x[0, 0]), norm(x)[0, 0])


@torch.no_grad()
def test_swiglu_equals_its_formula_and_routes_nothing():
    ffn, x = random_weights(GLU(CONFIG)), torch.randn(2, 3, 32)
    y, routing = ffn(x, None)
    assert routing is None
    gate, up, down = (getattr(ffn, f"{name}_proj").weight for name in ("gate", "up", "down"))
    for row in range(2):
        for token in range(3):
            opened = [z / (1 + math.exp(-z)) for z in (gate @ x[row, token]).tolist()]
            close(y[row, token], down @ (torch.tensor(opened) * (up @ x[row, token])))


def test_linear_fills_its_slot_and_knows_its_sizes():
    linear = random_weights(Linear(3, 5))
    assert (linear.in_features, linear.out_features) == (3, 5)
    x = torch.randn(2, 4, 3)
    close(linear(x, None), torch.einsum("oi,nti->nto", linear.weight, x))
