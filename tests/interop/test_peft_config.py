"""Is every adapter that is broken, or no plain LoRA, refused by file and field; do the options mean what they do?

The same options against peft itself are in test_peft_parity.py.
"""

import json
import shutil

import pytest
import torch

from moesaic.adapters import LoRA
from moesaic.artefacts.adapter import StoredExpert, load_expert, save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.errors import MoesaicError
from moesaic.files import MANIFEST
from moesaic.interop.peft_config import PLAIN
from moesaic.interop.peft_tensors import ROOT
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.testing import tiny_decoder, toy_expert
from moesaic.tokenizer import Tokenizer

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
Q = "base_model.model.model.layers.1.self_attn.q_proj"
DOWN = "base_model.model.model.layers.1.mlp.down_proj"
A, B = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"


@pytest.fixture(scope="module")
def decoder(parts):
    return load_base(parts.folder / "base").decoder


@pytest.fixture
def two(parts, tmp_path):
    """A foreign adapter of q_proj and down_proj in layer 1, of rank 3, over the base of `parts`."""
    folder = shutil.copytree(parts.folder / "two", tmp_path / "two")
    (folder / MANIFEST).unlink()
    return folder


def config(folder, **changes):
    (folder / CONFIG).write_text(json.dumps({**json.loads((folder / CONFIG).read_text()), **changes}))


def tensors(folder, *without, **changes):
    found = {name: tensor.clone() for name, tensor in read_tensors(folder / ADAPTER).items() if name not in without}
    write_tensors(folder / ADAPTER, {**found, **changes})


def named(**changes):
    return lambda folder: config(folder, **changes)


def held(*without, **changes):
    return lambda folder: tensors(folder, *without, **changes)


def unparsable(folder):
    (folder / CONFIG).write_text("{")


def pickled(folder):
    (folder / ADAPTER).rename(folder / "adapter_model.bin")


def cut(folder):
    (folder / ADAPTER).write_bytes((folder / ADAPTER).read_bytes()[:-9])


def inner(folder):
    (folder / "mine").mkdir()
    (folder / CONFIG).rename(folder / "mine" / CONFIG)


