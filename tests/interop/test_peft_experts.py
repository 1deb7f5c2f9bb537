"""Are adapters of sparse experts read in every layout of PEFT, written in its present one, and refused if in doubt?

The layouts by formula; those of peft itself are marked as parity.
"""

import json

import pytest
import torch
from torch import Tensor

from moesaic.adapters import LoRA, attach, merge
from moesaic.adapters.sparse_experts import placed
from moesaic.artefacts.adapter import export_peft, load_expert, save_expert
from moesaic.errors import CompatibilityError, MoesaicError, WeightsError
from moesaic.interop import peft_experts
from moesaic.interop.decoders import by_default, read_decoder
from moesaic.interop.outline import adapter_outline
from moesaic.model.decoder import Decoder
from moesaic.routing import Gates
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.testing import tiny_decoder, toy_expert

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
IDS = torch.tensor([[5, 17, 3, 60, 8, 8, 1], [9, 9, 1, 0, 2, 30, 31]])
E, D, F, R = 4, 32, 20, 3  # experts, width, inner width of an expert, rank
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
LAYER = "base_model.model.model.layers.{}.mlp.experts"
SETTINGS = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": R, "lora_alpha": 2 * R, "target_modules": []}


def sparse(**changes) -> Decoder:
    own = {"num_layers": 2, "num_experts": E, "experts_per_token": 2, "expert_size": F, "vocab_size": 64}
    return tiny_decoder(1, torch.float32, **{**own, **changes})


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def write(folder, tensors, **config) -> None:
    folder.mkdir(exist_ok=True)
    write_tensors(folder / ADAPTER, {name: tensor.clone() for name, tensor in tensors.items()})
    (folder / CONFIG).write_text(json.dumps({**SETTINGS, "target_parameters": BOTH, **config}))


def packed(gate_up=((E * R, D), (2 * F, E * R)), down=((E * R, F), (D, E * R))) -> dict[str, Tensor]:
    """The tensors of packed experts in two layers, with these shapes of A and B."""
    found = {}
    for layer in range(2):
        at = LAYER.format(layer)
        for module, (a, b) in ((f"{at}.base_layer", gate_up), (at, down)):
            found[f"{module}.lora_A.weight"] = drawn(*a, seed=len(found))
            found[f"{module}.lora_B.weight"] = drawn(*b, seed=len(found))
    return found


def by_formula(tensors: dict[str, Tensor], change) -> Tensor:
    """Logits of a base whose matrices got `change(A, B)`, (e, o, i), by a loop over the experts."""
    decoder = sparse()
    for layer in range(2):
        at, experts = LAYER.format(layer), decoder.get_submodule(f"layers.{layer}.mlp.experts")
        for module, weight in ((f"{at}.base_layer", experts.gate_up_proj), (at, experts.down_proj)):
            a, b = (tensors[f"{module}.lora_{half}.weight"] for half in "AB")
            for expert in range(E):
                weight[expert].add_(2.0 * change(a, b, expert))
    return decoder(IDS).logits


def ours(folder) -> Tensor:
    decoder = sparse()
    attach(decoder, [load_expert(folder, decoder=decoder).lora])
    return decoder(IDS, None, Gates.one(0, 2, 1, torch.zeros(1))).logits


def present(a: Tensor, b: Tensor, expert: int) -> Tensor:
    return b[:, [rank * E + expert for rank in range(R)]] @ a[expert * R : (expert + 1) * R]


def slowest(a: Tensor, b: Tensor, expert: int) -> Tensor:
    return b[:, expert * R : (expert + 1) * R] @ a[expert * R : (expert + 1) * R]


def older(a: Tensor, b: Tensor, expert: int) -> Tensor:
    return present(a, b, expert).t()


