"""A folder of config.json and safetensors <-> a Decoder, for every family in the table.

Knows nothing about tokenizers, manifests or experts.
"""

import warnings
from collections.abc import Callable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.errors import MoesaicWarning, WeightsError
from moesaic.files import write_json
from moesaic.interop.decoder_config import TOKENS, config_json, read_config
from moesaic.interop.families import SKIPPED, Source, sources, stored_name
from moesaic.model.decoder import Decoder
from moesaic.nn.rope import FIRST
from moesaic.tensors.shards import SHARD_BYTES, TensorFiles, write_shards

CONFIG, GENERATION = "config.json", "generation_config.json"
HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_decoder(
    folder: Path,
    dtype: Callable[[torch.dtype], torch.dtype],
    mapped: bool = False,
    held: Mapping[str, Tensor] | None = None,
) -> tuple[Decoder, dict[str, Any]]:
    """A decoder, and its config.json as it stands.

    `dtype`: the type as stored -> the type to compute in. `mapped`: tensors that stay as stored are views of the files.
    `held`: tensors that the folder leaves out, under the names of the family; they are shared, not copied.
    """
    with DecoderFiles(folder, dtype, mapped, held) as files:
        files.fill(files.tensors())
    return files.decoder, files.found


class DecoderFiles:
    """The files of a decoder, open; and the decoder, whose tensors are in memory from `fill` to `empty`.

    What the headers say is checked at once, values when they are fetched. The arguments are those of `read_decoder`;
    what is `held` is there always.
    """

    def __init__(
        self,
        folder: Path,
        dtype: Callable[[torch.dtype], torch.dtype],
        mapped: bool,
        held: Mapping[str, Tensor] | None = None,
    ):
        config, self.found = read_config(folder / CONFIG)
        with torch.device("meta"):
            self.decoder = Decoder(config).eval()
        own = self.decoder.state_dict()
        names = [name for name in own if not (config.tie_embeddings and name == HEAD)]
        for name in [name for name in names if held and stored_name(config.family, name) in held]:
            share(self.decoder, name, (held or {})[stored_name(config.family, name)], folder)
            names.remove(name)
        self.own = {name: own[name] for name in names}
        self.files = TensorFiles(folder, mapped)
        with self.files.open:  # closed at once where a tensor is refused
            self.at = sources(config.family, names, self.files.keys())
            embedding = stored_name(config.family, EMBEDDING)
            check_names(self.files, self.at, config.tie_embeddings, embedding)
            check_shapes(self.files, {name: (self.at[name], list(own[name].shape)) for name in names})
            self.types = {name: dtype(self.files.dtype(self.at[name].name)) for name in names}
            self.files.open = self.files.open.pop_all()
        self.told: set[str] = set()

    def __enter__(self) -> "DecoderFiles":
        return self

    def __exit__(self, *_: object) -> None:
        self.files.open.close()

    @property
    def size(self) -> int:
        """Bytes that the decoder takes between `fill` and `empty`, without those that are shared."""
        weights = sum(tensor.numel() * self.types[name].itemsize for name, tensor in self.own.items())
        config, ropes = self.decoder.config, {self.decoder.rope, self.decoder.local_rope}
        width = max(self.types.values(), key=[*self.types.values()].count).itemsize if weights else 0
        return weights + len(ropes) * 2 * min(FIRST, config.context) * config.head_dim * width

    def tensors(self) -> dict[str, Tensor]:
        """The tensors, read and checked, by the decoder's names. What is odd about them is warned of once."""
        self.files.require_unchanged()
        found: dict[str, Tensor] = {}
        for stored, inside in groupby(self.at, key=lambda name: self.at[name].name):
            group = list(inside)
            tensor = self.files.fetch(stored, self.types[group[0]])
            found |= {name: self.at[name].part(tensor) for name in group}
        for doubt in [doubt for doubt in self.files.doubts if doubt not in self.told]:
            self.told.add(doubt)
            warnings.warn(doubt, MoesaicWarning, stacklevel=2)
        return found

    def fill(self, tensors: Mapping[str, Tensor]) -> None:
        """Make these the decoder's."""
        for name, tensor in tensors.items():
            place(self.decoder, name, tensor)
        self.decoder.tie()
        for rope in (self.decoder.rope, self.decoder.local_rope):
            rope.reserve(FIRST, self.decoder.norm.weight)

    def empty(self) -> None:
        """Have them no longer."""
        for name, tensor in self.own.items():
            place(self.decoder, name, tensor)
        self.decoder.tie()
        for rope in (self.decoder.rope, self.decoder.local_rope):
            rope.cos, rope.sin = (table.new_empty(0, rope.head_dim) for table in (rope.cos, rope.sin))

    def let_go(self) -> None:
        """Hold no view of the files."""
        self.files.let_go()

    def announce(self) -> None:
        """The tensors are asked for soon."""
        self.files.announce()


