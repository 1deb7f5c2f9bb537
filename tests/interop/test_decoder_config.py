"""Is every family's config.json understood in old keys and new, written so that it is read the same, or refused?"""

import json
from dataclasses import replace

import pytest

from moesaic.config import PUBLISHED, RopeScaling, published
from moesaic.errors import MoesaicError, WeightsError
from moesaic.interop.decoder_config import config_json, read_config
from moesaic.interop.families import FAMILIES, locations, stored_name

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
FULL, LOCAL = "full_attention", "sliding_attention"


@pytest.fixture
def read(tmp_path):
    def read(family: str, **keys):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **SIZES, **keys}))
        return read_config(tmp_path / "config.json")[0]

    return read


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_model_is_written_so_that_it_is_read_the_same(name, tmp_path):
    config = published(name)
    (tmp_path / "config.json").write_text(json.dumps(config_json(config, {"eos_token_id": 2}, "bfloat16")))
    assert read_config(tmp_path / "config.json")[0] == config


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("llama-3.2-1b-instruct", "llama-3.2-1b"),
        ("llama-3-8b", "llama-3-8b"),
        ("qwen2-0.5b", "qwen2-0.5b"),
        ("qwen2-0.5b.as-found", "qwen2-0.5b"),
        ("gemma-3-270m", "gemma-3-270m"),
    ],
)
def test_published_config_files_are_those_models(file, name, shared):
    assert read_config(shared / "models" / "configs" / f"{file}.json")[0] == published(name)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_out_means_what_transformers_takes_it_for(family, read):
    config = read(family)
    assert config.family == family and config.num_kv_heads == 2
    assert config.tie_embeddings == (family == "gemma3_text")
    assert config.rope_theta == {"gemma3_text": 1e6, "mixtral": 1e6}.get(family, 1e4)
    assert config.head_dim == {"gemma3_text": 256, "qwen3": 128}.get(family, 8)
    assert (config.window, config.local_layers) == {
        "mistral": (4096, (0, 1, 2, 3)),
        "gemma3_text": (4096, (0, 1, 2, 3)),
    }.get(family, (0, ()))


@pytest.mark.parametrize(
    ("family", "keys", "window", "local"),
    [
        ("mistral", {"sliding_window": 9}, 9, (0, 1, 2, 3)),
        ("mistral", {"sliding_window": None}, 0, ()),
        ("mixtral", {"sliding_window": 9}, 9, (0, 1, 2, 3)),
        ("qwen2", {"sliding_window": 9, "max_window_layers": 1}, 0, ()),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}, 9, (1, 2, 3)),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 4}, 0, ()),
        ("qwen3", {"layer_types": [FULL, LOCAL, FULL, FULL], "sliding_window": 5}, 5, (1,)),
        ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 9}, 9, (0, 1, 2, 3)),
        ("gemma3_text", {"sliding_window_pattern": 3, "sliding_window": 9}, 9, (0, 1, 3)),
        ("gemma3_text", {"_sliding_window_pattern": 2, "sliding_window": 9}, 9, (0, 2)),
        ("gemma3_text", {"layer_types": [FULL, LOCAL, LOCAL, FULL], "sliding_window": 9}, 9, (1, 2)),
        ("gemma3_text", {"layer_types": [FULL] * 4}, 0, ()),
        ("llama", {"sliding_window": 9}, 0, ()),
    ],
)
def test_which_layers_see_a_window(family, keys, window, local, read):
    config = read(family, **keys)
    assert (config.window, config.local_layers) == (window, local)


def test_scaling_of_positions_in_old_keys_and_in_new_ones(read):
    scaled = RopeScaling(kind="llama3", factor=8.0, original_context=16)
    for keys in (
        {"rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 500.0, "rope_scaling": {"type": "llama3", **LLAMA3}},
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}},
    ):
        assert (read("llama", **keys).rope_theta, read("llama", **keys).rope_scaling) == (500.0, scaled)
    linear = {"type": "linear", "factor": 4.0}
    assert read("mistral", rope_scaling=linear).rope_scaling == RopeScaling(kind="linear", factor=4.0)
    nested = {FULL: {"rope_theta": 7e3, **linear}, LOCAL: {"rope_theta": 30.0, "rope_type": "default"}}
    gemma = read("gemma3_text", rope_parameters=nested)
    assert (gemma.rope_theta, gemma.local_rope_theta) == (7e3, 30.0)
    assert gemma == read("gemma3_text", rope_theta=7e3, rope_local_base_freq=30.0, rope_scaling=linear)


