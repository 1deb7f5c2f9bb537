"""Is what is written for another program the model that was named, and is what a format cannot hold refused?"""

import pytest
import torch
from small_families import OWN, saved

import moesaic
from moesaic.cli.main import status
from moesaic.compose import export as export_room
from moesaic.compose.export import export
from moesaic.errors import CompatibilityError, RecipeError, WeightsError
from moesaic.interop import layouts
from moesaic.tensors.tensors import read_tensors

IDS = torch.arange(24).reshape(2, 12)
FORMAT = {"mixtral": "mixtral", "qwen2_moe": "qwen2-moe", "qwen3_moe": "qwen3-moe"}


def logits(place) -> torch.Tensor:
    return moesaic.load_model(str(place))(IDS).logits


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_dense_model_is_the_expert_over_its_base(name, parts, tmp_path):
    made = moesaic.load(export(parts.folder / name, tmp_path / "dense", "dense"))
    alone = moesaic.load(parts.folder / name)
    for prompt in ("the sum", "def add"):
        answers = (one.generate(prompt, max_new_tokens=12, temperature=0).text for one in (made, alone))
        assert len({*answers}) == 1


@pytest.mark.parametrize("family", FORMAT)
def test_a_sparse_model_is_written_with_its_own_names(family, tokenizer, tmp_path):
    folder = saved(tmp_path / "model", family, tokenizer)
    made = export(folder, tmp_path / "made", FORMAT[family])
    assert logits(made).equal(logits(folder))
    expert = "block_sparse_moe.experts.3.w3" if family == "mixtral" else "mlp.experts.3.up_proj"
    assert f"model.layers.2.{expert}.weight" in read_tensors(made / "model.safetensors")


def test_a_packed_mixtral_has_two_tensors_a_layer_gate_first(tokenizer, tmp_path):
    folder = saved(tmp_path / "model", "mixtral", tokenizer)
    made = export(folder, tmp_path / "made", "mixtral-packed")
    assert logits(made).equal(logits(folder))
    own, packed = (read_tensors(at / "model.safetensors") for at in (folder, made))
    both = packed["model.layers.1.mlp.experts.gate_up_proj"]
    assert both.shape == (4, 96, 32) and packed["model.layers.1.mlp.experts.down_proj"].shape == (4, 32, 48)
    assert both[2, :48].equal(own["model.layers.1.block_sparse_moe.experts.2.w1.weight"])
    assert packed["model.layers.1.mlp.gate.weight"].equal(own["model.layers.1.block_sparse_moe.gate.weight"])