WEIGHTS, COMPATIBILITY = 4, 5
HEAD, EMBEDDING = f"{ROOT}lm_head.weight", f"{ROOT}model.embed_tokens.weight"
BROKEN = {  # what was done to it: (how, exit code, file, field, what is said)
    "missing B": (held(B), WEIGHTS, ADAPTER, "layers.1.self_attn.q_proj", "half of a pair"),
    "missing A": (held(A), WEIGHTS, ADAPTER, "layers.1.self_attn.q_proj", "half of a pair"),
    "A transposed": (held(**{A: torch.zeros(32, 3)}), WEIGHTS, ADAPTER, A, "another rank; expected 3"),
    "B transposed": (held(**{B: torch.zeros(3, 32)}), WEIGHTS, ADAPTER, B, "another rank; expected 3"),
    "NaN": (held(**{A: torch.full((3, 32), float("nan"))}), WEIGHTS, ADAPTER, A, "NaN or infinity"),
    "infinity": (held(**{B: torch.full((32, 3), float("inf"))}), WEIGHTS, ADAPTER, B, "NaN or infinity"),
    "another width": (held(**{A: torch.zeros(3, 16)}), COMPATIBILITY, ADAPTER, A, r"\[3, 32\]; got \[3, 16\]"),
    "another height": (held(**{B: torch.zeros(48, 3)}), COMPATIBILITY, ADAPTER, B, r"\[32, 3\]; got \[48, 3\]"),
    "another rank": (named(r=2), WEIGHTS, ADAPTER, None, "another rank; expected 2"),
    "no rank": (named(r=None), WEIGHTS, CONFIG, "r, lora_alpha", "missing"),
    "rank 0": (named(r=0), WEIGHTS, CONFIG, "r", "from 1 to"),
    "a rank that is true": (named(r=True), WEIGHTS, CONFIG, "r", "from 1 to"),
    "no alpha": (named(lora_alpha=None), WEIGHTS, CONFIG, "r, lora_alpha", "missing"),
    "alpha in words": (named(lora_alpha="16"), WEIGHTS, CONFIG, "lora_alpha", "expected a number"),
    "a rank by pattern": (named(rank_pattern={"q_proj": 2}), WEIGHTS, ADAPTER, A, "another rank; expected 2"),
    "a pattern of text": (named(rank_pattern={"q_proj": "2"}), WEIGHTS, CONFIG, "rank_pattern", "wrong value"),
    "patterns in a list": (named(alpha_pattern=[1]), WEIGHTS, CONFIG, "alpha_pattern", "expected a table"),
    "no expression": (named(rank_pattern={"q_(": 3}), WEIGHTS, CONFIG, "rank_pattern", "regular expression"),
    "a group without end": (named(rank_pattern={"(.*)*Z": 3}), WEIGHTS, CONFIG, "rank_pattern", "may take for ever"),
    "a slow one": (named(rank_pattern={".*a.*b.*c.*d.*e.*f": 3}), WEIGHTS, CONFIG, "rank_pattern", "may take for ever"),
    "an endless choice": (named(target_modules="(a+)+b"), WEIGHTS, CONFIG, "target_modules", "may take for ever"),
    "an endless one": (named(target_modules="q" * 2000), WEIGHTS, CONFIG, "target_modules", "longer than"),
    "rslora maybe": (named(use_rslora="yes"), WEIGHTS, CONFIG, "use_rslora", "expected true or false"),
    "no targets": (named(target_modules=None), WEIGHTS, CONFIG, "target_modules", "missing"),
    "fewer targets": (named(target_modules=["q_proj"]), WEIGHTS, CONFIG, "target_modules", "does not target"),
    "more targets": (
        named(target_modules=["q_proj", "down_proj", "v_proj"]),
        *(WEIGHTS, CONFIG, "target_modules", r"holds no pair for: layers\.1\.self_attn\.v_proj"),
    ),
    "a part of a name": (
        named(target_modules=r".*layers\.1\.(self_attn\.q_pro|mlp\.down_proj)"),
        *(WEIGHTS, CONFIG, "target_modules", "does not target"),
    ),
    "more layers": (named(layers_to_transform=None), WEIGHTS, CONFIG, "target_modules", "holds no pair for"),
    "other layers": (named(layers_to_transform=[0]), WEIGHTS, CONFIG, "target_modules", "does not target"),
    "layers of text": (named(layers_to_transform=["1"]), WEIGHTS, CONFIG, "layers_to_transform", "wrong value"),
    "excluded": (named(exclude_modules=["q_proj"]), WEIGHTS, CONFIG, "target_modules", "does not target"),
    "the head": (
        named(target_modules="model.*|lm_head"),
        *(WEIGHTS, CONFIG, "target_modules", "holds no pair for|targets the head"),
    ),
    "a head to save": (named(modules_to_save=["lm_head"]), WEIGHTS, CONFIG, "modules_to_save", "'lm_head' is missing"),
    "a classifier": (named(modules_to_save=["score"]), WEIGHTS, CONFIG, "modules_to_save", "'score' is missing"),
    "another head": (held(**{HEAD: torch.ones(265, 32)}), COMPATIBILITY, ADAPTER, HEAD, "away from it"),
    "more words": (held(**{EMBEDDING: torch.ones(266, 32)}), COMPATIBILITY, ADAPTER, EMBEDDING, r"\[266, 32\]"),
    "an adapted head": (
        held(**{f"{ROOT}lm_head.lora_A.weight": torch.zeros(3, 32)}),
        *(WEIGHTS, ADAPTER, f"{ROOT}lm_head.lora_A.weight", "the head is adapted, which is not adopted"),
    ),
    "magnitudes": (
        held(**{f"{Q}.lora_magnitude_vector": torch.ones(32)}),
        *(WEIGHTS, ADAPTER, f"{Q}.lora_magnitude_vector", "DoRA"),
    ),
    "a bias": (held(**{f"{Q}.lora_B.bias": torch.ones(32)}), WEIGHTS, ADAPTER, f"{Q}.lora_B.bias", "bias in B"),
    "a norm": (
        held(**{f"{ROOT}model.norm.weight": torch.zeros(32)}),
        *(COMPATIBILITY, ADAPTER, f"{ROOT}model.norm.weight", "'norm' is stored whole and is not the base's"),
    ),
    "without its prefix": (
        held(A, **{"layers.1.self_attn.q_proj.lora_A.weight": torch.zeros(3, 32)}),
        *(WEIGHTS, ADAPTER, "layers.1.self_attn.q_proj.lora_A.weight", "not a LoRA tensor"),
    ),
    "a default in it": (
        held(**{f"{Q}.lora_A.default.weight": torch.zeros(3, 32)}),
        *(WEIGHTS, ADAPTER, f"{Q}.lora_A.default.weight", "leaves 'default' out"),
    ),
    "bytes": (held(**{A: torch.zeros(3, 32, dtype=torch.int8)}), WEIGHTS, ADAPTER, A, "another type; .*got int8"),
    "nothing": (held(A, B, f"{DOWN}.lora_A.weight", f"{DOWN}.lora_B.weight"), WEIGHTS, ADAPTER, None, "no pair"),
    "a pickle": (pickled, WEIGHTS, "adapter_model.bin", None, "pickle.*save_pretrained"),
    "cut off": (cut, WEIGHTS, ADAPTER, None, "safetensors"),
    "no JSON": (unparsable, WEIGHTS, CONFIG, None, "not usable as JSON"),
    "in a folder in it": (inner, WEIGHTS, None, None, "one is in a folder in it: mine"),
    "a setting of tomorrow": (named(use_mora=True), WEIGHTS, CONFIG, "use_mora", "unknown setting"),
    "X-LoRA": (named(peft_type="XLORA"), WEIGHTS, CONFIG, "peft_type", "one by one"),
    "IA3": (named(peft_type="IA3"), WEIGHTS, CONFIG, "peft_type", "not plain LoRA"),
    "PiSSA": (named(init_lora_weights="pissa_niter_4"), WEIGHTS, CONFIG, "init_lora_weights", "PiSSA"),
    "LoftQ": (named(loftq_config={"loftq_bits": 4}), WEIGHTS, CONFIG, "loftq_config", "LoftQ"),
    "packed experts": (named(target_parameters=["gate_up"]), WEIGHTS, CONFIG, "target_parameters", "no pair for"),
    "aLoRA": (named(alora_invocation_tokens=[1]), WEIGHTS, CONFIG, "alora_invocation_tokens", "aLoRA"),
    "Arrow": (named(arrow_config={"top_k": 1}), WEIGHTS, CONFIG, "arrow_config", "adopt the adapters"),
    "another task": (named(task_type="SEQ_CLS"), WEIGHTS, CONFIG, "task_type", "another task"),
}


