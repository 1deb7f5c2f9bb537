"""One function says what every folder is, and every reader of models refuses the others alike."""

from pathlib import Path

import pytest

import moesaic
from moesaic.artefacts.base import load_base
from moesaic.artefacts.inspect import inspect
from moesaic.compose.merge import merge
from moesaic.errors import WeightsError
from moesaic.files import disk, write_json
from moesaic.interop.folders import MODELS, what_is
from moesaic.interop.outline import outline

WEIGHTS = "model.safetensors"

FOREIGN = {
    "model": ({"config.json": {"model_type": "llama"}, WEIGHTS: {}}, "model", ""),
    "encoder": ({"config.json": {"model_type": "bert"}, WEIGHTS: {}}, "encoder", ""),
    "adapter": ({"adapter_config.json": {}}, "adapter", "lora"),
    "an adapter with the config of its base": (
        {"adapter_config.json": {}, "config.json": {"model_type": "llama"}},
        "adapter",
        "lora",
    ),
    "both": (
        {"adapter_config.json": {}, "config.json": {"model_type": "llama"}, WEIGHTS: {}},
        "model and adapter",
        "lora",
    ),
    "both in shards": (
        {"adapter_config.json": {}, "config.json": {"model_type": "llama"}, f"{WEIGHTS}.index.json": {}},
        "model and adapter",
        "lora",
    ),
    "blocks": ({"ffn_config.json": {}}, "expert", "ffn"),
    "trains": ({"tensor_train.json": {}}, "expert", "tt_lora"),
    "run": ({"recipe.yaml": {}}, "run", ""),
    "nothing": ({"notes.json": {}}, "nothing", ""),
    "another program's manifest": ({"manifest.json": {"name": "app"}}, "nothing", ""),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_of_another_program_is_known_by_its_files(name: str, tmp_path: Path) -> None:
    files, what, form = FOREIGN[name]
    for file, content in files.items():
        write_json(tmp_path / file, content)
    found = what_is(tmp_path)
    assert (found.what, found.form, found.at, found.is_model) == (what, form, tmp_path, what in MODELS)


def test_an_own_folder_is_known_by_its_manifest(parts, tmp_path: Path) -> None:
    merge([parts.folder / "base", parts.folder / "base"], tmp_path / "merged")
    (tmp_path / "expert").mkdir()
    (tmp_path / "expert" / "best").symlink_to(parts.folder / "one")
    places = {name: parts.folder / name for name in ("base", "one", "router", "mixture")}
    found = {name: what_is(at) for name, at in places.items()}
    assert {name: one.what for name, one in found.items()} == {
        "base": "model",
        "one": "expert",
        "router": "router",
        "mixture": "mixture",
    }
    assert found["one"].form == "lora" and found["base"].is_model and not found["one"].is_model
    assert what_is(tmp_path / "merged").what == "merge"
    assert what_is(tmp_path / "expert").at == tmp_path / "expert" / "best"


@pytest.fixture
def both(parts, tmp_path: Path) -> Path:
    """A model with an adapter beside its weights."""
    for source, names in {
        "base": ("config.json", WEIGHTS, "tokenizer.json"),
        "one": ("adapter_config.json", "adapter_model.safetensors"),
    }.items():
        for name in names:
            disk.copy(parts.folder / source / name, tmp_path / name)
    return tmp_path


READERS = {
    "load_model": moesaic.load_model,
    "adopt": load_base,
    "plan": outline,
    "merge": lambda folder: merge([folder, folder], folder / "merged"),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_model_with_an_adapter_beside_it_is_read_as_neither(reader: str, both: Path) -> None:
    with pytest.raises(WeightsError, match=r"config.json and adapter_config.json.*adopt that folder over the base"):
        READERS[reader](both)
    assert inspect(both).kind == "Hugging Face model with a PEFT adapter beside it"


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(("name", "words"), {"one": "an expert", "router": "a router", "mixture": "a mixture"}.items())
def test_a_folder_without_a_model_is_refused_by_what_it_is(reader: str, name: str, words: str, parts) -> None:
    with pytest.raises(WeightsError, match=f"{words}, not a model"):
        READERS[reader](parts.folder / name)
