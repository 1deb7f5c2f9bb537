"""Property: do experts, routers and whole mixtures come back to the same logits, and only as and where they belong?"""

import dataclasses
import json
import os
import shutil

import pytest
import torch

from moesaic.adapters import attach
from moesaic.artefacts.adapter import load_expert, save_expert
from moesaic.artefacts.base import identify, load_base, save_base
from moesaic.artefacts.router import TENSORS, StoredRouter, load_router, save_router
from moesaic.compose.mixture import assemble, load_mixture, save_mixture
from moesaic.errors import CompatibilityError, MoesaicError, WeightsError
from moesaic.files import MANIFEST, read_manifest, write_manifest
from moesaic.kinds import at_site
from moesaic.model.features import Prompts
from moesaic.routing import Gates, Selection, States
from moesaic.routing.routers import AttentionRouter, CentroidRouter, KeywordRouter, MLPRouter
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.testing import prefilled, tiny_decoder, toy_expert
from moesaic.tokenizer import Message, Special, Template, Tokenizer

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
OTHER = "0" * 64


@pytest.fixture
def one(parts, tmp_path):
    return shutil.copytree(parts.folder / "one", tmp_path / "one")


def prompts(parts) -> Prompts:
    texts = ["the sum of two", "def add", "é"]
    return Prompts.pad([parts.tokenizer.encode(text) for text in texts], texts)


def copied(path) -> dict[str, torch.Tensor]:
    """The tensors of a file that is about to be written over; as read they are views of it."""
    return {name: tensor.clone() for name, tensor in read_tensors(path).items()}


def change_config(folder, **changes) -> None:
    (folder / MANIFEST).unlink(missing_ok=True)
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


# --- experts ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["one", "two"])
def test_an_expert_comes_back_with_the_same_matrices(name, parts, tmp_path):
    folder = shutil.copytree(parts.folder / name, tmp_path / "elsewhere")
    stored, lora = load_expert(folder, parts.fingerprint), parts.experts[name]
    assert (stored.lora.rank, stored.lora.alpha) == (lora.rank, lora.alpha)
    assert stored.base_fingerprint == parts.fingerprint and stored.manifest["name"] == name
    assert stored.lora.pairs.keys() == lora.pairs.keys()
    for path, (a, b) in lora.pairs.items():
        assert stored.lora.pairs[path][0].equal(a) and stored.lora.pairs[path][1].equal(b)
    manifest = read_manifest(folder, "expert")
    assert (manifest["targets"], manifest["layers"]) == (lora.targets, lora.layers)
    assert manifest["parameters"] == sum(tensor.numel() for tensor in read_tensors(folder / ADAPTER).values())


def test_an_expert_of_another_base_is_refused_and_a_foreign_one_is_unverified(one):
    with pytest.raises(CompatibilityError, match=r"base_fingerprint: .*another base; expected 000000000000; got "):
        load_expert(one, OTHER)
    (one / MANIFEST).unlink()
    assert load_expert(one, OTHER).base_fingerprint is None


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": "2"}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": [2]}}, "alpha_pattern"),
        ({"lora_bias": True}, "lora_bias"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"r": None}, "r, lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha"),
    ],
)
def test_an_adapter_that_is_not_plain_lora_is_refused_by_its_field(change, field, one):
    change_config(one, **change)
    with pytest.raises(WeightsError, match=rf"{CONFIG}: {field}: "):
        load_expert(one)


def test_rank_stabilised_lora_scales_by_the_root_of_its_rank(one):
    change_config(one, use_rslora=True, lora_alpha=3)
    assert load_expert(one).lora.scale == pytest.approx(3 / 2**0.5, rel=1e-12)
    change_config(one, use_rslora=False)
    assert load_expert(one).lora.scale == pytest.approx(3 / 2, rel=1e-12)


