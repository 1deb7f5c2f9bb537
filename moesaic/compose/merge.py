"""Merging of several models of one shape into one dense base, by the mean of each tensor.

Knows nothing about routers. `Kind.average` averages adapters, as a control of the evaluation.
"""

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from moesaic.artefacts.base import KIND, end_of, identify, require_rows, write_description
from moesaic.artefacts.whole_model import require_tokenizer
from moesaic.errors import MoesaicWarning, RecipeError
from moesaic.files import write_manifest, write_new
from moesaic.hub.locate import locate, tokenizer_folder
from moesaic.interop.decoders import as_stored, named, read_decoder
from moesaic.interop.folders import require_model
from moesaic.kinds.difference import require_shape
from moesaic.tensors.shards import write_shards
from moesaic.tensors.tensors import Made
from moesaic.tokenizer import Tokenizer

Only = Literal["shared"]
FILE_BYTES = 1_000_000_000
"""Largest file of the result; averaging takes about twice as much memory."""


def merge(
    models: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    only: str | None = None,
) -> Path:
    """Average the parameters of models of one shape and tokenizer into a new folder, a base, and return the folder.

    `weights`: one for each model, divided by their sum; equal by default. `only="shared"`: the feed-forward blocks stay
    those of the first model, so that a mixture of site `ffn` over the result can hold the blocks of each model
    (Branch-Train-MiX, arXiv 2403.07816, section 2.2). Sums have float32 at least; results have the types of the first
    model. Raises CompatibilityError for models of another shape or tokenizer.
    """
    shares = shares_of(len(models), weights)
    if only not in (None, *get_args(Only)):
        raise RecipeError("unknown", field="only", expected=" or ".join(get_args(Only)), got=only)
    folders = [require_model(locate(place).folder) for place in models]
    read = [read_decoder(folder, as_stored, mapped=True) for folder in folders]
    tokenizers = [
        Tokenizer.load(tokenizer_folder(at), end_of(found, at / "config.json"))
        for at, (_, found) in zip(folders, read, strict=True)
    ]
    first, tokenizer = read[0][0], tokenizers[0]
    for at, (decoder, _), own in zip(folders, read, tokenizers, strict=True):
        require_shape(first.config, decoder.config, at, "models of one shape are merged, and this one's")
        require_tokenizer(tokenizer, own, at)
        require_rows(own, decoder.config.vocab_size, at)
    tokenizer = ending_as_all(tokenizers, folders)
    tensors = [named(decoder) for decoder, _ in read]

    def averaged(name: str) -> Tensor:
        own = tensors[0][name]
        if only == "shared" and ".mlp." in name:
            return own
        exact = torch.promote_types(own.dtype, torch.float32)
        total = torch.zeros(own.shape, dtype=exact)
        for share, some in zip(shares, tensors, strict=True):
            total.add_(some[name].to(exact), alpha=share)
        return total.to(own.dtype)

    def write(draft: Path) -> None:
        write_shards(draft, Made(tensors[0], averaged), FILE_BYTES)
        write_description(draft, first.config, first.norm.weight.dtype, tokenizer)
        made, _ = read_decoder(draft, as_stored, mapped=True)
        facts = {
            "fingerprint": identify(made, tokenizer, torch.get_default_dtype()),
            "shapes": {name: list(tensor.shape) for name, tensor in tensors[0].items()},
            "merged": {
                "from": [identify(decoder, tokenizer, torch.get_default_dtype()) for decoder, _ in read],
                "weights": shares,
                "only": only,
            },
        }
        write_manifest(draft, {"kind": KIND, **facts})

    with torch.no_grad():
        size = sum(tensor.nbytes for tensor in tensors[0].values())
        return write_new(Path(out), write, size, "the merged model")


def ending_as_all(tokenizers: Sequence[Tokenizer], folders: Sequence[Path]) -> Tokenizer:
    """The first tokenizer, with the ends of all; warns where they differ, or where their chat templates do."""
    first, folder = tokenizers[0], folders[0]
    ends = tuple(dict.fromkeys(end for one in tokenizers for end in one.ends))
    for own, at in zip(tokenizers, folders, strict=True):
        if own.ends != first.ends:
            text = f"it ends texts with ids {own.ends}, {folder} with {first.ends}; all of them end texts of the merge"
            warnings.warn(f"{at}: {text}", MoesaicWarning, stacklevel=3)
        if (own.template and own.template.source) != (first.template and first.template.source):
            text = f"its chat template differs from that of {folder}, which the merge gets"
            warnings.warn(f"{at}: {text}", MoesaicWarning, stacklevel=3)
    return Tokenizer(first.inner, replace(first.special, ends=ends), first.template)


def shares_of(count: int, weights: Sequence[float] | None) -> list[float]:
    """Shares of the models, with sum 1."""
    if count < 2:
        raise RecipeError("one model needs no merging", expected="two models or more", got=count)
    given = [1.0] * count if weights is None else list(weights)
    if len(given) != count:
        raise RecipeError("wrong number of weights", field="weights", expected=count, got=len(given))
    if not all(math.isfinite(weight) for weight in given) or not sum(given) > 0:
        raise RecipeError("wrong weights", field="weights", expected="numbers with a sum above 0", got=str(given))
    return [weight / sum(given) for weight in given]
