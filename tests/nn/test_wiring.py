"""Property: every field of a config does what its formula says: norms, biases, windows, rotary scaling, scales."""

import math

import pytest
import torch

from moesaic.config import TRAITS, DecoderConfig, RopeScaling
from moesaic.errors import CompatibilityError
from moesaic.model.decoder import Decoder, SandwichBlock, initialise
from moesaic.nn import Attention, Cache, OffsetRMSNorm, Rope
from moesaic.nn.embedding import embedding
from moesaic.nn.ffn import GLU
from moesaic.nn.rope import FIRST, apart, slowed

SIZES = {"vocab_size": 61, "hidden_size": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2}
WINDOWED = {"window": 3, "local_layers": (0, 2), "local_rope_theta": 50.0}


pytestmark = pytest.mark.usefixtures("double")


def config(**changes) -> DecoderConfig:
    return DecoderConfig(**{**SIZES, "intermediate_size": 48, "context": 64, **changes})


def random(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for weight in module.parameters():
            weight.normal_(0, 0.4)
    return module.eval()


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# --- norms, biases, scales --------------------------------------------------------------------------------------------


def test_an_offset_norm_adds_to_its_weights_and_starts_as_the_identity():
    norm, x = OffsetRMSNorm(6, 0.1, 1.0), torch.randn(2, 6)
    rms = (x.pow(2).mean(-1, keepdim=True) + 0.1).sqrt()
    close(norm(x), x / rms)
    norm.weight.data.copy_(torch.randn(6))
    close(norm(x), x / rms * (1 + norm.weight))


def test_an_offset_norm_rounds_once_in_low_precision():
    x = torch.randn(8, 64).bfloat16()
    norm = OffsetRMSNorm(64, 1e-6, 1.0).to(torch.bfloat16)
    norm.weight.data.normal_()
    weight = 1 + norm.weight.double()
    exact = x.double() / (x.double().pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    found = norm(x)
    assert found.dtype == torch.bfloat16 and (found != exact.bfloat16()).sum() <= 1


@torch.no_grad()
def test_biases_are_added_to_queries_keys_and_values_alone():
    attention, x = random(Attention(config(qkv_bias=True), 0)), torch.randn(1, 1, 32)
    assert {name for name, _ in attention.named_parameters() if "bias" in name} == {
        "q_proj.bias",
        "k_proj.bias",
        "v_proj.bias",
    }
    # One token attends to itself alone, so what comes out is its value.
    value = (attention.v_proj.weight @ x[0, 0] + attention.v_proj.bias).unflatten(0, (2, 8)).repeat_interleave(2, 0)
    span = Rope(8, 16, 100.0).span(torch.zeros(1, 1, dtype=torch.long), None)
    close(attention(x, span, None, None)[0, 0], attention.o_proj.weight @ value.flatten())


@torch.no_grad()
@pytest.mark.parametrize("scalar", [0, 50])
def test_normalised_heads_meet_by_their_formula(scalar):
    """Two tokens by hand: each head is normalised, then turned, then compared."""
    attention = random(Attention(config(qk_norm=True, norm_offset=1.0, query_scalar=scalar), 0))
    x, rope = torch.randn(1, 2, 32), Rope(8, 16, 100.0)
    span = rope.span(torch.arange(2)[None], None)
    heads = []
    for head in range(4):
        mine, shared = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
        q = attention.q_norm(x[0] @ attention.q_proj.weight[mine].T)
        k = attention.k_norm(x[0] @ attention.k_proj.weight[shared].T)
        q, k = span.rotate(q[None, None])[0, 0], span.rotate(k[None, None])[0, 0]
        a, b = (float(q[1] @ k[j]) / math.sqrt(scalar or 8) for j in (0, 1))
        share = 1 / (1 + math.exp(b - a))
        v = x[0] @ attention.v_proj.weight[shared].T
        heads.append(share * v[0] + (1 - share) * v[1])
    close(attention(x, span, None, None)[0, 1], attention.o_proj.weight @ torch.cat(heads))


def test_a_scaled_embedding_multiplies_by_a_factor_rounded_to_the_type_of_the_weights():
    plain = embedding(config(hidden_size=640, head_dim=32))
    assert type(plain) is torch.nn.Embedding
    scaled, ids = embedding(config(hidden_size=640, head_dim=32, scaled_embedding=True)), torch.tensor([[3, 5]])
    random(scaled)
    close(scaled(ids), scaled.weight[ids] * math.sqrt(640))
    low = scaled.to(torch.bfloat16)
    assert low(ids).equal(low.weight[ids] * 25.25) and math.sqrt(640) == pytest.approx(25.298, abs=1e-3)


@torch.no_grad()
def test_the_gate_is_opened_by_the_activation_of_the_config():
    ffn, x = random(GLU(config(activation="gelu_tanh"))), torch.randn(1, 2, 32)
    z = x @ ffn.gate_proj.weight.T
    opened = z / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
    close(ffn(x, None)[0], (opened * (x @ ffn.up_proj.weight.T)) @ ffn.down_proj.weight.T)


@torch.no_grad()
def test_a_sandwich_has_a_norm_behind_attention_and_ffn_too():
    decoder = random(Decoder(config(**TRAITS["gemma3_text"])))
    block, x = decoder.layers[0], torch.randn(1, 4, 32)
    assert isinstance(block, SandwichBlock)
    span = decoder.span(x, None)
    middle = x + block.post_attention_layernorm(block.self_attn(block.input_layernorm(x), span, None, None))
    close(
        block(x, span, None, None)[0],
        middle + block.post_feedforward_layernorm(block.mlp(block.pre_feedforward_layernorm(middle), None)[0]),
    )


@pytest.mark.parametrize("family", TRAITS)
def test_fresh_weights_are_finite_and_norms_and_biases_change_nothing(family):
    decoder = initialise(Decoder(config(**TRAITS[family])), torch.Generator().manual_seed(0))
    x = torch.randn(1, 3, 32)
    close(decoder.norm(x), x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt())
    assert all(not p.any() for name, p in decoder.named_parameters() if name.endswith("bias"))
    assert decoder(torch.tensor([[1, 2, 3]])).logits.isfinite().all()


# --- rotary positions -------------------------------------------------------------------------------------------------


def test_linear_scaling_slows_every_frequency():
    frequencies = torch.tensor([1.0, 0.1, 0.001])
    close(slowed(frequencies, RopeScaling(kind="linear", factor=4.0)), frequencies / 4)


def test_llama3_scaling_keeps_fast_turns_slows_slow_ones_and_blends_between():
    scaling = RopeScaling(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=1000)
    turns = torch.tensor([100.0, 4.0, 2.5, 1.0, 0.1])
    frequencies = turns * 2 * math.pi / 1000
    found = slowed(frequencies, scaling) / frequencies
    close(found, torch.tensor([1.0, 1.0, 0.5 + 0.5 / 8, 1 / 8, 1 / 8]))


def test_a_long_context_is_tabled_when_it_is_asked_for_and_says_the_same():
    long, whole = Rope(8, 3 * FIRST, 500.0), Rope(8, FIRST, 500.0)
    assert len(long.cos) == FIRST
    positions = torch.tensor([[0, 7, FIRST - 1]])
    before = long.span(positions, None)
    long.reserve(FIRST + 10, torch.zeros(1))
    assert len(long.cos) == FIRST + 10
    for span in (before, long.span(positions, None)):
        close(span.cos, whole.span(positions, None).cos)
        close(span.sin, whole.span(positions, None).sin)
    long.reserve(10**9, torch.zeros(1))
    assert len(long.cos) == 3 * FIRST, "never beyond the context"


@torch.no_grad()
def test_a_text_longer_than_the_first_table_is_read():
    decoder = random(Decoder(config(num_layers=1, num_heads=1, num_kv_heads=1, hidden_size=4, context=FIRST + 9)))
    cache = Cache.empty(decoder.config, 1, FIRST + 9, like=decoder.norm.weight)
    cache = cache.advance(FIRST + 3)
    assert decoder(torch.tensor([[1, 2]]), cache).logits.isfinite().all()


# --- windows and padding ----------------------------------------------------------------------------------------------


def test_in_a_window_a_token_sees_itself_and_those_just_before_it():
    _, seen = apart(torch.ones(1, 5, dtype=torch.bool), 3)
    assert [[j for j in range(5) if seen[0, 0, i, j]] for i in range(5)] == [
        [0],
        [0, 1],
        [0, 1, 2],
        [1, 2, 3],
        [2, 3, 4],
    ]
    cache = Cache.empty(config(num_layers=1), 1, 6, like=torch.zeros(1))
    visible = cache.visible(torch.tensor([[3, 4]]), 3)[0, 0]
    assert [row.nonzero().flatten().tolist() for row in visible] == [[1, 2, 3], [2, 3, 4]]


def test_padding_counts_for_nothing_in_positions_and_windows():
    positions, seen = apart(torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]).bool(), 2)
    assert positions[0, 2:].tolist() == [0, 1, 2] == positions[1, :3].tolist()
    assert [seen[0, 0, i].nonzero().flatten().tolist() for i in range(5)] == [[0], [1], [2], [2, 3], [3, 4]]
    assert seen[1, 0, 2].nonzero().flatten().tolist() == [1, 2]