@pytest.mark.parametrize(("how", "code", "file", "field", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_adapter_is_refused_by_file_and_field(how, code, file, field, said, two, decoder):
    load_expert(two, decoder=decoder)
    how(two)
    with pytest.raises(MoesaicError, match=said) as refused:
        load_expert(two, decoder=decoder)
    error = refused.value
    assert error.exit_code == code and str(error.path) == str(two / file if file else two)
    assert field is None or error.field == field


@pytest.mark.parametrize("setting", PLAIN)
def test_what_is_more_than_lora_is_refused_with_what_to_do(setting, two):
    config(two, **{setting: ["something"]})
    with pytest.raises(MoesaicError) as refused:
        load_expert(two)
    assert refused.value.field == setting and refused.value.hint and refused.value.path == two / CONFIG


def test_settings_that_change_nothing_and_those_missing_are_no_reason_to_refuse(two, decoder):
    plain = load_expert(two, decoder=decoder).lora
    config(two, lora_dropout=0.3, qalora_group_size=16, megatron_core="megatron.core", revision="main", use_new=False)
    assert load_expert(two, decoder=decoder).lora.scale == plain.scale
    said = json.loads((two / CONFIG).read_text())
    keys = ("peft_type", "r", "lora_alpha", "target_modules", "layers_to_transform")
    (two / CONFIG).write_text(json.dumps({key: said[key] for key in keys}))
    assert load_expert(two, decoder=decoder).lora.pairs.keys() == plain.pairs.keys()


def test_a_pattern_holds_for_the_first_that_a_name_ends_with_at_a_dot(two):
    down, q = "layers.1.mlp.down_proj", "layers.1.self_attn.q_proj"

    def alphas(**patterns):
        config(two, lora_alpha=6, alpha_pattern=patterns)
        return {path: load_expert(two).lora.scale_of(path) for path in (down, q)}

    assert alphas() == {down: 2, q: 2}
    assert alphas(q_proj=3, proj=30) == {down: 2, q: 1}, "'proj' is the end of a word, not of a name"
    assert alphas(**{r"layers\.[01]\..*": 9, "q_proj": 3}) == {down: 3, q: 3}, "the first that matches, in their order"
    assert alphas(**{"self_attn.q_proj": 9, "mlp": 30}) == {down: 2, q: 3}, "up to its end"
    assert alphas(**{"model.layers.1.mlp.down_proj": 9}) == {down: 3, q: 2}


def test_rank_stabilised_lora_takes_the_root_of_each_modules_own_rank(two, parts):
    down = f"{DOWN}.lora_"
    tensors(two, **{f"{down}A.weight": torch.zeros(4, 48), f"{down}B.weight": torch.zeros(32, 4)})
    config(two, use_rslora=True, lora_alpha=6, rank_pattern={"down_proj": 4}, alpha_pattern={"down_proj": 8})
    lora = load_expert(two).lora
    assert lora.scale_of("layers.1.mlp.down_proj") == pytest.approx(8 / 4**0.5, rel=1e-12)
    assert lora.scale_of("layers.1.self_attn.q_proj") == pytest.approx(6 / 3**0.5, rel=1e-12)
    assert lora.scale_of("layers.0.self_attn.q_proj") == 0


@pytest.mark.parametrize(
    "targets",
    [r".*layers\.1\.(self_attn\.q|mlp\.down)_proj", ["model.layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"]],
)
def test_targets_may_be_an_expression_or_whole_names(targets, two, decoder):
    config(two, target_modules=targets, layers_to_transform=None)
    assert len(load_expert(two, decoder=decoder).lora.pairs) == 2


def test_all_linear_is_every_linear_but_the_head(parts, tmp_path, decoder):
    folder = shutil.copytree(parts.folder / "one", tmp_path / "one")
    (folder / MANIFEST).unlink()
    config(folder, target_modules="all-linear", layers_to_transform=None)
    assert len(load_expert(folder, decoder=decoder).lora.pairs) == 2 * 7
    tensors(folder, A, B)
    with pytest.raises(MoesaicError, match=r"target_modules: .*holds no pair for: layers\.1\.self_attn\.q_proj"):
        load_expert(folder, decoder=decoder)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_that_is_the_bases_own_is_accepted_beside_the_base(dtype, two, decoder):
    own = decoder.get_parameter("embed_tokens.weight").detach().to(dtype)
    tensors(two, **{EMBEDDING: own})
    config(two, modules_to_save=["embed_tokens"])
    load_expert(two, decoder=decoder)
    with pytest.raises(MoesaicError, match="read it together with its base") as refused:
        load_expert(two)
    assert refused.value.field == EMBEDDING


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_read_as_float32(dtype, two, parts):
    halves = {name: tensor.to(dtype) for name, tensor in read_tensors(two / ADAPTER).items()}
    write_tensors(two / ADAPTER, halves)
    a, b = load_expert(two).lora.pairs["layers.1.self_attn.q_proj"]
    assert a.dtype == b.dtype == torch.float32 and a.equal(halves[A].float()) and b.equal(halves[B].float().t())


@pytest.fixture
def sparse(tmp_path):
    """A decoder with sparse ffns, and an adapter of its attention, as transformers and PEFT know it."""
    decoder = tiny_decoder(1, torch.float32, num_layers=2, num_experts=3, experts_per_token=2)
    (tmp_path / "sparse").mkdir()
    save_expert(tmp_path / "sparse", toy_expert(decoder, 1, targets=["q_proj", "v_proj"]), "0" * 64, {})
    (tmp_path / "sparse" / MANIFEST).unlink()
    return decoder, tmp_path / "sparse"


@pytest.mark.parametrize(
    "targets", [["q_proj", "v_proj"], ["q_proj", "v_proj", "gate", "w1"], r".*\.(q|v|up|down)_proj"]
)
def test_over_a_sparse_base_an_adapter_of_the_attention_alone_is_read(targets, sparse):
    decoder, folder = sparse
    config(folder, target_modules=targets, layers_to_transform=None)
    assert len(load_expert(folder, decoder=decoder).lora.pairs) == 2 * 2
    config(folder, target_modules=["q_proj", "v_proj", "k_proj"])
    with pytest.raises(MoesaicError, match=r"holds no pair for: layers\.0\.self_attn\.k_proj"):
        load_expert(folder, decoder=decoder)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("block_sparse_moe.experts.0.w1", "mlp.experts.0.gate_proj"),
        ("mlp.experts.2.up_proj", "mlp.experts.2.up_proj"),
        ("block_sparse_moe.gate", "mlp.gate"),
    ],
)
def test_the_names_of_both_versions_of_transformers_are_read(theirs, ours, sparse):
    decoder, folder = sparse
    name, rows = f"{ROOT}model.layers.0.{theirs}", 3 if theirs.endswith("gate") else 48
    tensors(folder, **{f"{name}.lora_A.weight": torch.ones(3, 32), f"{name}.lora_B.weight": torch.ones(rows, 3)})
    config(folder, target_modules="all-linear", layers_to_transform=None, exclude_modules=["k_proj", "o_proj"])
    assert load_expert(folder, decoder=decoder).lora.pairs[f"layers.0.{ours}"][1].shape == (3, rows)


