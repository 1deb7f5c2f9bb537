"""Are folders described as they are loaded, and refused as they are when they are loaded?"""

import json
from pathlib import Path

import pytest
import torch

import moesaic
from moesaic.adapters import LoRA
from moesaic.artefacts.adapter import save_expert
from moesaic.config import published
from moesaic.errors import WeightsError
from moesaic.files import disk
from moesaic.interop.outline import adapter_outline, is_adapter, outline, shapes_in, unloaded, weighed
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.testing import tiny_decoder, toy_expert

FIXTURES = ("llama32-tiny", "qwen2-tiny", "gemma3-tiny", "mixtral-tiny", "roberta-tiny-cls", "roberta-tiny-mlm")


@pytest.mark.parametrize("name", FIXTURES)
def test_a_model_is_described_as_it_is_loaded(shared: Path, name: str) -> None:
    folder = shared / "models" / "reference_fixtures" / name
    found, loaded = outline(folder), moesaic.load_model(folder)
    assert (found.name, found.config, found.defects) == (name, loaded.config, ())
    inner = getattr(loaded, "decoder", None) or loaded.encoder
    assert found.shapes == {path: tuple(parameter.shape) for path, parameter in inner.named_parameters()}
    assert found.stored == {path: parameter.dtype for path, parameter in inner.named_parameters()}


def test_shapes_are_by_their_names_in_files(shared: Path) -> None:
    folder = shared / "models" / "stories260K"
    assert shapes_in(folder) == {k: tuple(v.shape) for k, v in read_tensors(folder / "model.safetensors").items()}


def test_a_published_size_has_no_folder() -> None:
    found = outline("llama-3-8b")
    assert (found.config, found.folder, found.found, found.stored) == (published("llama-3-8b"), None, {}, {})
    assert all(parameter.is_meta for parameter in unloaded(found.config).parameters())


def test_every_tensor_that_is_not_as_the_config_says_is_told(shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "reference_fixtures" / "llama32-tiny"
    tensors = read_tensors(source / "model.safetensors")
    first, second, third, *_ = sorted(tensors)
    tensors["model.layers.0.extra.weight"] = tensors.pop(first)
    tensors[second] = tensors[second][:1]
    tensors[third] = torch.zeros(tensors[third].shape, dtype=torch.int32)
    write_tensors(tmp_path / "model.safetensors", tensors)
    disk.copy(source / "config.json", tmp_path / "config.json")
    told = outline(tmp_path).defects
    assert [line.partition(":")[0] for line in told] == [first, second, third, "model.layers.0.extra.weight"]
    assert "missing" in told[0] and "instead of" in told[1] and told[2].endswith("of type torch.int32")
    assert told[3].endswith("unknown to the model")


def test_an_adapter_is_described_as_it_is_loaded(tmp_path: Path) -> None:
    expert = toy_expert(tiny_decoder(), 0, rank=2, targets=["q_proj", "up_proj"], layers=range(1, 3))
    save_expert(tmp_path, expert, "base", {})
    found = adapter_outline(tmp_path)
    assert is_adapter(tmp_path) and not is_adapter(tmp_path / "elsewhere")
    assert found.pairs == {path: (2, a.shape[1], b.shape[1]) for path, (a, b) in expert.pairs.items()}
    assert found.covers("layers.1.self_attn.q_proj") and not found.covers("layers.0.self_attn.q_proj")
    assert sum(weighed(tmp_path).values()) == expert.num_parameters == LoRA(2, 4.0, expert.pairs).num_parameters


def test_what_is_no_plain_adapter_is_refused_as_when_it_is_loaded(tmp_path: Path) -> None:
    save_expert(tmp_path, toy_expert(tiny_decoder(), 0), "base", {})
    tensors = read_tensors(tmp_path / "adapter_model.safetensors")
    dropped = sorted(tensors)[0]
    disk.unlink(tmp_path / "adapter_model.safetensors")
    write_tensors(tmp_path / "adapter_model.safetensors", {k: v for k, v in tensors.items() if k != dropped})
    with pytest.raises(WeightsError, match="half of a pair is missing"):
        adapter_outline(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text()) | {"use_dora": True}
    disk.unlink(tmp_path / "adapter_config.json")
    disk.create(tmp_path / "adapter_config.json", json.dumps(config).encode())
    with pytest.raises(WeightsError, match="use_dora: not plain LoRA"):
        adapter_outline(tmp_path)
