"""Do experts of tensor trains come back from disk bit for bit, and is everything that is wrong refused by name?"""

import json
import shutil

import pytest
import torch

from moesaic.adapters import Cores, Factors, TensorTrain, attach
from moesaic.artefacts.adapter import StoredExpert, export_peft, load_expert, save_expert
from moesaic.artefacts.inspect import inspect
from moesaic.artefacts.router import StoredRouter, save_router
from moesaic.artefacts.tt_lora import CONFIG, TENSORS
from moesaic.compose.mixture import load_mixture, save_mixture
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, read_manifest
from moesaic.model.features import Prompts
from moesaic.routing import Gates, Selection
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.testing import tiny_decoder, tiny_encoder

Q, V = "layers.0.self_attn.q_proj", "layers.1.self_attn.v_proj"


def expert(decoder, seed: int = 0, **changes) -> TensorTrain:
    settings = {"rank": 3, "alpha": 2.0, "targets": ["q_proj", "v_proj"], "layers": range(9)} | changes
    made = TensorTrain.fresh(decoder, generator=torch.Generator().manual_seed(seed), init="published", **settings)
    scaled = {path: Cores(*(tuple(core * 3 for core in side) for side in t)) for path, t in made.cores.items()}
    return TensorTrain(made.rank, made.alpha, scaled)


@pytest.fixture(scope="module")
def stored(parts, tmp_path_factory):
    """A folder with an expert of the tiny base, and the expert."""
    folder, made = tmp_path_factory.mktemp("train") / "three", expert(parts.decoder)
    folder.mkdir()
    save_expert(folder, made, parts.fingerprint, {"name": "three"})
    return folder, made


@pytest.fixture
def folder(stored, tmp_path):
    """A copy without a manifest, to be broken."""
    copy = shutil.copytree(stored[0], tmp_path / "copy")
    (copy / MANIFEST).unlink()
    return copy


def same(one: TensorTrain, other: TensorTrain) -> bool:
    return (one.rank, one.alpha, one.cores.keys()) == (other.rank, other.alpha, other.cores.keys()) and all(
        len(side) == len(theirs) and all(a.equal(b) for a, b in zip(side, theirs, strict=True))
        for path in one.cores
        for side, theirs in zip(one.cores[path], other.cores[path], strict=True)
    )


def change(folder, **changes) -> None:
    """Settings of a folder, in place of its own; None takes one away."""
    settings = {**json.loads((folder / CONFIG).read_text()), **changes}
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))


def test_an_expert_comes_back_as_it_was_with_its_pairs_beside(stored, parts):
    folder, made = stored
    found = load_expert(folder, parts.fingerprint, parts.decoder)
    assert same(found.adapter, made)
    for path, (a, b) in made.lora().pairs.items():
        assert found.lora.pairs[path][0].equal(a) and found.lora.pairs[path][1].equal(b)
    assert found.lora is found.lora, "multiplied out once"
    assert found.fingerprint == found.manifest["fingerprint"]


def test_its_folder_says_what_it_is(stored, parts):
    folder, made = stored
    manifest = read_manifest(folder)
    assert sorted(manifest["files"]) == [CONFIG, TENSORS]
    assert {key: manifest[key] for key in ("kind", "adapter", "rank", "alpha", "targets", "layers", "parameters")} == {
        "kind": "expert",
        "adapter": "tt_lora",
        "rank": 3,
        "alpha": 2.0,
        "targets": ["q_proj", "v_proj"],
        "layers": [0, 1],
        "parameters": made.num_parameters,
    }
    assert manifest["base_fingerprint"] == parts.fingerprint and inspect(folder).verified
    settings = json.loads((folder / CONFIG).read_text())
    assert settings["modules"][Q] == [*map(list, made.cores[Q].factors)]


def test_without_a_manifest_its_own_files_say_all_that_it_needs(folder, stored, parts):
    found = load_expert(folder, parts.fingerprint, parts.decoder)
    assert same(found.adapter, stored[1]) and found.base_fingerprint is None
    said = inspect(folder)
    assert (said.kind, said.verified, said.facts["rank"]) == ("TT-LoRA adapter", False, 3)


