"""Does every family compute here what transformers computes from the same folder, and there what was saved here?"""

import json

import pytest
import torch
import transformers

from moesaic.generate.language_model import load_model
from moesaic.interop.pretrained import LoadedDecoder
from moesaic.nn import Cache

pytestmark = pytest.mark.parity

SIZES = {
    "vocab_size": 80,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.12,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
ROPE = {"rope_type": "default", "rope_theta": 500.0}
SPARSE = {"num_experts_per_tok": 2, "num_local_experts": 5, "rope_parameters": ROPE}
QWEN_MOE = {"num_experts_per_tok": 3, "num_experts": 5, "moe_intermediate_size": 20, "head_dim": 16}
QWEN2_MOE = {"num_experts_per_tok": 3, "num_experts": 5, "moe_intermediate_size": 20}
QWEN2_MOE |= {"shared_expert_intermediate_size": 28}

# What is tried -> model of transformers, what its config has beside SIZES.
MODELS = {
    "llama": ("Llama", {"rope_parameters": ROPE}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True, "head_dim": 16}),
    "llama-3.2": ("Llama", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}}),
    "llama-linear": ("Llama", {"rope_parameters": {**ROPE, "rope_type": "linear", "factor": 4.0}}),
    "llama-attention-bias": ("Llama", {"attention_bias": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 6, "rope_parameters": ROPE}),
    "mistral-0.3": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen2-window": ("Qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-window": ("Qwen3", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}),
    "gemma3": (
        "Gemma3",
        {"head_dim": 16, "sliding_window": 6, "sliding_window_pattern": 2, "query_pre_attn_scalar": 24},
    ),
    "gemma3-scaled": (
        "Gemma3",
        {
            "head_dim": 16,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3000.0},
                "sliding_attention": ROPE,
            },
        },
    ),
    "mixtral": ("Mixtral", SPARSE),
    "mixtral-window": ("Mixtral", {**SPARSE, "sliding_window": 6}),
    "qwen2-moe": ("Qwen2Moe", {**QWEN2_MOE, "norm_topk_prob": True}),
    "qwen2-moe-raw": (
        "Qwen2Moe",
        {**QWEN2_MOE, "use_sliding_window": True, "sliding_window": 5, "mlp_only_layers": [1]},
    ),
    "qwen3-moe": ("Qwen3Moe", {**QWEN_MOE, "norm_topk_prob": True}),
    "qwen3-moe-raw": ("Qwen3Moe", {**QWEN_MOE, "norm_topk_prob": False, "mlp_only_layers": [1]}),
}


def theirs(name: str):
    """A random model of theirs whose every parameter matters: norms and biases are not the identity either."""
    kind, own = MODELS[name]
    config = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(config(**{**SIZES, **own})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """A model of theirs, and what is read here from the folder that it was saved in."""
    model, folder = theirs(request.param), tmp_path_factory.mktemp(request.param) / "model"
    model.save_pretrained(folder)
    return model, load_model(folder), folder


def ids(rows: int, tokens: int) -> torch.Tensor:
    return torch.randint(80, (rows, tokens), generator=torch.Generator().manual_seed(1))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-5) -> None:
    assert (a - b).abs().max() <= tolerance * b.abs().max()


@torch.no_grad()
def test_logits_and_states_are_those_of_transformers(pair):
    """Twenty-four tokens: far beyond every window."""
    model, ours, _ = pair
    expected = model(input_ids=ids(2, 24), output_hidden_states=True)
    found = ours(ids(2, 24))
    assert found.logits.dtype == torch.float32
    close(found.logits, expected.logits)
    close(found.hidden, expected.hidden_states[-1])


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side, pair):
    model, ours, _ = pair
    text, lengths = ids(3, 24), [24, 9, 15]
    mask, padded = torch.zeros(3, 24, dtype=torch.long), torch.full((3, 24), 7)
    for row, length in enumerate(lengths):
        place = slice(24 - length, 24) if side == "left" else slice(length)
        mask[row, place], padded[row, place] = 1, text[row, :length]
    expected = model(input_ids=padded, attention_mask=mask).logits
    found = ours(padded, attention_mask=mask).logits
    close(found[mask.bool()], expected[mask.bool()])
    assert found.isfinite().all()
    for row, length in enumerate(lengths):
        close(found[row][mask[row].bool()], ours(text[row : row + 1, :length]).logits[0])


