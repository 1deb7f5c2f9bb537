"""Is a model found wherever people have it, folder or hub cache, and is it one thing to call and to save?"""

import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

import moesaic
from moesaic.artefacts.base import identify, load_base, save_base
from moesaic.compose.mixture import load_mixture, save_mixture
from moesaic.config import TRAITS, DecoderConfig
from moesaic.errors import StorageError, WeightsError
from moesaic.files import read_json
from moesaic.interop.decoders import write_decoder
from moesaic.interop.encoders import save_encoder
from moesaic.model.decoder import Decoder, initialise
from moesaic.testing import tiny_encoder

IDS = torch.tensor([[1, 2, 3, 4, 5, 6]])
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def decoder(vocab_size: int = 40, **changes) -> Decoder:
    sizes = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "num_kv_heads": 1, "context": 32}
    config = DecoderConfig(vocab_size=vocab_size, intermediate_size=24, **sizes, **changes)
    return initialise(Decoder(config), torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "toy").mkdir()
    write_decoder(tmp_path / "toy", decoder(), {"eos_token_id": 0})
    return tmp_path / "toy"


# --- what is loaded ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_model_is_called_with_ids_and_a_mask_and_gives_logits_and_hidden(folder):
    model = moesaic.load_model(folder)
    found = model(IDS, attention_mask=torch.ones_like(IDS))
    assert found.logits.shape == (1, 6, 40) and found.hidden.shape == (1, 6, 32)
    torch.testing.assert_close(found.logits, decoder()(IDS).logits)
    torch.testing.assert_close(found.hidden @ model.decoder.lm_head.weight.T, found.logits)
    assert not model.training and moesaic.load_model(str(folder)).config == decoder().config


def test_its_type_is_the_one_asked_for_or_stored_but_float16_is_computed_in_float32(folder, tmp_path):
    def dtypes(model) -> set[torch.dtype]:
        return {parameter.dtype for parameter in model.parameters()}

    assert dtypes(moesaic.load_model(folder)) == {torch.float32}
    assert dtypes(moesaic.load_model(folder, dtype=torch.bfloat16)) == {torch.bfloat16}
    moesaic.load_model(folder, dtype=torch.float16).save_pretrained(tmp_path / "half")
    with pytest.warns(UserWarning, match="float16 is read as float32"):
        assert dtypes(moesaic.load_model(tmp_path / "half")) == {torch.float32}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert dtypes(moesaic.load_model(tmp_path / "half", dtype=torch.float16)) == {torch.float16}
        moesaic.load_model(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "bfloat16")
        assert dtypes(moesaic.load_model(tmp_path / "bfloat16")) == {torch.bfloat16}


def test_what_is_saved_has_keys_old_and_new_and_the_ends_of_a_text(folder, tmp_path):
    moesaic.load_model(folder).save_pretrained(tmp_path / "saved")
    config = read_json(tmp_path / "saved" / "config.json")
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    assert read_json(tmp_path / "saved" / "generation_config.json") == {"eos_token_id": 0}
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "saved" / file).read_bytes() == (folder / file).read_bytes()
    with pytest.raises(StorageError, match="the path already exists"):
        moesaic.load_model(folder).save_pretrained(tmp_path / "saved")


def test_a_model_of_no_known_family_is_refused_with_those_that_are(folder):
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(WeightsError, match=r"config\.json: model_type: .*one of .*llama, mistral.*; got gpt2"):
        moesaic.load_model(folder)


OWN = {
    "mistral": {"window": 3, "local_layers": (0, 1)},
    "qwen2": {"window": 3, "local_layers": (1,)},
    "gemma3_text": {"window": 3, "local_layers": (0,), "local_rope_theta": 30.0, "query_scalar": 16},
    "mixtral": {"num_experts": 3, "experts_per_token": 2},
    "qwen2_moe": {"num_experts": 3, "experts_per_token": 2, "expert_size": 8, "shared_size": 12, "window": 3}
    | {"local_layers": (0,)},
    "qwen3_moe": {"num_experts": 3, "experts_per_token": 1, "expert_size": 8, "dense_layers": (1,)},
}


@torch.no_grad()
@pytest.mark.parametrize("family", TRAITS)
def test_a_base_of_any_family_comes_back_as_itself(family, tmp_path, tokenizer):
    made = decoder(tokenizer.vocab_size, family=family, **TRAITS[family], **OWN.get(family, {}))
    save_base(tmp_path, made, tokenizer, {})
    base = load_base(tmp_path)
    assert base.decoder.config == made.config and base.fingerprint == identify(made, tokenizer)
    assert base.decoder(IDS).logits.equal(made(IDS).logits)
    assert moesaic.load_model(tmp_path)(IDS).logits.allclose(made(IDS).logits)


# --- where it lies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy-model", "toy-models"])
def test_a_folder_may_hold_the_model_and_the_tokenizer_in_folders_of_their_own(name, tmp_path, tokenizer):
    (tmp_path / "toy" / name).mkdir(parents=True)
    (tmp_path / "toy" / "toy-tokenizer").mkdir()
    write_decoder(tmp_path / "toy" / name, decoder(tokenizer.vocab_size), {"eos_token_id": tokenizer.eos})
    tokenizer.save(tmp_path / "toy" / "toy-tokenizer")
    for place in (tmp_path / "toy", tmp_path / "toy" / name):
        assert moesaic.load_model(place).config.vocab_size == tokenizer.vocab_size
        assert load_base(place).tokenizer.encode("two") == tokenizer.encode("two")


