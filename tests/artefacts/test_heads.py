"""Experts with heads on disk, and to and from PEFT: the same logits there and here."""

import json

import pytest
import torch

from moesaic.adapters import attach
from moesaic.artefacts.adapter import export_peft, load_expert, save_expert
from moesaic.config import ENCODER_TRAITS
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import read_manifest
from moesaic.model.classifier import Classifier, Head, usual_pool, usual_shape
from moesaic.model.features import Prompts
from moesaic.routing import Gates
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.testing import tiny_decoder, tiny_encoder, toy_expert

LABELS = ("no", "maybe", "yes")


def body_of(kind: str):
    if kind == "decoder":
        return tiny_decoder(3, torch.float32, num_layers=2)
    return tiny_encoder(kind, "pooler" if kind == "bert" else "none", 3, torch.float32)


def head_of(body) -> Head:
    draw = torch.Generator().manual_seed(1)
    head = Head.fresh(usual_shape(body, usual_pool(body), LABELS), 32, draw)
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(0, 0.5, generator=draw)
    return head


def saved(folder, kind, **changes):
    """An expert's folder, with the expert and its head as they are in memory."""
    body = body_of(kind)
    targets = ["q_proj", "v_proj"] if kind == "decoder" else ["query", "value", "dense"]
    lora = toy_expert(body, 2, rank=2, targets=targets)
    facts = {"head": {"pool": usual_pool(body), "family": kind, "trained": True, **changes}}
    folder.mkdir()
    save_expert(folder, lora, "f" * 64, facts, head_of(body))
    return lora


KINDS = pytest.mark.parametrize("kind", ["bert", "roberta", "decoder"])


@KINDS
def test_an_expert_comes_back_with_its_head_and_says_what_it_is(tmp_path, kind):
    lora = saved(tmp_path / "one", kind)
    found = load_expert(tmp_path / "one", "f" * 64, body_of(kind), LABELS)
    for name, weight in head_of(body_of(kind)).state_dict().items():
        assert found.head.state_dict()[name].equal(weight)
    assert found.head.shape.labels == LABELS
    manifest = read_manifest(tmp_path / "one", "expert")
    assert manifest["parameters"] == lora.num_parameters, "the adapter's alone"
    assert manifest["head"]["parameters"] == found.head.num_parameters
    assert manifest["fingerprint"] == found.fingerprint
    with torch.no_grad():
        found.head.out.weight[0, 0] += 1
    assert manifest["fingerprint"] != found.fingerprint, "the head is part of what it is"


def test_other_labels_than_those_of_the_data_are_refused(tmp_path):
    saved(tmp_path / "one", "bert")
    with pytest.raises(CompatibilityError, match=r"head\.labels.*expected no, yes; got no, maybe, yes"):
        load_expert(tmp_path / "one", labels=("no", "yes"))
    body = body_of("bert")
    (tmp_path / "two").mkdir()
    save_expert(tmp_path / "two", toy_expert(body, 1, targets=["query"]), "f" * 64, {})
    with pytest.raises(CompatibilityError, match="got no head"):
        load_expert(tmp_path / "two", labels=LABELS)


def logits(body, lora, head, ids) -> torch.Tensor:
    attach(body, [lora])
    model, gates = Classifier(body, {"it": head}, usual_pool(body)), Gates.one(0, len(ids), 1, torch.zeros(1))
    return head(model.state(Prompts.pad(ids, [""] * len(ids), with_id=1), gates))


