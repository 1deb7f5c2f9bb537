"""The tokenizer of an expert, in a fine-tuned model or beside an adapter, compared with that of the base.

A mixture uses only the base's tokenizer. Knows nothing about weights.
"""

from pathlib import Path

from moesaic.errors import CompatibilityError
from moesaic.tokenizer import Tokenizer, compare
from moesaic.tokenizer.comparing import SPACES
from moesaic.tokenizer.published import JSON, MODEL, VOCABULARY, WORDS


def tokenizer_beside(folder: Path, base: Tokenizer) -> list[str]:
    """Warnings about the tokenizer in an adapter's folder; none if it is missing or equals the base's.

    CompatibilityError if ids mean other tokens, as the adapter was then trained on other ids than it will get.
    """
    if not any((folder / file).is_file() for file in (JSON, VOCABULARY, MODEL, WORDS)):
        return []
    own = Tokenizer.load(folder, base.eos)
    differences = [one for one in compare(base, own) if one.what not in ("templates", "special ids", SPACES)]
    for one in differences:
        if one.what == "tokens" and one.clashes:
            what, hint = "the tokenizer beside the adapter gives ids to other tokens", "adopt it over its own base"
            raise CompatibilityError(what, path=folder, got=str(one), hint=hint)
    shown = "; ".join(map(str, differences))
    found = [f"the tokenizer beside it differs from the base's, which is used: {shown}"] if differences else []
    return found + spoken_otherwise(base, own)


def spoken_otherwise(base: Tokenizer, own: Tokenizer) -> list[str]:
    """Warnings about an expert's chat template, spaces and end of text that differ from the base's."""
    found = []
    if own.template and own.template.source != (base.template and base.template.source):
        found.append("its chat template differs from the base's, which is used")
    spaces = [one for one in compare(base, own) if one.what == SPACES]
    found += [f"its tokenizer differs from the base's, which is used: {one}" for one in spaces]
    if own.eos not in base.ends:
        found.append(f"it ends texts with {own.inner.id_to_token(own.eos)}, which does not end a text of the base")
    return found