@torch.no_grad()
@pytest.mark.parametrize("chunks", [[23, 1], [1] * 24, [5, 7, 1, 11]], ids=["prompt", "tokens", "chunks"])
def test_cached_and_in_chunks_it_is_the_same_model(chunks, pair):
    model, ours, _ = pair
    text, expected = ids(2, 24), model(input_ids=ids(2, 24)).logits
    cache, at = Cache.empty(ours.config, 2, 30, like=ours.decoder.norm.weight), 0
    for size in chunks:
        close(ours.decoder(text[:, at : at + size], cache).logits, expected[:, at : at + size])
        cache = cache.advance(size)
        at += size


@torch.no_grad()
@pytest.mark.parametrize("shard", [5 * 10**9, 20_000], ids=["one", "shards"])
def test_what_is_saved_here_opens_there(shard, pair, tmp_path):
    model, ours, _ = pair
    ours.save_pretrained(tmp_path / "saved", max_shard_bytes=shard)
    assert (tmp_path / "saved" / "model.safetensors.index.json").is_file() == (shard == 20_000)
    again, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert type(again) is type(model)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    close(again.eval()(input_ids=ids(2, 24)).logits, model(input_ids=ids(2, 24)).logits)
    assert again.generation_config.eos_token_id == 2 and again.generation_config.bos_token_id == 1
    here, own = load_model(tmp_path / "saved"), ours.state_dict()
    assert here.config == ours.config
    assert here.state_dict().keys() == own.keys()
    assert all(tensor.equal(own[name]) for name, tensor in here.state_dict().items())
    close(here(ids(2, 24)).logits, ours(ids(2, 24)).logits)  # where a tensor lies in memory may choose another kernel


def hub_style(config: dict) -> dict:
    """The same config in the keys of transformers 4."""
    rope = config.pop("rope_parameters")
    whole, local = rope.get("full_attention", rope), rope.get("sliding_attention")
    scaling = {key: value for key, value in whole.items() if key != "rope_theta"}
    config |= {"rope_theta": whole["rope_theta"], "rope_scaling": None, "torch_dtype": config.pop("dtype")}
    if whole["rope_type"] != "default":
        config["rope_scaling"] = {**scaling, "type": scaling.pop("rope_type")}
    if local:
        config["rope_local_base_freq"] = local["rope_theta"]
    if "num_local_experts" in config and config["model_type"] == "qwen3_moe":
        config["num_experts"] = config.pop("num_local_experts")
    return config


def test_keys_of_before_version_5_mean_the_same(pair):
    _, ours, folder = pair
    path = folder / "config.json"
    as_it_was = path.read_text()
    path.write_text(json.dumps(hub_style(json.loads(as_it_was))))
    try:
        assert load_model(folder).config == ours.config
    finally:
        path.write_text(as_it_was)


@torch.no_grad()
@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe-raw"])
def test_packed_experts_are_read_like_separate_ones(name, tmp_path):
    model = theirs(name)
    model.save_pretrained(tmp_path / "separate")
    model.save_pretrained(tmp_path / "packed", save_original_format=False)
    separate, packed = load_model(tmp_path / "separate"), load_model(tmp_path / "packed")
    assert isinstance(packed, LoadedDecoder)
    close(packed(ids(2, 24)).logits, model(input_ids=ids(2, 24)).logits)
    own = separate.state_dict()
    assert all(tensor.equal(own[name]) for name, tensor in packed.state_dict().items())
    close(packed(ids(2, 24)).logits, separate(ids(2, 24)).logits)  # memory is aligned otherwise


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama-3.2", "gemma3", "qwen3"])
def test_in_bfloat16_it_is_as_near_to_the_exact_model_as_theirs(name, tmp_path):
    model = theirs(name)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "model")
    ours, expected = load_model(tmp_path / "model"), model(input_ids=ids(2, 24)).logits.float()
    exact = load_model(tmp_path / "model", dtype=torch.float32)(ids(2, 24)).logits
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    error = (ours(ids(2, 24)).logits.float() - exact).abs().mean()
    assert 0 < error < 1.25 * (expected - exact).abs().mean()