def theirs(kind, folder, base):
    """The classifier that transformers makes of the base, with the adapter as PEFT reads it."""
    import peft
    import transformers

    body = body_of(kind)
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 48, "num_labels": 3, "pad_token_id": 1}
    if kind == "decoder":
        config = transformers.LlamaConfig(**sizes, num_key_value_heads=2, max_position_embeddings=64, head_dim=8)
        config.rms_norm_eps, config.rope_theta = 1e-5, 10000.0
        model = transformers.LlamaForSequenceClassification(config)
        weights = {f"model.{name}": w for name, w in body.state_dict().items() if not name.startswith("lm_head")}
    else:
        from moesaic.interop.encoders import named

        traits = ENCODER_TRAITS[kind]
        own = {"type_vocab_size": traits.get("token_types", 2), "layer_norm_eps": traits.get("norm_eps", 1e-12)}
        places = 20 + 2 * (kind == "roberta")
        maker = {"bert": "Bert", "roberta": "Roberta"}[kind]
        config = getattr(transformers, f"{maker}Config")(**{**sizes, "pad_token_id": body.config.pad}, **own)
        config.max_position_embeddings = places
        model = getattr(transformers, f"{maker}ForSequenceClassification")(config)
        weights = {f"{kind}.{name.removeprefix(f'{kind}.')}": w for name, w in named(body).items()}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected and all(name.startswith(("score", "classifier")) for name in missing), (missing, unexpected)
    return peft.PeftModel.from_pretrained(model.eval(), folder) if folder else model.eval()


ROWS = [[2, 7, 9, 11, 3], [2, 8, 3], [2, 5, 6, 7, 8, 9, 10, 3]]


def padded(kind):
    pad = 0 if kind == "bert" else 1
    width = max(map(len, ROWS))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in ROWS])
    return {"input_ids": ids, "attention_mask": torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in ROWS])}


@KINDS
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_what_is_exported_gives_peft_the_same_logits(tmp_path, kind):
    lora = saved(tmp_path / "one", kind)
    folder = export_peft(tmp_path / "one", tmp_path / "peft")
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["task_type"] == "SEQ_CLS"
    with torch.no_grad():
        expected = theirs(kind, folder, None)(**padded(kind)).logits
        found = logits(body_of(kind), lora, head_of(body_of(kind)), ROWS)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@KINDS
@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")
def test_an_adapter_that_peft_trained_with_a_head_gives_its_logits_here(tmp_path, kind):
    import peft

    model = theirs(kind, None, None)
    targets = ["q_proj", "v_proj"] if kind == "decoder" else ["query", "value"]
    own = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, lora_alpha=6, target_modules=targets))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in own.parameters():
            if weight.requires_grad:
                weight.normal_(0, 0.3)
        expected = own.eval()(**padded(kind)).logits
    own.save_pretrained(tmp_path / "theirs")
    found = load_expert(tmp_path / "theirs", "f" * 64, body_of(kind), LABELS)
    assert found.manifest == {} and found.head.shape.labels == LABELS
    with torch.no_grad():
        got = logits(body_of(kind), found.lora, found.head, ROWS)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(CompatibilityError, match="trained on another base|made for another base|no such linear"):
        load_expert(tmp_path / "theirs", None, body_of("bert" if kind == "decoder" else "decoder"), LABELS)
    with pytest.raises(WeightsError, match="another number of labels; expected 2; got"):
        load_expert(tmp_path / "theirs", None, body_of(kind), ("a", "b"))
    with pytest.raises(WeightsError, match="an adapter for another task.*heads that classify are read where rows have"):
        load_expert(tmp_path / "theirs", None, body_of(kind))


def test_a_state_that_transformers_does_not_read_is_not_exported(tmp_path):
    saved(tmp_path / "one", "bert", pool="mean")
    with pytest.raises(CompatibilityError, match="transformers has no classifier of this base that reads this state"):
        export_peft(tmp_path / "one", tmp_path / "peft")


def test_a_damaged_head_is_refused(tmp_path):
    saved(tmp_path / "one", "bert")
    tensors = read_tensors(tmp_path / "one" / "head.safetensors")
    write = tmp_path / "other.safetensors"
    write_tensors(write, {**tensors, "out.weight": tensors["out.weight"][:2]})
    write.rename(tmp_path / "one" / "head.safetensors")
    with pytest.raises(WeightsError, match="the file was changed or damaged"):
        load_expert(tmp_path / "one")
