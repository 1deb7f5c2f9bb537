"""Property: do routers read each prompt as it would stand alone: the states of the base, pooled over its own tokens?"""

from threading import Thread, current_thread, main_thread

import pytest
import torch

from moesaic.adapters import attach
from moesaic.config import Feature
from moesaic.model.decoder import Decoder
from moesaic.model.features import Prompts, project, read, read_all
from moesaic.testing import tiny_decoder, toy_expert

KINDS = ["embedding_mean", "hidden@1", "hidden@2_last", "hidden@3", "hidden_mean", "hidden_last"]
ROWS = [[5, 17, 3, 8, 60, 2], [9], [4, 4, 31]]


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def batch(rows: list[list[int]] = ROWS) -> Prompts:
    return Prompts.pad(rows, [f"text {row[0]}" for row in rows])


@torch.no_grad()
def naive(decoder: Decoder, kind: str, row: list[int]) -> torch.Tensor:
    """One prompt by itself, block by block, its tokens' states added up one at a time."""
    x = decoder.embed_tokens(torch.tensor([row]))
    span = decoder.span(x, None)
    depth = 0 if kind == "embedding_mean" else int(kind[7]) if "@" in kind else 3
    for layer in range(depth):
        x, _ = decoder.layers[layer](x, span, None, None)
    if kind.startswith("hidden_"):
        x = decoder.norm(x)
    return x[0, -1] if kind.endswith("last") else sum(x[0, i] for i in range(len(row))) / len(row)


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_feature_is_that_of_each_prompt_alone_whatever_pads_it(kind):
    decoder, feature, prompts = tiny_decoder(), Feature.parse(kind), batch()
    found = read(feature, decoder, 1, prompts)
    for row, ids in enumerate(ROWS):
        close(found[row], naive(decoder, kind, ids))
    prompts.ids[torch.arange(6) >= prompts.lengths[:, None]] = 42
    close(read(feature, decoder, 1, prompts), found)


@torch.no_grad()
def test_all_features_in_one_pass_equal_one_by_one_in_the_order_asked(monkeypatch):
    kinds = ["hidden_last", "text", "characters", *KINDS[:4], "hidden_mean", "hidden@1_last"]
    features = [Feature.parse(kind) for kind in kinds]
    decoder, prompts = tiny_decoder(), batch()
    expected = [read(feature, decoder, 1, prompts) for feature in features]
    passed, run = [], Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda s, x, c, layers, g: passed.extend(layers) or run(s, x, c, layers, g))
    found = read_all(features, decoder, 1, prompts)
    assert passed == [0, 1, 2], "every block once"
    for one, other in zip(found, expected, strict=True):
        if isinstance(other, list):
            assert one == other == prompts.texts
        else:
            close(one, other)


@pytest.mark.parametrize(
    ("kinds", "blocks"),
    [(["text"], []), (["characters"], []), (["embedding_mean"], []), (["hidden@2", "text"], [0, 1])],
)
def test_no_block_is_computed_beyond_the_deepest_feature(kinds, blocks, monkeypatch):
    passed, run = [], Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda s, x, c, layers, g: passed.extend(layers) or run(s, x, c, layers, g))
    read_all([Feature.parse(kind) for kind in kinds], tiny_decoder(), 1, batch())
    assert passed == blocks


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_experts_beside_the_base_do_not_change_what_a_router_reads(kind):
    plain, routed = tiny_decoder(), tiny_decoder()
    attach(routed, [toy_expert(plain, 1), toy_expert(plain, 2)])
    feature = Feature.parse(kind)
    assert read(feature, routed, 2, batch()).equal(read(feature, plain, 2, batch()))


@pytest.mark.parity
@torch.no_grad()
def test_hidden_mean_is_the_mean_of_transformers_last_hidden_state():
    import transformers

    decoder = tiny_decoder()
    size = decoder.config
    config = transformers.LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden_size,
        num_hidden_layers=size.num_layers,
        num_attention_heads=size.num_heads,
        num_key_value_heads=size.num_kv_heads,
        intermediate_size=size.intermediate_size,
        max_position_embeddings=size.context,
        rms_norm_eps=size.norm_eps,
    )
    model = transformers.LlamaModel(config).to(torch.float64).eval()
    model.load_state_dict({k: v for k, v in decoder.state_dict().items() if k != "lm_head.weight"})
    mean, last = (read(Feature.parse(kind), decoder, 1, batch()) for kind in ("hidden_mean", "hidden_last"))
    for row, ids in enumerate(ROWS):
        states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        # Its rotary table is computed in float32.
        torch.testing.assert_close(mean[row], states.mean(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(last[row], states[-1], rtol=1e-5, atol=1e-6)


# --- projections ------------------------------------------------------------------------------------------------------


def prototypes(decoder: Decoder) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    paths = ["layers.1.mlp.down_proj", "layers.0.self_attn.q_proj"]
    return {p: torch.randn(2, decoder.get_submodule(p).weight.shape[1], generator=generator) for p in paths}


@torch.no_grad()
@pytest.mark.parametrize("adapted", [False, True])
def test_projections_are_of_each_prompt_alone_what_each_linear_is_given_along_each_prototype(adapted):
    decoder, plain = tiny_decoder(), tiny_decoder()
    if adapted:
        attach(decoder, [toy_expert(decoder, 1)])
    found = project(decoder, 1, batch(), prototypes(plain))
    for row, ids in enumerate(ROWS):
        x = plain.embed_tokens(torch.tensor([ids]))
        span = plain.span(x, None)
        q = plain.layers[0].input_layernorm(x)
        x, _ = plain.layers[0](x, span, None, None)
        block = plain.layers[1]
        x = x + block.self_attn(block.input_layernorm(x), span, None, None)
        y = block.post_attention_layernorm(x)
        down = torch.nn.functional.silu(block.mlp.gate_proj(y, None)) * block.mlp.up_proj(y, None)
        given = {"layers.1.mlp.down_proj": down, "layers.0.self_attn.q_proj": q}
        expected = [(given[path][0] @ v).abs().mean() for path, some in prototypes(plain).items() for v in some]
        close(found[row], torch.stack(expected))


@torch.no_grad()
def test_projecting_leaves_the_model_as_it_is_and_does_not_hear_other_threads(monkeypatch):
    decoder, run = tiny_decoder(), Decoder.run
    expected = project(decoder, 1, batch(), prototypes(decoder))
    parts = {name: (id(part), set(part.__dict__)) for name, part in decoder.named_modules()}

    def disturbed(self, x, *rest):
        """Another thread runs the model between the embedding and the blocks of a pass."""
        if current_thread() is main_thread():
            assert {name: (id(part), set(part.__dict__)) for name, part in decoder.named_modules()} == parts
            other = Thread(target=lambda: decoder(torch.tensor([[1, 2]])))
            other.start()
            other.join()
        return run(self, x, *rest)

    monkeypatch.setattr(Decoder, "run", disturbed)
    assert project(decoder, 1, batch(), prototypes(decoder)).equal(expected)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in decoder.modules())
