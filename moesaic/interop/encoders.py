"""Encoders on disk: a Hugging Face folder of a BERT or RoBERTa (config.json, model.safetensors), read and written.

Knows nothing about text or the use of the states.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from moesaic.config import ENCODER_TRAITS, EncoderConfig, Head
from moesaic.errors import RecipeError, WeightsError
from moesaic.files import digest, write_json
from moesaic.interop.decoders import type_of
from moesaic.interop.encoder_names import NAMES, TIED, WORDS, is_unread, prefixed, renamed, table
from moesaic.interop.loaded_model import LoadedModel
from moesaic.model.encoder import Encoder, Output
from moesaic.tensors.file_names import TENSORS
from moesaic.tensors.json_config import family_in, read_settings
from moesaic.tensors.shards import TensorFiles
from moesaic.tensors.tensors import fingerprint, fit, write_tensors

# Our size fields <-> the keys of config.json.
KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "token_types": "type_vocab_size",
    "norm_eps": "layer_norm_eps",
    "pad": "pad_token_id",
}
# Wiring that this encoder does not have: only these values are accepted.
ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu",),
    "position_embedding_type": ("absolute", None),
    "is_decoder": (False, None),
    "add_cross_attention": (False, None),
    "tie_word_embeddings": (True, None),
}
ARCHITECTURES: dict[str, dict[str, Head]] = {
    "bert": {
        "BertModel": "pooler",
        "BertForMaskedLM": "mlm",
        "BertForSequenceClassification": "classification",
        "BertForPreTraining": "mlm",
    },
    "roberta": {
        "RobertaModel": "pooler",
        "RobertaForMaskedLM": "mlm",
        "RobertaForSequenceClassification": "classification",
    },
}
"""Family -> classes of transformers that are read and their heads; the first class of a head is written."""


def named(encoder: Encoder) -> dict[str, Tensor]:
    """The encoder's tensors under their Hugging Face names, without a tied decoder; a bare body has no prefix."""
    config, places = encoder.config, table(encoder.config)
    bare = config.head in ("none", "pooler")
    found = {renamed(name, places): tensor for name, tensor in encoder.state_dict().items() if name != TIED}
    return {name.removeprefix(f"{config.family}.") if bare else name: tensor for name, tensor in found.items()}


def identify(encoder: Encoder) -> str:
    return digest([fingerprint(named(encoder)), asdict(encoder.config)])


def save_encoder(folder: Path, encoder: Encoder) -> None:
    """Write config.json and model.safetensors into an empty folder, as transformers would."""
    config, tensors = encoder.config, named(encoder)
    write_tensors(folder / TENSORS, tensors)
    head = config.head if config.head != "none" else "pooler"
    content = {
        "architectures": [next(name for name, own in ARCHITECTURES[config.family].items() if own == head)],
        "model_type": config.family,
        **{key: values[0] for key, values in ONLY.items()},
        **{key: getattr(config, field) for field, key in KEYS.items()},
        "max_position_embeddings": config.num_positions,
    }
    if config.labels:
        content["id2label"] = {str(index): label for index, label in enumerate(config.labels)}
        content["label2id"] = {label: index for index, label in enumerate(config.labels)}
    content["torch_dtype"] = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_json(folder / "config.json", content)


def load_encoder(folder: Path, dtype: torch.dtype | None = None, body_only: bool = False) -> Encoder:
    """Read a BERT or RoBERTa with the head of its tensors; WeightsError, by name, for wiring that differs from ours.

    `dtype` (default: that of config.json, else the widest of the tensors; but float32 instead of float16, as a CPU
    computes in it): of all tensors. `body_only`: leave out
    any head but BERT's pooler, as the sequence classifiers of transformers do.
    """
    if not folder.is_dir():
        raise WeightsError("no such encoder folder", path=folder, hint="give a folder with config.json and its weights")
    path = folder / "config.json"
    found = read_settings(path)
    family = family_of(found, path)
    with TensorFiles(folder, mapped=False) as files:
        tensors = {prefixed(name, family): files[name] for name in files}
        if len(tensors) < len(files):
            what = "tensors under both old and new names"
            raise WeightsError(what, path=folder / TENSORS, hint="keep one of each")
    if body_only:
        unread = f"{family}.pooler." if family == "roberta" else "\0"  # those classifiers do not use RoBERTa's pooler
        tensors = {n: t for n, t in tensors.items() if n.startswith(f"{family}.") and not n.startswith(unread)}
    head = head_of(tensors, family)
    config = read_config(found, path, family, head, tensors)
    places = {theirs: ours for ours, theirs in table(config).items()}
    ours = {renamed(name, places): tensor for name, tensor in tensors.items() if not is_unread(name, head)}
    if head == "mlm":
        untie(ours, folder / TENSORS)
    with torch.device("meta"):
        encoder = Encoder(config)
    fit(encoder, ours, folder / TENSORS)  # names and shapes, before memory of the size in config.json is allocated
    stored = type_of(found, [tensor.dtype for tensor in ours.values() if tensor.is_floating_point()])
    computed = dtype or (torch.float32 if stored == torch.float16 else stored)
    encoder.load_state_dict({name: tensor.to(computed) for name, tensor in ours.items()}, assign=True)
    encoder.tie()
    return encoder.eval()