def test_half_a_pair_another_rank_or_another_name_is_refused(one):
    (one / MANIFEST).unlink()
    tensors = copied(one / ADAPTER)
    name = next(name for name in tensors if name.endswith("q_proj.lora_B.weight"))
    module = name.removesuffix(".lora_B.weight").removeprefix("base_model.model.model.")

    def refused(changed, match):
        write_tensors(one / ADAPTER, changed)
        with pytest.raises(WeightsError, match=match):
            load_expert(one)

    refused({key: value for key, value in tensors.items() if key != name}, f"{module}: half of a pair")
    refused({**tensors, name: torch.zeros(32, 3)}, f"{name}: .*another rank; expected 2")
    refused({**tensors, "base_model.model.lm_head.lora_A.weight": torch.zeros(2, 32)}, "lm_head.*: not a LoRA tensor")
    magnitude = {name.replace("lora_B", "lora_magnitude_vector"): torch.ones(32)}
    refused({**tensors, **magnitude}, "lora_magnitude_vector.*: not a LoRA tensor")
    refused({**tensors, name: torch.full((32, 2), float("nan"))}, f"{name}: .*NaN")


@pytest.mark.parametrize("name", [CONFIG, ADAPTER])
def test_a_damaged_file_of_an_expert_is_refused_by_name(name, one):
    data = (one / name).read_bytes()
    (one / name).write_bytes(data[:-9])
    with pytest.raises(WeightsError, match=f"{name}: bytes|{name}: sha256"):
        load_expert(one)
    (one / MANIFEST).unlink()
    with pytest.raises(WeightsError, match=name):
        load_expert(one)
    (one / name).unlink()
    with pytest.raises(WeightsError, match=name):
        load_expert(one)


def test_no_folder_is_no_expert(tmp_path):
    with pytest.raises(WeightsError, match="no such expert folder"):
        load_expert(tmp_path / "none")


# --- routers ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("kind", ["keyword", "centroid", "linear", "mlp"])
@pytest.mark.parametrize(
    "selection",
    [Selection(kind="top_k", k=2, renormalise=False), Selection(kind="top_1"), Selection(kind="soft")],
    ids=lambda selection: selection.kind,
)
def test_a_router_comes_back_with_all_that_deciding_needs(kind, selection, tmp_path):
    torch.manual_seed(0)
    router = {
        "keyword": KeywordRouter([["sum", "c++"], []]),
        "centroid": CentroidRouter(4, 2),
        "linear": MLPRouter(4, 2, []),
        "mlp": MLPRouter(4, 2, [3, 5], dropout=0.4),
    }[kind].eval()
    for buffer in router.buffers():
        buffer.uniform_(0.5, 1.5)
    save_router(tmp_path, StoredRouter(router, kind, ("b", "a"), "hidden@2_last", selection, {}), OTHER, {"seed": 5})
    found = load_router(tmp_path, OTHER)
    features = ["a sum", "c++ sum"] if kind == "keyword" else torch.randn(2, 4)
    assert found.router(features).equal(router(features)) and not found.router.training
    assert (found.names, found.kind, found.feature, found.selection) == (("b", "a"), kind, "hidden@2_last", selection)
    assert found.reads.depth == 2 and found.manifest["seed"] == 5
    with pytest.raises(CompatibilityError, match=r"base_fingerprint: .*train the router again"):
        load_router(tmp_path, "1" * 64)


