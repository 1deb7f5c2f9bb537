"""Does a plan count what is there, from headers alone, and refuse what does not fit together or into memory?"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import moesaic
from moesaic.adapters import LoRA, attach
from moesaic.artefacts.adapter import save_expert
from moesaic.artefacts.base import identify, load_base, save_base
from moesaic.artefacts.ffn import save_ffn
from moesaic.artefacts.router import StoredRouter, save_router
from moesaic.artefacts.whole_model import save_whole
from moesaic.compose.composition import perceptron
from moesaic.compose.mixture import load_mixture, save_mixture
from moesaic.compose.plan import plan
from moesaic.config import PUBLISHED
from moesaic.errors import CompatibilityError, MemoryLimitError, RecipeError, WeightsError
from moesaic.files import disk, read_json, write_json
from moesaic.model.decoder import Decoder
from moesaic.model.whole import ModelMixture
from moesaic.routing import Selection
from moesaic.routing.routers import MLPRouter
from moesaic.tensors.file_names import TENSORS
from moesaic.tensors.safetensors_file import Opened, Stored
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.testing import tiny_decoder, toy_ffn
from moesaic.tokenizer import Tokenizer

SIZES = {"llama-3-8b": 8_030_261_248, "llama-3-70b": 70_553_706_496, "gemma-3-270m": 268_098_176}
SIZES |= {"llama-3.2-1b": 1_235_814_400, "qwen2-0.5b": 494_032_768, "mixtral-8x7b": 46_702_792_704}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["the sum of two and two is four"], 275)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Three models of one shape, two adapters of different ranks for the first, and a mixture of these."""
    folder = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("one", "two", "three")):
        disk.make_all(folder / name)
        save_base(folder / name, small(seed), tokenizer, {})
    base, generator = small(0), torch.Generator().manual_seed(0)
    fingerprint, experts = identify(base, tokenizer), {}
    for name, rank, targets in (("thin", 2, ["q_proj"]), ("thick", 5, ["q_proj", "up_proj"])):
        experts[name] = folder / name
        disk.make_all(folder / name)
        save_expert(folder / name, LoRA.fresh(base, rank, 8.0, targets, range(3), generator), fingerprint, {})
    disk.make_all(folder / "router")
    stored = StoredRouter(MLPRouter(32, 2, [7]), "mlp", ("thin", "thick"), "hidden_mean", Selection(kind="soft"), {})
    save_router(folder / "router", stored, fingerprint, {})
    disk.make_all(folder / "mixture")
    facts = {"name": "small", "site": "linear", "level": "sequence", "prompt_tokens": 64}
    save_mixture(folder / "mixture", folder / "one", experts, folder / "router", facts)
    return folder


def small(seed: int) -> Decoder:
    return tiny_decoder(seed, torch.float32, vocab_size=300)


