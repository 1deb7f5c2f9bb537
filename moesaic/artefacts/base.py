"""Bases on disk: a Hugging Face folder (config.json, model.safetensors, tokenizer.json) plus our manifest.

A folder without a manifest loads too. Knows nothing about experts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from moesaic.config import DecoderConfig
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, digest, read_manifest, write_manifest
from moesaic.hub.locate import model_folder, tokenizer_folder
from moesaic.interop import decoder_config as configs
from moesaic.interop.decoders import named, read_decoder, write_config
from moesaic.model.decoder import Decoder
from moesaic.tensors.shards import INDEX, read_index
from moesaic.tensors.tensors import TENSORS, Made, fingerprint, write_tensors
from moesaic.tokenizer import FILES as TEXT
from moesaic.tokenizer import Tokenizer

KIND = "base"


@dataclass(frozen=True)
class Base:
    """A decoder with the tokenizer it was trained with, and the fingerprint by which experts know it.

    The fingerprint covers the values of all tensors, how they are wired, and the tokenizer: with any of these changed,
    an expert or a router would mean something else. `origin`: of one from elsewhere, its place and commit.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    fingerprint: str
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> Decoder:
        """The decoder, by the name that bases of every task have."""
        return self.decoder

    @property
    def told(self) -> dict[str, Any]:
        """What the manifests of experts and routers say of it beside the fingerprint."""
        return {"base_origin": dict(self.origin)} if self.origin else {}


def identify(decoder: Decoder, tokenizer: Tokenizer, dtype: torch.dtype | None = None) -> str:
    """The fingerprint of a base; `dtype`: that of the base as it would be read in another type than its decoder has."""
    tensors = named(decoder)
    read = Made(tensors, lambda name: tensors[name] if dtype is None else tensors[name].to(dtype))
    return digest([fingerprint(read), decoder.config.wiring, *tokenizer.identity])


def save_base(folder: Path, decoder: Decoder, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
    """Write a base into an empty folder; `facts` (data hash, metrics, seed, ...) go to its manifest."""
    shapes = write_model(folder, decoder, tokenizer)
    write_manifest(folder, {"kind": KIND, "fingerprint": identify(decoder, tokenizer), "shapes": shapes, **facts})


def write_model(folder: Path, decoder: Decoder, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The files of a Hugging Face folder, without a manifest. Returns the shape of every tensor."""
    tensors = named(decoder)
    write_tensors(folder / TENSORS, tensors)
    write_description(folder, decoder, tokenizer)
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def write_description(folder: Path, decoder: Decoder, tokenizer: Tokenizer) -> None:
    """The files of a Hugging Face folder that are not tensors."""
    tokenizer.save(folder)
    special = tokenizer.special
    ends = list(tokenizer.ends) if len(tokenizer.ends) > 1 else tokenizer.eos
    tokens = {"bos_token_id": special.bos, "eos_token_id": ends, "pad_token_id": special.pad}
    write_config(folder, decoder, tokens)


def load_base(folder: Path, origin: Mapping[str, str] | None = None) -> Base:
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
    return Base(decoder, tokenizer, identify(decoder, tokenizer), origin or {})


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


def is_base(folder: Path) -> bool:
    """Whether a folder holds a decoder's configuration and weights, in one file or in shards."""
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in (TENSORS, INDEX))


def files_of(folder: Path) -> dict[str, Path]:
    """The files of a base as a folder of its own would have them, and where each lies, if it is there."""
    model = model_folder(folder)
    sharded = not (model / TENSORS).is_file() and (model / INDEX).is_file()
    tensors = [INDEX, *sorted(set(read_index(model / INDEX).values()))] if sharded else [TENSORS]
    own = {file: model / file for file in ("config.json", *tensors, MANIFEST)}
    return {file: tokenizer_folder(model) / file for file in TEXT} | own
