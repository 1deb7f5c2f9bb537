"""Is a file of mergekit-moe read as it is, and is every value that makes no model refused by its line?"""

import pytest

from moesaic.errors import RecipeError
from moesaic.migrate.mergekit import read_moe

GOOD = """\
base_model: org/base
gate_mode: hidden   # the default
dtype: bfloat16
experts_per_token: 2
architecture: mixtral
experts:
  - source_model: org/math
    positive_prompts: ["2 + 2", "a sum"]
    negative_prompts: ["a poem"]
    noise_scale: 0.1
    residual_scale: 0.5
  - source_model: ./code
    positive_prompts:
      - "def f(x):"
"""


@pytest.fixture
def read(tmp_path):
    def from_text(text: str):
        path = tmp_path / "moe.yaml"
        path.write_text(text)
        return read_moe(path)

    return from_text


def test_every_documented_key_is_read(read):
    moe = read(GOOD)
    assert (moe.base_model, moe.gate_mode, moe.dtype, moe.experts_per_token) == ("org/base", "hidden", "bfloat16", 2)
    math, code = moe.experts
    assert math.positive_prompts == ["2 + 2", "a sum"] and math.negative_prompts == ["a poem"]
    assert (math.noise_scale, math.residual_scale, code.noise_scale) == (0.1, 0.5, None)
    assert moe.family == "mixtral"
    assert read(GOOD.replace("mixtral", "Qwen3")).family == "qwen3_moe"
    least = read("base_model: b\ngate_mode: random\nexperts: [{source_model: x}, {source_model: y}]")
    assert (least.gate_mode, least.experts_per_token, least.family) == ("random", 2, None)


WRONG = {
    "an unknown key": (GOOD.replace("gate_mode", "gate"), "moe.yaml:2: gate: extra inputs"),
    "an unknown gate": (GOOD.replace("hidden ", "hiden "), "moe.yaml:2: gate_mode: .*got|hiden"),
    "the average with its padding": (GOOD.replace("hidden ", "hidden_avg "), "counts padding as tokens: use hidden"),
    "shared experts": (GOOD + "shared_experts: []\n", "shared_experts: .*no family that is written has shared"),
    "too few experts": (GOOD.replace("token: 2", "token: 3"), "experts: fewer experts than a token passes; expected 3"),
    "no prompts": (GOOD.replace('positive_prompts:\n      - "def f(x):"', "noise_scale: 0.5"), "no prompts"),
    "the same prompts": (
        "base_model: b\nexperts: [{source_model: x, positive_prompts: [a]}, {source_model: y, positive_prompts: [a]}]",
        "the prompts of all experts are the same",
    ),
    "an adapter": (
        GOOD.replace("org/math", "org/base+org/lora"),
        r"experts\[0\].source_model: a model with an adapter",
    ),
    "another architecture": (GOOD.replace("mixtral", "deepseek"), "unknown architecture; expected the beginning"),
    "no YAML": ("a: [", "not YAML"),
    "a list": ("- 1", "moe.yaml"),
    "a number as text": (GOOD.replace("token: 2", "token: '2'"), "moe.yaml:4: experts_per_token"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_makes_no_model_is_refused_on_one_line(what, read):
    text, word = WRONG[what]
    with pytest.raises(RecipeError, match=word) as refused:
        read(text).family  # noqa: B018
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="none.yaml: no such file"):
        read_moe(tmp_path / "none.yaml")