def held(module: torch.nn.Module) -> int:
    """Bytes of a module's parameters and buffers, each place in memory counted once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_published_size_is_answered_without_files(name: str) -> None:
    found = plan(name)
    assert found.compatible and found.fits is None and found.dtype == "bfloat16"
    assert found.parameters == SIZES.get(name, found.parameters) and found.parameters > 2e8
    assert found.by_dtype["float32"] == 2 * found.by_dtype["bfloat16"] == 2 * found.resident


def test_a_model_weighs_what_it_does_when_it_is_loaded(models: Path) -> None:
    found = plan(models / "one")
    assert found.resident == held(moesaic.load_model(models / "one"))
    assert {part.name for part in found.parts if part.role == "shared"} == {
        *("embeddings", "attention", "norms", "ffn", "rotary positions")
    }


def test_another_type_is_counted_as_it_is_computed(models: Path, tmp_path: Path) -> None:
    for name, dtype in (("half", torch.float16), ("brain", torch.bfloat16)):
        tensors = {k: tensor.to(dtype) for k, tensor in read_tensors(models / "one" / TENSORS).items()}
        disk.make_all(tmp_path / name)
        write_tensors(tmp_path / name / TENSORS, tensors)
        config = read_json(models / "one" / "config.json")
        write_json(tmp_path / name / "config.json", {**config, "dtype": str(dtype), "torch_dtype": str(dtype)})
    with pytest.warns(UserWarning, match="float16 is read as float32"):
        assert plan(tmp_path / "half").resident == held(moesaic.load_model(tmp_path / "half"))
    found = plan(tmp_path / "brain")
    assert found.resident == held(moesaic.load_model(tmp_path / "brain")) and found.dtype == "bfloat16"
    assert plan(tmp_path / "brain", dtype="float32").resident == plan(models / "one").resident


def test_a_mixture_weighs_what_it_does_when_it_is_loaded(models: Path) -> None:
    found, stored = plan(models / "mixture"), load_mixture(models / "mixture")
    router = held(stored.model.router)  # type: ignore[arg-type]
    scales = sum(b.numel() * 4 for name, b in stored.model.decoder.named_buffers() if name.endswith(".scale"))
    assert found.resident == held(stored.model.decoder) + router - scales
    assert found.bytes_of("router") == router and (found.site, found.active) == ("linear", 2)
    assert [part.parameters for part in found.parts if part.role == "expert"] == [
        expert.lora.num_parameters for expert in stored.experts.values()
    ]


def test_a_run_is_planned_by_its_mixture(models: Path, tmp_path: Path) -> None:
    (tmp_path / "mixture").symlink_to(models / "mixture")
    assert plan(tmp_path).parts == plan(models / "mixture").parts


def test_adapters_are_counted_as_they_are_attached(models: Path) -> None:
    found = plan(models / "thin", models / "thick", base=models / "one")
    decoder = small(0)
    before = held(decoder)
    attach(decoder, [stored.lora for stored in load_mixture(models / "mixture").experts.values()])
    scales = sum(b.numel() * 4 for name, b in decoder.named_buffers() if name.endswith(".scale"))
    assert found.bytes_of("expert") == held(decoder) - before - scales
    assert [part.name for part in found.parts if part.role == "expert"] == ["thin", "thick"]
    assert found.bytes_of("router") == 4 * perceptron(32, (256,), 2) == held(MLPRouter(32, 2, [256]))


def test_at_site_ffn_only_feed_forward_blocks_are_added(models: Path) -> None:
    found = plan(models / "two", models / "three", base=models / "one", site="ffn")
    blocks = sum(p.numel() * 4 for name, p in small(0).named_parameters() if ".mlp." in name)
    assert found.compatible and found.bytes_of("expert") == 2 * blocks
    assert found.bytes_of("shared") == plan(models / "one").resident


def test_at_site_model_each_model_counts_whole_and_the_base_once(models: Path) -> None:
    found = plan(models / "one", models / "two", models / "three")
    whole = held(small(0))
    assert (found.site, found.bytes_of("expert")) == ("model", 2 * whole)
    assert plan(models / "two", models / "three", base=models / "one").bytes_of("expert") == 2 * whole


def composed(models: Path, to: Path, site: str, write: Callable[[Path, int], None], names: list[str]) -> Path:
    """A mixture in `to` of experts of the first model that `write` puts into folders."""
    for seed, name in enumerate(names, 1):
        disk.make_all(to / name)
        write(to / name, seed)
    stored = StoredRouter(MLPRouter(32, len(names), [7]), "mlp", tuple(names), "hidden_mean", Selection(), {})
    disk.make_all(to / "router")
    save_router(to / "router", stored, load_base(models / "one").fingerprint, {})
    disk.make_all(to / "mixture")
    facts = {"name": "small", "site": site, "level": "sequence", "prompt_tokens": 64}
    facts |= {"combine": "mixture"} if site == "model" else {}
    save_mixture(to / "mixture", models / "one", {name: to / name for name in names}, to / "router", facts)
    return to / "mixture"


def test_a_mixture_of_blocks_weighs_what_it_does_when_it_is_loaded(models: Path, tmp_path: Path) -> None:
    base = load_base(models / "one")

    def write(folder: Path, seed: int) -> None:
        save_ffn(folder, toy_ffn(base.decoder, seed), base.fingerprint, {})

    folder = composed(models, tmp_path, "ffn", write, ["a", "b"])
    found, stored = plan(folder), load_mixture(folder)
    assert found.resident == held(stored.model)  # type: ignore[arg-type]
    assert (found.site, found.active) == ("ffn", 1) and found.compatible
    assert plan(tmp_path / "a", tmp_path / "b", base=models / "one").bytes_of("expert") == found.bytes_of("expert")
    wide = plan(tmp_path / "a", base="llama-3-8b").refused
    assert len(wide) == 9 and wide[0].field == "model.layers.0.mlp.down_proj.weight"


def test_a_mixture_of_models_weighs_what_they_share_once(models: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    def write(folder: Path, seed: int) -> None:
        decoder, other = small(0), small(seed)
        for layer, theirs in zip(decoder.layers, other.layers, strict=True):
            layer.mlp = theirs.mlp
        save_whole(folder, decoder, tokenizer, load_base(models / "one").fingerprint, {})

    folder = composed(models, tmp_path, "model", write, ["a", "b"])
    found, model = plan(folder), load_mixture(folder).model
    assert isinstance(model, ModelMixture)
    whose = model.own.numel() * model.own.element_size()  # which expert is which decoder: no weight
    assert found.resident == held(model) - whose
    blocks = sum(p.numel() for name, p in small(0).named_parameters() if ".mlp." in name)
    assert [part.parameters for part in found.parts if part.role == "expert"] == [blocks, blocks]


def test_every_active_model_has_a_cache_of_its_own(models: Path) -> None:
    def cache(active: int, site: str) -> int:
        found = plan(
            *(models / name for name in ("one", "two", "three")), site=site, active=active, context=10, batch=3
        )
        return next(part.bytes for part in found.parts if part.name == "key/value cache")

    one = 2 * 3 * 2 * 8 * 10 * 3 * 4  # keys and values, layers, heads, their width, tokens, rows, bytes
    assert [cache(active, "model") for active in (1, 2, 3)] == [one, 2 * one, 3 * one]
    assert cache(2, "ffn") == one


BESIDE = "AdamW and the best values"


def test_training_counts_moments_and_best_values_of_one_expert(models: Path) -> None:
    found = plan(models / "thin", models / "thick", base=models / "one", training=True)
    (optimiser,) = (part for part in found.parts if part.name == BESIDE)
    assert optimiser.bytes == 3 * 4 * load_mixture(models / "mixture").experts["thick"].lora.num_parameters
    (alone,) = (part for part in plan(models / "one", training=True).parts if part.name == BESIDE)
    assert alone.bytes == 3 * sum(p.numel() * 4 for p in small(0).parameters())


def test_a_lora_of_a_rank_is_planned_over_layers_in_few_bits() -> None:
    """The layers of an 8B model in 4 bits, and activations of inputs alone, leave room for training in 17 GB."""
    shared = {"training": True, "rank": 8, "batch": 1, "context": 512}
    whole, small = plan("llama-3-8b", **shared), plan("llama-3-8b", **shared, bits=4, recompute=True, vram="17GB")
    lora = next(part for part in small.parts if part.role == "expert")
    assert (lora.name, lora.parameters, small.recompute) == ("lora of rank 8", 20_971_520, True)
    assert small.parameters == whole.parameters
    assert small.fits and small.resident < 6e9 < 16e9 < whole.resident and small.working < whole.working


def test_whole_models_are_not_trained_in_few_bits_and_recompute_belongs_to_training() -> None:
    with pytest.raises(RecipeError, match="bits: a whole model is trained in all its bits"):
        plan("llama-3-8b", training=True, bits=4)
    with pytest.raises(RecipeError, match="recompute: has no effect here"):
        plan("llama-3-8b", recompute=True)
    with pytest.raises(RecipeError, match="bits: unknown; expected 8 or 4"):
        plan("llama-3-8b", bits=3)


def test_a_recipe_is_planned_as_it_would_be_made(models: Path, tmp_path: Path) -> None:
    data = "data: {train: x.jsonl, test: y.jsonl}"
    experts = f"{{a: {{kind: lora, rank: 5, targets: [q_proj], {data}}}, b: {{kind: lora, rank: 2, {data}}}}}"
    router = "{kind: mlp, hidden: [7], selection: top_k, k: 2}"
    text = f"name: small\nbase: {{path: {models / 'one'}}}\nexperts: {experts}\nrouter: {router}\n"
    path = tmp_path / "recipe.yaml"
    disk.create(path, text.encode())
    found = plan(path)
    sizes = {part.name: part.parameters for part in found.parts if part.role != "shared"}
    generator = torch.Generator()
    assert sizes["a"] == LoRA.fresh(small(0), 5, 1.0, ["q_proj"], range(3), generator).num_parameters
    assert found.bytes_of("router") == held(MLPRouter(32, 2, [7])) and found.active == 2
    disk.unlink(path)
    fresh = text.replace(f"{{path: {models / 'one'}}}", "{size: nano, vocab_size: 300, pretrain: {steps: 1}}")
    disk.create(path, fresh.encode())
    assert plan(path).dtype == "float32" and plan(path).parts[0].parameters == 300 * 32


def test_a_recipe_of_the_package_is_planned_by_its_name() -> None:
    found = plan("demo")
    assert [part.name for part in found.parts if part.role == "expert"] == ["code", "dialogue", "math", "prose"]


def test_blocks_and_whole_models_that_a_recipe_trains_are_planned(models: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "recipe.yaml", "data: {train: x.jsonl, test: y.jsonl}"
    for kind, more, size in (
        ("ffn", "", 3 * 3 * 32 * 48),
        ("ffn", "layers: 1..2, ", 3 * 32 * 48),
        ("model", "", sum(weight.numel() for weight in small(0).parameters())),
    ):
        experts = f"{{a: {{kind: {kind}, {more}{data}}}, b: {{kind: {kind}, {data}}}}}"
        text = f"name: small\nbase: {{path: {models / 'one'}}}\nexperts: {experts}\nrouter: {{kind: linear}}\n"
        disk.create(path, text.encode())
        found = plan(path)
        disk.unlink(path)
        assert found.site == kind
        assert {part.name: part.parameters for part in found.parts if part.role != "shared"}["a"] == size


def test_gates_of_a_recipe_are_planned(models: Path, tmp_path: Path) -> None:
    path, data = tmp_path / "recipe.yaml", "data: {train: x.jsonl, test: y.jsonl}"
    experts = f"{{a: {{kind: ffn, {data}}}, b: {{kind: ffn, {data}}}}}"
    text = f"name: small\nbase: {{path: {models / 'one'}}}\nexperts: {experts}\nrouter: {{kind: gates}}\n"
    disk.create(path, f"{text}mixture: {{level: token}}\n".encode())
    found = plan(path)
    assert {part.role: part.parameters for part in found.parts}["router"] == 3 * 2 * 32 and found.active == 2


def test_nothing_but_headers_is_read(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, described = [], Opened.stored

    def told(self: Opened, name: str) -> Stored:
        read.append(name)
        return described(self, name)

    monkeypatch.setattr(Opened, "stored", told)  # asked for whenever a tensor is fetched
    for found in (plan(models / "mixture"), plan(models / "one", models / "two"), plan("llama-3-8b")):
        assert found.compatible and not read
    moesaic.load_model(models / "one")
    assert read


def damaged(models: Path, to: Path, **changes: object) -> Path:
    """A copy of a model with another config.json."""
    disk.make_all(to)
    for file in ("tokenizer.json", TENSORS):
        disk.copy(models / "one" / file, to / file)
    found = json.loads((models / "one" / "config.json").read_text()) | changes
    disk.create(to / "config.json", json.dumps(found).encode())
    return to


def test_a_model_that_is_not_as_its_config_says_is_refused_by_its_tensors(models: Path, tmp_path: Path) -> None:
    found = plan(damaged(models, tmp_path / "wide", intermediate_size=50, tie_word_embeddings=False))
    told = {one.field: one.own for one in found.refused}
    assert told["lm_head.weight"] == "missing, [300, 32]"
    assert told["model.layers.0.mlp.up_proj.weight"] == "[48, 32] instead of [50, 32]"
    with pytest.raises(CompatibilityError, match="does not match its config"):
        found.require()


def test_a_differing_config_and_its_tensors_are_both_told(models: Path, tmp_path: Path) -> None:
    other = damaged(models, tmp_path / "other", rms_norm_eps=1e-3, torch_dtype="float16")
    found = plan(models / "one", other, site="ffn")
    assert {one.field: one.allowed is None for one in found.differences} == {"rms_norm_eps": True, "torch_dtype": False}
    with pytest.raises(CompatibilityError, match=r"other: rms_norm_eps: .*; expected 1e-05; got 0.001"):
        found.require()


def test_what_contradicts_itself_is_named_by_the_field_that_was_changed(models: Path, tmp_path: Path) -> None:
    other = damaged(models, tmp_path / "other", rope_theta=77.0)
    with pytest.raises(WeightsError, match="differs from the base's in rope_theta"):
        plan(models / "one", other, site="ffn")


def test_an_adapter_of_another_base_is_refused_by_its_linears(models: Path, tmp_path: Path) -> None:
    wide = tiny_decoder(0, torch.float32, vocab_size=300, hidden_size=64)
    expert = LoRA.fresh(wide, 2, 4.0, ["q_proj"], range(3), torch.Generator())
    save_expert(tmp_path, expert, "elsewhere", {})
    found = plan(tmp_path, base=models / "one")
    assert [one.field for one in found.refused] == [f"layers.{n}.self_attn.q_proj" for n in range(3)]
    assert (found.refused[0].base, found.refused[0].own) == ("[32, 32]", "[64, 64]")


def test_a_budget_says_what_is_missing(models: Path) -> None:
    found = plan(models / "one", vram=1000)
    assert found.fits is False and found.placement
    assert found.placement.missing == found.resident + found.working - 1000
    with pytest.raises(MemoryLimitError, match=f"device 0: the plan does not fit: {found.placement.missing:,} bytes"):
        found.require()
    plan(models / "one", ram="1GB").require()


def test_seventeen_gigabytes_hold_four_whole_models_and_not_sixteen() -> None:
    four = plan(*["llama-3.2-1b"] * 4, site="model", vram="17GB", ram="32GB", devices=2)
    assert four.fits and four.placement and not four.placement.fetched
    sixteen = plan(*["llama-3.2-1b"] * 16, site="model", vram="17GB", ram="32GB", devices=2)
    assert sixteen.fits and sixteen.placement and sixteen.placement.fetched > 1e9
    assert plan(*["llama-3.2-1b"] * 16, site="ffn", vram="17GB", devices=2).resident < sixteen.resident


def test_a_first_model_before_adapters_is_their_base(models: Path) -> None:
    assert plan(models / "one", models / "thin") == plan(models / "thin", base=models / "one")


def test_what_cannot_be_meant_is_refused_by_name(models: Path) -> None:
    with pytest.raises(RecipeError, match="need their base"):
        plan(models / "thin")
    with pytest.raises(RecipeError, match="cannot be mixed at site ffn"):
        plan(models / "thin", base=models / "one", site="ffn")
    with pytest.raises(RecipeError, match="given twice"):
        plan(models / "one", models / "one")
    with pytest.raises(CompatibilityError, match="a sparse base"):
        plan("mixtral-8x7b", "mixtral-8x7b", site="ffn")
    with pytest.raises(WeightsError, match="did you mean 'llama-3-8b'"):
        plan("llama-3-8B")
    with pytest.raises(RecipeError, match="longer than the model's context"):
        plan(models / "one", context=65)
    for wrong in ({"site": "head"}, {"dtype": "int3"}, {"batch": 0}, {"devices": 0}, {"bandwidth": (0.0, 1.0)}):
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            plan(models / "one", **wrong)  # type: ignore[arg-type]


def test_all_of_it_is_plain_data(models: Path) -> None:
    told = json.loads(json.dumps(plan(models / "mixture", vram="1GB").told()))
    assert told["compatible"] and told["fits"] and told["resident"] == plan(models / "mixture").resident
    assert {part["role"] for part in told["parts"]} == {"shared", "expert", "router", "working"}
