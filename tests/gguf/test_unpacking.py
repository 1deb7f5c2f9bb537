"""Does a file play the role of a folder wherever one is named, is it unpacked once, and is damage told?"""

import json
import os
from pathlib import Path

import pytest
import torch
from small_families import saved

import moesaic
from moesaic.adoption.adopting import adopt
from moesaic.artefacts.base import load_base
from moesaic.cli.main import status
from moesaic.compose.export import export
from moesaic.errors import WeightsError
from moesaic.gguf import unpacking
from moesaic.gguf.container import Given, read, write
from moesaic.hub.locate import locate
from moesaic.interop.outline import outline
from moesaic.ops.losses import token_nll
from moesaic.sections.places import settled
from moesaic.tensors.shards import TensorFiles
from moesaic.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def cached(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(parts, tmp_path) -> Path:
    return export(parts.folder / "base", tmp_path / "base.gguf", "gguf")


def changed(file: Path, keys=None, drop=(), tensors=None) -> Path:
    """A copy of a file with other keys and tensors."""
    found, target = read(file), file.with_name("changed.gguf")
    held = {
        name: Given(one.shape, one.dtype, lambda name=name: found.tensor(name)) for name, one in found.tensors.items()
    }
    metadata = {key: value for key, value in {**found.metadata, **(keys or {})}.items() if key not in drop}
    write(target, metadata, {name: one for name, one in {**held, **(tensors or {})}.items() if name not in drop})
    return target


def test_a_file_is_unpacked_once_and_again_when_it_changes(file, monkeypatch):
    first = locate(str(file))
    assert first.source == file and first.origin == {}
    monkeypatch.setattr(unpacking, "unpack", None)
    assert locate(file) == first == locate(str(file))
    os.utime(file, (1, 1))
    monkeypatch.undo()
    os.environ["XDG_CACHE_HOME"] = str(file.parent / "cache")
    assert locate(file).folder != first.folder


def test_a_file_is_a_base_of_a_mixture_which_finds_it_again(file, parts, tmp_path):
    experts = {name: export(parts.folder / name, tmp_path / name) for name in ("one", "two")}  # as PEFT saves them
    own = adopt(experts, str(file), tmp_path / "mixture")
    folder = adopt(experts, parts.folder / "base", tmp_path / "other")
    assert json.loads((own.folder / "manifest.json").read_text())["base"]["place"] == str(file)
    made, wanted = (moesaic.load(one.folder).generate("the sum", max_new_tokens=8) for one in (own, folder))
    assert made.text == wanted.text and made.routing == wanted.routing
    file.unlink()
    with pytest.raises(WeightsError, match="the base of this mixture is missing"):
        moesaic.load(own.folder)


def test_a_recipe_names_a_file_from_its_own_folder(file):
    assert settled("base.gguf", file.parent) == str(file)
    assert settled("none.gguf", file.parent) == "none.gguf"


def test_verbs_take_a_file(file, capsys):
    assert status(["inspect", str(file)]) == 0 and "Hugging Face model" in capsys.readouterr().out
    assert status(["plan", str(file)]) == 0
    assert status(["generate", str(file), "the sum", "--max-new-tokens", "3", "--temperature", "0"]) == 0
    assert status(["generate", str(file.with_name("none.gguf")), "the sum"]) == 4
    assert outline(str(file)).config == load_base(locate(file).folder).decoder.config


DAMAGED = {
    "an unknown architecture": ({"general.architecture": "gpt2"}, (), "an unknown architecture; expected one of llama"),
    "no context": ({}, ("llama.context_length",), "llama.context_length: a key is missing"),
    "no heads": ({"llama.attention.head_count": 0}, (), "llama.attention.head_count"),
    "many heads": ({"llama.attention.head_count": 3}, (), "do not divide evenly among the heads"),
    "a key of another type": ({"llama.block_count": "2"}, (), "llama.block_count: a value of another type"),
    "a missing tensor": ({}, ("blk.1.ffn_up.weight",), "a tensor is missing"),
    "yarn": ({"llama.rope.scaling.type": "yarn"}, (), "unknown scaling of rotary positions"),
    "partial rotation": ({"llama.rope.dimension_count": 4}, (), "wiring that this decoder does not have"),
    "no tokens": ({}, ("tokenizer.ggml.tokens",), "tokenizer.ggml.tokens: a key is missing"),
    "another kind of tokenizer": ({"tokenizer.ggml.model": "t5"}, (), "an unknown kind of tokenizer"),
    "another cut": ({"tokenizer.ggml.pre": "viking"}, (), "'viking'; expected one of gpt-2, smollm"),
    "no such end": ({"tokenizer.ggml.eos_token_id": 9999}, (), "tokenizer.ggml.eos_token_id: no such token"),
    "hostile merges": ({"tokenizer.ggml.merges": ["a b c"]}, (), "not a merge of two tokens"),
    "an adapter without pairs": ({"general.type": "adapter"}, (), "adapter.type: a key is missing"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_cannot_be_read_is_refused_on_one_line(what, file, capsys):
    keys, drop, word = DAMAGED[what]
    assert status(["generate", str(changed(file, keys, drop)), "the sum"]) in (4, 5)
    said = capsys.readouterr().err
    assert word in said and said.count("\n") == 1


def test_a_tensor_that_the_family_lacks_is_refused(file):
    extra = {"blk.0.attn_sinks.weight": Given((4,), torch.float32, lambda: torch.ones(4))}
    with pytest.raises(WeightsError, match=r"blk\.0\.attn_sinks\.weight: a tensor that llama does not have"):
        locate(changed(file, tensors=extra))
    assert not [*(file.parent / "cache").rglob("*.safetensors")]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama-3", "qwen2"])
def test_published_tokenizers_come_back_through_a_file(family, shared, tokenizer, tmp_path):
    own = Tokenizer.load(shared / "models" / "tokenizers" / family, {"llama-3": 128001, "qwen2": 151643}[family])
    folder = saved(tmp_path / "model", "llama", own, hidden_size=8, num_layers=1, intermediate_size=8)
    again = Tokenizer.load(locate(export(folder, tmp_path / "model.gguf", "gguf")).folder)
    for text in ("Once  upon\n\n a time, 12345", "naïve 日本語 🙂 é\u0301'LL"):
        assert again.begin(text, raw=True) == own.begin(text, raw=True)


@pytest.mark.slow
@pytest.mark.parity
def test_the_file_of_smollm2_is_its_folder(shared):
    place = Path(os.environ.get("MOESAIC_SMOLLM2", "none"))
    if not (place / "model.gguf").is_file():
        pytest.skip("MOESAIC_SMOLLM2 names no folder with SmolLM2's model.gguf")
    found = locate(place / "model.gguf").folder
    with TensorFiles(found, True) as own, TensorFiles(place, True) as other:
        assert {*own} == {*other} and all(own[name].equal(other[name]) for name in own)
    golden = json.loads((shared / "models/smollm2-135m/golden.json").read_text())
    base = load_base(found)
    for one in golden["texts"].values():
        assert base.tokenizer.begin(one["text"], raw=True) == one["ids"]
        ids = torch.tensor([one["ids"]])
        with torch.inference_mode():
            nats = token_nll(base.decoder(ids[:, :-1]).logits, ids[:, 1:]).mean().item()
        assert nats == pytest.approx(one["nats_per_token"], abs=2e-4)
    model = moesaic.load(place / "model.gguf")
    for one in golden["generations"]:
        assert model.generate(one["user"], max_new_tokens=48, temperature=0).text == one["greedy_text"]
