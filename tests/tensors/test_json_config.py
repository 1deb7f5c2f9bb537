"""Is a configuration read as it stands, kept to its bounds field by field, and is no code in it ever followed?"""

import json
import sys

import pytest

from moesaic.config import ENCODER_TRAITS, PUBLISHED, TRAITS, published
from moesaic.errors import WeightsError
from moesaic.tensors.json_config import CODE, FIELDS, HARMLESS, NAMES, read_settings

GOOD = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": None,
    "eos_token_id": [2, 3],
    "rope_parameters": {"rope_type": "llama3", "factor": 8, "rope_theta": 5e5},
    "id2label": {"0": "factor", "r": "7"},
    "label2id": {"factor": 0, "r": -7},
    "whatever": {"is": ["not", "known"]},
}


@pytest.fixture
def write(tmp_path):
    def put(**changes):
        (tmp_path / "config.json").write_text(json.dumps({**GOOD, **changes}))
        return tmp_path / "config.json"

    return put


def test_what_is_in_bounds_is_returned_as_it_stands(write):
    assert read_settings(write()) == GOOD


WRONG = {
    "true or false": [0, 1, "true", []],
    "text": [1, True, ["llama"], {}],
    "a table": [1, True, "x", [1]],
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_held_to_its_kind(name, write):
    expected = FIELDS[name].expected
    wrong = WRONG.get(expected, [True, "1", {}, 10**30, -(10**30), [None], [[1]], "x" * 5])
    if "whole" in expected:
        wrong = [*wrong, 1.0, 0.5]
    for value in wrong:
        if expected.startswith("a list, each text") and value == "x" * 5:
            continue
        with pytest.raises(WeightsError, match=rf"config\.json: {name}: a value out of bounds; expected ") as refused:
            read_settings(write(**{name: value}))
        assert refused.value.exit_code == 4 and refused.value.expected == expected


def test_a_field_is_held_to_it_at_any_depth_but_among_names(write):
    with pytest.raises(WeightsError, match=r"rope_parameters\.full_attention\.rope_theta: .*got 'x'"):
        read_settings(write(rope_parameters={"full_attention": {"rope_theta": "x"}}))
    for name in NAMES:
        read_settings(write(**{name: {"hidden_size": "x"}}))


@pytest.mark.parametrize("size", PUBLISHED)
def test_models_that_people_have_are_in_bounds(size, write):
    config = published(size)
    sizes = {"vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "num_hidden_layers": config.num_layers}
    sizes |= {"num_attention_heads": config.num_heads, "num_key_value_heads": config.num_kv_heads}
    sizes |= {"intermediate_size": config.intermediate_size, "max_position_embeddings": config.context}
    assert read_settings(write(model_type=config.family, **sizes))["hidden_size"] == config.hidden_size


def test_key_heads_divide_the_heads(write):
    expected = r"num_key_value_heads: heads do not divide evenly; expected a divisor of num_attention_heads = 4; got 3"
    with pytest.raises(WeightsError, match=expected):
        read_settings(write(num_key_value_heads=3))


def test_tables_in_tables_end_somewhere(write):
    deep = {"hidden_size": 1}
    for _ in range(400):
        deep = {"a": deep}
    with pytest.raises(WeightsError, match="a: nested tables; expected at most 8 deep"):
        read_settings(write(a=deep))


def test_it_is_no_larger_than_a_mebibyte(write):
    path = write(text="x" * (1 << 20))
    with pytest.raises(WeightsError, match=r"config\.json: the file is too large; expected at most 1,048,576 bytes"):
        read_settings(path)


@pytest.mark.parametrize(
    "text", ['{"a": 1, "a": 1}', '{"a": NaN}', "[1]", "\ufeff{}", "{", '{"a": ' + "1" * 5000 + "}", "[" * 100_000]
)
def test_it_is_strict_json(text, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(WeightsError, match=r"config\.json: not usable as JSON: "):
        read_settings(tmp_path / "config.json")


# --- code -------------------------------------------------------------------------------------------------------------

ASKING = {
    "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"},
    "trust_remote_code": True,
    "custom_pipelines": {"x": {"impl": "pipeline.X"}},
    "_attn_implementation": "someone/kernel",
    "_attn_implementation_internal": "someone/kernel",
    "attn_implementation": "someone/kernel",
    "_experts_implementation": "someone/kernel",
    "use_kernels": True,
    "kernel_config": {"x": "someone/kernel"},
}


@pytest.mark.parametrize("key", ASKING)
@pytest.mark.parametrize("family", [*TRAITS, *ENCODER_TRAITS])
def test_of_a_known_family_what_asks_for_code_is_told_and_left_out(key, family, write):
    path = write(model_type=family, **{key: ASKING[key]})
    with pytest.warns(UserWarning, match=rf"config\.json: ignored, as code is never run: {key}$"):
        found = read_settings(path)
    assert found == {**GOOD, "model_type": family}


@pytest.mark.parametrize("family", ["mine", None])
def test_of_an_unknown_family_it_is_refused(family, write):
    path = write(model_type=family, auto_map=ASKING["auto_map"])
    with pytest.raises(
        WeightsError, match="model_type: the model needs code that is never run: auto_map; expected one of"
    ):
        read_settings(path)


def test_it_is_told_once(write, recwarn):
    import warnings

    path = write(**ASKING)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for _ in range(2):
            read_settings(path)
        read_settings(path)  # from another line
    assert [str(one.message) for one in told] == [f"{path}: ignored, as code is never run: {', '.join(ASKING)}"]


def test_what_asks_for_nothing_is_not_told(write):
    assert CODE.fullmatch(HARMLESS)
    path = write(**{HARMLESS: True}, auto_map=None, trust_remote_code=False)
    assert read_settings(path)["trust_remote_code"] is False


def test_the_code_beside_a_configuration_is_not_run(write, tmp_path):
    (tmp_path / "modeling_mine.py").write_text("raise SystemExit('run')")
    before = set(sys.modules)
    with pytest.warns(UserWarning, match="auto_map"):
        read_settings(write(auto_map=ASKING["auto_map"]))
    assert not any("mine" in name for name in set(sys.modules) - before)
