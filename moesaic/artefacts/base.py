"""Bases on disk: a Hugging Face folder (config.json, model.safetensors, tokenizer.json) plus our manifest.

A folder without a manifest loads too, unverified. Knows nothing about experts.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from moesaic.config import DecoderConfig
from moesaic.errors import CompatibilityError, MoesaicWarning, WeightsError
from moesaic.files import MANIFEST, digest, read_manifest, write_manifest
from moesaic.hardware import HOST, Compute
from moesaic.hub.locate import model_folder, tokenizer_folder
from moesaic.interop import decoder_config as configs
from moesaic.interop.decoders import as_stored, by_default, named, put, read_decoder, write_config
from moesaic.interop.folders import require_model
from moesaic.model.decoder import Decoder
from moesaic.tensors.file_names import INDEX, TENSORS
from moesaic.tensors.shards import read_index
from moesaic.tensors.tensors import Made, fingerprint, write_tensors
from moesaic.tokenizer import FILES as TEXT
from moesaic.tokenizer import Tokenizer

KIND = "base"


@dataclass(frozen=True)
class Base:
    """A decoder with its tokenizer and the fingerprint by which experts and routers know them.

    The fingerprint covers the values of all tensors, the wiring and the tokenizer: a change of any of these would
    change the meaning of an expert or a router. It is that of the files, also where values are rounded. `origin`: place
    and commit of a base that is not from a local folder.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    fingerprint: str
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> Decoder:
        """The decoder, under the name that bases of all tasks share."""
        return self.decoder

    @property
    def told(self) -> dict[str, Any]:
        return {"base_origin": dict(self.origin)} if self.origin else {}


def identify(decoder: Decoder, tokenizer: Tokenizer, dtype: torch.dtype | None = None) -> str:
    """Compute the fingerprint of a base, with its tensors as `dtype` (default: the decoder's own type)."""
    tensors = named(decoder)
    read = Made(tensors, lambda name: tensors[name] if dtype is None else tensors[name].to(dtype))
    return digest([fingerprint(read), decoder.config.wiring, *tokenizer.identity])


def save_base(folder: Path, decoder: Decoder, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
    """Write a base into an empty folder; its manifest gets `facts` (data hash, metrics, seed, ...)."""
    shapes = write_model(folder, decoder, tokenizer)
    write_manifest(folder, {"kind": KIND, "fingerprint": identify(decoder, tokenizer), "shapes": shapes, **facts})


def write_model(folder: Path, decoder: Decoder, tokenizer: Tokenizer) -> dict[str, list[int]]:
    """Write the files of a Hugging Face folder, without a manifest, and return the shape of every tensor."""
    tensors = named(decoder)
    write_tensors(folder / TENSORS, tensors)
    write_description(folder, decoder.config, decoder.norm.weight.dtype, tokenizer)
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def write_description(folder: Path, config: DecoderConfig, dtype: torch.dtype, tokenizer: Tokenizer) -> None:
    """Write a tokenizer and the config.json of a model of this type."""
    tokenizer.save(folder)
    special = tokenizer.special
    ends = list(tokenizer.ends) if len(tokenizer.ends) > 1 else tokenizer.eos
    tokens = {"bos_token_id": special.bos, "eos_token_id": ends, "pad_token_id": special.pad}
    write_config(folder, config, dtype, tokens)


def load_base(
    folder: Path,
    origin: Mapping[str, str] | None = None,
    compute: Compute = HOST,
    mapped: bool = False,
    known: Base | None = None,
) -> Base:
    """Read a base and check it against its manifest if it has one, else against its own config.

    `compute`: where its weights lie, in which type, and with how many bits. The fingerprint is that of float32.
    `mapped`: tensors of the type that is computed in are views of the files, whose memory all processes share; writing
    into one changes a private copy. `known`: the same base, read before: its files are not hashed again.
    """
    if not folder.is_dir():
        raise WeightsError("no such base folder", path=folder, hint="give a folder with config.json and its weights")
    model = require_model(folder)
    if (folder / MANIFEST).is_file() and not known:
        read_manifest(folder, KIND)
    decoder, found = read_decoder(model, as_stored if compute.lower else by_default, mapped)
    if known:
        return replace(known, decoder=put(decoder, compute))
    tokenizer = Tokenizer.load(tokenizer_folder(model), end_of(found, model / "config.json"))
    require_rows(tokenizer, decoder.config.vocab_size, model)
    fingerprint = identify(decoder, tokenizer, torch.get_default_dtype())
    return Base(put(decoder, compute), tokenizer, fingerprint, origin or {})


def require_rows(tokenizer: Tokenizer, rows: int, folder: Path) -> None:
    """Warn about special tokens beyond the embedding that no text has; CompatibilityError for any other such token."""
    if tokenizer.vocab_size <= rows:
        return
    beyond = {id: text for text, id in tokenizer.inner.get_vocab().items() if id >= rows}
    special = {id for id, token in tokenizer.inner.get_added_tokens_decoder().items() if token.special}
    written = tokenizer.template.source if tokenizer.template else ""
    used = [text for id, text in beyond.items() if id in (*tokenizer.ends, *tokenizer.start) or text in written]
    if used or beyond.keys() - special:
        what, path = "the tokenizer has more tokens than the model", folder / "tokenizer.json"
        expected, got = f"<= {rows}", tokenizer.vocab_size
        hint = "use the tokenizer of the model, or the model whose embedding was resized for this one"
        raise CompatibilityError(what, path=path, expected=expected, got=got, hint=hint)
    text = f"{', '.join(beyond.values())} lies beyond the {rows} rows of the model's embedding; no text has this token"
    warnings.warn(f"{folder / 'tokenizer.json'}: {text}", MoesaicWarning, stacklevel=3)


def read_config(path: Path) -> tuple[DecoderConfig, int | None]:
    config, found = configs.read_config(path)
    return config, end_of(found, path)


def end_of(found: Mapping[str, Any], path: Path) -> int | None:
    """The first id in a model's config that ends a text; None where it names none, as other files may."""
    eos = found.get("eos_token_id")
    eos = next(iter(eos), None) if isinstance(eos, list) else eos
    if eos is not None and not isinstance(eos, int):
        raise WeightsError("no end-of-text token", path=path, field="eos_token_id", expected="an integer", got=eos)
    return eos


def is_base(folder: Path) -> bool:
    return (folder / "config.json").is_file() and any((folder / name).is_file() for name in (TENSORS, INDEX))


def files_of(folder: Path) -> dict[str, Path]:
    """Names of a base's files in a folder of its own -> their paths, which may be missing."""
    model = model_folder(folder)
    sharded = not (model / TENSORS).is_file() and (model / INDEX).is_file()
    tensors = [INDEX, *sorted(set(read_index(model / INDEX).values()))] if sharded else [TENSORS]
    own = {file: model / file for file in ("config.json", *tensors, MANIFEST)}
    return {file: tokenizer_folder(model) / file for file in TEXT} | own
