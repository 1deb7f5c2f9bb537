"""Property: adapters made by peft, with each option that is read, give the same logits here, and ours there."""

import pytest
import torch
import transformers

from moesaic.adapters import Factors, LoRA, TensorTrain, attach
from moesaic.artefacts.adapter import export_peft, load_expert, save_expert
from moesaic.artefacts.base import load_base
from moesaic.routing import Gates
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.testing import toy_expert

pytestmark = [
    pytest.mark.parity,
    # peft still asks transformers by the old name.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    # A pattern that no module ends with is there on purpose.
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match:RuntimeWarning"),
]
IDS = torch.tensor([[5, 17, 3, 260, 8, 8, 1], [9, 9, 1, 0, 2, 100, 31]])
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

OPTIONS = {
    "plain": {"target_modules": EVERY},
    "a rank and an alpha for some": {
        "target_modules": EVERY,
        "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.(up|gate)_proj": 6},
        "alpha_pattern": {"layers.0.self_attn.o_proj": 3, "down_proj": 20},
    },
    "patterns that overlap": {
        "target_modules": ["q_proj", "k_proj"],
        "rank_pattern": {"layers.0.*": 5, "q_proj": 2, "proj": 7},
        "alpha_pattern": {"^model.layers.1.self_attn.k_proj": 30, r".*\.self_attn\..*": 11},
    },
    "rank-stabilised": {
        "target_modules": ["v_proj", "up_proj"],
        "use_rslora": True,
        "rank_pattern": {"up_proj": 9},
        "alpha_pattern": {"v_proj": 5},
    },
    "an expression": {"target_modules": r".*\.layers\.1\.self_attn\.[qk]_proj"},
    "all linears": {"target_modules": "all-linear"},
    "one layer": {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": 1, "layers_pattern": "layers"},
    "some layers": {"target_modules": ["q_proj"], "layers_to_transform": [0, 1]},
    "without some": {"target_modules": EVERY, "exclude_modules": ["k_proj", "layers.0.mlp.up_proj"]},
    "without an expression": {"target_modules": EVERY, "exclude_modules": r".*layers\.0\..*"},
    "another start": {"target_modules": ["o_proj"], "init_lora_weights": "gaussian"},
}


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.fixture(scope="module")
def model(tmp_path_factory, tokenizer):
    """A random model of theirs, and its folder."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=0,
    )
    folder = tmp_path_factory.mktemp("base")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(folder)
    return folder


def fresh(model):
    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def ours(base, lora: LoRA) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the base, and under the expert."""
    plain = base.decoder(IDS).logits
    attach(base.decoder, [lora])
    return plain, base.decoder(IDS, None, Gates.one(0, 2, 1, plain)).logits


@torch.no_grad()
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_an_adapter_of_peft_gives_its_logits_here_and_again_there(options, model, tmp_path):
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **options)
    theirs = peft.get_peft_model(fresh(model), config).eval()
    torch.manual_seed(1)
    for name, weight in theirs.named_parameters():
        if "lora_" in name:
            weight.normal_(0, 0.2)
    theirs.save_pretrained(tmp_path / "theirs")
    # As peft reads it back: it sorts patterns when it writes them, so that another may be the first that matches.
    theirs = peft.PeftModel.from_pretrained(fresh(model), tmp_path / "theirs").eval()
    expected = theirs(input_ids=IDS).logits
    base = load_base(model)
    stored = load_expert(tmp_path / "theirs", base.fingerprint, base.decoder)
    assert stored.base_fingerprint is None
    plain, found = ours(base, stored.lora)
    assert (expected - plain).abs().max() > 0.05, "the adapter matters"
    close(found, expected)

    (tmp_path / "ours").mkdir()
    save_expert(tmp_path / "ours", stored.lora, base.fingerprint, {})
    back = peft.PeftModel.from_pretrained(fresh(model), tmp_path / "ours").eval()
    adapted = {name for name, _ in back.named_modules() if name.endswith("lora_A.default")}
    assert len(adapted) == len(stored.lora.pairs)
    close(back(input_ids=IDS).logits, expected)


@torch.no_grad()
def test_an_irregular_expert_of_ours_is_an_adapter_there(model, tmp_path):
    import peft

    base = load_base(model)
    small, large = toy_expert(base.decoder, 1, rank=2, targets=["q_proj"]), toy_expert(base.decoder, 2, rank=5)
    pairs = {**small.pairs, "layers.1.mlp.up_proj": large.pairs["layers.1.mlp.up_proj"]}
    lora = LoRA(2, 4.0, pairs, {"layers.1.mlp.up_proj": 7.0, "layers.0.self_attn.q_proj": 1.5})
    save_expert(tmp_path, lora, base.fingerprint, {})
    theirs = peft.PeftModel.from_pretrained(fresh(model), tmp_path).eval()
    close(ours(base, lora)[1], theirs(input_ids=IDS).logits)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_an_adapter_in_halves_gives_the_logits_of_peft_in_float32(dtype, model, tmp_path):
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=EVERY)
    theirs = peft.get_peft_model(fresh(model), config).eval()
    for name, weight in theirs.named_parameters():
        if "lora_" in name:
            weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(weight.numel()))
            weight.copy_(weight.to(dtype))
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    write_tensors(file, {name: tensor.to(dtype) for name, tensor in read_tensors(file).items()})
    base = load_base(model)
    close(ours(base, load_expert(tmp_path, None, base.decoder).lora)[1], theirs(input_ids=IDS).logits)


@torch.no_grad()
def test_an_embedding_that_peft_stores_beside_it_is_accepted_where_it_is_the_bases(model, tmp_path):
    import peft

    config = peft.LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=["q_proj"])
    theirs = peft.get_peft_model(fresh(model), config).eval()
    theirs.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any("embed_tokens" in name for name in read_tensors(tmp_path / "adapter_model.safetensors"))
    load_expert(tmp_path, None, load_base(model).decoder)


@torch.no_grad()
@pytest.mark.parametrize("factors", ["auto", {"q_proj": Factors((4, 8), (32,)), "down_proj": Factors((6, 8), (4, 8))}])
def test_an_expert_of_tensor_trains_is_exported_to_the_same_logits(factors, model, tmp_path):
    import peft

    base = load_base(model)
    generator = torch.Generator().manual_seed(0)
    made = TensorTrain.fresh(base.decoder, 4, 1.5, ["q_proj", "down_proj"], range(9), generator, factors)
    for train in made.cores.values():
        train.outputs[-1].normal_(0, 0.5, generator=generator)
    (tmp_path / "expert").mkdir()
    save_expert(tmp_path / "expert", made, base.fingerprint, {})
    folder = export_peft(tmp_path / "expert", tmp_path / "theirs")
    theirs = peft.PeftModel.from_pretrained(fresh(model), folder).eval()
    plain, found = ours(base, made.lora())
    assert (found - plain).abs().max() > 0.05, "the expert matters"
    close(found, theirs(input_ids=IDS).logits)
