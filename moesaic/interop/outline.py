"""Outlines of models and adapters from the headers of their files: sizes, types and names, without values.

A published model has an outline without a folder. Knows nothing about plans.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from moesaic.config import ENCODERS, PUBLISHED, DecoderConfig, EncoderConfig, published, published_encoder
from moesaic.errors import WeightsError, nearest
from moesaic.hub.locate import locate
from moesaic.interop import decoder_config, peft_config, peft_experts, peft_tensors
from moesaic.interop import encoders as encoder_room
from moesaic.interop.decoders import CONFIG, DTYPES, HEAD
from moesaic.interop.families import SKIPPED, locations, packed
from moesaic.interop.folders import require_model, what_is
from moesaic.interop.foreign import idle
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.nn.sparse import separated
from moesaic.sections.places import SHIPPED, is_local
from moesaic.tensors.json_config import read_settings
from moesaic.tensors.safetensors_file import opened
from moesaic.tensors.shards import TensorFiles

PARTS = ("embeddings", "attention", "norms", "ffn", "head")
"""Parts of a model by which parameters are counted."""

Shape = tuple[int, ...]
Config = DecoderConfig | EncoderConfig

MODELS: dict[type[Config], Callable[[Any], nn.Module]] = {DecoderConfig: Decoder, EncoderConfig: Encoder}


@dataclass(frozen=True)
class Outline:
    """A model that is not loaded. `found`: its config.json, {} for a published size, which has no `folder` either.

    `stored`: the stored type of each of our parameters. `defects`: tensors that are missing, unknown, or of another
    shape or type, each as a sentence that begins with the tensor's name.
    """

    name: str
    config: Config
    found: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    stored: Mapping[str, torch.dtype] = field(default_factory=dict)
    defects: tuple[str, ...] = ()

    @cached_property
    def module(self) -> nn.Module:
        return unloaded(self.config)

    @property
    def sparse(self) -> bool:
        return bool(getattr(self.config, "num_experts", 0))

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of the parameters by our names, without a tied head."""
        return {name: tuple(parameter.shape) for name, parameter in self.module.named_parameters()}


@dataclass(frozen=True)
class AdapterOutline:
    """A LoRA adapter that is not loaded. `pairs`: rank, inputs and outputs (r, i, o) of each module.

    `before`: the prefix of modules in the configuration.
    """

    name: str
    folder: Path
    declared: peft_config.Declared
    pairs: Mapping[str, Shape]
    before: str

    def covers(self, module: str) -> bool:
        return self.declared.covers(self.before + peft_tensors.stored(module))


def unloaded(config: Config) -> nn.Module:
    with torch.device("meta"):
        return MODELS[type(config)](config)


def is_adapter(place: str | os.PathLike[str]) -> bool:
    found = what_is(Path(place))
    return found.form == "lora" and found.at == Path(place)


def outline(place: str | os.PathLike[str]) -> Outline:
    """Outline a model by the name of its size, such as llama-3-8b, or by its folder, without a download.

    Raises WeightsError for a config.json or a header that `load_model` would refuse; `defects` lists contradictions
    between the two.
    """
    name = os.fspath(place)
    if name in PUBLISHED:
        return Outline(name, published(name))
    if name in ENCODERS:
        return Outline(name, published_encoder(name))
    if not is_local(place) and not name.startswith(SHIPPED):
        hint = nearest(name, [*PUBLISHED, *ENCODERS])
        expected = f"a folder or .gguf file on this disk, or one of {', '.join((*PUBLISHED, *ENCODERS))}"
        raise WeightsError("no such model", path=name, expected=expected, hint=hint)
    folder = require_model(locate(place).folder)
    found = read_settings(folder / CONFIG)
    title = Path(os.path.abspath(place)).name
    if found.get("model_type") in encoder_room.ARCHITECTURES:
        return _encoder(title, folder, found)
    config, found = decoder_config.read_config(folder / CONFIG)
    stored, defects = _tensors(folder, config)
    return Outline(title, config, found, folder, stored, tuple(defects))


