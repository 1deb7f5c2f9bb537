"""Whole models as experts on disk: a Hugging Face folder, as of a base, with the manifest of an expert.

In a mixture's folder an expert leaves out tensors that equal the base's in every bit, and shares them when it is read.
Knows nothing about training or routing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.artefacts import base as base_room
from moesaic.artefacts.adapter import KIND, manifest_of
from moesaic.artefacts.base import Base, end_of, identify, write_model
from moesaic.artefacts.stored import Stored
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, disk, read_manifest, write_manifest
from moesaic.hub.locate import model_folder, tokenizer_folder
from moesaic.interop.decoders import (
    DecoderFiles,
    as_in,
    as_stored,
    held_in,
    named,
    read_decoder,
    stored_parts,
    write_config,
)
from moesaic.model.decoder import Decoder
from moesaic.tensors.shards import write_shards
from moesaic.tokenizer import Tokenizer, compare
from moesaic.tokenizer.comparing import SPACES

ADAPTER = "model"
TEMPLATES = "templates"  # a difference in these is accepted, as conversations are written with the base's


@dataclass(frozen=True)
class StoredModel(Stored):
    """A whole model as read, and its manifest ({} for a foreign model)."""

    decoder: Decoder
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint in the manifest, computed as that of a base; None for a foreign model."""
        return self.manifest.get("fingerprint")


def save_whole(
    folder: Path, decoder: Decoder, tokenizer: Tokenizer, base_fingerprint: str, facts: dict[str, Any]
) -> None:
    """Write a complete expert into an empty folder, with its manifest."""
    write_model(folder, decoder, tokenizer)
    write_manifest(folder, {**described(decoder, identify(decoder, tokenizer), base_fingerprint), **facts})


def load_whole(folder: Path, base: Base) -> StoredModel:
    """Read an expert, complete or from a mixture; tensors of the same type are views of its files.

    The folder may also be that of a base or a foreign model. CompatibilityError for a tokenizer that differs from the
    base's and for an expert of another base. If no tensor differs from the base, the result is the base's decoder.
    """
    files, manifest = open_whole(folder, base)
    device = base.decoder.norm.weight.device
    with files:
        files.fill({name: tensor.to(device) for name, tensor in files.tensors().items()})
    return model_of(files, manifest, base)


def open_whole(folder: Path, base: Base) -> tuple[DecoderFiles, dict[str, Any]]:
    """Open the files of an expert, checked as by `load_whole`, and read its manifest."""
    manifest = manifest_of(folder, base.fingerprint, (KIND, base_room.KIND))
    if manifest.get("kind") == KIND and manifest.get("adapter") != ADAPTER:
        got = manifest.get("adapter")
        raise WeightsError("another kind", path=folder / MANIFEST, field="adapter", expected=ADAPTER, got=str(got))
    held = shared_with(base, manifest.get("shared", []), folder)
    at = model_folder(folder)
    files = DecoderFiles(at, as_in(base.decoder), mapped=True, held=held)
    decoder = files.decoder
    if decoder.config.vocab_size != base.decoder.config.vocab_size:
        expected, got = base.decoder.config.vocab_size, decoder.config.vocab_size
        what, path = "whole models share one vocabulary", at / "config.json"
        raise CompatibilityError(what, path=path, field="vocab_size", expected=expected, got=got)
    if "shared" not in manifest:  # an expert in a mixture has the base's tokenizer
        end = end_of(files.found, at / "config.json")
        require_tokenizer(base.tokenizer, Tokenizer.load(tokenizer_folder(at), end), at)
    return files, manifest


def model_of(files: DecoderFiles, manifest: dict[str, Any], base: Base) -> StoredModel:
    """The expert of these files; the base's decoder if no tensor differs."""
    same_wiring = files.decoder.config == base.decoder.config
    return StoredModel(files.decoder if files.own or not same_wiring else base.decoder, manifest)


def write_into_mixture(source: Path, target: Path, base: Path) -> None:
    """Write the expert of a folder into an empty folder, without the tensors that the base in `base` has.

    Both are read by mapping; the manifest names tensors equal in type, shape and every bit as `shared`. The copy is an
    expert of this base. An expert from a mixture is copied unchanged and fits only the same base.
    """
    manifest = manifest_of(source, None, (KIND, base_room.KIND))
    if "shared" in manifest:
        for file in (*manifest["files"], MANIFEST):
            disk.copy(source / file, target / file)
        return
    own, tokens, fingerprint = identified(source, manifest)
    theirs, _, base_fingerprint = identified(base, read_manifest(base) if (base / MANIFEST).is_file() else {})
    before, shared = named(theirs), list[str]()
    for parts in stored_parts(own).values():  # experts that share a tensor in memory are shared together
        if all(name in before and same(tensor, before[name]) for name, tensor in parts.items()):
            shared += parts
    kept = {name: tensor for name, tensor in named(own).items() if name not in shared}
    write_shards(target, kept)
    write_config(target, own.config, own.norm.weight.dtype, tokens)
    facts = {key: value for key, value in manifest.items() if key not in OWN_FIELDS}
    facts |= described(own, fingerprint, manifest.get("base_fingerprint", base_fingerprint))
    size = sum(tensor.numel() for tensor in kept.values())
    write_manifest(target, {**facts, "own_parameters": size, "shared": shared})


def identified(folder: Path, manifest: Mapping[str, Any]) -> tuple[Decoder, dict[str, Any], str]:
    """Read a model by mapping, its config.json, and its fingerprint, computed if the manifest has none."""
    at = model_folder(folder)
    decoder, found = read_decoder(at, as_stored, mapped=True)
    if "fingerprint" in manifest:
        return decoder, found, manifest["fingerprint"]
    tokenizer = Tokenizer.load(tokenizer_folder(at), end_of(found, at / "config.json"))
    return decoder, found, identify(decoder, tokenizer, torch.get_default_dtype())


OWN_FIELDS = ("format_version", "package_version", "files", "shapes", "stage_key")
"""Facts of a manifest that hold only for its own folder, not for a copy."""


def described(decoder: Decoder, fingerprint: str, base_fingerprint: str) -> dict[str, Any]:
    size = sum(tensor.numel() for tensor in named(decoder).values())
    own = {"kind": KIND, "adapter": ADAPTER, "parameters": size}
    return {**own, "fingerprint": fingerprint, "base_fingerprint": base_fingerprint}


def shared_with(base: Base, names: Any, folder: Path) -> Mapping[str, Tensor]:
    theirs = named(base.decoder)
    if not isinstance(names, list) or not all(isinstance(name, str) and name in theirs for name in names):
        got, expected = str(names), "names of the base's tensors"
        raise WeightsError("unknown names", path=folder / MANIFEST, field="shared", expected=expected, got=got)
    return held_in(base.decoder, names)


def require_tokenizer(base: Tokenizer, own: Tokenizer, folder: Path) -> None:
    """Raise CompatibilityError, with the difference, for a tokenizer that reads or writes other ids.

    Padding and the ends of texts may differ, as in a base and the model that was trained on instructions over it.
    """
    for difference in compare(base, own):
        unread = difference.what == "special ids" and {role for role, _, _ in difference.first} <= {"pad", "eos"}
        if difference.what not in (TEMPLATES, SPACES) and not unread:
            what = "whole models share one tokenizer, but this one differs from the base's"
            raise CompatibilityError(what, path=folder, field="tokenizer", got=str(difference))


def same(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    mine, yours = (tensor.contiguous().view(-1).view(torch.uint8) for tensor in (one, other))
    return mine.equal(yours)
