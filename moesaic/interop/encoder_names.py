"""What the tensors of a BERT or RoBERTa are called here and by Hugging Face: one table, read in both directions.

Knows nothing about files or values.
"""

import re

from moesaic.config import EncoderConfig, Head

BODY = ("embeddings.", "encoder.", "pooler.")
"""What a name of the body begins with, behind the family's prefix."""

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
"""What names of a head begin with: ours -> those of Hugging Face. The body's are in `table`."""

WORDS, TIED = "embeddings.word_embeddings.weight", "head.decoder.weight"
"""One tensor under two names, where there is a masked head."""

UNREAD: dict[Head, str] = {
    "none": "",
    "pooler": "",
    "mlm": r"|\w+\.pooler\..*|cls\.seq_relationship\..*",  # was pretrained beside it
    "classification": r"|roberta\.pooler\..*",  # that head has a dense layer of its own
}
"""Tensors that files with a head may hold and it has no use for, beside buffers that only count."""

BUFFERS = r"\w+\.embeddings\.(position_ids|token_type_ids)"


def table(config: EncoderConfig) -> dict[str, str]:
    """What all names of an encoder begin with: ours -> those of Hugging Face, with the family's prefix."""
    prefix = f"{config.family}."
    body = {"embeddings.": "embeddings.", "layers.": "encoder.layer.", "pooler.": "pooler."}
    if config.head != "pooler":
        del body["pooler."]
    return {ours: prefix + theirs for ours, theirs in body.items()} | NAMES[config.family].get(config.head, {})


def prefixed(name: str, family: str) -> str:
    """A name as it stands in a model with a head, and as it is called today."""
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return f"{family}.{name}" if name.startswith(BODY) else name


def renamed(name: str, places: dict[str, str]) -> str:
    """A name with its beginning replaced by the table's; one that the table does not know stays."""
    return next((there + name[len(here) :] for here, there in places.items() if name.startswith(here)), name)


def is_unread(name: str, head: Head) -> bool:
    """Whether a tensor, under its full name, is none that a model with this head computes with."""
    return re.fullmatch(BUFFERS + UNREAD[head], name) is not None
