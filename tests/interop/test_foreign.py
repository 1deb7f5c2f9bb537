"""Tensors that a model has no use for: read past with a warning where they compute nothing, else named with a hint."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import moesaic
from moesaic.errors import MoesaicWarning, WeightsError
from moesaic.files import disk, read_json, write_json
from moesaic.interop.outline import outline
from moesaic.tensors.file_names import TENSORS
from moesaic.tensors.tensors import read_tensors, write_tensors

IDS = torch.tensor([[5, 17, 3, 40]])
KEY = "model.layers.0.self_attn.k_proj.weight"


@pytest.fixture
def source(shared: Path) -> Path:
    return shared / "models" / "reference_fixtures" / "llama32-tiny"


def changed(source: Path, folder: Path, tensors: dict[str, Tensor], **keys: object) -> Path:
    """A copy of a model with these tensors, and these keys in its config.json."""
    disk.make_all(folder)
    write_tensors(folder / TENSORS, tensors)
    write_json(folder / "config.json", {**read_json(source / "config.json"), **keys})
    return folder


IDLE = {
    "a value head": ["v_head.summary.weight", "v_head.summary.bias"],
    "a reward": ["score.weight"],
    "a layer beyond the last": ["model.layers.99.mlp.up_proj.weight", "model.layers.99.input_layernorm.weight"],
}


@pytest.mark.parametrize("name", IDLE)
def test_what_computes_nothing_is_a_warning(name: str, source: Path, tmp_path: Path) -> None:
    extra = {one: torch.ones(2, 3) for one in IDLE[name]}
    folder = changed(source, tmp_path / "model", {**read_tensors(source / TENSORS), **extra})
    with pytest.warns(MoesaicWarning, match=r"computes nothing with .*not read"):
        found = moesaic.load_model(folder)
    assert found(IDS).logits.equal(moesaic.load_model(source)(IDS).logits)
    assert outline(folder).defects == ()


HINTS = {
    "torch.compile": (lambda name: f"_orig_mod.{name}", "_orig_mod"),
    "DistributedDataParallel": (lambda name: f"module.{name}", "save its .module"),
    "a model of images and text": (lambda name: f"language_model.{name}", "save its language model alone"),
    "DistributedDataParallel inside": (lambda name: name.replace("model.", "model.module.", 1), "save its .module"),
    "FullyShardedDataParallel": (lambda name: f"_fsdp_wrapped_module.{name}", "save its full state"),
    "torch.compile in DistributedDataParallel": (lambda name: f"module._orig_mod.{name}", "_orig_mod"),
    "a trainer": (lambda name: f"policy.{name}", "save the language model inside"),
    "a model in a model": (lambda name: f"model.{name}", "save the language model inside"),
    "a model without its head": (lambda name: name.removeprefix("model."), "lack 'model.'.*AutoModelForCausalLM"),
    "GPTQ": (lambda name: name.replace("proj.weight", "proj.qweight"), "give the unquantised model"),
    "an adapter in it": (lambda name: name.replace("proj.weight", "proj.base_layer.weight"), "merge_and_unload"),
}


@pytest.mark.parametrize("name", HINTS)
def test_foreign_names_have_the_hint_that_they_are_worth(name: str, source: Path, tmp_path: Path) -> None:
    rename, hint = HINTS[name]
    folder = changed(source, tmp_path / "model", {rename(one): t for one, t in read_tensors(source / TENSORS).items()})
    with pytest.raises(WeightsError, match=hint):
        moesaic.load_model(folder)


def test_an_empty_tensor_is_called_so(source: Path, tmp_path: Path) -> None:
    folder = changed(source, tmp_path / "model", {**read_tensors(source / TENSORS), KEY: torch.empty(0)})
    with pytest.raises(WeightsError, match=r"k_proj.*no elements.*ZeRO-3"):
        moesaic.load_model(folder)


@pytest.mark.parametrize("declared", ["float32", "bfloat16", "torch.bfloat16", None, "int8"])
@pytest.mark.parametrize("wide", ["norm", "lm_head", "embed"])
def test_a_model_computes_in_one_type(declared: str | None, wide: str, source: Path, tmp_path: Path) -> None:
    tensors = {name: t.float() if wide in name else t.bfloat16() for name, t in read_tensors(source / TENSORS).items()}
    folder = changed(source, tmp_path / "model", tensors, dtype=declared, torch_dtype=declared)
    stored = {tensor.dtype for tensor in tensors.values()}
    right = torch.bfloat16 if "bfloat16" in str(declared) or len(stored) == 1 else torch.float32
    right = torch.float32 if declared == "float32" else right
    found = moesaic.load_model(folder)
    assert {parameter.dtype for parameter in found.parameters()} == {right}
    assert found(IDS).logits.dtype == right


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("family", ["llama32-tiny", "roberta-tiny-mlm"])
def test_a_quantised_model_is_called_so(key: str, family: str, shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "reference_fixtures" / family
    folder = changed(source, tmp_path / "model", {}, **{key: json.loads('{"quant_method": "awq", "bits": 4}')})
    with pytest.raises(WeightsError, match=rf"{key}: the model is quantised.*give the unquantised model"):
        moesaic.load_model(folder)
