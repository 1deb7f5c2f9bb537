"""A folder of config.json and safetensors <-> a Decoder, for every family in the table.

Knows nothing about tokenizers, manifests or experts.
"""

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.config import DecoderConfig
from moesaic.errors import CompatibilityError, MoesaicWarning, WeightsError, memory_for
from moesaic.files import write_json
from moesaic.hardware import Compute
from moesaic.interop.decoder_config import TOKENS, config_json, read_config
from moesaic.interop.families import FAMILIES, SKIPPED, locations, packed, stored_name
from moesaic.interop.foreign import EMPTY, IN_MODELS, hint_of, idle, shown
from moesaic.interop.quantised import pack_layers
from moesaic.model.decoder import Decoder
from moesaic.nn.rope import FIRST
from moesaic.nn.sparse import separated
from moesaic.tensors.safetensors_file import apart
from moesaic.tensors.shards import SHARD_BYTES, TensorFiles, write_shards

CONFIG, GENERATION = "config.json", "generation_config.json"
HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
EXACT = "balance_bias"  # steps of such a tensor are too small for 16 bits
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


Choice = Callable[[torch.dtype, torch.dtype], torch.dtype]
"""The stored type of a tensor and the type of its whole model -> the type to compute in."""


def by_default(stored: torch.dtype, model: torch.dtype) -> torch.dtype:
    return torch.get_default_dtype()


def as_stored(stored: torch.dtype, model: torch.dtype) -> torch.dtype:
    return stored


def as_in(decoder: Decoder) -> Choice:
    """The type of another decoder."""
    dtype = decoder.norm.weight.dtype
    return lambda stored, model: dtype


def read_decoder(
    folder: Path,
    dtype: Choice,
    mapped: bool = False,
    held: Mapping[str, Tensor] | None = None,
) -> tuple[Decoder, dict[str, Any]]:
    """Read a decoder and the content of its config.json.

    `mapped`: tensors of the stored type are views of the files. `held`: tensors that the folder leaves out, under the
    names of the family; they are shared, not copied.
    """
    with DecoderFiles(folder, dtype, mapped, held) as files:
        files.fill(files.tensors())
    return files.decoder, files.found