def test_texts_in_one_row_count_their_own_positions_and_do_not_see_each_other():
    positions, seen = apart(torch.tensor([[1, 1, 2, 2, 2, 5, 0]]), 2)
    assert positions[0, :6].tolist() == [0, 1, 0, 1, 2, 0]
    assert [seen[0, 0, i].nonzero().flatten().tolist() for i in range(7)] == [
        [0],
        [0, 1],
        [2],
        [2, 3],
        [3, 4],
        [5],
        [6],
    ]


@torch.no_grad()
@pytest.mark.parametrize("own", [{}, WINDOWED], ids=["plain", "windowed"])
def test_texts_in_one_row_get_what_each_gets_alone(own):
    decoder, ids = random(Decoder(config(**own))), torch.randint(61, (2, 9))
    documents = torch.tensor([[1, 1, 1, 1, 2, 2, 3, 3, 3], [4, 7, 7, 7, 7, 7, 0, 0, 0]])
    packed = decoder(ids, mask=documents).logits
    for row, number in ((0, 1), (0, 2), (0, 3), (1, 4), (1, 7)):
        own_tokens = documents[row] == number
        close(packed[row, own_tokens], decoder(ids[row, own_tokens][None]).logits[0])


@torch.no_grad()
def test_local_layers_see_the_window_and_turn_by_their_own_base():
    """A token beyond three windows of depth is changed by a far one only through the layer that sees everything."""
    ids = torch.randint(61, (1, 12))
    other = ids.clone()
    other[0, 0] = (other[0, 0] + 1) % 61
    near = random(Decoder(config(window=3, local_layers=(0, 1, 2))))
    close(near(ids).logits[:, 7:], near(other).logits[:, 7:])
    assert (near(ids).logits[:, 6] - near(other).logits[:, 6]).abs().max() > 1e-9, "3 layers of 2 tokens back reach it"
    mixed = random(Decoder(config(**WINDOWED)))
    assert (mixed(ids).logits[:, 7:] - mixed(other).logits[:, 7:]).abs().max() > 1e-9
    same = Decoder(config(**{**WINDOWED, "local_rope_theta": 0.0}))
    same.load_state_dict(mixed.state_dict())
    assert same.local_rope is same.rope and mixed.local_rope.theta == 50.0
    assert (same(ids).logits - mixed(ids).logits).abs().max() > 1e-6


@torch.no_grad()
@pytest.mark.parametrize("own", [{}, WINDOWED], ids=["plain", "windowed"])
def test_a_mask_gives_every_row_what_it_gets_alone(own):
    decoder, ids = random(Decoder(config(**own))), torch.randint(61, (3, 9))
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [1] * 6 + [0] * 3])
    found = decoder(ids, mask=mask)
    for row in range(3):
        real = mask[row].bool()
        alone = decoder(ids[row][real][None])
        close(found.logits[row][real], alone.logits[0])
        close(found.hidden[row][real], alone.hidden[0])
    close(decoder(ids, mask=mask.bool()).logits, found.logits)


def test_a_cache_takes_no_mask():
    decoder = Decoder(config())
    cache = Cache.empty(decoder.config, 1, 4, like=decoder.norm.weight)
    with pytest.raises(CompatibilityError, match="mask: a cache takes no mask; pad on the right"):
        decoder(torch.tensor([[1]]), cache, mask=torch.tensor([[1]]))
