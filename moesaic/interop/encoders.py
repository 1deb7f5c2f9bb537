"""Encoders on disk: a Hugging Face folder of a BERT or RoBERTa (config.json, model.safetensors), both ways.

Knows nothing about text, nor what the states are for.
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
from moesaic.interop.encoder_names import NAMES, TIED, WORDS, is_unread, prefixed, renamed, table
from moesaic.interop.loaded_model import LoadedModel
from moesaic.model.encoder import Encoder, Output
from moesaic.tensors.json_config import family_in, read_settings
from moesaic.tensors.shards import TensorFiles
from moesaic.tensors.tensors import TENSORS, fingerprint, fit, write_tensors

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
"""Family -> the models of transformers that are read; of several with one head the first is written."""


def named(encoder: Encoder) -> dict[str, Tensor]:
    """The encoder's tensors under their Hugging Face names; those of a body without a head have no prefix.

    A tied decoder is not stored twice.
    """
    config, places = encoder.config, table(encoder.config)
    bare = config.head in ("none", "pooler")
    found = {renamed(name, places): tensor for name, tensor in encoder.state_dict().items() if name != TIED}
    return {name.removeprefix(f"{config.family}.") if bare else name: tensor for name, tensor in found.items()}


def identify(encoder: Encoder) -> str:
    """A hash of an encoder's tensors and of how they are wired."""
    return digest([fingerprint(named(encoder)), asdict(encoder.config)])


def save_encoder(folder: Path, encoder: Encoder) -> None:
    """Write config.json and model.safetensors into an empty folder, as transformers would."""
    config, tensors = encoder.config, named(encoder)
    write_tensors(folder / TENSORS, tensors)
    kinds = ARCHITECTURES[config.family]
    architecture = next(
        name for name, head in kinds.items() if head == (config.head if config.head != "none" else "pooler")
    )
    sizes = {key: getattr(config, field) for field, key in KEYS.items()}
    labels = {
        "id2label": {str(index): label for index, label in enumerate(config.labels)},
        "label2id": {label: index for index, label in enumerate(config.labels)},
    }
    write_json(
        folder / "config.json",
        {
            "architectures": [architecture],
            "model_type": config.family,
            **{key: values[0] for key, values in ONLY.items()},
            **sizes,
            "max_position_embeddings": config.num_positions,
            **(labels if config.labels else {}),
            "torch_dtype": str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        },
    )


def load_encoder(folder: Path, dtype: torch.dtype | None = None, body_only: bool = False) -> Encoder:
    """Read a BERT or RoBERTa with the head that its tensors have; refuses by name what would be computed otherwise.

    `dtype`: None as it is stored, but float16 becomes float32, which a CPU computes in. `body_only`: leave out whatever
    head there is, but for BERT's pooler: what transformers' models for sequence classification take over.
    """
    if not folder.is_dir():
        raise WeightsError("no such encoder folder", path=folder, hint="give a folder with config.json and its weights")
    path = folder / "config.json"
    found = read_settings(path)
    family = family_of(found, path)
    with TensorFiles(folder, mapped=False) as files:
        tensors = {prefixed(name, family): files[name] for name in files}
        if len(tensors) < len(files):
            raise WeightsError(
                "tensors under older names and newer ones", path=folder / TENSORS, hint="keep one of each"
            )
    if body_only:
        unread = f"{family}.pooler." if family == "roberta" else "\0"  # those models have no use for RoBERTa's
        tensors = {n: t for n, t in tensors.items() if n.startswith(f"{family}.") and not n.startswith(unread)}
    head = head_of(tensors, family)
    config = read_config(found, path, family, head, tensors)
    places = {theirs: ours for ours, theirs in table(config).items()}
    ours = {renamed(name, places): tensor for name, tensor in tensors.items() if not is_unread(name, head)}
    if head == "mlm":
        untie(ours, folder / TENSORS)
    with torch.device("meta"):
        encoder = Encoder(config)
    fit(encoder, ours, folder / TENSORS)  # names and shapes, before anything is as large as config.json says
    stored = ours[WORDS].dtype
    computed = dtype or (torch.float32 if stored == torch.float16 else stored)
    encoder.load_state_dict({name: tensor.to(computed) for name, tensor in ours.items()}, assign=True)
    encoder.tie()
    return encoder.eval()


def family_of(found: dict[str, Any], path: Path) -> str:
    """Which family a config.json describes, if it is one of ours and wired as here."""
    family = family_in(found, path, ARCHITECTURES, "encoders")
    for key, allowed in ONLY.items():
        if found.get(key, allowed[0]) not in allowed:
            raise WeightsError("not a plain encoder", path=path, field=key, expected=allowed[0], got=found[key])
    known = ARCHITECTURES[family]
    for architecture in found.get("architectures") or []:
        if architecture not in known:
            expected = " or ".join(known)
            raise WeightsError(
                "a head that is not read", path=path, field="architectures", expected=expected, got=architecture
            )
    return family


def head_of(tensors: dict[str, Tensor], family: str) -> Head:
    """Which head there is, by the names of the tensors: config.json often names a model that was cut out of another."""
    if any(name.startswith("classifier.") for name in tensors):
        return "classification"
    if any(name.startswith(("cls.predictions.", "lm_head.")) for name in tensors):
        return "mlm"
    return "pooler" if f"{family}.pooler.dense.weight" in tensors else "none"


def read_config(
    found: dict[str, Any], path: Path, family: str, head: Head, tensors: dict[str, Tensor]
) -> EncoderConfig:
    """The size and wiring that a config.json states; labels without names are numbered."""
    keys = {**KEYS, "context": "max_position_embeddings"}
    facts = {**ENCODER_TRAITS[family]} | {
        field: found[key] for field, key in keys.items() if found.get(key) is not None
    }
    for field in ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "context"):
        facts.setdefault(field, None)
    for field, fact in facts.items():
        if not isinstance(fact, float | int if field == "norm_eps" else int):
            raise WeightsError(
                "not a size", path=path, field=keys.get(field, field), expected="a number", got=repr(fact)
            )
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
        key = keys.get(error.field or "", error.field)
        raise WeightsError(error.what, path=path, field=key, expected=error.expected, got=error.got) from None


def untie(tensors: dict[str, Tensor], path: Path) -> None:
    """Put the decoder's weights, which are the embedding's, in their place; copies of tied tensors must be copies."""
    for names, original in (
        ((TIED,), WORDS),
        (("lm_head.decoder.bias", "cls.predictions.decoder.bias"), "head.decoder.bias"),
    ):
        for name in names:
            copy = tensors.pop(name, None)
            if copy is not None and original in tensors and not copy.equal(tensors[original]):
                raise WeightsError("differs from the tensor it is tied to", path=path, field=name, expected=original)
    if WORDS in tensors:
        tensors[TIED] = tensors[WORDS]


class LoadedEncoder(LoadedModel):
    """An encoder that is called as models of transformers are, and saved as they are."""

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
        """`.hidden` (b, t, d), and of a masked head `.logits` (b, t, v), of one that classifies `.logits` (b, c)."""
        return self.encoder(input_ids, attention_mask, token_type_ids)

    @property
    def auto_class(self) -> str:
        return {"mlm": "AutoModelForMaskedLM", "classification": "AutoModelForSequenceClassification"}.get(
            self.config.head, "AutoModel"
        )

    def write(self, folder: Path) -> None:
        save_encoder(folder, self.encoder)


def load_pretrained(folder: Path, dtype: torch.dtype | None) -> LoadedEncoder:
    return LoadedEncoder(load_encoder(folder, dtype))