def mixed(decoder) -> LoRA:
    """Other ranks and alphas in some modules, and not every target in every layer."""
    small, large = toy_expert(decoder, 1, rank=2, targets=["q_proj"]), toy_expert(decoder, 2, rank=5)
    pairs = {**small.pairs, "layers.1.mlp.up_proj": large.pairs["layers.1.mlp.up_proj"]}
    return LoRA(2, 4.0, pairs, {"layers.1.mlp.up_proj": 7.0, "layers.0.self_attn.q_proj": 1.5})


def test_an_expert_of_many_ranks_and_scales_comes_back(decoder, tmp_path):
    lora = mixed(decoder)
    save_expert(tmp_path, lora, "0" * 64, {})
    said = json.loads((tmp_path / CONFIG).read_text())
    assert said["rank_pattern"] == {"model.layers.1.mlp.up_proj": 5}
    assert said["alpha_pattern"] == {"model.layers.1.mlp.up_proj": 7.0, "model.layers.0.self_attn.q_proj": 1.5}
    stored = load_expert(tmp_path, decoder=decoder)
    assert stored.fingerprint == stored.manifest["fingerprint"]
    for path, (a, b) in lora.pairs.items():
        assert stored.lora.pairs[path][0].equal(a) and stored.lora.pairs[path][1].equal(b)
        assert stored.lora.scale_of(path) == lora.scale_of(path)
    other = LoRA(2, 4.0, lora.pairs, {**lora.alphas, "layers.1.mlp.up_proj": 8.0})
    assert StoredExpert(other, {}).fingerprint != stored.fingerprint, "a scale is part of what an expert is"