def _tensors(folder: Path, config: DecoderConfig) -> tuple[dict[str, torch.dtype], list[str]]:
    """The stored type of every parameter, and the contradictions between files and config."""
    stored: dict[str, torch.dtype] = {}
    defects = []
    with TensorFiles(folder, mapped=True) as files:
        names = set(files)  # looking a name up in the mapping would read its values
        whole, parts = packed(names), dict[str, tuple[str, list[int]]]()
        for name, parameter in unloaded(config).named_parameters():
            own = {name: parameter} if whole else separated(name, parameter)
            parts |= {part: (name, list(one.shape)) for part, one in own.items()}
        at = locations(config.family, parts, names)
        for part, place in at.items():
            name, shape = parts[part]
            if place not in names:
                defects.append(f"{place}: missing, {shape}")
            elif (found := files.shape(place)) != shape:
                defects.append(f"{place}: {found} instead of {shape}")
            elif (dtype := files.dtype(place)) not in DTYPES:
                defects.append(f"{place}: of type {dtype}")
            else:
                stored[name] = torch.promote_types(dtype, stored.get(name, dtype))
        wanted = {*at.values()}
        tied = {HEAD} if config.tie_embeddings else set()
        unread = {*idle(names, config.num_layers)}
        extra = [name for name in sorted(names - wanted - tied - unread) if not SKIPPED.search(name)]
        defects += [f"{name}: unknown to the model" for name in extra]
    return stored, defects


def _encoder(title: str, folder: Path, found: dict[str, Any]) -> Outline:
    """Outline an encoder, whose head follows from the names of its tensors."""
    path = folder / CONFIG
    family = encoder_room.family_of(found, path)
    with TensorFiles(folder, mapped=True) as files:
        names = {encoder_room.prefixed(name, family): name for name in files}
        empty = {name: torch.empty(files.shape(at), device="meta") for name, at in names.items()}
        (dtype, *_) = sorted({files.dtype(name) for name in files}, key=str)
    head = encoder_room.head_of(empty, family)
    config = encoder_room.read_config(found, path, family, head, empty)
    model = Outline(title, config, found, folder)
    return Outline(title, config, found, folder, dict.fromkeys(model.shapes, dtype))


def adapter_outline(folder: str | os.PathLike[str]) -> AdapterOutline:
    """Outline the pairs of a PEFT folder; WeightsError if it is not plain LoRA, as when it is loaded."""
    folder = Path(folder)
    declared = peft_config.read_declared(folder)
    path = folder / peft_tensors.TENSORS
    with opened(path) as file:
        halves, _, prefix = peft_tensors.sorted_out(file.shapes, declared, path)
        named = peft_tensors.paired(halves, path)
        shapes = {module: (file.shapes[a], file.shapes[b]) for module, (a, b) in named.items()}
    packed, pairs = peft_experts.packed(shapes, declared, path, None), dict[str, Shape]()
    for module, (a, b) in shapes.items():
        if one := packed.get(module):
            pairs |= dict.fromkeys(one.paths, (one.rank, *one.sizes))
        elif a[0] == b[1]:
            pairs[module] = (*a, b[0])
        else:
            raise WeightsError("half of a pair is missing or of another rank", path=path, field=module)
    return AdapterOutline(Path(os.path.abspath(folder)).name, folder, declared, pairs, prefix)


def weighed(folder: Path, files: str = "*.safetensors") -> dict[torch.dtype, int]:
    """Count the values of each type in the safetensors files of a folder, subfolders excluded."""
    counts: dict[torch.dtype, int] = {}
    for path in sorted(folder.glob(files)):
        with opened(path) as file:
            for one in file.tensors.values():
                counts[one.dtype] = counts.get(one.dtype, 0) + math.prod(one.shape)
    return counts


def shapes_in(folder: Path) -> dict[str, Shape]:
    with TensorFiles(folder, mapped=True) as files:
        return {name: tuple(files.shape(name)) for name in files}


def part_of(name: str) -> str:
    if "norm" in name.lower():
        return "norms"
    if "embed" in name:
        return "embeddings"
    if "attn" in name or "attention" in name:
        return "attention"
    return "ffn" if name.startswith("layers.") else "head"
