"""Is a sparse model the function of its dense parts where it must be, and is what makes none refused on one line?"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from small_families import saved

import moesaic
from moesaic.cli.main import status
from moesaic.compose.upcycling import upcycle
from moesaic.errors import CompatibilityError, MoesaicWarning, RecipeError
from moesaic.files import MANIFEST
from moesaic.tensors.tensors import read_tensors, write_tensors

IDS = torch.arange(24).reshape(2, 12)
DENSE = ("llama", "mistral", "qwen2", "qwen3")
PROMPTS = {"one": ["the sum of two", "two is four"], "two": ["def add(a, b):", "return a"], "three": ["and", "(b"]}


def logits(place) -> torch.Tensor:
    return moesaic.load_model(str(place))(IDS).logits


def tuned(base: Path, target: Path, seed: int, elsewhere: bool = False) -> Path:
    """A fine-tune of a base, whose feed-forward blocks differ, and if asked a norm too."""
    target.mkdir()
    for file in base.iterdir():
        if file.is_file() and file.name not in (MANIFEST, "model.safetensors"):
            shutil.copy(file, target / file.name)
    generator, tensors = torch.Generator().manual_seed(seed), read_tensors(base / "model.safetensors")
    for name, one in tensors.items():
        if ".mlp." in name or (elsewhere and name == "model.norm.weight"):
            one.add_(torch.empty_like(one).normal_(0, 0.3, generator=generator))
    write_tensors(target / "model.safetensors", tensors)
    return target


@pytest.fixture
def family(tokenizer, tmp_path):
    """A base of a family with a fine-tune for each list of prompts, and a file of every list."""

    def made(name: str, **changes) -> tuple[Path, dict[str, Path], dict[str, Path]]:
        base = saved(tmp_path / "base", name, tokenizer, **changes)
        experts = {one: tuned(base, tmp_path / one, seed) for seed, one in enumerate(PROMPTS)}
        prompts = {one: tmp_path / f"{one}.txt" for one in PROMPTS}
        for one, path in prompts.items():
            path.write_text("\n".join(PROMPTS[one]))
        return base, experts, prompts

    return made


@pytest.mark.parametrize("name", DENSE)
def test_experts_are_the_blocks_of_their_models_and_the_rest_is_the_bases(name, family, tmp_path):
    base, experts, prompts = family(name)
    made = moesaic.load_model(str(upcycle(experts, tmp_path / "out", base=base, prompts=prompts)))
    assert made.config.family == {"qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}.get(name, "mixtral")
    assert (made.config.num_experts, made.config.experts_per_token, made.config.renormalise) == (3, 2, True)
    for index, one in enumerate(experts):
        alone = moesaic.export(made.folder, tmp_path / f"{one}-again", "dense", expert=index)
        assert logits(alone).equal(logits(experts[one]))


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("how", [{"copies": 3}, {"copies": 2, "experts_per_token": 1}, {"copies": 3, "slices": 4}])
def test_copies_of_one_model_compute_what_it_does(name, how, tokenizer, tmp_path):
    folder = saved(tmp_path / "base", name, tokenizer)
    made = upcycle([folder], tmp_path / "out", **how)
    assert (logits(made) - logits(folder)).abs().max() < 1e-4 * logits(folder).abs().max()
    config = moesaic.load_model(str(made)).config
    assert config.num_experts == how["copies"] * how.get("slices", 1)
    assert config.experts_per_token == how.get("experts_per_token", 2) * how.get("slices", 1)


def test_identical_experts_are_the_dense_model_for_any_gate(family, tmp_path):
    base, _, prompts = family("llama")
    models = dict.fromkeys(PROMPTS, base)
    for gate in ("ridge", "hidden"):
        made = upcycle(models, tmp_path / gate, gate=gate, prompts=prompts)
        assert (logits(made) - logits(base)).abs().max() < 1e-4 * logits(base).abs().max()


def test_dropped_columns_are_drawn_anew_in_each_copy(tokenizer, tmp_path):
    folder = saved(tmp_path / "base", "llama", tokenizer)
    made = read_tensors(upcycle([folder], tmp_path / "out", copies=2, drop=0.25, seed=4) / "model.safetensors")
    own = read_tensors(folder / "model.safetensors")
    for expert, other in ((0, 1), (1, 0)):
        at = "model.layers.1.block_sparse_moe.experts.{}.{}.weight"
        rows = (made[at.format(expert, "w1")] != own["model.layers.1.mlp.gate_proj.weight"]).all(1)
        columns = (made[at.format(expert, "w2")] != own["model.layers.1.mlp.down_proj.weight"]).all(0)
        assert rows.sum() == 12 and rows.equal(columns)
        assert not made[at.format(expert, "w3")].equal(made[at.format(other, "w3")])
    again = read_tensors(upcycle([folder], tmp_path / "again", copies=2, drop=0.25, seed=4) / "model.safetensors")
    assert all(again[name].equal(one) for name, one in made.items())


@pytest.mark.parametrize(
    ("name", "format"), [("llama", "mixtral"), ("llama", "mixtral-packed"), ("qwen3", "qwen3-moe")]
)
@pytest.mark.parity
def test_transformers_opens_what_is_made(name, format, family, tmp_path):
    from transformers import AutoModelForCausalLM

    base, experts, prompts = family(name)
    made = upcycle(experts, tmp_path / "out", base=base, prompts=prompts, format=format)
    theirs = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    with torch.no_grad():
        assert (theirs(IDS).logits - logits(made)).abs().max() < 1e-4 * logits(made).abs().max()


def test_what_of_a_model_is_left_out_is_told(family, tmp_path):
    base, experts, _ = family("llama")
    experts["one"] = tuned(base, tmp_path / "other", 9, elsewhere=True)
    with pytest.warns(MoesaicWarning, match="outside its feed-forward blocks it differs .*model.norm.weight by"):
        upcycle(experts, tmp_path / "out", base=base)


def test_what_makes_no_sparse_model_is_refused_on_one_line(family, tokenizer, tmp_path, capsys):
    base, experts, prompts = family("llama")
    gemma = saved(tmp_path / "gemma", "gemma3_text", tokenizer)
    biased = saved(tmp_path / "biased", "llama", tokenizer, attention_bias=True)
    small = saved(tmp_path / "small", "llama", tokenizer, intermediate_size=32)
    refused = [
        (
            [gemma],
            {"copies": 2},
            CompatibilityError,
            "no sparse family .*expected a model of llama, mistral, qwen2, qwen3",
        ),
        ([biased], {"copies": 2}, CompatibilityError, "attention_bias: mixtral has no such biases"),
        ([base, small], {}, CompatibilityError, "intermediate_size: .* differs; expected 48; got 32"),
        ([base], {}, RecipeError, "one model makes no experts by itself"),
        ([base], {"copies": 2, "slices": 5}, RecipeError, "slices: blocks cannot be cut evenly"),
        ([base], {"copies": 2, "drop": 1.0}, RecipeError, "drop: out of range"),
        ([base], {"copies": 2, "experts_per_token": 3}, RecipeError, "experts_per_token: out of range"),
        ([base], {"copies": 2, "gate": "ridge"}, RecipeError, "gate: copies have no prompts"),
        (experts, {"gate": "ridge"}, RecipeError, "the gate 'ridge' needs prompts: none of one"),
        (experts, {"prompts": {"four": "x"}}, RecipeError, "prompts: unknown expert; expected one, two, three"),
        (experts, {"experts_per_token": 4}, RecipeError, "a token cannot pass so many; expected 1 to 3"),
        (experts, {"format": "qwen3-moe"}, RecipeError, "no such format; expected mixtral or mixtral-packed"),
        (experts, {"drop": 0.5}, RecipeError, "slices and drop are for copies"),
        (experts, {"copies": 2}, RecipeError, "copies are made of one model"),
    ]
    for models, given, error, word in refused:
        with pytest.raises(error, match=word):
            upcycle(models, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()
    assert status(["upcycle", str(gemma), str(tmp_path / "out"), "--copies", "2"]) == 5
    assert capsys.readouterr().err.count("\n") == 1
    named = [f"{name}={path}" for name, path in experts.items()]
    read = [part for name, path in prompts.items() for part in ("--prompts", f"{name}={path}")]
    assert status(["upcycle", *named, str(tmp_path / "out"), *read]) == 0


# --- mergekit's files -------------------------------------------------------------------------------------------------


def moe_file(base: Path, experts: dict[str, Path], target: Path, **keys) -> Path:
    listed = [{"source_model": str(at), "positive_prompts": PROMPTS[name]} for name, at in experts.items()]
    listed[0] |= {"negative_prompts": ["and two"], "residual_scale": 0.5}
    target.write_text(json.dumps({"base_model": str(base), "experts": listed, **keys}))
    return target


def test_a_file_of_mergekit_decides_the_model(family, tmp_path):
    base, experts, _ = family("llama")
    file = moe_file(base, experts, tmp_path / "moe.yaml", dtype="bfloat16", experts_per_token=1)
    made = upcycle([file], tmp_path / "out", format="mixtral-packed")
    tensors, own = read_tensors(made / "model.safetensors"), read_tensors(experts["one"] / "model.safetensors")
    down = tensors["model.layers.0.mlp.experts.down_proj"][0]
    assert down.equal((own["model.layers.0.mlp.down_proj.weight"].to(torch.float32) * 0.5).to(torch.bfloat16))
    assert moesaic.load_model(str(made)).config.experts_per_token == 1


class InFloat32:
    """The loader of transformers, which mergekit always asks for bfloat16."""

    @staticmethod
    def from_pretrained(place, **given):
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32)


@pytest.mark.parity
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("mode", "exact"), [("hidden", True), ("hidden", False), ("cheap_embed", True)])
def test_it_is_the_model_of_mergekit(mode, exact, shared, tmp_path, monkeypatch):
    from mergekit.merge import MergeOptions
    from mergekit.moe import router
    from mergekit.moe.config import MoEMergeConfig
    from mergekit.scripts.moe import build

    if exact:
        monkeypatch.setattr(router, "AutoModelForCausalLM", InFloat32)
    base = shared / "models" / "stories260K"
    experts = {name: tuned(base, tmp_path / name, seed) for seed, name in enumerate(PROMPTS)}
    file = moe_file(base, experts, tmp_path / "moe.yaml", gate_mode=mode, dtype="float32")
    said = MoEMergeConfig.model_validate(json.loads(file.read_text()))
    build(said, str(tmp_path / "theirs"), MergeOptions(copy_tokenizer=False, trust_remote_code=False), device="cpu")
    theirs = {}
    for part in (tmp_path / "theirs").glob("*.safetensors"):
        theirs |= read_tensors(part)
    ours = read_tensors(upcycle([file], tmp_path / "ours", format="mixtral-packed") / "model.safetensors")
    gates = {name for name in ours if name.endswith(".mlp.gate.weight")}
    assert {*ours} - {"lm_head.weight"} == {*theirs} - {"lm_head.weight"} and len(gates) == 5
    for name in ours.keys() - gates:
        assert ours[name].equal(theirs[name]), name
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in gates) < (1e-5 if exact else 2e-2)