SWAPPED = {"gate_up": ((E * R, 2 * F), (D, E * R)), "down": ((E * R, D), (F, E * R))}
LAYOUTS = {
    "of peft since 0.19": (packed(), {}, present),
    "of peft before, by its shapes": (packed(**SWAPPED), {}, older),
    "of unsloth before": (packed(), {"expert_order": "slowest", "auto_mapping": {"unsloth_fixed": True}}, slowest),
    "of unsloth since": (packed(), {"expert_order": "fastest", "auto_mapping": {"unsloth_fixed": True}}, present),
}


@torch.no_grad()
@pytest.mark.parametrize(("tensors", "config", "change"), LAYOUTS.values(), ids=LAYOUTS)
def test_a_layout_gives_the_logits_of_its_formula(tensors, config, change, tmp_path):
    write(tmp_path, tensors, **config)
    expected = by_formula(tensors, change)
    assert (expected - sparse()(IDS).logits).abs().max() > 0.5, "the adapter matters"
    torch.testing.assert_close(ours(tmp_path), expected, rtol=1e-5, atol=1e-5)
    shapes = {"layers.1.mlp.experts.2.gate_up_proj": (R, D, 2 * F), "layers.0.mlp.experts.3.down_proj": (R, F, D)}
    assert adapter_outline(tmp_path).pairs.items() >= shapes.items()


def down_alone(inner: int) -> dict[str, Tensor]:
    """Pairs of `down_proj` as peft had them before 0.19."""
    shapes = {"A": (E * R, D), "B": (inner, E * R)}
    return {
        f"{LAYER.format(layer)}.lora_{half}.weight": drawn(*shape)
        for layer in range(2)
        for half, shape in shapes.items()
    }


@pytest.mark.parametrize(
    ("inner", "version", "turned"),
    [(F, None, True), (F, "0.21.2", True), (D, "0.18.1", True), (D, "0.21.2", False), (D, None, False)],
)
def test_one_tensor_alone_is_told_by_the_base_and_where_it_does_not_tell_by_the_version(
    inner, version, turned, tmp_path
):
    tensors = down_alone(inner)
    write(tmp_path, tensors, target_parameters=BOTH[1:], peft_version=version)
    a, b = load_expert(tmp_path, decoder=sparse(expert_size=inner)).lora.pairs["layers.0.mlp.experts.1.down_proj"]
    above, beside = (tensors[f"{LAYER.format(0)}.lora_{half}.weight"] for half in "AB")
    one, other = above[R : 2 * R], beside[:, 1::E].t()
    assert (a.equal(other) and b.equal(one)) if turned else (a.equal(one) and b.equal(other))


NAMES = {"mixtral": ("block_sparse_moe", "w1", "w3", "w2"), "qwen": ("mlp", "gate_proj", "up_proj", "down_proj")}


@torch.no_grad()
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_pairs_of_single_experts_are_read_under_both_names_and_written_as_one(names, tmp_path):
    block, *three = names
    lora = toy_expert(sparse(), 1, targets=["gate_proj"]).pairs
    lora |= toy_expert(sparse(), 2, targets=["up_proj"]).pairs | toy_expert(sparse(), 3, targets=["down_proj"]).pairs
    theirs = dict(zip(("gate_proj", "up_proj", "down_proj"), three, strict=True))
    tensors = {}
    for experts, some in placed(lora).items():
        for name, paths in some.items():
            for number, path in paths.items():
                at = f"base_model.model.model.{experts.replace('mlp', block)}.{number}.{theirs[name]}"
                tensors[f"{at}.lora_A.weight"], tensors[f"{at}.lora_B.weight"] = lora[path][0], lora[path][1].t()
    write(tmp_path / "theirs", tensors, target_parameters=None, target_modules=three)
    merged = sparse()
    merge(merged, [LoRA(R, 2.0 * R, lora)], [1.0])
    torch.testing.assert_close(ours(tmp_path / "theirs"), merged(IDS).logits, rtol=1e-5, atol=1e-5)
    made = export_peft(tmp_path / "theirs", tmp_path / "made")
    assert read_tensors(made / ADAPTER)[f"{LAYER.format(1)}.base_layer.lora_A.weight"].shape == (E * 2 * R, D)
    torch.testing.assert_close(ours(made), merged(IDS).logits, rtol=1e-5, atol=1e-5)


