"""Names of the tensors of BERT and RoBERTa here and at Hugging Face: one table for reading and writing.

Knows nothing about files or values.
"""

import re

from moesaic.config import EncoderConfig, Head

BODY = ("embeddings.", "encoder.", "pooler.")
"""Beginnings of the body's names, after the family's prefix."""

NAMES: dict[str, dict[Head, dict[str, str]]] = {
    "bert": {
        "mlm": {
            "head.dense.": "cls.predictions.transform.dense.",
            "head.LayerNorm.": "cls.predictions.transform.LayerNorm.",
            "head.decoder.bias": "cls.predictions.bias",
            "head.decoder.weight": "cls.predictions.decoder.weight",
        },
        "classification": {"head.pooler.": "bert.pooler.", "head.out_proj.": "classifier."},
    },
    "roberta": {
        "mlm": {
            "head.dense.": "lm_head.dense.",
            "head.LayerNorm.": "lm_head.layer_norm.",
            "head.decoder.bias": "lm_head.bias",
            "head.decoder.weight": "lm_head.decoder.weight",
        },
        "classification": {"head.pooler.dense.": "classifier.dense.", "head.out_proj.": "classifier.out_proj."},
    },
}
"""Beginnings of a head's names: ours -> those of Hugging Face. `table` has the body's."""

WORDS, TIED = "embeddings.word_embeddings.weight", "head.decoder.weight"
"""Two names of one tensor in models with a masked head."""

UNREAD: dict[Head, str] = {
    "none": "",
    "pooler": "",
    "mlm": r"|\w+\.pooler\..*|cls\.seq_relationship\..*",  # from the pretraining
    "classification": r"|roberta\.pooler\..*",  # this head has its own dense layer
}
"""Tensors that files with a head may hold, but the head does not use, beside buffers of indices."""

BUFFERS = r"\w+\.embeddings\.(position_ids|token_type_ids)"


def table(config: EncoderConfig) -> dict[str, str]:
    """Beginnings of all names of an encoder: ours -> those of Hugging Face, with the family's prefix."""
    prefix = f"{config.family}."
    body = {"embeddings.": "embeddings.", "layers.": "encoder.layer.", "pooler.": "pooler."}
    if config.head != "pooler":
        del body["pooler."]
    return {ours: prefix + theirs for ours, theirs in body.items()} | NAMES[config.family].get(config.head, {})


def prefixed(name: str, family: str) -> str:
    """The current name of a tensor in a model with a head."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return f"{family}.{name}" if name.startswith(BODY) else name


def renamed(name: str, places: dict[str, str]) -> str:
    return next((there + name[len(here) :] for here, there in places.items() if name.startswith(here)), name)


def is_unread(name: str, head: Head) -> bool:
    return re.fullmatch(BUFFERS + UNREAD[head], name) is not None