def test_a_mixture_holds_its_base_whole_however_that_lies(parts, tmp_path, tokenizer):
    """In shards, the tokenizer in a folder beside the model."""
    model, text = tmp_path / "toy" / "toy-model", tmp_path / "toy" / "toy-tokenizer"
    model.mkdir(parents=True)
    text.mkdir()
    write_decoder(model, parts.decoder, {"eos_token_id": tokenizer.eos}, 5000)
    tokenizer.save(text)
    assert load_base(tmp_path / "toy").fingerprint == parts.fingerprint
    experts = {name: parts.folder / name for name in parts.experts}
    (tmp_path / "mixture").mkdir()
    save_mixture(tmp_path / "mixture", tmp_path / "toy", experts, parts.folder / "router", {})
    found = load_mixture(tmp_path / "mixture").model
    expected = load_mixture(parts.folder / "mixture").model
    assert found.decoder.get_parameter("layers.1.mlp.up_proj.base.weight").equal(
        expected.decoder.get_parameter("layers.1.mlp.up_proj.base.weight")
    )


# --- the hub ----------------------------------------------------------------------------------------------------------

LOAD = """
import sys, torch, moesaic
torch.set_num_threads(1)
for revision in sys.argv[2:] or [None]:
    print(moesaic.load_model(sys.argv[1], revision=revision)(torch.tensor([[1, 2, 3]])).logits.sum().item())
"""


def cached(home: Path, folder: Path) -> None:
    """A cache as the hub's client lays it out: blobs, snapshots of links, refs."""
    repo = home / "hub" / "models--someone--toy"
    snapshot = repo / "snapshots" / COMMIT
    for part in (repo / "blobs", repo / "refs", snapshot):
        part.mkdir(parents=True)
    (repo / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = repo / "blobs" / f"{number:064d}"
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))


def apart(home: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    """Load in a process of its own: the client reads its environment when it is imported."""
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1", **more}
    command = [sys.executable, "-c", LOAD, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@torch.no_grad()
def test_a_hub_id_is_read_from_the_cache_without_a_network_by_branch_and_by_commit(folder, tmp_path):
    cached(tmp_path / "home", folder)
    expected = moesaic.load_model(folder)(torch.tensor([[1, 2, 3]])).logits.sum().item()
    for revisions in ([], ["main", COMMIT]):
        done = apart(tmp_path / "home", "someone/toy", *revisions)
        assert done.returncode == 0, done.stderr
        assert [float(line) for line in done.stdout.split()] == [expected] * max(1, len(revisions))


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "words"), [(["someone/other"], "someone/other"), (["someone/toy", "v9"], "v9")])
def test_what_is_not_in_the_cache_is_an_error_that_says_what_to_check(arguments, words, folder, tmp_path):
    cached(tmp_path / "home", folder)
    done = apart(tmp_path / "home", *arguments)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and "WeightsError" in last and words in last and "HF_HUB_OFFLINE" in last


@pytest.mark.slow
def test_a_hub_that_cannot_be_reached_is_an_error_and_no_traceback_of_the_client(tmp_path):
    done = apart(tmp_path / "home", "someone/toy", HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    last = done.stderr.strip().splitlines()[-1]
    assert (
        done.returncode and "WeightsError" in last and "someone/toy" in last and "check the name, the network" in last
    )


# --- and there again --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("head", ["decoder", "pooler", "mlm", "classification"])
def test_what_is_pushed_is_opened_from_there_with_a_card_that_says_how(hub, folder, tmp_path, head):
    if head != "decoder":
        shutil.rmtree(folder)
        folder.mkdir()
        save_encoder(folder, tiny_encoder("bert", head, dtype=torch.float32))
    model = moesaic.load_model(folder)
    url = model.push_to_hub("me/mine", private=True, revision="v1", license="mit")
    found = hub.repositories["me/mine"]
    files = found.branches["v1"]
    assert url.startswith(f"{hub.url}/me/mine/commit/") and found.private
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    card = ModelCard(files["README.md"].decode())
    assert card.data.license == "mit" and card.data.library_name == "transformers" and model.config.family in card.text
    assert {"decoder": "ForCausalLM", "pooler": "AutoModel\n", "mlm": "MaskedLM"}.get(
        head, "Classification"
    ) in card.text
    assert f"{sum(p.numel() for p in model.parameters()):,} parameters" in card.text
    again = moesaic.load_model("me/mine@v1")
    own, other = model(IDS), again(IDS)
    assert own.hidden.equal(other.hidden) and (own.logits is None or own.logits.equal(other.logits))


def test_what_is_pushed_on_from_the_hub_names_its_base(hub, folder):
    commit = hub.put("org/toy", {path.name: path.read_bytes() for path in folder.iterdir()})
    moesaic.load_model("org/toy").push_to_hub("me/mine")
    card = ModelCard(hub.repositories["me/mine"].branches["main"]["README.md"].decode())
    assert card.data.base_model == "org/toy" and commit in card.text and card.data.license is None


def test_a_failed_push_leaves_nothing_behind(hub, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    hub.refusals["/lfs"] = 403, "no"
    with pytest.raises(WeightsError, match="the push failed"):
        moesaic.load_model(folder).push_to_hub("me/mine")
    assert not [*(tmp_path / "temporary").iterdir()]
