"""Does a base come back with the same logits, from wherever it stands, and is a damaged or foreign one judged right?"""

import json
import shutil

import pytest
import torch

from moesaic.artefacts.base import identify, load_base, named, read_config, save_base
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, read_manifest
from moesaic.interop.decoders import write_decoder
from moesaic.tensors.file_names import TENSORS
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Tokenizer

IDS = torch.tensor([[5, 17, 3, 260, 8], [9, 9, 1, 0, 2]])


@pytest.fixture
def folder(parts, tmp_path):
    return shutil.copytree(parts.folder / "base", tmp_path / "base")


def copied(path) -> dict[str, torch.Tensor]:
    """The tensors of a file that is about to be written over; as read they are views of it."""
    return {name: tensor.clone() for name, tensor in read_tensors(path).items()}


def change_config(folder, **changes) -> None:
    """As a hub folder would have it: without our manifest."""
    (folder / MANIFEST).unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(config))


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("manifest", [True, False])
def test_a_base_comes_back_with_the_same_logits(tied, manifest, tmp_path, tokenizer):
    decoder = tiny_decoder(1, torch.float32, num_layers=1, vocab_size=tokenizer.vocab_size, tie_embeddings=tied)
    (tmp_path / "first").mkdir()
    save_base(tmp_path / "first", decoder, tokenizer, {"seed": 7})
    if not manifest:
        (tmp_path / "first" / MANIFEST).unlink()
    shutil.move(tmp_path / "first", tmp_path / "elsewhere")
    base = load_base(tmp_path / "elsewhere")
    assert base.decoder.config == decoder.config and not base.decoder.training
    assert base.decoder(IDS).logits.equal(decoder(IDS).logits)
    assert base.fingerprint == identify(decoder, tokenizer)
    assert (base.decoder.lm_head.weight is base.decoder.embed_tokens.weight) == tied
    assert ("lm_head.weight" in read_tensors(tmp_path / "elsewhere" / TENSORS)) != tied
    assert base.tokenizer.encode("two + two") == tokenizer.encode("two + two")
    assert base.tokenizer.eos == tokenizer.eos


@pytest.mark.parametrize("change", ["value", "wiring", "tokenizer"])
def test_the_fingerprint_is_of_values_wiring_and_tokenizer(change, tmp_path, tokenizer):
    decoder = tiny_decoder(1, torch.float32, num_layers=1, vocab_size=tokenizer.vocab_size)
    save_base(tmp_path, decoder, tokenizer, {})
    (tmp_path / MANIFEST).unlink()
    before = load_base(tmp_path).fingerprint
    if change == "value":
        decoder.norm.weight.data[3] += 1e-3
        save_base(tmp_path, decoder, tokenizer, {})
    elif change == "wiring":
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-4}))
        (tmp_path / MANIFEST).unlink(missing_ok=True)
    else:
        other = Tokenizer.train(["other text altogether, other merges"], tokenizer.vocab_size)
        other.save(tmp_path)
    (tmp_path / MANIFEST).unlink(missing_ok=True)
    assert load_base(tmp_path).fingerprint != before


def test_a_base_that_is_mapped_again_is_not_hashed_again_and_shares_no_change(parts, monkeypatch):
    first = load_base(parts.folder / "base", mapped=True)
    with monkeypatch.context() as patch:
        patch.setattr("moesaic.artefacts.base.read_manifest", None)
        patch.setattr("moesaic.artefacts.base.identify", None)
        again = load_base(parts.folder / "base", mapped=True, known=first)
    assert (again.fingerprint, again.tokenizer) == (first.fingerprint, first.tokenizer)
    with torch.no_grad():
        before = first.decoder.norm.weight.clone()
        again.decoder.norm.weight.add_(1)
    assert torch.equal(first.decoder.norm.weight, before) and not torch.equal(again.decoder.norm.weight, before)
    assert load_base(parts.folder / "base").fingerprint == first.fingerprint


def test_the_manifest_says_what_the_folder_holds(parts):
    manifest = read_manifest(parts.folder / "base", "base")
    assert manifest["fingerprint"] == parts.fingerprint and manifest["seed"] == 3
    assert manifest["shapes"] == {name: list(tensor.shape) for name, tensor in named(parts.decoder).items()}
    assert manifest["files"].keys() == {"config.json", "model.safetensors", "tokenizer.json"}


def test_saving_again_gives_the_same_bytes(parts, tmp_path):
    base = load_base(parts.folder / "base")
    save_base(tmp_path, base.decoder, base.tokenizer, {"seed": 3})
    for path in (parts.folder / "base").iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


def test_the_name_of_every_missing_or_foreign_tensor_is_told(folder):
    (folder / MANIFEST).unlink()
    tensors = copied(folder / TENSORS)
    for name in tensors:
        write_tensors(folder / TENSORS, {other: t for other, t in tensors.items() if other != name})
        with pytest.raises(WeightsError, match=f"{name.removeprefix('model.')}: a tensor is missing"):
            load_base(folder)
        write_tensors(folder / TENSORS, {**tensors, name: torch.cat([tensors[name], tensors[name]])})
        with pytest.raises(WeightsError, match=f"{name.removeprefix('model.')}: a tensor of another shape"):
            load_base(folder)
    write_tensors(folder / TENSORS, {**tensors, "model.layers.0.self_attn.q_proj.bias": torch.zeros(32)})
    with pytest.raises(WeightsError, match=r"q_proj\.bias: .*does not have"):
        load_base(folder)