NOTHING = {
    "fan_in_fan_out over linears": named(fan_in_fan_out=True),
    "lora_only without a bias": named(bias="lora_only"),
    "all biases, where there are none": named(bias="all"),
    "a value head": held(**{"v_head.summary.weight": torch.ones(1, 32)}),
}


@pytest.mark.parametrize("how", NOTHING.values(), ids=NOTHING)
def test_what_changes_nothing_is_read_past(how, two, decoder):
    right = load_expert(two, decoder=decoder).fingerprint
    how(two)
    assert load_expert(two, decoder=decoder).fingerprint == right


@pytest.mark.parametrize("name", ["norm.weight", "layers.0.self_attn.k_proj.weight", "embed_tokens.weight"])
@pytest.mark.parametrize("mark", ["", "base_layer.", "modules_to_save.", "modules_to_save.default."])
def test_a_tensor_that_is_stored_whole_and_equals_the_bases_is_nothing(name, mark, two, decoder):
    stem, _, leaf = name.rpartition(".")
    tensors(two, **{f"{ROOT}model.{stem}.{mark}{leaf}": decoder.get_parameter(name).detach()})
    load_expert(two, decoder=decoder)
    tensors(two, **{f"{ROOT}model.{stem}.{mark}{leaf}": decoder.get_parameter(name).detach() + 1})
    with pytest.raises(MoesaicError, match=rf"'{stem}' is stored whole and is not the base's.*away from it"):
        load_expert(two, decoder=decoder)