def test_sparse_layers_by_step_and_by_name_and_both_names_of_their_number(read):
    stepped = read("qwen3_moe", num_experts=6, num_experts_per_tok=2, decoder_sparse_step=2)
    assert (stepped.num_experts, stepped.dense_layers) == (6, (0, 2))
    config = read("qwen3_moe", num_local_experts=6, num_experts_per_tok=2, mlp_only_layers=[3], norm_topk_prob=True)
    assert (config.num_experts, config.dense_layers, config.renormalise) == (6, (3,), True)
    assert not read("qwen3_moe", num_experts=6, num_experts_per_tok=2).renormalise
    assert read("mixtral", num_local_experts=4).expert_size == 0, "that of intermediate_size"


REFUSED = [
    ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling", "yarn"),
    ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters", "longrope"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling", "low_freq_factor"),
    ("llama", {"rope_theta": 5.0, "rope_parameters": {"rope_theta": 6.0}}, "rope_theta", "contradict"),
    (
        "llama",
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "linear", "factor": 3.0}},
        "rope_scaling",
        "contradict",
    ),
    ("llama", {"rope_parameters": {FULL: {}, LOCAL: {}}}, "rope_parameters", "more than one kind"),
    ("gemma3_text", {"rope_parameters": {LOCAL: {"type": "linear", "factor": 2.0}}}, "rope_parameters", "local layers"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor", "0.5"),
    ("llama", {"quantization_config": {"bits": 4}}, "quantization_config", "bits"),
    ("mistral", {"attention_bias": True}, "attention_bias", "True"),
    ("qwen3", {"attention_bias": True}, "attention_bias", "True"),
    ("gemma3_text", {"final_logit_softcapping": 30.0}, "final_logit_softcapping", "30"),
    ("gemma3_text", {"use_bidirectional_attention": True}, "use_bidirectional_attention", "True"),
    ("gemma3_text", {"hidden_activation": "silu"}, "hidden_activation", "silu"),
    ("mistral", {"hidden_act": "gelu"}, "hidden_act", "gelu"),
    ("mistral", {"layer_types": [FULL, LOCAL, FULL, LOCAL]}, "layer_types", "more than one kind"),
    ("qwen2", {"layer_types": [FULL, LOCAL]}, "layer_types", "4 of"),
    ("qwen2", {"layer_types": [FULL, LOCAL, FULL, "chunked_attention"]}, "layer_types", "4 of"),
    ("qwen2", {"layer_types": [FULL, LOCAL, FULL, FULL], "sliding_window": None}, "sliding_window", "no window"),
    ("mixtral", {"num_local_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok|num_local_experts", "2"),
    ("llama", {"num_key_value_heads": 3}, "num_k\\w+_heads", "divi"),
    ("llama", {"vocab_size": True}, "vocab_size", "True"),
    ("llama", {"rms_norm_eps": "small"}, "rms_norm_eps", "small"),
]


@pytest.mark.parametrize(("family", "keys", "field", "word"), REFUSED)
def test_what_this_decoder_would_compute_otherwise_is_refused_by_its_key(family, keys, field, word, read):
    with pytest.raises(WeightsError, match=rf"config\.json: ({field}): .*{word}"):
        read(family, **keys)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gemma3", "phi3", "lama", None])
def test_an_unknown_family_is_refused_with_those_that_are_known(family, read):
    known = "llama, mistral, qwen2, qwen3, gemma3_text, mixtral, qwen2_moe, qwen3_moe"
    with pytest.raises(WeightsError, match=rf"config\.json: model_type: .*one of {known}"):
        read(family)


def test_a_misspelt_family_is_helped(read):
    with pytest.raises(WeightsError, match="did you mean 'llama'"):
        read("lama")


def test_names_of_tensors_in_both_layouts():
    ours = ["lm_head.weight", "layers.0.self_attn.q_norm.weight", "layers.1.mlp.gate.weight"]
    experts = [f"layers.1.mlp.experts.10.{part}_proj.weight" for part in ("gate", "up", "down")]
    block = "model.layers.1.block_sparse_moe"
    assert [stored_name("mixtral", name) for name in ours + experts] == [
        "lm_head.weight",
        "model.layers.0.self_attn.q_norm.weight",
        f"{block}.gate.weight",
        *(f"{block}.experts.10.{part}.weight" for part in ("w1", "w3", "w2")),
    ]
    assert stored_name("qwen3_moe", experts[0]) == f"model.{experts[0]}"
    together = [f"layers.1.mlp.experts.{part}_proj" for part in ("gate_up", "down")]
    packed = locations("mixtral", ours + together, ["model.layers.1.mlp.experts.gate_up_proj"])
    assert packed == {
        "lm_head.weight": "lm_head.weight",
        **{name: f"model.{name}" for name in [ours[1], together[1], together[0], ours[2]]},
    }
    separate = locations("mixtral", ours + experts, ["model.layers.1.block_sparse_moe.gate.weight"])
    assert [separate[name] for name in experts] == [stored_name("mixtral", name) for name in experts]


def test_a_fingerprint_covers_what_a_model_computes_by_and_nothing_that_it_does_not_use():
    """A plain Llama says what it always said: the names and values of `asdict` before there were families."""
    plain = published("llama-3-8b")
    assert list(plain.wiring) == [
        *("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "context"),
        *("head_dim", "rope_theta", "norm_eps", "tie_embeddings"),
    ]
    scaled = replace(plain, rope_scaling=RopeScaling(kind="linear", factor=2.0))
    assert scaled.wiring.items() > plain.wiring.items()
    assert json.loads(json.dumps(scaled.wiring))["rope_scaling"]["factor"] == 2.0


ROPES = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "llama3": {"rope_type": "llama3", **LLAMA3},
}


@pytest.mark.parametrize("table", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ROPES)
def test_a_theta_in_a_table_of_rotary_positions_is_read(table: str, kind: str, read) -> None:
    scaled = {**ROPES[kind], "rope_theta": 5e5}
    assert read("llama", **{table: scaled}).rope_theta == 5e5
    assert read("llama", rope_theta=5e5, **{table: scaled}).rope_theta == 5e5
    with pytest.raises(WeightsError, match="rope_theta: .*contradict"):
        read("llama", rope_theta=4e5, **{table: scaled})


@pytest.mark.parametrize("table", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ROPES)
@pytest.mark.parametrize("key", ["mrope_section", "attention_factor", "partial_rotary_factor", "high_freq"])
def test_every_key_of_a_table_of_rotary_positions_is_known(table: str, kind: str, key: str, read) -> None:
    with pytest.raises(WeightsError, match=rf"{table}\.{key}: "):
        read("llama", **{table: {**ROPES[kind], key: 0.5}})
    assert read("llama", **{table: {**ROPES[kind], key: None}}) == read("llama", **{table: ROPES[kind]})


def test_a_context_before_scaling_outside_its_table_takes_precedence(read) -> None:
    found = read("llama", rope_scaling=ROPES["llama3"], original_max_position_embeddings=32)
    assert found.rope_scaling is not None and found.rope_scaling.original_context == 32


HOSTILE = [None, True, 0, -0.0, -1, 1 << 40, 0.5, "x", [], [1], [None], [{}], {}, {"a": 1}, {"rope_theta": [1]}]


def places(table: dict, above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The paths of all values in a table, of those in its tables too."""
    found = [(*above, key) for key in table]
    inner = [places(value, (*above, key)) for key, value in table.items() if isinstance(value, dict)]
    return [*found, *(path for some in inner for path in some)]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_value_of_any_kind_at_any_depth_is_read_or_named(family, read):
    whole = config_json(read(family), {"eos_token_id": 1}, "float32")
    scaled = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled |= {"original_max_position_embeddings": 64, "rope_theta": 1e4}
    private = {"_sliding_window_pattern": 2, "sliding_window_pattern": 2, "max_window_layers": 1, "layer_types": None}
    local = {"rope_parameters": {"full_attention": scaled, "sliding_attention": {"rope_theta": 1e4}}}
    for extra in ({}, {"rope_scaling": scaled, "rope_parameters": None}, {"rope_parameters": scaled}, local, private):
        for path in places({**whole, **extra}):
            for value in HOSTILE:
                found = json.loads(json.dumps({**whole, **extra}))
                table = found
                for key in path[:-1]:
                    table = table[key]
                table[path[-1]] = value
                try:
                    read(found.pop("model_type"), **found)
                except MoesaicError as error:
                    assert "config.json" in str(error), (path, value)


@pytest.mark.parametrize("value", [0, -0.0, 1, 0.5, -1e-6, 1e-30])
def test_an_epsilon_that_no_model_has_is_refused(value, read):
    with pytest.raises(WeightsError, match="rms_norm_eps: a value out of bounds; expected a number from 1e-15 to 0.01"):
        read("llama", rms_norm_eps=value)


def test_an_epsilon_of_null_is_one_that_is_left_out(read):
    assert read("llama", rms_norm_eps=None) == read("llama")