def test_nan_in_a_foreign_folder_is_refused(folder):
    (folder / MANIFEST).unlink()
    tensors = copied(folder / TENSORS)
    tensors["model.norm.weight"][3] = float("nan")
    write_tensors(folder / TENSORS, tensors)
    with pytest.raises(WeightsError, match=r"model\.norm\.weight: .*NaN"):
        load_base(folder)


@pytest.mark.parametrize("name", ["config.json", TENSORS, "tokenizer.json"])
def test_a_file_that_changed_after_it_was_saved_is_refused_by_name(name, folder):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(WeightsError, match=f"{name}: sha256: the file was changed or damaged"):
        load_base(folder)


@pytest.mark.parametrize("name", ["config.json", TENSORS, "tokenizer.json"])
def test_a_truncated_or_missing_file_of_a_foreign_folder_is_refused_by_name(name, folder):
    (folder / MANIFEST).unlink()
    (folder / name).write_bytes((folder / name).read_bytes()[:-20])
    with pytest.raises(WeightsError, match=name):
        load_base(folder)
    (folder / name).unlink()
    with pytest.raises(WeightsError, match=name):
        load_base(folder)


def test_no_folder_is_no_base(tmp_path):
    with pytest.raises(WeightsError, match="no such base folder"):
        load_base(tmp_path / "none")


# --- config.json of other makers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "gpt2"}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": "yes"}, "attention_bias"),
        ({"mlp_bias": 1}, "mlp_bias"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_parameters"),
        ({"num_hidden_layers": ...}, "num_hidden_layers"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"eos_token_id": "2"}, "eos_token_id"),
    ],
)
def test_a_model_of_another_wiring_is_refused_by_its_field(change, field, folder):
    change_config(folder, **change)
    with pytest.raises(WeightsError, match=rf"config\.json: {field}: "):
        read_config(folder / "config.json")


@pytest.mark.parametrize("none", [None, [], ...])
def test_an_end_that_generation_config_alone_names_is_an_end(none, folder, tokenizer):
    change_config(folder, eos_token_id=none)
    with pytest.raises(WeightsError, match=r"eos: no token ends a text; name it in config\.json"):
        load_base(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos}))
    assert load_base(folder).tokenizer.ends == (tokenizer.eos,)


def test_both_generations_of_keys_are_read(folder):
    change_config(folder, rope_theta=..., rope_parameters={"rope_type": "default", "rope_theta": 123.0})
    assert read_config(folder / "config.json")[0].rope_theta == 123.0
    change_config(folder, rope_theta=77.0, rope_parameters=...)
    assert read_config(folder / "config.json")[0].rope_theta == 77.0
    change_config(folder, rope_theta=..., num_key_value_heads=..., head_dim=None, tie_word_embeddings=...)
    config, _ = read_config(folder / "config.json")
    assert (config.rope_theta, config.num_kv_heads, config.head_dim, config.tie_embeddings) == (10000.0, 4, 8, False)


def test_of_several_end_tokens_the_first_counts_and_the_tokenizer_must_have_it(folder, tokenizer):
    change_config(folder, eos_token_id=[4, 0])
    assert load_base(folder).tokenizer.eos == 4
    change_config(folder, eos_token_id=tokenizer.vocab_size)
    with pytest.raises(WeightsError, match=r"tokenizer\.json: eos: "):
        load_base(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path, tokenizer):
    decoder = tiny_decoder(1, torch.float32, num_layers=1, vocab_size=tokenizer.vocab_size - 1)
    save_base(tmp_path, decoder, tokenizer, {})
    with pytest.raises(CompatibilityError, match=r"tokenizer\.json: .*more tokens than the model"):
        load_base(tmp_path)


BESIDE = {  # a file that is read beside config.json and the weights, and something that it may hold
    "tokenizer.json": None,
    "tokenizer_config.json": "{}",
    "special_tokens_map.json": "{}",
    "added_tokens.json": "{}",
    "generation_config.json": "{}",
    "chat_template.jinja": "{{ messages[0].content }}",
    "model.safetensors.index.json": None,
}


@pytest.mark.parametrize("file", BESIDE)
def test_no_file_of_a_base_leads_out_of_its_folder(file, parts, tmp_path):
    base = load_base(parts.folder / "base")
    write_decoder(tmp_path, base.decoder, {"eos_token_id": base.tokenizer.eos}, limit=20_000)
    base.tokenizer.save(tmp_path)
    if content := BESIDE[file]:
        (tmp_path / file).write_text(content)
    assert load_base(tmp_path).decoder.config == base.decoder.config
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    (tmp_path / file).rename(outside)
    (tmp_path / file).symlink_to(outside)
    with pytest.raises(WeightsError, match=rf"{file}: a link out of its folder"):
        load_base(tmp_path)
