"""Models of one shape averaged into one: by the formula, as mergekit does it, and what is refused."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import moesaic
from moesaic.artefacts.base import load_base, save_base
from moesaic.compose import merge as room
from moesaic.compose.merge import merge
from moesaic.errors import CompatibilityError, MoesaicWarning, RecipeError, StorageError
from moesaic.files import MANIFEST, read_manifest
from moesaic.testing import tiny_decoder
from moesaic.tokenizer import Special, Tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(["the sum of two and two is four"], 265)


@pytest.fixture(scope="module")
def models(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two", "three")):
        (folder / name).mkdir()
        save_base(folder / name, tiny_decoder(seed, torch.float32, vocab_size=tokenizer.vocab_size), tokenizer, {})
    return [folder / name for name in ("one", "two", "three")]


def tensors(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def mean(models, shares) -> dict[str, torch.Tensor]:
    every = [tensors(model) for model in models]
    return {
        name: sum(share * some[name].double() for share, some in zip(shares, every, strict=True)) for name in every[0]
    }


def test_every_tensor_is_the_weighted_mean(models, tmp_path):
    made = merge(models, tmp_path / "merged", weights=[1, 1, 2])
    expected = mean(models, (0.25, 0.25, 0.5))
    found = tensors(made)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-6)
    base = load_base(made)
    manifest = read_manifest(made, "base")
    assert manifest["fingerprint"] == base.fingerprint
    assert manifest["merged"]["weights"] == [0.25, 0.25, 0.5]
    assert manifest["merged"]["from"] == [load_base(model).fingerprint for model in models]
    assert moesaic.inspect(made).verified


def test_without_weights_all_count_the_same_and_a_model_with_itself_is_itself(models, tmp_path):
    for name, tensor in tensors(merge(models[:2], tmp_path / "even")).items():
        torch.testing.assert_close(tensor.double(), mean(models[:2], (0.5, 0.5))[name], rtol=1e-6, atol=1e-6)
    same = tensors(merge([models[0], models[0]], tmp_path / "same"))
    assert all(tensor.equal(tensors(models[0])[name]) for name, tensor in same.items())


def test_only_what_is_shared_leaves_the_blocks_of_the_first(models, tmp_path):
    found, expected = tensors(merge(models, tmp_path / "shared", only="shared")), mean(models, [1 / 3] * 3)
    first = tensors(models[0])
    for name, tensor in found.items():
        if ".mlp." in name:
            assert tensor.equal(first[name])
        else:
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-6, atol=1e-6)


def test_a_base_is_of_its_own_types_and_sums_are_exact(tokenizer, models, tmp_path):
    decoder = tiny_decoder(5, torch.float32, vocab_size=tokenizer.vocab_size).bfloat16()
    (tmp_path / "half").mkdir()
    save_base(tmp_path / "half", decoder, tokenizer, {})
    made = merge([tmp_path / "half", models[0], models[1]], tmp_path / "merged")
    expected = mean([tmp_path / "half", *models[:2]], [1 / 3] * 3)
    for name, tensor in tensors(made).items():
        assert tensor.dtype == torch.bfloat16 and tensor.equal(expected[name].float().bfloat16())
    assert read_manifest(made)["fingerprint"] == load_base(made).fingerprint


def test_a_large_result_is_made_file_by_file(models, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "FILE_BYTES", 20_000)
    live, most = set(), []
    write = room.write_shards

    def counted(folder, made, limit):
        make = made.make
        made.make = lambda name: live.add(name) or make(name)
        from moesaic.tensors import shards

        monkeypatch.setattr(shards, "write_tensors", lambda path, some: most.append(len(some)) or kept(path, some))
        write(folder, made, limit)

    from moesaic.tensors.tensors import write_tensors as kept

    monkeypatch.setattr(room, "write_shards", counted)
    made = merge(models[:2], tmp_path / "merged")
    assert len(most) > 5 and len(live) == sum(most)
    for name, tensor in tensors(made).items():
        torch.testing.assert_close(tensor.double(), mean(models[:2], (0.5, 0.5))[name], rtol=1e-6, atol=1e-6)
    assert load_base(made).fingerprint == read_manifest(made)["fingerprint"]


def test_what_cannot_be_averaged_is_refused_by_name(tokenizer, models, tmp_path):
    (tmp_path / "wide").mkdir()
    wide = tiny_decoder(0, torch.float32, intermediate_size=40, vocab_size=tokenizer.vocab_size)
    save_base(tmp_path / "wide", wide, tokenizer, {})
    with pytest.raises(
        CompatibilityError, match="intermediate_size: models of one shape are merged.*expected 48; got 40"
    ):
        merge([models[0], tmp_path / "wide"], tmp_path / "out")
    other = Tokenizer.train(["a cat sat on the mat"], 265)
    (tmp_path / "other").mkdir()
    save_base(tmp_path / "other", tiny_decoder(0, torch.float32, vocab_size=tokenizer.vocab_size), other, {})
    with pytest.raises(CompatibilityError, match="tokenizer: .* tokens: "):
        merge([models[0], tmp_path / "other"], tmp_path / "out")
    with pytest.raises(RecipeError, match="one model needs no merging"):
        merge(models[:1], tmp_path / "out")
    with pytest.raises(RecipeError, match="weights: wrong number of weights; expected 2; got 3"):
        merge(models[:2], tmp_path / "out", weights=[1, 2, 3])
    for weights in ([0, 0], [1, float("nan")], [1, -1]):
        with pytest.raises(RecipeError, match="weights: wrong weights"):
            merge(models[:2], tmp_path / "out", weights=weights)
    assert not (tmp_path / "out").exists()
    with pytest.raises(StorageError, match="the path already exists"):
        merge(models[:2], models[2])


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore")
def test_it_is_the_linear_merge_of_mergekit(models, tmp_path):
    from mergekit.config import MergeConfiguration
    from mergekit.merge import MergeOptions, run_merge

    sources = []
    for model in models:
        sources.append(shutil.copytree(model, tmp_path / model.name))
        (sources[-1] / MANIFEST).unlink()
    said = [
        {"model": str(path), "parameters": {"weight": weight}} for path, weight in zip(sources, (1, 1, 2), strict=True)
    ]
    config = MergeConfiguration.model_validate({"merge_method": "linear", "models": said, "dtype": "float32"})
    run_merge(config, str(tmp_path / "theirs"), MergeOptions(copy_tokenizer=False, trust_remote_code=False, quiet=True))
    theirs, ours = tensors(tmp_path / "theirs"), tensors(merge(models, tmp_path / "ours", weights=[1, 1, 2]))
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-6)


def test_a_merge_ends_at_the_ends_of_all_and_says_so(tokenizer, models, tmp_path):
    other = Tokenizer(tokenizer.inner, Special(0, (0, 5)))
    (tmp_path / "talks").mkdir()
    save_base(tmp_path / "talks", load_base(models[1]).decoder, other, {})
    with pytest.warns(MoesaicWarning, match=r"ends texts with ids \(0, 5\), .* with \(0,\); all of them end"):
        made = merge([models[0], tmp_path / "talks"], tmp_path / "made")
    assert load_base(made).tokenizer.ends == (0, 5)