def test_a_fingerprint_is_of_cores_scale_and_rank(stored):
    _, made = stored
    first = StoredExpert(made, {}).fingerprint
    cores = {path: Cores(*(tuple(core.clone() for core in side) for side in t)) for path, t in made.cores.items()}
    assert StoredExpert(TensorTrain(3, 2.0, cores), {}).fingerprint == first
    assert StoredExpert(TensorTrain(3, 2.5, cores), {}).fingerprint != first
    cores[Q].inputs[0][0, 0, 0] += 1e-6
    assert StoredExpert(TensorTrain(3, 2.0, cores), {}).fingerprint != first


def test_an_expert_of_an_encoder_comes_back_too(tmp_path):
    encoder = tiny_encoder(dtype=torch.float32)
    made = expert(encoder, targets=["query", "value"])
    save_expert(tmp_path, made, "0" * 64, {})
    assert same(load_expert(tmp_path, "0" * 64, encoder).adapter, made)


@torch.no_grad()
def test_a_mixture_of_pairs_and_trains_answers_from_its_folder_as_its_parts_do(parts, stored, tmp_path):
    _, made = stored
    router = StoredRouter(parts.router, "mlp", ("two", "three"), "hidden_mean", Selection(kind="soft"), {})
    (tmp_path / "router").mkdir()
    (tmp_path / "mixture").mkdir()
    save_router(tmp_path / "router", router, parts.fingerprint, {})
    where = {"two": parts.folder / "two", "three": stored[0]}
    save_mixture(tmp_path / "mixture", parts.folder / "base", where, tmp_path / "router", {})
    moved = shutil.move(tmp_path / "mixture", tmp_path / "moved")
    found = load_mixture(moved)
    assert sorted(path.name for path in (moved / "experts" / "three").iterdir()) == sorted([MANIFEST, CONFIG, TENSORS])
    assert {name: part.facts["parameters"] for name, part in inspect(moved).parts.items() if "three" in name} == {
        "expert three": made.num_parameters
    }
    text = parts.tokenizer.encode("the sum of two")
    ids = Prompts.pad([text, text], ["", ""]).ids
    beside = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=parts.tokenizer.vocab_size)
    attach(beside, [parts.experts["two"], made.lora()])
    gates = Gates.of(torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    torch.testing.assert_close(found.model.decoder(ids, None, gates).logits, beside(ids, None, gates).logits)


# --- refusals ---------------------------------------------------------------------------------------------------------

WRONG = {
    "kind": ({"kind": "tt"}, "kind", "expected tt_lora; got 'tt'"),
    "format": ({"format": 2}, "format", "expected 1, the newest"),
    "rank 0": ({"rank": 0}, "rank", "a whole number from 1"),
    "rank true": ({"rank": True}, "rank", "a whole number from 1"),
    "rank text": ({"rank": "3"}, "rank", "a whole number"),
    "alpha": ({"alpha": 0}, "alpha", "a number above 0"),
    "modules": ({"modules": {}}, "modules", "{module: [[factors"),
    "more": ({"bias": 1}, "bias", "unknown setting; expected exactly alpha, format, kind, modules, rank"),
    "less": ({"rank": None}, "rank", "missing"),
    "a name": ({"modules": {"lm_head": [[32], [32]]}}, "modules.lm_head", "not a module of a layer"),
    "a layer": ({"modules": {"layers.x.q_proj": [[32], [32]]}}, "modules.layers.x.q_proj", "not a module"),
    "one side": ({"modules": {Q: [[32]]}}, f"modules.{Q}", "[[factors of the inputs], [factors of the outputs]]"),
    "no factor": ({"modules": {Q: [[], [32]]}}, f"modules.{Q}", "[[factors of the inputs]"),
    "factor 0": ({"modules": {Q: [[32, 0], [32]]}}, f"modules.{Q}", "[[factors of the inputs]"),
    "a huge factor": ({"modules": {Q: [[1 << 40], [32]]}}, f"modules.{Q}", "[[factors of the inputs]"),
    "the rank": ({"modules": {Q: [[2, 16], [32]]}}, f"modules.{Q}", "between the factors 2 and 16"),
}


@pytest.mark.parametrize(("changes", "field", "says"), WRONG.values(), ids=WRONG)
def test_wrong_settings_are_refused_by_file_and_field(changes, field, says, folder):
    change(folder, **changes)
    with pytest.raises(WeightsError) as refused:
        load_expert(folder)
    assert (refused.value.path, refused.value.field) == (folder / CONFIG, field), refused.value
    assert says in str(refused.value)


def test_cores_that_are_missing_left_over_or_other_than_the_settings_say_are_refused_by_name(folder):
    whole = {name: tensor.clone() for name, tensor in read_tensors(folder / TENSORS).items()}
    first = f"{Q}.inputs.0"

    def refused(tensors) -> WeightsError:
        write_tensors(folder / TENSORS, tensors)
        with pytest.raises(WeightsError) as caught:
            load_expert(folder)
        assert caught.value.path == folder / TENSORS
        return caught.value

    missing = refused({name: tensor for name, tensor in whole.items() if name != first})
    assert missing.field == first and "a core is missing" in str(missing)
    assert refused({**whole, f"{Q}.inputs.9": torch.zeros(1)}).field == f"{Q}.inputs.9"
    other = refused({**whole, first: whole[first].transpose(0, 2).contiguous()})
    assert other.field == first and "expected [1, 8, 3]; got float32 [3, 8, 1]" in str(other)
    assert "got int32" in str(refused({**whole, first: whole[first].int()}))
    (folder / TENSORS).unlink()
    with pytest.raises(WeightsError, match=TENSORS):
        load_expert(folder)


def test_a_change_of_a_file_is_found_by_its_manifest(stored, tmp_path):
    copy = shutil.copytree(stored[0], tmp_path / "copy")
    change(copy, alpha=3.0)
    with pytest.raises(WeightsError, match=CONFIG):
        load_expert(copy)


def test_an_expert_of_another_base_is_refused(stored, folder):
    with pytest.raises(CompatibilityError, match="trained on another base"):
        load_expert(stored[0], "0" * 64)
    with pytest.raises(CompatibilityError, match=rf"modules\.{Q}: .*another base; expected \(16, 16\); got \(32, 32\)"):
        load_expert(folder, None, tiny_decoder(hidden_size=16))
    with pytest.raises(CompatibilityError, match=r"modules\.layers\.1\.self_attn\.q_proj: the base has no such linear"):
        load_expert(folder, None, tiny_decoder(num_layers=1))


def test_two_adapters_in_one_folder_are_refused(folder, parts):
    shutil.copy(parts.folder / "one" / "adapter_config.json", folder)
    with pytest.raises(
        WeightsError, match=r"two adapters in one folder; expected adapter_config\.json or tensor_train"
    ):
        load_expert(folder)


# --- out again --------------------------------------------------------------------------------------------------------


def test_what_is_exported_is_lora_of_the_same_rank_and_function(stored, tmp_path):
    folder, made = stored
    target = export_peft(folder, tmp_path / "peft")
    assert sorted(path.name for path in target.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    found = load_expert(target).adapter
    assert (found.rank, found.alpha) == (3, 6.0)
    for path, (a, b) in made.lora().pairs.items():
        assert found.pairs[path][0].equal(a) and found.pairs[path][1].equal(b)
    config = json.loads((target / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (3, 6.0, ["q_proj", "v_proj"])


def test_an_expert_of_an_encoder_is_exported_under_the_names_of_the_bare_encoder(tmp_path):
    made = expert(tiny_encoder(dtype=torch.float32), targets=["query"])
    save_expert(tmp_path, made, "0" * 64, {})
    target = export_peft(tmp_path, tmp_path / "peft")
    names = read_tensors(target / "adapter_model.safetensors")
    assert "base_model.model.encoder.layer.1.attention.self.query.lora_B.weight" in names
    found = load_expert(target, None, tiny_encoder(dtype=torch.float32)).lora
    for path, (a, b) in made.lora().pairs.items():
        assert found.pairs[path][0].equal(a) and found.pairs[path][1].equal(b)


def test_factors_of_ones_own_come_back(parts, tmp_path):
    own = {"q_proj": Factors((8, 4), (2, 2, 8))}
    made = expert(parts.decoder, targets=["q_proj"], factors=own)
    save_expert(tmp_path, made, parts.fingerprint, {})
    assert load_expert(tmp_path).adapter.cores[Q].factors == own["q_proj"]