@pytest.mark.parametrize(
    ("kind", "router", "feature"),
    [
        ("attention", AttentionRouter(4, 2, 6, 3, dropout=0.4, noise=True), "hidden@2_tokens"),
        ("linear", MLPRouter(4, 2, [], bias=False, noise=True), "hidden_last"),
    ],
    ids=["attention", "published"],
)
def test_a_router_comes_back_with_its_noise_and_the_states_that_it_pools_itself(kind, router, feature, tmp_path):
    torch.manual_seed(0)
    for tensor in router.eval().state_dict().values():
        tensor.uniform_(0.5, 1.5)
    stored = StoredRouter(router, kind, ("b", "a"), feature, Selection(), {})
    save_router(tmp_path, stored, OTHER, {})
    found = load_router(tmp_path, OTHER)
    features = torch.randn(3, 4)
    reads = States(features, torch.tensor([1, 2])) if kind == "attention" else features
    assert found.decides(reads).equal(router(reads)) and found.router.noise.weight.equal(router.noise.weight)
    assert found.router.shape == router.shape and found.reads.pool == ("none" if kind == "attention" else "last")
    write_tensors(tmp_path / TENSORS, {n: t for n, t in copied(tmp_path / TENSORS).items() if n != "noise.bias"})
    written = ("format_version", "package_version", "files", "digest")
    write_manifest(tmp_path, {key: value for key, value in found.manifest.items() if key not in written})
    with pytest.raises(WeightsError, match=r"noise\.bias"):
        load_router(tmp_path, OTHER)


def test_a_router_without_a_manifest_or_of_an_unknown_kind_is_refused(parts, tmp_path):
    stored = dataclasses.replace(load_router(parts.folder / "router"), kind="oracle")
    save_router(tmp_path, stored, OTHER, {})
    with pytest.raises(WeightsError, match="router: unknown kind of router; expected .*; got oracle"):
        load_router(tmp_path)
    (tmp_path / MANIFEST).unlink()
    with pytest.raises(WeightsError, match=MANIFEST):
        load_router(tmp_path)


# --- mixtures ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_mixture_gives_the_same_logits_wherever_it_is_moved(parts, tmp_path):
    batch = prompts(parts)
    decoder = tiny_decoder(3, torch.float32, num_layers=2, vocab_size=parts.tokenizer.vocab_size)
    attach(decoder, [parts.experts["two"], parts.experts["one"]])  # in the router's order
    shutil.copytree(parts.folder / "mixture", tmp_path / "first")
    first = load_mixture(tmp_path / "first")
    routing = first.model.route(batch)
    expected = decoder(batch.ids, None, Gates.of(routing.weights)).logits
    assert first.model.names == ("two", "one") and list(first.experts) == ["one", "two"]
    assert routing.weights.min() > 0 and first.model.trunk == 0
    assert first.model.score(batch.ids, Gates.of(routing.weights)).equal(expected)
    logits, _ = prefilled(first.model, batch, 4)
    shutil.move(tmp_path / "first", tmp_path / "some where" / "else")
    again = load_mixture(tmp_path / "some where" / "else")
    assert again.model.route(batch).weights.equal(routing.weights)
    assert prefilled(again.model, batch, 4)[0].equal(logits)
    os.symlink(tmp_path / "some where" / "else", tmp_path / "link")
    assert prefilled(load_mixture(tmp_path / "link").model, batch, 4)[0].equal(logits)
    assert again.tokenizer.decode(batch.ids[0].tolist()) == "the sum of two"


def test_a_flipped_byte_in_any_file_of_a_mixture_is_refused_by_name(parts, tmp_path):
    folder = shutil.copytree(parts.folder / "mixture", tmp_path / "mixture")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(files) == 1 + 4 + 2 * 3 + 2
    for path in files:
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            data = bytearray(whole)
            data[place] ^= 1
            path.write_bytes(data)
            with pytest.raises(WeightsError) as refused:
                load_mixture(folder)
            assert str(path.relative_to(folder)) in str(refused.value.path)
        path.unlink()
        with pytest.raises(WeightsError) as refused:
            load_mixture(folder)
        assert path.name in str(refused.value)
        path.write_bytes(whole)
    load_mixture(folder)


