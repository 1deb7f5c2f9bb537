"""Journey: do transformers and peft compute, from the same folders, what this package computes? In both directions."""

import json
from pathlib import Path

import pytest
import torch
import transformers

import moesaic
from moesaic.adapters import attach
from moesaic.artefacts.adapter import load_expert, save_expert
from moesaic.artefacts.base import load_base, save_base
from moesaic.config import Feature
from moesaic.generate import Engine
from moesaic.model.deciding import Decider
from moesaic.model.mixture import AdapterMixture
from moesaic.nn import Cache
from moesaic.routing import Gates, Selection
from moesaic.testing import FixedRouter, tiny_decoder, toy_expert

STORIES = Path(__file__).parents[2].parent / "shared" / "models" / "stories260K"
needs_stories = pytest.mark.skipif(
    not STORIES.is_dir(), reason="no folder shared/models/stories260K beside the repository: a pretrained model"
)
# peft still asks transformers by the old name.
peft_warns = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
IDS = torch.tensor([[5, 17, 3, 260, 8, 8, 1], [9, 9, 1, 0, 2, 100, 31]])

pytestmark = pytest.mark.parity


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    assert (a - b).abs().max() <= tolerance * max(1.0, b.abs().max().item())


def llama(vocab_size: int, tied: bool, layers: int = 2):
    """A fresh random model of theirs, grouped queries, weights large enough that every layer matters."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        rms_norm_eps=1e-6,
        tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        initializer_range=0.15,
        bos_token_id=None,
        eos_token_id=0,
    )
    return transformers.LlamaForCausalLM(config).eval()


# --- a real pretrained model ------------------------------------------------------------------------------------------


@needs_stories
@torch.no_grad()
def test_a_pretrained_model_gives_the_logits_of_transformers():
    base = load_base(STORIES)
    model = transformers.AutoModelForCausalLM.from_pretrained(STORIES, dtype=torch.float32)
    ids = torch.tensor([[1, 403, 407, 261, 378, 400, 20, 511, 1, 77]])
    assert (base.decoder(ids).logits - model(input_ids=ids).logits).abs().max() <= 1e-4


@needs_stories
@torch.no_grad()
def test_a_pretrained_model_gives_its_golden_logits_and_greedy_ids_through_the_cache():
    from safetensors.torch import load_file

    base, golden = load_base(STORIES), load_file(STORIES / "golden.safetensors")
    for index in range(2):
        prompt, expected = golden[f"input_ids_{index}"], golden[f"greedy_ids_{index}"].tolist()
        cache = Cache.empty(base.decoder.config, 1, len(expected), like=base.decoder.norm.weight)
        logits = base.decoder(prompt[None], cache).logits[0]
        cache = cache.advance(len(prompt))
        assert (logits - golden[f"logits_{index}"]).abs().max() <= 1e-4
        found = prompt.tolist()
        while len(found) < len(expected):
            found.append(int(logits[-1].argmax()))
            logits = base.decoder(torch.tensor([found[-1:]]), cache).logits[0]
            cache = cache.advance(1)
        assert found == expected


@needs_stories
def test_the_engine_writes_the_golden_stories_all_in_one_batch():
    """Prompts of unequal length; the base answers, beside an expert that no row chose."""
    base, golden = load_base(STORIES), json.loads((STORIES / "golden.json").read_text())["greedy"]
    attach(base.decoder, [toy_expert(base.decoder, 1, targets=["q_proj"])])
    router = FixedRouter([[float("-inf")]] * len(golden), dtype=torch.float32)
    decider = Decider.over(base.decoder, ("toy",), router, Feature.parse("text"), Selection())
    mixture = AdapterMixture(base.decoder, decider, 0)
    tokenizer = base.tokenizer
    assert [tokenizer.begin(row["prompt"]) for row in golden] == [row["input_ids"] for row in golden]
    written = Engine(mixture, tokenizer).generate([row["prompt"] for row in golden], max_new_tokens=60)
    for row, (generation,) in zip(golden, written, strict=True):
        assert generation.routing.chosen == "base"
        whole = tokenizer.decode([*row["input_ids"], *generation.ids])
        assert whole.strip() == row["greedy_text"].strip()


# --- bases ------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_model_saved_by_transformers_loads_here(tied, tmp_path, tokenizer):
    model = llama(tokenizer.vocab_size, tied)
    model.save_pretrained(tmp_path)
    tokenizer.save(tmp_path)
    base = load_base(tmp_path)
    assert base.decoder.config.tie_embeddings == tied and base.decoder.config.rope_theta == 500.0
    close(base.decoder(IDS).logits, model(input_ids=IDS).logits, 1e-5)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_a_base_saved_here_loads_in_transformers(tied, tmp_path, tokenizer):
    sizes = {"num_layers": 2, "vocab_size": tokenizer.vocab_size, "tie_embeddings": tied}
    decoder = tiny_decoder(3, torch.float32, rope_theta=700.0, norm_eps=1e-3, **sizes)
    save_base(tmp_path, decoder, tokenizer, {})
    model, report = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.dtype == torch.float32
    assert model.generation_config.eos_token_id == tokenizer.eos
    close(decoder(IDS).logits, model.eval()(input_ids=IDS).logits, 1e-5)


# --- adapters ---------------------------------------------------------------------------------------------------------


@peft_warns
@torch.no_grad()
@pytest.mark.parametrize(
    ("targets", "layers"), [(["q_proj", "v_proj", "down_proj"], range(99)), (["gate_proj", "o_proj"], range(1, 2))]
)
def test_an_expert_saved_here_is_an_adapter_of_peft(targets, layers, tmp_path, tokenizer):
    import peft

    for name in ("base", "expert"):
        (tmp_path / name).mkdir()
    model = llama(tokenizer.vocab_size, True)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    base = load_base(tmp_path / "base")
    expert = toy_expert(base.decoder, 1, rank=3, targets=targets, layers=layers)
    save_expert(tmp_path / "expert", expert, base.fingerprint, {})
    plain = base.decoder(IDS).logits
    attach(base.decoder, [expert])
    ours = base.decoder(IDS, None, Gates.one(0, 2, 1, plain)).logits
    theirs = peft.PeftModel.from_pretrained(model, tmp_path / "expert").eval()
    adapted = {name for name, _ in theirs.named_modules() if name.endswith("lora_A.default")}
    assert len(adapted) == len(expert.pairs)
    close(ours, theirs(input_ids=IDS).logits, 1e-5)
    assert (ours - plain).abs().max() > 0.1


@peft_warns
@torch.no_grad()
@pytest.mark.parametrize("stabilised", [False, True])
def test_an_adapter_of_peft_is_an_expert_here(stabilised, tmp_path, tokenizer):
    import peft

    model = llama(tokenizer.vocab_size, False)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    config = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "k_proj", "up_proj"],
        layers_to_transform=[1],
        use_rslora=stabilised,
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(model, config).eval()
    for name, weight in theirs.named_parameters():
        if "lora_B" in name:
            weight.normal_(0, 0.3)
    theirs.save_pretrained(tmp_path / "expert")
    base = load_base(tmp_path / "base")
    stored = load_expert(tmp_path / "expert", base.fingerprint)
    assert stored.base_fingerprint is None and stored.lora.scale == (8 / 2 if stabilised else 8 / 4)
    assert stored.lora.layers == [1] and stored.lora.targets == ["k_proj", "q_proj", "up_proj"]
    plain = base.decoder(IDS).logits
    attach(base.decoder, [stored.lora])
    ours = base.decoder(IDS, None, Gates.one(0, 2, 1, plain)).logits
    close(ours, theirs(input_ids=IDS).logits, 1e-5)
    assert (ours - plain).abs().max() > 0.1


# --- the hub ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_what_is_pushed_is_opened_by_transformers_as_its_card_says(hub, tied, tmp_path, tokenizer):
    model = llama(tokenizer.vocab_size, tied)
    model.save_pretrained(tmp_path / "model")
    moesaic.load_model(tmp_path / "model").push_to_hub("me/mine", revision="v1")
    card = hub.repositories["me/mine"].branches["v1"]["README.md"].decode()
    assert 'AutoModelForCausalLM.from_pretrained("me/mine", revision="v1")' in card
    found = transformers.AutoModelForCausalLM.from_pretrained("me/mine", revision="v1", dtype=torch.float32)
    close(found(input_ids=IDS).logits, model(input_ids=IDS).logits, 1e-5)
