"""Feed-forward experts on disk: what is written is read again, in names that others know, or refused by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from moesaic.adapters.feedforward import FFN, attach
from moesaic.artefacts.base import load_base
from moesaic.artefacts.ffn import CONFIG, load_ffn, save_ffn
from moesaic.errors import CompatibilityError, MoesaicError, WeightsError
from moesaic.files import MANIFEST, read_manifest
from moesaic.routing import Gates
from moesaic.tensors.file_names import TENSORS
from moesaic.testing import tiny_decoder, toy_ffn


@pytest.fixture
def expert(parts, tmp_path):
    ffn = toy_ffn(parts.decoder, 1, range(1, 2))
    (tmp_path / "expert").mkdir()
    save_ffn(tmp_path / "expert", ffn, parts.fingerprint, {"name": "sums"})
    return ffn, tmp_path / "expert"


def changed(folder, change) -> None:
    """An expert without a manifest, its tensors as `change` leaves them."""
    (folder / MANIFEST).unlink()
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / TENSORS).items()}
    change(tensors)
    save_file(tensors, folder / TENSORS)


def test_what_is_written_is_read_again(parts, expert):
    ffn, folder = expert
    found = load_ffn(folder, parts.fingerprint, parts.decoder)
    assert found.ffn.blocks.keys() == ffn.blocks.keys()
    for path, block in ffn.blocks.items():
        assert all(one.equal(other) for one, other in zip(found.ffn.blocks[path], block, strict=True))
    manifest = read_manifest(folder, "expert")
    assert (manifest["adapter"], manifest["layers"], manifest["parameters"]) == ("ffn", [1], 3 * 48 * 32)
    assert manifest["fingerprint"] == found.fingerprint and found.base_fingerprint == parts.fingerprint
    other = {path: tuple(part + 1 for part in block) for path, block in ffn.blocks.items()}
    assert type(found)(FFN(other), {}).fingerprint != found.fingerprint


def test_its_tensors_have_the_names_and_shapes_of_a_hugging_face_model(parts, expert):
    """Copied over those of the base, they make the model that the expert was taken from."""
    ffn, folder = expert
    tensors = load_file(folder / TENSORS)
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == {
        "model.layers.1.mlp.gate_proj.weight": [48, 32],
        "model.layers.1.mlp.up_proj.weight": [48, 32],
        "model.layers.1.mlp.down_proj.weight": [32, 48],
    }
    model = shutil.copytree(parts.folder / "base", folder.parent / "model")
    (model / MANIFEST).unlink()
    save_file(load_file(model / TENSORS) | tensors, model / TENSORS)
    base = load_base(parts.folder / "base").decoder
    attach(base, [ffn])
    ids = torch.randint(200, (2, 6))
    expected = load_base(model).decoder(ids).logits
    torch.testing.assert_close(base(ids, None, Gates.one(0, 2, 1, expected)).logits, expected)


def test_without_a_manifest_it_is_declared_and_unverified(parts, expert):
    _, folder = expert
    (folder / MANIFEST).unlink()
    assert load_ffn(folder, parts.fingerprint, parts.decoder).base_fingerprint is None


def test_an_expert_of_another_base_is_refused(parts, expert):
    with pytest.raises(CompatibilityError, match="base_fingerprint: the expert was trained on another base"):
        load_ffn(expert[1], "0" * 64)
    (expert[1] / MANIFEST).unlink()
    with pytest.raises(
        CompatibilityError, match=r"layers\.1\.mlp: .*another base; expected \[40, 32\]; got \[48, 32\]"
    ):
        load_ffn(expert[1], None, tiny_decoder(intermediate_size=40))
    with pytest.raises(CompatibilityError, match=r"layers\.1\.mlp: the base has no such feed-forward block"):
        load_ffn(expert[1], None, tiny_decoder(num_layers=1))
    with pytest.raises(CompatibilityError, match=r"layers\.1\.mlp: .* block is sparse"):
        load_ffn(expert[1], None, tiny_decoder(num_experts=2, experts_per_token=1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"layers\.1\.mlp\.up_proj\.weight: a tensor is missing"),
        (
            lambda t: t.update({"lm_head.weight": torch.ones(2, 2)}),
            "lm_head.weight: not a tensor of a feed-forward block",
        ),
        (
            lambda t: t.update({"model.layers.1.mlp.up_proj.weight": torch.ones(32, 48)}),
            r"up_proj\.weight: a tensor of another shape; expected \[48, 32\]; got \[32, 48\]",
        ),
        (lambda t: t.clear(), "layers: other layers than in the config"),
        (
            lambda t: t.update({name.replace(".1.", ".0."): tensor.clone() for name, tensor in list(t.items())}),
            r"layers: other layers than in the config; expected \[1\]; got \[0, 1\]",
        ),
        (lambda t: t["model.layers.1.mlp.up_proj.weight"].fill_(float("nan")), "NaN or infinity"),
    ],
)
def test_a_broken_folder_is_refused_by_name(parts, expert, change, said):
    changed(expert[1], change)
    with pytest.raises(MoesaicError, match=said):
        load_ffn(expert[1], None, parts.decoder)


def test_a_folder_of_another_kind_is_refused(parts, expert):
    folder = expert[1]
    (folder / MANIFEST).unlink()
    (folder / CONFIG).write_text(json.dumps({"expert": "lora"}))
    with pytest.raises(WeightsError, match="expert: another kind; expected ffn; got lora"):
        load_ffn(folder)
    (folder / CONFIG).unlink()
    with pytest.raises(WeightsError, match=CONFIG):
        load_ffn(folder)
    with pytest.raises(WeightsError, match="no such expert folder"):
        load_ffn(folder / "nowhere")