def test_a_part_that_is_whole_but_another_is_refused(parts, tmp_path):
    """Same sizes, its own manifest in order: only the mixture's tells."""
    folder = shutil.copytree(parts.folder / "mixture", tmp_path / "mixture")
    shutil.rmtree(folder / "experts" / "one")
    (folder / "experts" / "one").mkdir()
    other = toy_expert(parts.decoder, 7, rank=2)
    save_expert(folder / "experts" / "one", other, parts.fingerprint, {"name": "one"})
    load_expert(folder / "experts" / "one", parts.fingerprint)
    with pytest.raises(WeightsError, match=r"experts/one/\S+: sha256: the file was changed or damaged"):
        load_mixture(folder)


def test_parts_of_another_base_do_not_make_a_mixture(parts, tmp_path, tokenizer):
    """Same sizes, other values: only the fingerprint tells."""
    decoder = tiny_decoder(4, torch.float32, num_layers=2, vocab_size=tokenizer.vocab_size)
    for name in ("base", "expert", "first", "second"):
        (tmp_path / name).mkdir()
    save_base(tmp_path / "base", decoder, tokenizer, {})
    experts = {name: parts.folder / name for name in ("one", "two")}
    save_mixture(tmp_path / "first", tmp_path / "base", experts, parts.folder / "router", {})
    with pytest.raises(CompatibilityError, match="the expert was trained on another base"):
        load_mixture(tmp_path / "first")
    fingerprint = load_base(tmp_path / "base").fingerprint
    save_expert(tmp_path / "expert", toy_expert(decoder, 1), fingerprint, {})
    mine = {"one": tmp_path / "expert", "two": tmp_path / "expert"}
    save_mixture(tmp_path / "second", tmp_path / "base", mine, parts.folder / "router", {})
    with pytest.raises(CompatibilityError, match="the router was trained on another base"):
        load_mixture(tmp_path / "second")


def test_a_router_of_other_experts_does_not_make_a_mixture(parts):
    router, expert = load_router(parts.folder / "router"), load_expert(parts.folder / "one")
    for names in (["one"], ["one", "two", "three"], ["one", "2"]):
        with pytest.raises(CompatibilityError, match=r"other experts; expected \['one', 'two'\]"):
            assemble(at_site("linear"), load_base(parts.folder / "base"), dict.fromkeys(names, expert), router)


def test_a_folder_of_one_kind_is_not_another(parts):
    for load, name in ((load_mixture, "base"), (load_router, "one"), (load_expert, "base"), (load_base, "one")):
        with pytest.raises(MoesaicError, match=r"kind: |config\.json|not a model"):
            load(parts.folder / name)


def test_a_mixture_reads_conversations_as_its_base_does(parts, tmp_path):
    special = Special(0, (0, 7), bos=5, start=(5,), names=(("bos_token", parts.tokenizer.inner.id_to_token(5)),))
    template = Template("{{ bos_token }}{% for m in messages %}{{ m.content }};{% endfor %}", special.names)
    tokenizer = Tokenizer(parts.tokenizer.inner, special, template)
    for name in ("base", "one", "two", "router", "mixture"):
        (tmp_path / name).mkdir()
    save_base(tmp_path / "base", parts.decoder, tokenizer, {})
    fingerprint = load_base(tmp_path / "base").fingerprint
    silent = [Tokenizer(tokenizer.inner, special), Tokenizer(tokenizer.inner, Special(0), template)]
    assert len({fingerprint, *(identify(parts.decoder, one) for one in silent)}) == 3
    for name, lora in parts.experts.items():
        save_expert(tmp_path / name, lora, fingerprint, {})
    save_router(tmp_path / "router", load_router(parts.folder / "router", parts.fingerprint), fingerprint, {})
    where = {name: tmp_path / name for name in parts.experts}
    save_mixture(tmp_path / "mixture", tmp_path / "base", where, tmp_path / "router", {})
    found = load_mixture(tmp_path / "mixture").tokenizer
    assert (found.special, found.template) == (special, template)
    assert found.begin((Message("user", "two"),)) == tokenizer.begin((Message("user", "two"),))