def test_what_is_read_is_written_bit_by_bit(tmp_path):
    tensors = packed()
    write(tmp_path / "theirs", tensors, rank_pattern={"gate_up_proj": R}, alpha_pattern={"down_proj": 5})
    lora = load_expert(tmp_path / "theirs", decoder=sparse()).lora
    (tmp_path / "ours").mkdir()
    save_expert(tmp_path / "ours", lora, "0" * 64, {})
    for made in (tmp_path / "ours", export_peft(tmp_path / "theirs", tmp_path / "peft")):
        found = read_tensors(made / ADAPTER)
        assert found.keys() == tensors.keys() and all(found[name].equal(own) for name, own in tensors.items())
    assert load_expert(tmp_path / "ours", decoder=sparse()).lora.alphas == lora.alphas != {}


@pytest.mark.parametrize("targets", [["up_proj"], ["gate_proj", "down_proj"], ["gate_proj", "up_proj", "q_proj"]])
def test_an_expert_of_ours_comes_back_from_its_folder(targets, tmp_path):
    lora = toy_expert(sparse(), 1, targets=targets)
    save_expert(tmp_path, lora, "0" * 64, {})
    stored = load_expert(tmp_path, decoder=sparse())
    assert stored.fingerprint == stored.manifest["fingerprint"] and stored.lora.targets == lora.targets
    for path, pair in lora.pairs.items():
        assert all(one.equal(other) for one, other in zip(stored.lora.pairs[path], pair, strict=True))


def without(*parts: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in packed().items() if not any(part in name for part in parts)}


def turned_b() -> dict[str, Tensor]:
    return {name: tensor.t() if "lora_B" in name else tensor for name, tensor in packed().items()}


THREE = {"gate_up": ((3 * R, D), (2 * F, 3 * R)), "down": ((3 * R, F), (D, 3 * R))}
NARROW = {"gate_up": ((E * R, D), (2 * F - 4, E * R)), "down": ((E * R, F - 2), (D, E * R))}
BROKEN = {
    "B transposed": (turned_b(), {}, WeightsError, "a pair of another rank; expected rank 3 for each expert"),
    "fewer experts": (packed(**THREE), {}, CompatibilityError, "another number of experts; expected 4; got 3"),
    "another inner width": (
        packed(**NARROW),
        {},
        CompatibilityError,
        r"another base; expected .* got .*18\]; was it trained",
    ),
    "another rank": (packed(), {"r": 2}, CompatibilityError, "another number of experts; expected 4; got 6"),
    "a rank that divides nothing": (packed(), {"r": 5}, WeightsError, "a pair of another rank"),
    "a parameter without a pair": (without("base_layer"), {}, WeightsError, "does not say which tensor|no pair for"),
    "an unnamed parameter": (packed(), {"target_parameters": BOTH[:1]}, WeightsError, "does not say which tensor"),
    "an unknown parameter": (packed(), {"target_parameters": [*BOTH, "bias"]}, WeightsError, "no pair for: bias"),
    "a layer without a pair": (without("layers.0"), {}, WeightsError, r"no pair for: model\.layers\.0\.mlp\.experts"),
    "names that are none": (packed(), {"target_parameters": "experts"}, WeightsError, "target_parameters: wrong value"),
    "made by unsloth": (
        packed(),
        {"auto_mapping": {"unsloth_fixed": True}},
        *(WeightsError, "expert_order: made by unsloth.*expected fastest .* or slowest"),
    ),
    "an unknown order": (packed(), {"expert_order": "random"}, WeightsError, "expert_order: .*fastest or slowest"),
}


@pytest.mark.parametrize(("tensors", "config", "error", "said"), BROKEN.values(), ids=BROKEN)
def test_what_is_wrong_is_refused_on_one_line(tensors, config, error, said, tmp_path):
    write(tmp_path, tensors, **config)
    with pytest.raises(error, match=said) as refused:
        load_expert(tmp_path, decoder=sparse())
    assert "\n" not in str(refused.value)