def check_names(files: TensorFiles, at: Mapping[str, Source], tied: bool, embedding: str) -> None:
    """Exactly the tensors that the model has; a head that is tied may be stored once more."""
    wanted = {source.name for source in at.values()}
    for name in sorted(wanted - files.keys())[:1]:
        raise WeightsError("a tensor is missing", path=files.path(name), field=name)
    for name in sorted(files.keys() - wanted):
        if tied and name == HEAD:
            if not files[name].equal(files[embedding]):
                what = "the head is not the embedding, which the config ties it to"
                raise WeightsError(what, path=files.path(name), field=name, hint="set tie_word_embeddings to false")
        elif not SKIPPED.search(name):
            raise WeightsError("a tensor that the model has no place for", path=files.path(name), field=name)


def check_shapes(files: TensorFiles, wanted: Mapping[str, tuple[Source, list[int]]]) -> None:
    """Every tensor has the shape that the model wants, and is made of numbers that a model is trained in."""
    for source, shape in wanted.values():
        name, path, stored, dtype = (
            source.name,
            files.path(source.name),
            files.shape(source.name),
            files.dtype(source.name),
        )
        if source.shape(stored) != shape:
            of = "" if source.expert is None else f": expert {source.expert} of it"
            raise WeightsError(f"a tensor of another shape{of}", path=path, field=name, expected=shape, got=str(stored))
        if dtype not in DTYPES:
            expected = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
            raise WeightsError("numbers of another type", path=path, field=name, expected=expected, got=str(dtype))


def place(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Make a tensor the parameter of that name."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, nn.Parameter(tensor))


def share(decoder: Decoder, name: str, tensor: Tensor, folder: Path) -> None:
    """Make a tensor of another model the parameter of that name, if it has the shape."""
    wanted = list(decoder.get_parameter(name).shape)
    if list(tensor.shape) != wanted:
        got = str(list(tensor.shape))
        raise WeightsError("a shared tensor of another shape", path=folder, field=name, expected=wanted, got=got)
    place(decoder, name, tensor)


def named(decoder: Decoder) -> dict[str, Tensor]:
    """The decoder's tensors under the names of its family; a tied head is not stored twice."""
    tied, family = decoder.config.tie_embeddings, decoder.config.family
    return {
        stored_name(family, name): tensor
        for name, tensor in decoder.state_dict().items()
        if not (tied and name == HEAD)
    }


def write_config(folder: Path, decoder: Decoder, tokens: Mapping[str, Any]) -> None:
    """The config.json of a decoder; `tokens`: the ids of bos, eos and pad."""
    dtype = str(decoder.norm.weight.dtype).removeprefix("torch.")
    write_json(folder / CONFIG, config_json(decoder.config, tokens, dtype))


def write_decoder(folder: Path, decoder: Decoder, tokens: Mapping[str, Any], limit: int = SHARD_BYTES) -> None:
    """All that `transformers` needs to open the decoder; no file of weights is larger than `limit` bytes."""
    write_config(folder, decoder, tokens)
    write_json(folder / GENERATION, {key: tokens[key] for key in TOKENS if tokens.get(key) is not None})
    write_shards(folder, named(decoder), limit)