def family_of(found: dict[str, Any], path: Path) -> str:
    """The family that a config.json describes; WeightsError for unknown families and other wiring."""
    family = family_in(found, path, ARCHITECTURES, "encoders")
    for key, allowed in ONLY.items():
        if found.get(key, allowed[0]) not in allowed:
            raise WeightsError("not a plain encoder", path=path, field=key, expected=allowed[0], got=found[key])
    known = ARCHITECTURES[family]
    for architecture in found.get("architectures") or []:
        if architecture not in known:
            what, expected = "unknown head", " or ".join(known)
            raise WeightsError(what, path=path, field="architectures", expected=expected, got=architecture)
    return family


def head_of(tensors: dict[str, Tensor], family: str) -> Head:
    """The head, by the names of the tensors, as config.json often names the model that this one was cut out of."""
    if any(name.startswith("classifier.") for name in tensors):
        return "classification"
    if any(name.startswith(("cls.predictions.", "lm_head.")) for name in tensors):
        return "mlm"
    return "pooler" if f"{family}.pooler.dense.weight" in tensors else "none"


def read_config(
    found: dict[str, Any], path: Path, family: str, head: Head, tensors: dict[str, Tensor]
) -> EncoderConfig:
    """The size and wiring in a config.json; labels without names are numbered."""
    keys = {**KEYS, "context": "max_position_embeddings"}
    required = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "context")
    present = {field: found[key] for field, key in keys.items() if found.get(key) is not None}
    facts = {**dict.fromkeys(required), **ENCODER_TRAITS[family], **present}
    for field, fact in facts.items():
        if not isinstance(fact, float | int if field == "norm_eps" else int):
            key = keys.get(field, field)
            raise WeightsError("not a size", path=path, field=key, expected="a number", got=repr(fact))
    if facts.get("positions_skip_padding"):
        facts["context"] -= facts.get("pad", 0) + 1
    labels: tuple[str, ...] = ()
    if head == "classification":
        outer = NAMES[family][head]["head.out_proj."] + "bias"
        count = tensors[outer].numel() if outer in tensors else 1
        named = found.get("id2label") or {}
        labels = tuple(str(named.get(str(index), f"LABEL_{index}")) for index in range(len(named) or count))
    try:
        return EncoderConfig(**facts, family=family, head=head, labels=labels)
    except RecipeError as error:
        at = keys.get(error.field or "", error.field)
        raise WeightsError(error.what, path=path, field=at, expected=error.expected, got=error.got) from None


def untie(tensors: dict[str, Tensor], path: Path) -> None:
    """Use the embedding's weights for the decoder; WeightsError if a stored copy of a tied tensor differs from it."""
    bias = "head.decoder.bias"
    tied = {TIED: WORDS, "lm_head.decoder.bias": bias, "cls.predictions.decoder.bias": bias}
    for name, original in tied.items():
        copy = tensors.pop(name, None)
        if copy is not None and original in tensors and not copy.equal(tensors[original]):
            raise WeightsError("differs from the tensor it is tied to", path=path, field=name, expected=original)
    if WORDS in tensors:
        tensors[TIED] = tensors[WORDS]


class LoadedEncoder(LoadedModel):
    """An encoder, called and saved as models of transformers are."""

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder

    @property
    def config(self) -> EncoderConfig:
        return self.encoder.config

    def forward(
        self,
        input_ids: Int[Tensor, "b t"],
        attention_mask: Int[Tensor, "b t"] | Bool[Tensor, "b t"] | None = None,
        token_type_ids: Int[Tensor, "b t"] | None = None,
    ) -> Output:
        """`.hidden` (b, t, d), and `.logits`: (b, t, v) of a masked head, (b, c) of a head that classifies."""
        return self.encoder(input_ids, attention_mask, token_type_ids)

    @property
    def auto_class(self) -> str:
        classes = {"mlm": "AutoModelForMaskedLM", "classification": "AutoModelForSequenceClassification"}
        return classes.get(self.config.head, "AutoModel")

    def write(self, folder: Path) -> None:
        save_encoder(folder, self.encoder)


def load_pretrained(folder: Path, dtype: torch.dtype | None) -> LoadedEncoder:
    return LoadedEncoder(load_encoder(folder, dtype))