def test_a_card_may_say_that_unsloth_made_it(tmp_path):
    write(tmp_path, packed())
    card = tmp_path / "README.md"
    card.write_text("---\nbase_model: unsloth/Qwen3-30B-A3B\ntags:\n- lora\n---\n")
    load_expert(tmp_path, decoder=sparse())
    card.write_text("---\ntags:\n- lora\n- unsloth\n---\n")
    with pytest.raises(WeightsError, match="made by unsloth"):
        load_expert(tmp_path, decoder=sparse())


def test_of_a_dense_base_it_is_refused(tmp_path):
    write(tmp_path, packed())
    with pytest.raises(CompatibilityError, match="the base has no such linear"):
        load_expert(tmp_path, decoder=tiny_decoder(1, torch.float32))


SPOILT = {
    "gate and up swapped": lambda a, b: (a, torch.cat([*b.chunk(2)][::-1])),
    "B transposed": lambda a, b: (a, b.t()),
    "experts of B in blocks": lambda a, b: (a, b.unflatten(1, (R, E)).transpose(1, 2).flatten(1)),
    "one expert fewer": lambda a, b: (a[R:], b.unflatten(1, (R, E))[..., 1:].flatten(1)),
}


@pytest.mark.parametrize("spoil", SPOILT.values(), ids=SPOILT)
def test_a_writer_that_errs_is_found_before_the_folder_has_its_name(spoil, tmp_path, monkeypatch):
    (tmp_path / "ours").mkdir()
    save_expert(tmp_path / "ours", toy_expert(sparse(), 1), "0" * 64, {})
    right = peft_experts.together
    monkeypatch.setattr(peft_experts, "together", lambda pairs: spoil(*right(pairs)))
    with pytest.raises(MoesaicError, match="differs from the expert after reading it back|a pair of another rank"):
        export_peft(tmp_path / "ours", tmp_path / "peft")
    assert not (tmp_path / "peft").exists()


def test_what_peft_cannot_hold_is_refused(tmp_path):
    lora = toy_expert(sparse(), 1, targets=["down_proj"])
    lora.pairs.pop("layers.1.mlp.experts.0.down_proj")
    save_expert(tmp_path, lora, "0" * 64, {})
    with pytest.raises(CompatibilityError, match="one pair for all experts .* --format mixtral"):
        export_peft(tmp_path, tmp_path / "out")


# --- by peft itself ---------------------------------------------------------------------------------------------------

