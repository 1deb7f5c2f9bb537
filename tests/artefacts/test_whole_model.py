"""Whole models as experts on disk: complete, or without what their base has; and what does not fit is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from moesaic.artefacts.base import load_base, save_base
from moesaic.artefacts.whole_model import load_whole, save_whole, write_into_mixture
from moesaic.config import DecoderConfig
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, read_manifest, write_manifest
from moesaic.interop.decoders import named
from moesaic.model.decoder import Decoder
from moesaic.tensors.file_names import TENSORS
from moesaic.tensors.shards import TensorFiles
from moesaic.tensors.tensors import fingerprint, write_tensors
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Tokenizer


@pytest.fixture
def base(parts):
    return load_base(parts.folder / "base")


def tuned(parts) -> Decoder:
    """The base with other feed-forward blocks."""
    decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=parts.tokenizer.vocab_size)
    with torch.no_grad():
        for name, weight in decoder.named_parameters():
            if ".mlp." in name:
                weight.add_(torch.empty_like(weight).normal_(0, 0.1, generator=torch.Generator().manual_seed(9)))
    return decoder


@pytest.fixture
def expert(parts, tmp_path):
    (tmp_path / "expert").mkdir()
    save_whole(tmp_path / "expert", tuned(parts), parts.tokenizer, parts.fingerprint, {"name": "sums"})
    return tmp_path / "expert"


def kept(parts, source, tmp_path, name="kept"):
    """The folder of an expert as a mixture has it."""
    (tmp_path / name).mkdir()
    write_into_mixture(source, tmp_path / name, parts.folder / "base")
    return tmp_path / name


IDS = torch.randint(200, (2, 6), generator=torch.Generator().manual_seed(0))


def test_what_is_written_is_read_again_by_mapping(parts, base, expert, monkeypatch):
    mapped, get = [], TensorFiles.__getitem__
    monkeypatch.setattr(TensorFiles, "__getitem__", lambda s, name: mapped.append(s.mapped) or get(s, name))
    found = load_whole(expert, base)
    assert mapped and all(mapped)
    assert found.decoder(IDS).logits.equal(tuned(parts)(IDS).logits)
    manifest = read_manifest(expert, "expert")
    assert manifest["adapter"] == "model" and manifest["fingerprint"] == found.fingerprint
    assert manifest["parameters"] == sum(weight.numel() for weight in tuned(parts).parameters())
    assert found.base_fingerprint == parts.fingerprint


def test_in_a_mixture_only_what_differs_from_the_base_is_written_and_held(parts, base, expert, tmp_path):
    folder = kept(parts, expert, tmp_path)
    own = load_file(folder / TENSORS)
    assert len(own) == 2 * 3 and all(".mlp." in name for name in own)
    found = load_whole(folder, base)
    assert found.decoder(IDS).logits.equal(tuned(parts)(IDS).logits)
    theirs = dict(base.decoder.named_parameters())
    shared = {name for name, w in found.decoder.named_parameters() if w.data_ptr() == theirs[name].data_ptr()}
    assert theirs.keys() - shared == {name for name in theirs if ".mlp." in name}, "the others are the same memory"
    manifest = read_manifest(folder, "expert")
    assert manifest["fingerprint"] == read_manifest(expert)["fingerprint"] and manifest["name"] == "sums"
    assert manifest["own_parameters"] == 2 * 3 * 48 * 32 and len(manifest["shared"]) == len(theirs) - 6


def test_what_comes_out_of_a_mixture_is_copied_and_fits_its_base_alone(parts, base, expert, tmp_path, tokenizer):
    first = kept(parts, expert, tmp_path)
    again = kept(parts, first, tmp_path, "again")
    assert {p.name: p.read_bytes() for p in first.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}
    for name in ("other", "foreign"):
        (tmp_path / name).mkdir()
    save_base(
        tmp_path / "other", tiny_decoder(8, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size), tokenizer, {}
    )
    save_base(tmp_path / "foreign", tuned(parts), tokenizer, {})
    other = load_base(tmp_path / "other")
    for source in (first, kept(parts, tmp_path / "foreign", tmp_path, "third")):
        with pytest.raises(CompatibilityError, match="trained on another base"):
            load_whole(source, other)


def test_one_that_differs_in_nothing_is_the_base_itself(parts, base, tmp_path):
    folder = kept(parts, parts.folder / "base", tmp_path)
    assert load_file(folder / TENSORS) == {}
    assert load_whole(folder, base).decoder is base.decoder


def test_of_another_size_nothing_that_fits_by_name_alone_is_shared(parts, base, tmp_path):
    other = tiny_decoder(3, torch.float32, num_layers=3, hidden_size=48, vocab_size=parts.tokenizer.vocab_size)
    (tmp_path / "wide").mkdir()
    save_base(tmp_path / "wide", other, parts.tokenizer, {})
    folder = kept(parts, tmp_path / "wide", tmp_path)
    assert read_manifest(folder)["shared"] == []
    assert load_whole(folder, base).decoder(IDS).logits.equal(other(IDS).logits)


def test_a_tensor_of_another_type_or_with_another_bit_is_not_shared(parts, base, tmp_path):
    decoder = tuned(parts)
    with torch.no_grad():
        decoder.norm.weight.view(torch.int32)[3] ^= 1
    decoder.layers[0].input_layernorm.bfloat16()
    (tmp_path / "expert").mkdir()
    save_base(tmp_path / "expert", decoder, parts.tokenizer, {})
    folder = kept(parts, tmp_path / "expert", tmp_path)
    assert {"model.norm.weight", "model.layers.0.input_layernorm.weight"} < load_file(folder / TENSORS).keys()
    assert load_whole(folder, base).decoder.layers[0].input_layernorm.weight.dtype == torch.float32


def test_bases_and_foreign_folders_will_do(parts, base, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    save_base(model, tuned(parts), parts.tokenizer, {})
    expected = read_manifest(model)["fingerprint"]
    assert load_whole(model, base).decoder(IDS).logits.equal(tuned(parts)(IDS).logits)
    (model / MANIFEST).unlink()
    assert load_whole(model, base).fingerprint is None
    manifest = read_manifest(kept(parts, model, tmp_path))
    assert manifest["fingerprint"] == expected and manifest["base_fingerprint"] == parts.fingerprint


def test_another_tokenizer_is_refused_by_what_differs(parts, base, tmp_path):
    """A permuted vocabulary of equal size reads every text, but as other ids."""
    (tmp_path / "model").mkdir()
    save_base(tmp_path / "model", tuned(parts), parts.tokenizer, {})
    path = tmp_path / "model" / "tokenizer.json"
    text = path.read_text()
    for one, other in (('"a"', '"\\u0000"'), ('"b"', '"a"'), ('"\\u0000"', '"b"')):
        text = text.replace(f"{one}:", f"{other}:")
    path.write_text(text)
    (tmp_path / "model" / MANIFEST).unlink()
    with pytest.raises(CompatibilityError, match=r"tokenizer: whole models share one tokenizer.*tokens: 2 "):
        load_whole(tmp_path / "model", base)
    other = Tokenizer.train(["something else entirely, and more of it"], 261)
    (tmp_path / "other").mkdir()
    save_base(tmp_path / "other", tiny_decoder(1, torch.float32, vocab_size=other.vocab_size), other, {})
    with pytest.raises(CompatibilityError, match="vocab_size: whole models share one vocabulary; expected 26"):
        load_whole(tmp_path / "other", base)


def test_what_was_made_for_another_base_or_is_of_another_kind_is_refused(parts, base, expert, tmp_path):
    with pytest.raises(WeightsError, match="adapter: another kind; expected model; got lora"):
        load_whole(parts.folder / "one", base)
    manifest = {**read_manifest(expert), "base_fingerprint": "0" * 64}
    write_manifest(
        expert, {key: manifest[key] for key in ("kind", "adapter", "fingerprint", "base_fingerprint", "parameters")}
    )
    with pytest.raises(CompatibilityError, match="trained on another base"):
        load_whole(expert, base)
    with pytest.raises(WeightsError, match="no such expert folder"):
        load_whole(tmp_path / "nowhere", base)


@pytest.mark.parametrize(
    ("shared", "said"),
    [
        (["model.norm.weights"], "shared: unknown names; expected names of the base's tensors"),
        ("model.norm.weight", "shared: the wrong type; expected a list, each text"),
        ([7], r"shared\[0\]: the wrong type; expected text; got 7"),
    ],
)
def test_a_forged_list_of_what_is_shared_is_refused(parts, base, expert, tmp_path, shared, said):
    folder = kept(parts, expert, tmp_path)
    manifest = {**read_manifest(folder), "shared": shared}
    write_manifest(
        folder,
        {key: value for key, value in manifest.items() if key not in ("files", "format_version", "package_version")},
    )
    with pytest.raises(WeightsError, match=said):
        load_whole(folder, base)


def test_a_tensor_that_is_neither_there_nor_shared_is_missing(parts, base, expert, tmp_path):
    folder = kept(parts, expert, tmp_path)
    manifest = read_manifest(folder)
    fields = {k: v for k, v in manifest.items() if k not in ("files", "format_version", "package_version")}
    write_manifest(folder, {**fields, "shared": [n for n in manifest["shared"] if n != "model.norm.weight"]})
    with pytest.raises(WeightsError, match=r"model\.norm\.weight: a tensor is missing"):
        load_whole(folder, base)


def test_of_two_sizes_what_is_called_shared_must_have_the_shape(parts, base, tmp_path):
    other = tiny_decoder(3, torch.float32, hidden_size=48, num_layers=2, vocab_size=parts.tokenizer.vocab_size)
    for name in ("wide", "forged"):
        (tmp_path / name).mkdir()
    save_base(tmp_path / "wide", other, parts.tokenizer, {})
    folder = shutil.copytree(kept(parts, tmp_path / "wide", tmp_path), tmp_path / "forged", dirs_exist_ok=True)
    fields = {k: v for k, v in read_manifest(folder).items() if k not in ("files", "format_version", "package_version")}
    write_manifest(folder, {**fields, "shared": ["model.norm.weight"]})
    with pytest.raises(WeightsError, match=r"norm\.weight: a shared tensor of another shape; expected \[48\]"):
        load_whole(folder, base)


# --- sparse models ----------------------------------------------------------------------------------------------------

SPARSE = {"num_layers": 2, "num_experts": 3, "experts_per_token": 2, "family": "mixtral"}


@pytest.fixture
def sparse(parts, tmp_path):
    """The folders of a sparse base and of a version of it with another `w3` in one expert of layer 1."""
    decoder = tiny_decoder(3, torch.float32, vocab_size=parts.tokenizer.vocab_size, **SPARSE)
    (tmp_path / "base").mkdir()
    save_base(tmp_path / "base", decoder, parts.tokenizer, {})
    (tmp_path / "expert").mkdir()
    with torch.no_grad():
        decoder.layers[1].mlp.experts.gate_up_proj[2, 48:].mul_(3)
    save_whole(tmp_path / "expert", decoder, parts.tokenizer, read_manifest(tmp_path / "base")["fingerprint"], {})
    (tmp_path / "kept").mkdir()
    write_into_mixture(tmp_path / "expert", tmp_path / "kept", tmp_path / "base")
    return tmp_path, decoder


def test_sparse_experts_that_lie_in_one_tensor_are_shared_together(sparse):
    folder, decoder = sparse
    own, base = load_file(folder / "kept" / TENSORS), load_base(folder / "base")
    block = "model.layers.1.block_sparse_moe.experts"
    assert own.keys() == {f"{block}.{expert}.{part}.weight" for expert in range(3) for part in ("w1", "w3")}
    found = load_whole(folder / "kept", base).decoder
    assert found(IDS).logits.equal(decoder(IDS).logits)
    theirs = dict(base.decoder.named_parameters())
    apart = {name for name, own in found.named_parameters() if own.data_ptr() != theirs[name].data_ptr()}
    assert apart == {"layers.1.mlp.experts.gate_up_proj"}


def test_a_folder_that_shares_single_experts_of_a_tensor_is_read(sparse, tmp_path):
    """As mixtures did when each expert had tensors of its own."""
    folder, decoder = sparse
    changed = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    manifest, tensors = read_manifest(folder / "kept"), load_file(folder / "kept" / TENSORS)
    write_tensors(folder / "kept" / TENSORS, {changed: tensors[changed]})
    fields = {k: v for k, v in manifest.items() if k not in ("files", "format_version", "package_version")}
    more = [name for name in tensors if name != changed]
    write_manifest(folder / "kept", {**fields, "shared": [*fields["shared"], *more]})
    assert load_whole(folder / "kept", load_base(folder / "base")).decoder(IDS).logits.equal(decoder(IDS).logits)


@pytest.mark.parametrize(
    ("family", "more", "fingerprint_of_values"),
    [
        ("mixtral", {}, "b32fe3b19cbdb2f9"),
        ("qwen3_moe", {"expert_size": 8, "dense_layers": (1,), "qk_norm": True}, "c823250bc461f53f"),
    ],
)
def test_a_sparse_base_has_the_fingerprint_that_it_always_had(family, more, fingerprint_of_values):
    """Recorded when each expert had tensors of its own."""
    sizes = {"vocab_size": 7, "hidden_size": 8, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "context": 8}
    sizes |= {"intermediate_size": 12, "num_experts": 3, "experts_per_token": 2, "tie_embeddings": False}
    tensors = named(Decoder(DecoderConfig(**sizes, family=family, **more)))
    for number, name in enumerate(sorted(tensors)):
        values = torch.arange(tensors[name].numel()).view_as(tensors[name])
        tensors[name].copy_(values + 1000 * number)
    assert fingerprint(tensors).startswith(fingerprint_of_values)
