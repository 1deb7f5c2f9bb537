"""Do encoders come from and go to the folders of transformers, name by name, and compute the same there?"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import moesaic
from moesaic.errors import StorageError, WeightsError
from moesaic.interop.encoders import identify, load_encoder, named, save_encoder
from moesaic.testing import tiny_encoder

FAMILIES = ["bert", "roberta"]
HEADS = {"pooler": "Model", "mlm": "ForMaskedLM", "classification": "ForSequenceClassification"}
CLASSES = {"bert": "Bert", "roberta": "Roberta"}


def tiny(family: str, head: str, seed: int = 0):
    return tiny_encoder(family, head, seed, torch.float32)


@pytest.fixture
def folder(tmp_path):
    """A function that saves an encoder anew and lets its config and tensors be changed."""

    def saved(family: str = "bert", head: str = "pooler", change=lambda tensors: None, **config):
        at = tmp_path / "encoder"
        shutil.rmtree(at, ignore_errors=True)
        at.mkdir()
        save_encoder(at, tiny(family, head))
        tensors = {name: tensor.clone() for name, tensor in load_file(at / "model.safetensors").items()}
        change(tensors)
        save_file(tensors, at / "model.safetensors")
        found = json.loads((at / "config.json").read_text())
        (at / "config.json").write_text(json.dumps({**found, **config}))
        return at

    return saved


def inputs(pad: int, types: int) -> dict[str, torch.Tensor]:
    """Three padded rows, with token types where there are two."""
    rows = [[5, 17, 3, 8, 60, 2, 9], [9, 11], [4, 4, 31, 7]]
    ids = torch.tensor([row + [pad] * (7 - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (7 - len(row)) for row in rows])
    kinds = {"token_type_ids": torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 3)} if types == 2 else {}
    return {"input_ids": ids, "attention_mask": mask, **kinds}


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item())


def compare(encoder, model) -> None:
    """All outputs of an encoder and of a model of transformers, where there is a token."""
    given = inputs(encoder.config.pad, encoder.config.token_types)
    ours, theirs = encoder(**given), model(**given, output_hidden_states=True)
    real = given["attention_mask"] == 1
    close(ours.hidden[real], theirs.hidden_states[-1][real])
    if encoder.config.head == "pooler":
        close(ours.pooled, theirs.pooler_output)
    elif encoder.config.head == "mlm":
        close(ours.logits[real], theirs.logits[real])
    else:
        close(ours.logits, theirs.logits)


# --- golden outputs ---------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("name", ["roberta-tiny-cls", "roberta-tiny-mlm"])
@pytest.mark.parametrize("config", ["config.json", "config.hub-style.json"])
def test_a_golden_encoder_gives_its_golden_states_and_logits(name, config, shared, tmp_path):
    source = shared / "models" / "reference_fixtures" / name
    shutil.copy(source / config, tmp_path / "config.json")
    shutil.copy(source / "model.safetensors", tmp_path)
    encoder, golden = load_encoder(tmp_path), load_file(source / "golden.safetensors")
    found = encoder(golden["input_ids"], golden["attention_mask"])
    real = golden["attention_mask"] == 1
    close(found.hidden[real], golden["hidden_3"][real])
    if encoder.config.head == "mlm":
        close(found.logits[real], golden["logits"][real])
    else:
        close(found.logits, golden["logits"])


# --- transformers -----------------------------------------------------------------------------------------------------


@pytest.mark.parity
@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_saved_by_transformers_loads_here(family, head, tmp_path):
    import transformers

    config = getattr(transformers, f"{CLASSES[family]}Config")(
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=23,
        type_vocab_size=2,
        initializer_range=0.3,
        pad_token_id=1,
        id2label={0: "no", 1: "perhaps", 2: "yes"},
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{CLASSES[family]}{HEADS[head]}")(config).eval()
    for weight in model.parameters():
        if weight.ndim == 1:
            weight.normal_(0.5, 0.3)
    model.save_pretrained(tmp_path)
    encoder = load_encoder(tmp_path)
    assert (encoder.config.head, encoder.config.context) == (head, 23 if family == "bert" else 21)
    assert encoder.config.labels == (("no", "perhaps", "yes") if head == "classification" else ())
    compare(encoder, model)
    assert {*named(encoder)} == {*load_file(tmp_path / "model.safetensors")}


@pytest.mark.parity
@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_saved_here_loads_in_transformers(family, head, tmp_path):
    import transformers

    encoder = tiny(family, head)
    save_encoder(tmp_path, encoder)
    kind = getattr(transformers, f"{CLASSES[family]}{HEADS[head]}")
    model, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.dtype == torch.float32
    if head == "classification":
        assert model.config.id2label == {0: "no", 1: "perhaps", 2: "yes"}
    compare(encoder, model.eval())


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["none", *HEADS])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_encoder_comes_back_with_the_same_values_and_wiring(family, head, folder):
    encoder = tiny(family, head)
    again = load_encoder(folder(family, head))
    assert identify(again) == identify(encoder) and again.config == encoder.config
    assert identify(tiny(family, head, seed=1)) != identify(encoder)


def test_older_names_prefixes_and_buffers_are_read(folder):
    def older(tensors):
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[f"bert.{old}"] = tensors.pop(name)
        tensors["bert.embeddings.position_ids"] = torch.arange(20)[None]

    assert identify(load_encoder(folder(change=older))) == identify(tiny("bert", "pooler"))


@pytest.mark.parametrize(
    ("family", "head", "unread"),
    [
        ("bert", "mlm", ["bert.pooler.dense.weight", "cls.seq_relationship.weight"]),
        ("roberta", "mlm", ["roberta.pooler.dense.bias"]),
        ("roberta", "classification", ["roberta.pooler.dense.weight", "roberta.pooler.dense.bias"]),
    ],
)
def test_what_was_pretrained_beside_a_head_is_left_out(family, head, unread, folder):
    def more(tensors):
        tensors.update({name: torch.zeros(2, 2) for name in unread})

    assert identify(load_encoder(folder(family, head, more))) == identify(tiny(family, head))


@pytest.mark.parametrize(
    ("family", "name", "original"),
    [
        ("bert", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
        ("bert", "cls.predictions.decoder.bias", "cls.predictions.bias"),
        ("roberta", "lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"),
        ("roberta", "lm_head.decoder.bias", "lm_head.bias"),
    ],
)
def test_a_copy_of_a_tied_tensor_must_be_one(family, name, original, folder):
    def copied(tensors):
        tensors[name] = tensors[original].clone()

    def changed(tensors):
        tensors[name] = tensors[original] + 1

    assert identify(load_encoder(folder(family, "mlm", copied))) == identify(tiny(family, "mlm"))
    with pytest.raises(WeightsError, match="differs from the tensor it is tied to"):
        load_encoder(folder(family, "mlm", changed))


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model_type": "xlnet"}, "model_type"),
        ({"hidden_act": "relu"}, "hidden_act"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"is_decoder": True}, "is_decoder"),
        ({"add_cross_attention": True}, "add_cross_attention"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings"),
        ({"architectures": ["BertForTokenClassification"]}, "architectures"),
        ({"hidden_size": None}, "hidden_size"),
        ({"max_position_embeddings": "20"}, "max_position_embeddings"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps"),
    ],
)
def test_what_is_wired_otherwise_is_refused_by_its_key(change, field, folder):
    with pytest.raises(WeightsError, match=rf"config\.json: {field}: "):
        load_encoder(folder(**change))


def test_a_tensor_missing_left_over_or_of_another_shape_is_named(folder):
    def refused(match, change, head="pooler"):
        with pytest.raises(WeightsError, match=match):
            load_encoder(folder("bert", head, change))

    key = "encoder.layer.1.attention.self.key.bias"
    refused(r"layers\.1\.attention\.self\.key\.bias: a tensor is missing", lambda t: t.pop(key))
    refused(r"key\.bias: a tensor of another shape", lambda t: t.update({key: torch.zeros(3)}))
    refused(r"qa_outputs\.bias: .* no place for", lambda t: t.update({"qa_outputs.bias": torch.zeros(2)}))
    refused(
        r"cls\.seq_relationship\.bias: .* no place", lambda t: t.update({"cls.seq_relationship.bias": torch.zeros(2)})
    )
    refused(r"head\.decoder\.bias: .* is missing", lambda t: t.pop("cls.predictions.bias"), "mlm")


def test_sizes_that_do_not_fit_are_refused_before_there_is_memory_for_them(folder):
    with pytest.raises(WeightsError, match=r"num_attention_heads: the heads must divide the hidden size evenly"):
        load_encoder(folder(num_attention_heads=5))
    with pytest.raises(WeightsError, match=r"layers\.\d+\..*: a tensor is missing"):
        load_encoder(folder(num_hidden_layers=500))
    with pytest.raises(WeightsError, match="a tensor of another shape"):
        load_encoder(folder(vocab_size=1 << 24, hidden_size=1 << 16))  # four terabytes of words


def test_a_tensor_under_two_names_is_refused(folder):
    def twice(tensors):
        tensors["embeddings.LayerNorm.gamma"] = tensors["embeddings.LayerNorm.weight"] + 1

    with pytest.raises(WeightsError, match="tensors under both old and new names"):
        load_encoder(folder(change=twice))


@pytest.mark.parametrize(
    ("stored", "declared", "asked", "computed"),
    [
        (torch.float16, "float16", None, torch.float32),
        (torch.bfloat16, "bfloat16", None, torch.bfloat16),
        (torch.bfloat16, None, None, torch.bfloat16),
        (torch.bfloat16, "float32", None, torch.float32),
        (torch.float32, "bfloat16", None, torch.bfloat16),
        (torch.float32, "float32", torch.float64, torch.float64),
    ],
)
def test_numbers_are_of_the_type_that_is_asked_for_or_declared_or_stored(stored, declared, asked, computed, folder):
    def changed(tensors):
        tensors.update({name: tensor.to(stored) for name, tensor in tensors.items()})

    encoder = load_encoder(folder("roberta", "mlm", changed, torch_dtype=declared), asked)
    assert {weight.dtype for weight in encoder.parameters()} == {computed}
    assert encoder.head.decoder.weight is encoder.embeddings.word_embeddings.weight


def test_shards_are_read(folder):
    at = folder()
    tensors = load_file(at / "model.safetensors")
    (at / "model.safetensors").unlink()
    half = sorted(tensors)[: len(tensors) // 2]
    parts = {"a.safetensors": half, "b.safetensors": sorted({*tensors} - {*half})}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, at / file)
    listed = {name: file for file, names in parts.items() for name in names}
    (at / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": listed}))
    assert identify(load_encoder(at)) == identify(tiny("bert", "pooler"))


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_any_model_that_is_loaded_may_be_an_encoder_and_is_saved_as_one(head, folder, tmp_path):
    model = moesaic.load_model(folder("roberta", head))
    given = inputs(1, 1)
    for ours, expected in zip(model(**given), tiny("roberta", head)(**given), strict=True):
        assert (ours is None and expected is None) or ours.equal(expected)
    saved = model.save_pretrained(tmp_path / "saved")
    assert moesaic.load_model(saved).config == model.config
    assert identify(load_encoder(saved)) == identify(tiny("roberta", head))
    with pytest.raises(StorageError, match="the path already exists"):
        model.save_pretrained(saved)


def test_no_folder_is_an_error_of_its_own(tmp_path):
    with pytest.raises(WeightsError, match="no such encoder folder"):
        load_encoder(tmp_path / "nothing")