OPTIONS = {
    "both": {"target_parameters": BOTH},
    "gate and up": {"target_parameters": BOTH[:1], "target_modules": ["q_proj"]},
    "down": {"target_parameters": BOTH[1:]},
    "ranks and alphas of their own": {
        "target_parameters": BOTH,
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"gate_up_proj": 6},
        "alpha_pattern": {"down_proj": 3},
    },
    "a part of the layers, and the router": {
        "target_parameters": ["model.layers.1.mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"],
        "use_rslora": True,
    },
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A random Mixtral, Qwen3-MoE and Qwen2-MoE of transformers, as folders."""
    import transformers

    sizes = {
        **{"vocab_size": 64, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.15, "intermediate_size": 48},
        **{"num_experts_per_tok": 2, "tie_word_embeddings": False},
    }
    configs = {
        "mixtral": transformers.MixtralConfig(**sizes, num_local_experts=E, sliding_window=None),
        "qwen": transformers.Qwen3MoeConfig(
            **sizes, num_experts=E, moe_intermediate_size=F, norm_topk_prob=True, head_dim=8
        ),
    }
    shared = {"shared_expert_intermediate_size": 28, "moe_intermediate_size": F, "num_experts": E}
    configs["qwen2"] = transformers.Qwen2MoeConfig(**sizes, **shared)
    found = {}
    for name, config in configs.items():
        torch.manual_seed(0)
        found[name] = tmp_path_factory.mktemp(name)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(found[name])
    return found


def fresh(folder):
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def of_base(folder, lora: LoRA | None = None) -> Tensor:
    decoder, _ = read_decoder(folder, by_default)
    if lora is None:
        return decoder(IDS).logits
    attach(decoder, [lora])
    return decoder(IDS, None, Gates.one(0, 2, 1, torch.zeros(1))).logits


def made_by_peft(base, folder, options, before=lambda model: None, after=lambda model: None) -> Tensor:
    """Save a random adapter of peft and return its logits; `before` and `after` it is put into the model."""
    import peft

    model = fresh(base)
    before(model)
    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **{"target_modules": [], **options})
    theirs = peft.get_peft_model(model, config).eval()
    after(model)
    torch.manual_seed(1)
    for name, weight in theirs.named_parameters():
        if "lora_" in name:
            weight.normal_(0, 0.2)
    theirs.save_pretrained(folder)
    return theirs(input_ids=IDS).logits


PARITY = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # peft looks for patterns of parameters among its modules, and applies them all the same.
    pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not match:RuntimeWarning"),
]


def parity(test):
    for mark in PARITY:
        test = mark(test)
    return test


@parity
@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_adapters_of_peft_give_its_logits_here_and_again_there(options, name, bases, tmp_path):
    import peft

    expected = made_by_peft(bases[name], tmp_path / "theirs", options)
    decoder, _ = read_decoder(bases[name], by_default)
    lora = load_expert(tmp_path / "theirs", decoder=decoder).lora
    assert (expected - of_base(bases[name])).abs().max() > 0.5, "the adapter matters"
    assert (of_base(bases[name], lora) - expected).abs().max() < 1e-5
    (tmp_path / "ours").mkdir()
    save_expert(tmp_path / "ours", lora, "0" * 64, {})
    one, other = (read_tensors(tmp_path / at / ADAPTER) for at in ("theirs", "ours"))
    assert one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)
    back = peft.PeftModel.from_pretrained(fresh(bases[name]), tmp_path / "ours").eval()
    assert back(input_ids=IDS).logits.equal(expected)


@parity
@torch.no_grad()
def test_adapters_of_peft_as_before_0_19_give_its_logits(bases, tmp_path):
    def turned(model) -> None:
        """Tell peft that inputs come first, as it took them to be."""
        for layer in model.model.layers:
            layer.mlp.experts.is_transposed = True

    def back(model) -> None:
        for name, module in model.named_modules():
            if name.endswith("mlp.experts.base_layer.base_layer"):
                module.is_transposed = False

    expected = made_by_peft(bases["qwen"], tmp_path, {"target_parameters": BOTH}, turned, back)
    assert read_tensors(tmp_path / ADAPTER)[f"{LAYER.format(0)}.base_layer.lora_A.weight"].shape == (E * 4, 2 * F)
    decoder, _ = read_decoder(bases["qwen"], by_default)
    found = of_base(bases["qwen"], load_expert(tmp_path, decoder=decoder).lora)
    assert (found - expected).abs().max() < 1e-5 < (expected - of_base(bases["qwen"])).abs().max()


@parity
@torch.no_grad()
@pytest.mark.parametrize(
    "targets", [["gate_proj", "up_proj", "down_proj", "q_proj", "gate"], ["up_proj"], ["gate_proj", "down_proj"]]
)
@pytest.mark.parametrize("name", [*NAMES, "qwen2"])
def test_experts_of_ours_give_their_logits_in_peft(name, targets, bases, tmp_path):
    import peft

    decoder, _ = read_decoder(bases[name], by_default)
    lora = toy_expert(decoder, 1, targets=targets)
    (tmp_path / "ours").mkdir()
    save_expert(tmp_path / "ours", lora, "0" * 64, {})
    made = export_peft(tmp_path / "ours", tmp_path / "theirs")
    theirs = peft.PeftModel.from_pretrained(fresh(bases[name]), made).eval()(input_ids=IDS).logits
    assert (of_base(bases[name], lora) - theirs).abs().max() < 1e-5 < (theirs - of_base(bases[name])).abs().max()