@pytest.mark.parity
@pytest.mark.parametrize(("family", "format"), [*FORMAT.items(), ("mixtral", "mixtral-packed")])
def test_transformers_computes_the_same_logits(family, format, tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    made = export(saved(tmp_path / "model", family, tokenizer), tmp_path / "made", format)
    theirs = AutoModelForCausalLM.from_pretrained(made, dtype=torch.float32)
    with torch.no_grad():
        assert (theirs(IDS).logits - logits(made)).abs().max() < 1e-5


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_an_expert_is_taken_out_as_a_dense_model(family, tokenizer, tmp_path):
    folder = saved(tmp_path / "model", family, tokenizer)
    made = moesaic.load_model(str(export(folder, tmp_path / "dense", "dense", expert=2)))
    whole = moesaic.load_model(str(folder))
    assert made.config.family == {"mixtral": "llama", "qwen3_moe": "qwen3"}[family] and not made.config.num_experts
    own, other = made.decoder.state_dict(), read_tensors(folder / "model.safetensors")
    names = {"mixtral": "block_sparse_moe.experts.2.w2", "qwen3_moe": "mlp.experts.2.down_proj"}
    assert own["layers.1.mlp.down_proj.weight"].equal(other[f"model.layers.1.{names[family]}.weight"])
    assert own["layers.1.self_attn.q_proj.weight"].equal(whole.decoder.state_dict()["layers.1.self_attn.q_proj.weight"])


def test_what_a_format_cannot_hold_is_refused_on_one_line(parts, tokenizer, tmp_path, capsys):
    dense, sparse, shared = (saved(tmp_path / one, one, tokenizer) for one in ("llama", "mixtral", "qwen2_moe"))
    refused = [
        (dense, "peft", {}, WeightsError, "a model, not an expert; name another --format"),
        (dense, "mixtral", {}, CompatibilityError, "expected mixtral; got llama; make a sparse model .* upcycle"),
        (sparse, "qwen3-moe", {}, CompatibilityError, "expected qwen3_moe; got mixtral"),
        (sparse, "dense", {}, CompatibilityError, "--expert 0 to 3"),
        (sparse, "dense", {"expert": 4}, CompatibilityError, "expert: no such expert; expected 0 to 3; got 4"),
        (dense, "dense", {"expert": 0}, CompatibilityError, "a dense model has no experts"),
        (shared, "dense", {"expert": 0}, CompatibilityError, "a shared expert, which a dense model lacks"),
        (shared, "qwen3-moe", {}, CompatibilityError, "expected qwen3_moe; got qwen2_moe"),
        (shared, "gguf", {}, CompatibilityError, "no file of llama.cpp is written of this family"),
        (dense, "onnx", {}, RecipeError, "unknown format; expected one of peft, dense, gguf"),
        (dense, "dense", {"type": "f16"}, RecipeError, "type: has no meaning in this format; expected gguf"),
        (parts.folder / "one", "gguf", {"type": "f16"}, RecipeError, "an adapter is written as float32"),
        (parts.folder / "mixture", "gguf", {}, WeightsError, "several experts, not one; name one of them"),
    ]
    for place, format, given, error, word in refused:
        with pytest.raises(error, match=word):
            export(place, tmp_path / "out.gguf", format, **given)
    assert not (tmp_path / "out.gguf").exists()
    assert status(["export", str(sparse), str(tmp_path / "out"), "--format", "dense"]) == 5
    assert capsys.readouterr().err.count("\n") == 1
    assert status(["export", str(sparse), str(tmp_path / "out"), "--format", "dense", "--expert", "1"]) == 0


def test_gate_and_up_that_are_swapped_are_found_before_the_folder_has_its_name(tokenizer, tmp_path, monkeypatch):
    folder = saved(tmp_path / "model", "mixtral", tokenizer)

    pack = layouts.packed

    def swapped(family, tensors):
        made = pack(family, tensors)
        halves = {name: one.chunk(2, 1) for name, one in made.items() if name.endswith("gate_up_proj")}
        return made | {name: torch.cat([up, gate], 1) for name, (gate, up) in halves.items()}

    monkeypatch.setattr(layouts, "packed", swapped)
    with pytest.raises(WeightsError, match=r"experts.0.w1.weight: the model differs after reading it back"):
        export(folder, tmp_path / "made", "mixtral-packed")
    assert not (tmp_path / "made").exists()


def test_weights_that_are_not_renormalised_are_found(tokenizer, tmp_path, monkeypatch):
    folder = saved(tmp_path / "model", "qwen3_moe", tokenizer)
    write = export_room.write_description

    def forgetful(folder, config, dtype, tokenizer):
        write(folder, config, dtype, tokenizer)
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"norm_topk_prob": true', '"norm_topk_prob": false'))

    monkeypatch.setattr(export_room, "write_description", forgetful)
    with pytest.raises(WeightsError, match="config.json: the model differs after reading it back"):
        export(folder, tmp_path / "made", "qwen3-moe")


def test_every_family_has_a_format_or_a_dense_one(tokenizer, tmp_path):
    for family in OWN:
        folder = saved(tmp_path / family, family, tokenizer)
        made = export(folder, tmp_path / f"{family}-made", FORMAT.get(family, "dense"))
        assert moesaic.load_model(str(made)).config == moesaic.load_model(str(folder)).config
