"""Are shards held to their index, tensors read one by one without a copy, and a model held to its names and shapes?"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from moesaic.config import DecoderConfig
from moesaic.errors import MoesaicWarning, WeightsError
from moesaic.interop.decoders import as_stored, named, read_decoder, write_decoder
from moesaic.model.decoder import Decoder, initialise
from moesaic.tensors.file_names import INDEX, TENSORS
from moesaic.tensors.shards import TensorFiles, write_shards
from moesaic.tensors.tensors import read_tensors, write_tensors

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "context": 32}
IDS = torch.tensor([[1, 2, 3, 4, 5, 6]])


def decoder(**changes) -> Decoder:
    config = DecoderConfig(**{**SIZES, "intermediate_size": 24, **changes})
    return initialise(Decoder(config), torch.Generator().manual_seed(0)).eval()


def stored(folder: Path, tensors: dict[str, torch.Tensor], limit: int = 10**9) -> Path:
    """The folder of a plain model with other tensors in it."""
    folder.mkdir(exist_ok=True)
    write_decoder(folder, decoder(), {"eos_token_id": 0})
    (folder / TENSORS).unlink()
    write_shards(folder, tensors, limit)
    return folder


def load(folder: Path, mapped: bool = True) -> Decoder:
    return read_decoder(folder, as_stored, mapped)[0]


def test_whether_a_tensor_is_there_is_told_without_reading_it(tmp_path, monkeypatch):
    with TensorFiles(stored(tmp_path / "model", named(decoder())), mapped=True) as files:
        monkeypatch.setattr(TensorFiles, "__getitem__", None)
        assert "model.norm.weight" in files and files.keys() >= {"model.norm.weight"} and "other" not in files


# --- shards and their index -------------------------------------------------------------------------------------------


def changed(folder: Path, change) -> Path:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("mapped", [True, False])
def test_tensors_in_shards_are_those_in_one_file(mapped, tmp_path):
    tensors = named(decoder())
    whole, parts = stored(tmp_path / "whole", tensors), stored(tmp_path / "parts", tensors, 2000)
    files = sorted(path.name for path in parts.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((parts / file).stat().st_size < 4000 for file in files)
    with TensorFiles(whole, mapped) as one, TensorFiles(parts, mapped) as several:
        assert one.keys() == several.keys() == tensors.keys()
        assert all(one[name].equal(tensors[name]) and several[name].equal(tensors[name]) for name in tensors)
    assert load(parts, mapped)(IDS).logits.equal(decoder()(IDS).logits)


def test_a_tensor_larger_than_a_shard_has_one_for_itself(tmp_path):
    write_shards(tmp_path, {"a": torch.ones(10), "b": torch.ones(1000), "c": torch.ones(10)}, 100)
    assert [sorted(read_tensors(path)) for path in sorted(tmp_path.glob("*.safetensors"))] == [["a"], ["b"], ["c"]]


NORM, SHARD = "model.norm.weight", "model-00001"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda i: i["weight_map"].pop(NORM), f"{NORM}: the index does not list this tensor in this file"),
        (
            lambda i: i["weight_map"].update({NORM: i["weight_map"]["model.embed_tokens.weight"]}),
            f"{NORM}: the index does not list this tensor in this file",
        ),
        (lambda i: i["weight_map"].update(more=i["weight_map"][NORM]), "more: the index names a tensor that is not in"),
        (lambda i: i["weight_map"].update({NORM: "../model.safetensors"}), f"{INDEX}: {NORM}: not a file of this"),
        (lambda i: i["weight_map"].update({NORM: "/model.safetensors"}), f"{INDEX}: {NORM}: not a file of this folder"),
        (lambda i: i["weight_map"].update({NORM: "model.bin"}), f"{INDEX}: {NORM}: not a file of this folder"),
        (lambda i: i["weight_map"].update({NORM: 3}), f"{INDEX}: {NORM}: not a file of this folder"),
        (lambda i: i["weight_map"].update({NORM: "model-9.safetensors"}), "model-9.safetensors: no such file"),
        (lambda i: i.update(weight_map={}), f"{INDEX}: weight_map: not an index of tensors"),
        (lambda i: i.pop("weight_map"), f"{INDEX}: weight_map: not an index of tensors"),
    ],
)
def test_an_index_that_its_files_belie_is_refused_by_name(change, words, tmp_path):
    folder = changed(stored(tmp_path / "parts", named(decoder()), 2000), change)
    with pytest.raises(WeightsError, match=words):
        load(folder)


def test_a_wrong_total_size_is_a_warning(tmp_path):
    folder = changed(stored(tmp_path / "parts", named(decoder()), 2000), lambda i: i["metadata"].update(total_size=7))
    with pytest.warns(MoesaicWarning, match=rf"{INDEX}: metadata.total_size is 7, but all tensors are there"):
        assert load(folder)(IDS).logits.equal(decoder()(IDS).logits)


def test_an_index_without_sizes_is_enough(tmp_path):
    folder = changed(stored(tmp_path / "parts", named(decoder()), 2000), lambda index: index.pop("metadata"))
    assert load(folder)(IDS).logits.equal(decoder()(IDS).logits)


# --- names, shapes, values --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t.pop("model.layers.1.mlp.up_proj.weight"),
            "model.layers.1.mlp.up_proj.weight: a tensor is missing",
        ),
        (lambda t: t.update({"model.q.bias": torch.ones(2)}), r"model\.q\.bias: a tensor that the model does not have"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(17)}),
            r"model\.norm\.weight: a tensor of another shape; expected \[16\]; got \[17\]",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(16, dtype=torch.int32)}),
            r"model\.norm\.weight: numbers of another type; expected float64, .*; got torch.int32",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.full((16,), float("inf"))}),
            r"model\.norm\.weight: the tensor holds NaN or infinity",
        ),
        (lambda t: t.update({"lm_head.weight": torch.ones(40, 16)}), r"lm_head\.weight: the head differs from the emb"),
    ],
)
@pytest.mark.parametrize("mapped", [True, False])
def test_tensors_that_are_not_the_model_are_refused_by_name_and_file(mapped, change, words, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in named(decoder()).items()}
    change(tensors)
    with pytest.raises(WeightsError, match=f"{TENSORS.replace('.', '.')}: {words}"):
        load(stored(tmp_path / "model", tensors), mapped)


def test_a_tied_head_may_be_stored_and_known_buffers_are_skipped(tmp_path):
    tensors = named(decoder())
    more = {
        "lm_head.weight": tensors["model.embed_tokens.weight"].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.layers.1.self_attn.masked_bias": torch.ones(1),
    }
    found = load(stored(tmp_path / "model", {**tensors, **more}))
    assert found.lm_head.weight is found.embed_tokens.weight
    assert found(IDS).logits.equal(decoder()(IDS).logits)


def test_a_head_that_is_not_tied_must_be_there(tmp_path):
    model = decoder(tie_embeddings=False)
    write_decoder(tmp_path, model, {})
    assert load(tmp_path)(IDS).logits.equal(model(IDS).logits)
    tensors = {name: t.clone() for name, t in read_tensors(tmp_path / TENSORS).items() if name != "lm_head.weight"}
    write_tensors(tmp_path / TENSORS, tensors)
    with pytest.raises(WeightsError, match=r"lm_head\.weight: a tensor is missing"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("part", "shape"), [("gate_up_proj", (3, 47, 16)), ("gate_up_proj", (2, 48, 16)), ("down_proj", (3, 24, 16))]
)
def test_packed_experts_of_another_shape_are_refused(part, shape, tmp_path):
    model = decoder(family="mixtral", num_experts=3, experts_per_token=1, num_layers=1)
    write_decoder(tmp_path, model, {})
    tensors = {name: t.clone() for name, t in read_tensors(tmp_path / TENSORS).items() if "sparse" not in name}
    block = "model.layers.0.mlp"
    tensors |= {f"{block}.gate.weight": torch.ones(3, 16), f"{block}.experts.gate_up_proj": torch.ones(3, 48, 16)}
    tensors |= {f"{block}.experts.down_proj": torch.ones(3, 16, 24)}
    write_tensors(tmp_path / TENSORS, tensors)
    assert load(tmp_path)(IDS).logits.isfinite().all()
    write_tensors(tmp_path / TENSORS, {**tensors, f"{block}.experts.{part}": torch.ones(shape)})
    with pytest.raises(WeightsError, match=rf"experts\.{part}: a tensor of another shape"):
        load(tmp_path)


# --- memory -----------------------------------------------------------------------------------------------------------

MEASURE = """
import sys, torch
from pathlib import Path
from moesaic.generate.language_model import load_model
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))
torch.set_num_threads(1)
before = anonymous()
decoder = load_model(sys.argv[1])
print(anonymous() - before, sum(p.numel() * p.element_size() for p in decoder.parameters()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc says how much memory a process has, on Linux")
def test_a_mapped_model_takes_no_memory_of_its_own(tmp_path):
    write_decoder(tmp_path, decoder(hidden_size=256, intermediate_size=4096, vocab_size=8000), {})
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    taken, size = map(int, done.stdout.split())
    assert size > 30_000_000 and taken < size / 4
