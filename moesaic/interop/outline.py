"""A model folder or an adapter folder by the headers of its files: sizes, types and names, and not one value.

Knows nothing about what is planned with them; a published model has sizes without a folder.
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
from moesaic.hub.locate import locate, model_folder
from moesaic.interop import decoder_config as configs
from moesaic.interop import encoders as encoder_room
from moesaic.interop.decoders import CONFIG, DTYPES, HEAD
from moesaic.interop.families import SKIPPED, sources
from moesaic.interop.peft import CONFIG as ADAPTER_CONFIG
from moesaic.interop.peft import ENCODED, ROOT, Declared, read_declared, stored
from moesaic.interop.peft import TENSORS as ADAPTER_TENSORS
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.sections.places import SHIPPED
from moesaic.tensors.json_config import read_settings
from moesaic.tensors.safetensors_file import opened
from moesaic.tensors.shards import TensorFiles

PARTS = ("embeddings", "attention", "norms", "ffn", "head")
"""The parts of a model that its parameters are counted by."""

Shape = tuple[int, ...]
Config = DecoderConfig | EncoderConfig

MODELS: dict[type[Config], Callable[[Any], nn.Module]] = {DecoderConfig: Decoder, EncoderConfig: Encoder}
"""What each config is the size of."""


@dataclass(frozen=True)
class Outline:
    """A model that nobody loaded. `found`: its config.json; {} of a published size, which has no `folder` either.

    `stored`: of each of our parameters, the type it is stored in. `defects`: tensors that are missing, of another shape
    or type, or that the model has no place for, each as a sentence that begins with the tensor's name.
    """

    name: str
    config: Config
    found: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    stored: Mapping[str, torch.dtype] = field(default_factory=dict)
    defects: tuple[str, ...] = ()

    @cached_property
    def module(self) -> nn.Module:
        """The model without memory for its values."""
        return unloaded(self.config)

    @property
    def sparse(self) -> bool:
        """Whether the model routes its own tokens."""
        return bool(getattr(self.config, "num_experts", 0))

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Every parameter by our name; a head that is the embedding does not count."""
        return {name: tuple(parameter.shape) for name, parameter in self.module.named_parameters()}


@dataclass(frozen=True)
class AdapterOutline:
    """A LoRA adapter that nobody loaded: of each module, the rank of its pair and what it multiplies, (r, i, o).

    `before`: how names of modules begin where its configuration speaks of them.
    """

    name: str
    folder: Path
    declared: Declared
    pairs: Mapping[str, Shape]
    before: str

    def covers(self, module: str) -> bool:
        """Whether the configuration targets a module."""
        return self.declared.covers(self.before + stored(module))


def unloaded(config: Config) -> nn.Module:
    """A model on the meta device."""
    with torch.device("meta"):
        return MODELS[type(config)](config)


def is_adapter(place: str | os.PathLike[str]) -> bool:
    return (Path(place) / ADAPTER_CONFIG).is_file()


def outline(place: str | os.PathLike[str]) -> Outline:
    """A model by the name of its size, such as llama-3-8b, or by its folder. Nothing is downloaded.

    Raises WeightsError for what `load_model` would refuse by config.json or by a header; what is wrong between the two
    is in `defects`.
    """
    name = os.fspath(place)
    if name in PUBLISHED:
        return Outline(name, published(name))
    if name in ENCODERS:
        return Outline(name, published_encoder(name))
    if not Path(place).is_dir() and not name.startswith(SHIPPED):
        hint = nearest(name, [*PUBLISHED, *ENCODERS])
        expected = f"a folder on this disk, or one of {', '.join((*PUBLISHED, *ENCODERS))}"
        raise WeightsError("no such model", path=name, expected=expected, hint=hint)
    folder = model_folder(locate(place).folder)
    found = read_settings(folder / CONFIG)
    title = Path(os.path.abspath(place)).name
    if found.get("model_type") in encoder_room.ARCHITECTURES:
        return _encoder(title, folder, found)
    config, found = configs.read_config(folder / CONFIG)
    stored, defects = _tensors(folder, config)
    return Outline(title, config, found, folder, stored, tuple(defects))


def _tensors(folder: Path, config: DecoderConfig) -> tuple[dict[str, torch.dtype], list[str]]:
    """The type of every parameter as stored, and how the files differ from what the config says."""
    parameters = dict(unloaded(config).named_parameters())
    stored: dict[str, torch.dtype] = {}
    defects = []
    with TensorFiles(folder, mapped=True) as files:
        names = set(files)  # to look a name up in the mapping would read its values
        at = sources(config.family, parameters, names)
        for name, source in at.items():
            shape = list(parameters[name].shape)
            if source.name not in names:
                defects.append(f"{source.name}: missing, {shape}")
            elif (found := source.shape(files.shape(source.name))) != shape:
                defects.append(f"{source.name}: {found} instead of {shape}")
            elif (dtype := files.dtype(source.name)) not in DTYPES:
                defects.append(f"{source.name}: of type {dtype}")
            else:
                stored[name] = dtype
        wanted = {source.name for source in at.values()}
        tied = {HEAD} if config.tie_embeddings else set()
        extra = [name for name in sorted(names - wanted - tied) if not SKIPPED.search(name)]
        defects += [f"{name}: the model has no place for it" for name in extra]
    return stored, defects


def _encoder(title: str, folder: Path, found: dict[str, Any]) -> Outline:
    """An encoder; which head it has, its tensors' names say."""
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
    """A PEFT folder's pairs; what is not plain LoRA is refused by name, as when it is loaded."""
    folder = Path(folder)
    declared = read_declared(folder)
    halves: dict[str, dict[str, Shape]] = {}
    path, before = folder / ADAPTER_TENSORS, "model."
    with opened(path) as file:
        for name, shape in file.shapes.items():
            plain = name.removeprefix(ROOT)
            if found := ENCODED.match(plain):
                before, plain = found[1], f"model.layers.{plain[found.end() :]}"
            module, _, half = plain.removeprefix("model.").removesuffix(".weight").rpartition(".")
            if not plain.startswith("model.") or half not in ("lora_A", "lora_B") or len(shape) != 2:
                raise WeightsError("not a LoRA tensor of a model", path=path, field=name)
            halves.setdefault(module, {})[half] = shape
    pairs = {}
    for module, both in sorted(halves.items()):
        if both.keys() != {"lora_A", "lora_B"} or both["lora_A"][0] != both["lora_B"][1]:
            raise WeightsError("half of a pair is missing or of another rank", path=path, field=module)
        pairs[module] = (*both["lora_A"], both["lora_B"][0])
    return AdapterOutline(Path(os.path.abspath(folder)).name, folder, declared, pairs, before)


def weighed(folder: Path, files: str = "*.safetensors") -> dict[torch.dtype, int]:
    """How many values of each type the safetensors files right in a folder hold."""
    counts: dict[torch.dtype, int] = {}
    for path in sorted(folder.glob(files)):
        with opened(path) as file:
            for one in file.tensors.values():
                counts[one.dtype] = counts.get(one.dtype, 0) + math.prod(one.shape)
    return counts


def shapes_in(folder: Path) -> dict[str, Shape]:
    """The shape of every tensor in a folder, by its name there."""
    with TensorFiles(folder, mapped=True) as files:
        return {name: tuple(files.shape(name)) for name in files}


def part_of(name: str) -> str:
    """Which part of a model a parameter belongs to, by its name."""
    if "norm" in name.lower():
        return "norms"
    if "embed" in name:
        return "embeddings"
    if "attn" in name or "attention" in name:
        return "attention"
    return "ffn" if name.startswith("layers.") else "head"
