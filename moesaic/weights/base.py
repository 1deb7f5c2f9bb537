"""Bases on disk: a Hugging Face folder (config.json, model.safetensors, tokenizer.json) plus our manifest.

A folder without a manifest loads too. Knows nothing about experts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from moesaic.config import DecoderConfig
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, digest, read_manifest, write_manifest
from moesaic.model.decoder import Decoder
from moesaic.tokenizer import FILES as TEXT
from moesaic.tokenizer import Tokenizer
from moesaic.weights import configs
from moesaic.weights.decoders import named, read_decoder, write_config
from moesaic.weights.places import model_folder, tokenizer_folder
from moesaic.weights.shards import INDEX, read_index
from moesaic.weights.tensors import TENSORS, fingerprint, write_tensors

KIND = "base"
FILES = ("config.json", TENSORS)  # and some of tokenizer.FILES


@dataclass(frozen=True)
class Base:
    """A decoder with the tokenizer it was trained with, and the fingerprint by which experts know it.

    The fingerprint covers the values of all tensors, how they are wired, and the tokenizer: with any of these changed,
    an expert or a router would mean something else.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    fingerprint: str


def identify(decoder: Decoder, tokenizer: Tokenizer) -> str:
    """The fingerprint of a base."""
    return digest([fingerprint(named(decoder)), decoder.config.wiring, *tokenizer.identity])


def save_base(folder: Path, decoder: Decoder, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
    """Write a base into an empty folder; `facts` (data hash, metrics, seed, ...) go to its manifest."""
    tensors = named(decoder)
    write_tensors(folder / TENSORS, tensors)
    tokenizer.save(folder)
    special = tokenizer.special
    ends = list(tokenizer.ends) if len(tokenizer.ends) > 1 else tokenizer.eos
    tokens = {"bos_token_id": special.bos, "eos_token_id": ends, "pad_token_id": special.pad}
    write_config(folder, decoder, tokens)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    write_manifest(folder, {"kind": KIND, "fingerprint": identify(decoder, tokenizer), "shapes": shapes, **facts})


def load_base(folder: Path) -> Base:
    """Read a base; everything its manifest promises is checked, and of a foreign folder all that it says itself."""
    if not folder.is_dir():
        raise WeightsError("no such base folder", path=folder, hint="give a folder with config.json and its weights")
    if (folder / MANIFEST).is_file():
        read_manifest(folder, KIND)
    model = model_folder(folder)
    decoder, found = read_decoder(model, lambda stored: torch.get_default_dtype())
    tokenizer = Tokenizer.load(tokenizer_folder(model), end_of(found, model / "config.json"))
    if tokenizer.vocab_size > decoder.config.vocab_size:
        raise CompatibilityError(
            "the tokenizer has more tokens than the model",
            path=folder / "tokenizer.json",
            expected=f"<= {decoder.config.vocab_size}",
            got=tokenizer.vocab_size,
        )
    return Base(decoder, tokenizer, identify(decoder, tokenizer))


def read_config(path: Path) -> tuple[DecoderConfig, int]:
    """The size and wiring of a model, and its end-of-text id."""
    config, found = configs.read_config(path)
    return config, end_of(found, path)


def end_of(found: dict[str, Any], path: Path) -> int:
    """The end-of-text id in a config.json: of several, the first."""
    eos = found.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    if not isinstance(eos, int):
        raise WeightsError("no end-of-text token", path=path, field="eos_token_id", expected="an integer", got=eos)
    return eos


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a base as a folder of its own would have them, and where each lies, if it is there."""
    model = model_folder(folder)
    sharded = not (model / TENSORS).is_file() and (model / INDEX).is_file()
    tensors = [INDEX, *sorted(set(read_index(model / INDEX).values()))] if sharded else [TENSORS]
    own = {file: model / file for file in ("config.json", *tensors, MANIFEST)}
    return {file: tokenizer_folder(model) / file for file in TEXT} | own
