"""The tokenizer of an expert, in a fine-tuned model or left beside an adapter, held against that of the base.

A mixture reads and writes with the base's alone. Knows nothing about weights.
"""

from pathlib import Path

from moesaic.errors import CompatibilityError
from moesaic.tokenizer import Tokenizer, compare
from moesaic.tokenizer.published import JSON, MODEL, VOCABULARY, WORDS


def tokenizer_beside(folder: Path, base: Tokenizer) -> list[str]:
    """What is odd about the tokenizer in an adapter's folder; nothing where there is none, or it is the base's.

    CompatibilityError where ids mean other tokens: the adapter has learned from other ids than it will be given.
    """
    if not any((folder / file).is_file() for file in (JSON, VOCABULARY, MODEL, WORDS)):
        return []
    own = Tokenizer.load(folder, base.eos)
    differences = [one for one in compare(base, own) if one.what not in ("templates", "special ids")]
    for one in differences:
        if one.what == "tokens" and one.clashes:
            what, hint = "the tokenizer beside the adapter gives ids to other tokens", "adopt it over its own base"
            raise CompatibilityError(what, path=folder, got=str(one), hint=hint)
    shown = "; ".join(map(str, differences))
    told = [f"the tokenizer beside it is not the base's, which is used: {shown}"] if differences else []
    return told + spoken_otherwise(base, own)


def spoken_otherwise(base: Tokenizer, own: Tokenizer) -> list[str]:
    """How an expert has learned to write conversations and to end texts, where that is not the base's way."""
    told = []
    if own.template and own.template.source != (base.template and base.template.source):
        told.append("its chat template is not the base's, which is used")
    if own.eos not in base.ends:
        told.append(f"it ends texts with {own.inner.id_to_token(own.eos)}, which ends none here")
    return told