@pytest.mark.parametrize("at", [0, len(ROOT), len(f"{ROOT}model.")])
def test_the_names_that_a_compiled_model_has_are_read_without_its_mark(at, two, decoder):
    right = load_expert(two, decoder=decoder).fingerprint
    found = read_tensors(two / ADAPTER)
    write_tensors(two / ADAPTER, {f"{name[:at]}_orig_mod.{name[at:]}": tensor for name, tensor in found.items()})
    assert load_expert(two, decoder=decoder).fingerprint == right
    write_tensors(two / ADAPTER, {**read_tensors(two / ADAPTER), **found})
    with pytest.raises(MoesaicError, match="two names of one tensor"):
        load_expert(two, decoder=decoder)


HINTS = {
    "ZeRO-3": (A, torch.empty(0), "no elements in .*ZeRO-3"),
    "an adapted head": (f"{ROOT}lm_head.lora_B.weight", torch.ones(9, 3), "the head is adapted"),
    "an adapted embedding": (
        f"{ROOT}model.embed_tokens.lora_embedding_A",
        torch.ones(3, 9),
        "the embedding is adapted",
    ),
    "a quantised base": (f"{ROOT}model.layers.0.self_attn.q_proj.base_layer.SCB", torch.ones(3), "quantised base"),
    "a trained bias": (f"{ROOT}model.layers.0.self_attn.q_proj.bias", torch.ones(3), "trained biases"),
}


@pytest.mark.parametrize(("name", "tensor", "said"), HINTS.values(), ids=HINTS)
@pytest.mark.parametrize("beside", [False, True])
def test_the_hint_is_found_among_all_foreign_tensors(name, tensor, said, beside, two, decoder):
    tensors(two, **{name: tensor})
    if beside:
        tensors(two, **{f"{ROOT}lm_head.base_layer.weight": decoder.get_parameter("embed_tokens.weight").detach()})
    with pytest.raises(MoesaicError, match=said):
        load_expert(two, decoder=decoder)


PREFIXES = {  # how the names of all tensors begin, in place of `base_model.model.model.`
    "DistributedDataParallel": (f"module.{ROOT}model.", "save its .module"),
    "DistributedDataParallel inside": (f"{ROOT}module.model.", "save its .module"),
    "DistributedDataParallel deep inside": (f"{ROOT}model.module.", "save its .module"),
    "FullyShardedDataParallel": (f"_fsdp_wrapped_module.{ROOT}model.", "save its full state"),
    "a model without its head": (ROOT, "without its head.*AutoModelForCausalLM"),
    "names of the base": ("model.", "begin with base_model.model: save it again with peft's save_pretrained"),
    "names of the base without its head": (
        "",
        "begin with base_model.model: save it again with peft's save_pretrained",
    ),
    "another root": (f"policy.{ROOT}model.", "begin with base_model.model: save it again with peft's save_pretrained"),
}


@pytest.mark.parametrize(("begin", "said"), PREFIXES.values(), ids=PREFIXES)
def test_names_that_begin_otherwise_have_the_hint_that_they_are_worth(begin, said, two, decoder):
    found = read_tensors(two / ADAPTER)
    write_tensors(two / ADAPTER, {name.replace(f"{ROOT}model.", begin, 1): t for name, t in found.items()})
    with pytest.raises(MoesaicError, match=said):
        load_expert(two, decoder=decoder)


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["lm_head"], ".*(q_proj|lm_head)"], ids=str)
def test_an_adapter_of_peft_on_an_untied_head_is_refused_in_one_line(targets, tmp_path):
    import peft
    import transformers

    tokenizer = Tokenizer.train(["a b"], 262)
    untied = tiny_decoder(2, torch.float32, vocab_size=tokenizer.vocab_size, tie_embeddings=False)
    (tmp_path / "base").mkdir()
    save_base(tmp_path / "base", untied, tokenizer, {})
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    with pytest.raises(MoesaicError, match="the head is adapted, which is not adopted: merge it .* adopt the merged"):
        load_expert(tmp_path / "adapter", decoder=untied)