class DecoderFiles:
    """The open files of a decoder, and the decoder, whose tensors are in memory from `fill` to `empty`.

    Headers are checked on opening, values on reading. The arguments are those of `read_decoder`; `held` tensors are
    always in memory.
    """

    def __init__(
        self,
        folder: Path,
        dtype: Choice,
        mapped: bool,
        held: Mapping[str, Tensor] | None = None,
    ):
        config, self.found = read_config(folder / CONFIG)
        with torch.device("meta"):
            self.decoder = Decoder(config).eval()
        own, self.held = self.decoder.state_dict(), held or {}
        names = [name for name in own if not (config.tie_embeddings and name == HEAD)]
        for name in [name for name in names if stored_name(config.family, name) in self.held]:
            share(self.decoder, name, self.held[stored_name(config.family, name)], folder)
            names.remove(name)
        self.own = {name: own[name] for name in names}
        self.files = TensorFiles(folder, mapped)
        with self.files.open:  # closes the files if a tensor is refused
            whole = packed(self.files.keys())
            self.parts = {name: {name: own[name]} if whole else separated(name, own[name]) for name in names}
            shapes = {part: list(one.shape) for parts in self.parts.values() for part, one in parts.items()}
            places = locations(config.family, shapes, self.files)
            self.at = {part: at for part, at in places.items() if at not in self.held}
            for part in places.keys() - self.at.keys():  # some experts of a tensor that holds others too
                require_shape(self.held[places[part]], shapes[part], part, folder)
            embedding = stored_name(config.family, EMBEDDING)
            self.idle = check_names(self.files, self.at, config, embedding)
            check_shapes(self.files, {at: shapes[part] for part, at in self.at.items()})
            self.types = self.types_of(dtype)
            self.files.open = self.files.open.pop_all()
        if self.idle:
            text = f"the model computes nothing with {shown(self.idle)}; not read"
            warnings.warn(f"{self.files.path(self.idle[0])}: {text}", MoesaicWarning, stacklevel=3)
        self.warned: set[str] = set()

    def __enter__(self) -> "DecoderFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self.files.open.close()

    def types_of(self, dtype: Choice) -> dict[str, torch.dtype]:
        """The types to compute in; experts that share a tensor have the widest of theirs."""
        stored = {part: self.files.dtype(at) for part, at in self.at.items()}
        whole = type_of(self.found, [*stored.values()])
        chosen = {part: torch.float32 if EXACT in part else dtype(own, whole) for part, own in stored.items()}
        read = {name: [chosen[part] for part in parts if part in chosen] for name, parts in self.parts.items()}
        return {name: reduce(torch.promote_types, types) for name, types in read.items()}

    @property
    def size(self) -> int:
        """Bytes of the decoder between `fill` and `empty`, without shared tensors."""
        weights = sum(tensor.numel() * self.types[name].itemsize for name, tensor in self.own.items())
        config, ropes = self.decoder.config, {self.decoder.rope, self.decoder.local_rope}
        width = max(self.types.values(), key=[*self.types.values()].count).itemsize if weights else 0
        return weights + len(ropes) * 2 * min(FIRST, config.context) * config.head_dim * width

    def tensors(self) -> dict[str, Tensor]:
        """Read and check the tensors, by the decoder's names; each warning about them is given once."""
        self.files.require_unchanged()
        found = {
            name: self.files.fetch(self.at[name], self.types[name]) if name in parts else self.joined(name)
            for name, parts in self.parts.items()
        }
        # Where a family has to have a shared expert, a model without one is written with one of zeros.
        usual = tuple(f"{at}: all values are 0" for part, at in self.at.items() if ".shared_expert" in part)
        for doubt in [doubt for doubt in self.files.doubts if doubt not in self.warned and not doubt.endswith(usual)]:
            self.warned.add(doubt)
            warnings.warn(doubt, MoesaicWarning, stacklevel=2)
        return found

    def joined(self, name: str) -> Tensor:
        """Read experts into the one tensor that holds them, without a copy of them anywhere else."""
        with memory_for(name, "give more memory, or use a smaller model"):
            memory = apart(self.own[name].shape, self.types[name])
        for part, one in separated(name, memory).items():
            if part in self.at:
                self.files.read_into(self.at[part], one)
            else:
                one.copy_(self.held[stored_name(self.decoder.config.family, part)])
        return memory

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Make these tensors the decoder's parameters."""
        self.put(tensors)
        for rope in (self.decoder.rope, self.decoder.local_rope):
            rope.reserve(FIRST, self.decoder.norm.weight)

    def empty(self) -> None:
        """Replace the decoder's own parameters by meta tensors, and empty its tables."""
        self.put(self.own)
        for rope in (self.decoder.rope, self.decoder.local_rope):
            rope.cos, rope.sin = (table.new_empty(0, rope.head_dim) for table in (rope.cos, rope.sin))

    def put(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            place(self.decoder, name, tensor)
        self.decoder.tie()

    def let_go(self) -> None:
        self.files.let_go()

    def announce(self) -> None:
        self.files.announce()


def type_of(found: Mapping[str, Any], stored: Sequence[torch.dtype]) -> torch.dtype:
    """The one type of a model: that of its config.json, as for transformers, else the widest of its tensors."""
    declared = found.get("dtype") or found.get("torch_dtype")
    names = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    return names.get(str(declared).removeprefix("torch.")) or reduce(torch.promote_types, stored)


def check_names(files: TensorFiles, at: Mapping[str, str], config: DecoderConfig, embedding: str) -> list[str]:
    """The tensors beside the model's that it computes nothing with; WeightsError for a missing or an unknown tensor.

    The files may hold a copy of a tied head.
    """
    wanted = {*at.values()}
    beside = {name for name in files.keys() - wanted if not SKIPPED.search(name)}
    unread = idle(beside, config.num_layers)
    foreign = {name: files.shape(name) for name in beside.difference(unread, [HEAD] if config.tie_embeddings else [])}
    hint = hint_of(foreign, IN_MODELS)
    for name in sorted(wanted - files.keys())[:1]:
        raise WeightsError("a tensor is missing", path=files.path(name), field=name, hint=hint)
    for name in sorted(foreign)[:1]:
        what = "a tensor that the model does not have" if len(foreign) == 1 else f"{len(foreign)} unknown tensors"
        raise WeightsError(what, path=files.path(name), field=name, hint=hint)
    if config.tie_embeddings and HEAD in files and not files[HEAD].equal(files[embedding]):
        what = "the head differs from the embedding, to which the config ties it"
        raise WeightsError(what, path=files.path(HEAD), field=HEAD, hint="set tie_word_embeddings to false")
    return unread


def check_shapes(files: TensorFiles, wanted: Mapping[str, list[int]]) -> None:
    """Raise WeightsError unless every tensor has the shape that the model needs and a type that models have."""
    for name, shape in wanted.items():
        path, stored = files.path(name), files.shape(name)
        if 0 in stored:
            raise WeightsError("a tensor of no elements", path=path, field=name, expected=shape, hint=EMPTY)
        if stored != shape:
            raise WeightsError("a tensor of another shape", path=path, field=name, expected=shape, got=str(stored))
        if (dtype := files.dtype(name)) not in DTYPES:
            expected = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
            raise WeightsError("numbers of another type", path=path, field=name, expected=expected, got=str(dtype))


def place(module: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, nn.Parameter(tensor))


def share(decoder: Decoder, name: str, tensor: Tensor, folder: Path) -> None:
    """Make a tensor of another model the parameter with this name; WeightsError for another shape."""
    require_shape(tensor, list(decoder.get_parameter(name).shape), name, folder)
    place(decoder, name, tensor)


def require_shape(tensor: Tensor, shape: list[int], name: str, folder: Path) -> None:
    if (found := list(tensor.shape)) != shape:
        what = "a shared tensor of another shape"
        raise WeightsError(what, path=folder, field=name, expected=shape, got=str(found))


def put(decoder: Decoder, compute: Compute) -> Decoder:
    """Move a decoder to a device and, if its type is narrower than float32, into this type; pack it into fewer bits."""
    kept = {name: tensor.data for name, tensor in decoder.named_parameters() if EXACT in name}
    for name, tensor in compute.put(decoder).named_parameters():
        if name in kept:
            tensor.data = kept[name].to(compute.device)
    decoder.tie()
    if compute.bits:
        pack_layers(decoder, compute.bits)
    return decoder


def named(decoder: Decoder) -> dict[str, Tensor]:
    """The decoder's tensors as its family names and stores them, without a tied head."""
    return {name: tensor for parts in stored_parts(decoder).values() for name, tensor in parts.items()}


def stored_parts(decoder: Decoder) -> dict[str, dict[str, Tensor]]:
    """Of each of the decoder's tensors the tensors that its family stores, by their names, without a tied head."""
    tied, family = decoder.config.tie_embeddings, decoder.config.family
    own = {name: tensor for name, tensor in decoder.state_dict().items() if not (tied and name == HEAD)}
    return {
        name: {stored_name(family, part): one for part, one in separated(name, tensor).items()}
        for name, tensor in own.items()
    }


def held_in(decoder: Decoder, names: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a decoder with these stored names, and by our name a tensor of experts that holds no others."""
    found: dict[str, Tensor] = {}
    for name, parts in stored_parts(decoder).items():
        found |= {part: one for part, one in parts.items() if part in names}
        if found.keys() >= parts.keys():
            found[stored_name(decoder.config.family, name)] = decoder.get_parameter(name)
    return found


def write_config(folder: Path, config: DecoderConfig, dtype: torch.dtype, tokens: Mapping[str, Any]) -> None:
    write_json(folder / CONFIG, config_json(config, tokens, str(dtype).removeprefix("torch.")))


def write_decoder(folder: Path, decoder: Decoder, tokens: Mapping[str, Any], limit: int = SHARD_BYTES) -> None:
    """Write all files that `transformers` needs to open the decoder; `limit`: bytes of a file of weights.

    Raises CompatibilityError for a decoder of a family that transformers does not have.
    """
    if not FAMILIES[decoder.config.family].architecture:
        what, hint = "transformers has no model of this wiring", "keep it as a base of this package"
        expected = ", ".join(name for name, family in FAMILIES.items() if family.architecture)
        raise CompatibilityError(what, field="family", expected=expected, got=decoder.config.family, hint=hint)
    write_config(folder, decoder.config, decoder.norm.weight.dtype, tokens)
    write_json(folder / GENERATION, {key: tokens[key] for key in TOKENS if tokens.get(key) is not None})
    write_shards(folder, named(decoder), limit)
