"""Models and experts written in the formats of other programs, each read back before it gets its name.

Knows nothing about how the formats are laid out: see `interop`, `gguf` and `artefacts.adapter`.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from moesaic.adapters.sparse_experts import place
from moesaic.artefacts.adapter import FORMATS as ADAPTERS
from moesaic.artefacts.adapter import StoredExpert, best_in, export_peft, load_expert
from moesaic.artefacts.base import end_of, load_base, require_rows, write_description
from moesaic.artefacts.base_search import base_for
from moesaic.artefacts.reference import base_at
from moesaic.artefacts.router import load_router
from moesaic.compose.mixture import disabled_in, load_mixture
from moesaic.errors import CompatibilityError, RecipeError, WeightsError
from moesaic.files import write_new
from moesaic.gguf import packing
from moesaic.hub.locate import Located, Place, locate, tokenizer_folder
from moesaic.interop import layouts, peft_tensors
from moesaic.interop.decoder_config import config_json, read_config
from moesaic.interop.decoders import as_stored, named, read_decoder
from moesaic.interop.folders import Folder, require_model, what_is
from moesaic.interop.sparse_models import Weights, blocks_of, dense, sparse
from moesaic.kinds import KINDS, AnyKind
from moesaic.kinds.kind import gates_in
from moesaic.sections.places import name_at
from moesaic.tensors.shards import write_shards
from moesaic.tensors.tensors import Made
from moesaic.tokenizer import Tokenizer

Tensors = Mapping[str, Tensor]
FILE_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Whole:
    """A model as it is written: its weights and its tokenizer."""

    weights: Weights
    tokenizer: Tokenizer


@dataclass(frozen=True)
class Source:
    """What is exported: a model, or an expert over its base.

    `taken`: of a sparse model, the expert that is taken out as a dense model. `type`: of the matrices in a GGUF file.
    """

    at: Located
    base: Place | None = None
    taken: int | None = None
    type: str | None = None

    @cached_property
    def found(self) -> Folder:
        return what_is(best_in(self.at.folder))

    @cached_property
    def mixture(self) -> Path | None:
        """The folder of a mixture, in a folder or run, that decides about tokens; None without one."""
        places = (self.at.folder, self.at.folder / "mixture")
        found = ((place, what_is(place)) for place in places)
        inside = (place for place, one in found if one.what == "mixture" and one.manifest.get("level") == "token")
        return next(inside, None)

    @property
    def kind(self) -> AnyKind | None:
        """The kind of an expert; None for a model or a mixture."""
        if self.mixture:
            return None
        return KINDS[self.found.form] if self.found.what in ("adapter", "expert") else None

    @property
    def is_adapter(self) -> bool:
        """Whether it is an expert that can be written as LoRA."""
        return self.kind is not None and self.found.form in [form.kind for form in ADAPTERS.values()]

    @property
    def name(self) -> str:
        return name_at(self.at.place or self.at.source)

    @cached_property
    def base_at(self) -> Located:
        return base_for(self.found.at, self.base)

    @cached_property
    def whole(self) -> Whole:
        """The model, the dense model that the expert makes of its base, or the sparse model that a mixture is."""
        if self.mixture:
            whole = sparse_of(self.mixture)
        elif self.kind is None:
            whole = read_whole(require_model(self.at.folder))
        else:
            base = load_base(self.base_at.folder, self.base_at.origin)
            decoder = self.kind.average(base.decoder, [self.kind.read(self.found.at, base)])
            whole = Whole(Weights(decoder.config, named(decoder)), base.tokenizer)
        return whole if self.taken is None else replace(whole, weights=dense(whole.weights, self.taken))


def sparse_of(folder: Path) -> Whole:
    """The sparse model of a mixture whose layers route every token between blocks; disabled experts are left out."""
    stored = load_mixture(folder)
    router, at = load_router(folder / "router"), base_at(folder, stored.manifest)
    gates, silent = gates_in(router), disabled_in(folder, stored.manifest)
    if not gates.renormalise:
        what, hint = "the weights of the chosen experts do not sum to 1", "train it with renormalise: true"
        raise CompatibilityError(what, path=folder, field="renormalise", expected=True, got=False, hint=hint)
    kept = [index for index, name in enumerate(router.names) if name not in silent]
    experts = []
    for index in kept:
        base = load_base(at.folder, at.origin)
        expert = stored.kind.average(base.decoder, [stored.experts[router.names[index]]])
        experts.append(blocks_of(Weights(expert.config, named(expert))))
    base = load_base(at.folder, at.origin)
    rows = [gates.by_path[f"layers.{layer}.mlp"].detach()[kept] for layer in range(base.decoder.config.num_layers)]
    chosen = min(gates.k, len(kept))
    return Whole(sparse(Weights(base.decoder.config, named(base.decoder)), experts, rows, chosen), base.tokenizer)


def read_whole(folder: Path) -> Whole:
    """Read a model by mapping, its tensors in the types in which they are stored."""
    decoder, found = read_decoder(folder, as_stored, mapped=True)
    tokenizer = Tokenizer.load(tokenizer_folder(folder), end_of(found, folder / "config.json"))
    require_rows(tokenizer, decoder.config.vocab_size, folder)
    return Whole(Weights(decoder.config, named(decoder)), tokenizer)


def export(
    place: Place,
    out: str | os.PathLike[str],
    format: str = "peft",
    *,
    base: Place | None = None,
    expert: int | None = None,
    type: str | None = None,
) -> Path:
    """Write a model or an expert in the format of another program to a new path, and return the path.

    `peft`: an expert as a LoRA adapter. `dense`: a model that transformers opens, with an expert merged into its base;
    of a sparse model, its `expert` number so many as a dense model. `gguf`: a file of llama.cpp, of a model or of a
    LoRA adapter, with matrices of `type`. `mixtral`, `qwen2-moe`, `qwen3-moe`: a sparse model with a tensor for each
    matrix; `mixtral-packed`: with the experts of a layer in two tensors.
    `base`: of an expert (default: the base around it or named in it). The files are read back and compared.
    RecipeError, CompatibilityError for what a format cannot hold.
    """
    if format not in FORMATS:
        raise RecipeError("unknown format", field="format", expected=f"one of {', '.join(FORMATS)}", got=format)
    for field, given, only in (("expert", expert, ("dense", "gguf")), ("type", type, ("gguf",))):
        if given is not None and format not in only:
            raise RecipeError("has no meaning in this format", field=field, expected=" or ".join(only), got=format)
    return FORMATS[format](Source(locate(place), base, expert, type), Path(out))


def to_peft(source: Source, out: Path) -> Path:
    if source.kind is None and source.found.is_model:
        hint = "name another --format: dense, gguf, mixtral, ..."
        raise WeightsError("a model, not an expert", path=source.at.source, hint=hint)
    return export_peft(source.at.folder, out)


def to_dense(source: Source, out: Path) -> Path:
    weights = source.whole.weights
    if weights.config.num_experts:
        hint = f"name the expert to take out: --expert 0 to {weights.config.num_experts - 1}"
        raise CompatibilityError("a sparse model is not dense", path=source.at.source, hint=hint)
    return write_whole(source.whole, out, weights.tensors)


def to_sparse(word: str) -> Callable[[Source, Path], Path]:
    """The function that writes a sparse model in a layout of its family."""
    family, layout = LAYOUTS[word]

    def write(source: Source, out: Path) -> Path:
        weights = source.whole.weights
        if weights.config.family != family:
            what, hint = "a model of another family", "make a sparse model of dense ones by `moesaic upcycle`"
            raise CompatibilityError(what, path=source.at.source, expected=family, got=weights.config.family, hint=hint)
        return write_whole(source.whole, out, layout(family, weights.tensors))

    return write


def unpacked(family: str, tensors: Tensors) -> Tensors:
    """A tensor for each matrix, under the names of the family."""
    return tensors


def packed(family: str, tensors: Tensors) -> Tensors:
    return layouts.packed(family, tensors)


LAYOUTS: dict[str, tuple[str, Callable[[str, Tensors], Tensors]]] = {
    "mixtral": ("mixtral", unpacked),
    "mixtral-packed": ("mixtral", packed),
    "qwen2-moe": ("qwen2_moe", unpacked),
    "qwen3-moe": ("qwen3_moe", unpacked),
}
"""Format of sparse models -> family, and layout of its tensors."""


def to_gguf(source: Source, out: Path) -> Path:
    if source.is_adapter:
        if source.type is not None:
            raise RecipeError("an adapter is written as float32", field="type", got=source.type)
        return lora_to_gguf(source, out)
    return whole_to_gguf(source.whole, out, source.name, source.type)


def whole_to_gguf(whole: Whole, out: Path, name: str, type: str | None) -> Path:
    config = config_json(whole.weights.config, {}, "float32")
    return packing.pack(packing.Model(config, whole.weights.tensors, whole.tokenizer, name), out, type)


def lora_to_gguf(source: Source, out: Path) -> Path:
    stored: StoredExpert = load_expert(source.found.at)
    if stored.head:
        raise CompatibilityError("llama.cpp has no heads that classify", path=source.at.source, field="head")
    if inside := [path for path in stored.lora.pairs if place(path)]:
        what, hint = "an adapter of a sparse base's experts is not written for llama.cpp", "merge it: --format mixtral"
        raise CompatibilityError(what, path=source.at.source, field=inside[0], hint=hint)
    config, tensors = peft_tensors.written(stored.lora)
    own, _ = read_config(require_model(source.base_at.folder) / "config.json")
    return packing.pack_adapter(config, tensors, config_json(own, {}, "float32"), out, source.name)


FORMATS: dict[str, Callable[[Source, Path], Path]] = {
    "peft": to_peft,
    "dense": to_dense,
    "gguf": to_gguf,
    **{word: to_sparse(word) for word in LAYOUTS},
}
"""Word -> the function that writes the format."""


def write_whole(whole: Whole, out: Path, tensors: Tensors) -> Path:
    """Write a model as a folder, with its tensors in this layout, and read it back."""
    weights = whole.weights

    def write(folder: Path) -> None:
        write_shards(folder, Made(tensors, lambda name: tensors[name].clone()), FILE_BYTES)  # copies share memory
        dtype = next(iter(tensors.values())).dtype
        write_description(folder, weights.config, dtype, whole.tokenizer)
        again = read_whole(folder)
        require_same(folder, weights, again.weights)

    return write_new(out, write, sum(tensor.nbytes for tensor in tensors.values()), "the model")


def require_same(folder: Path, wanted: Weights, found: Weights) -> None:
    """Raise WeightsError unless a model was read back with the same wiring and the same bits."""
    what = "the model differs after reading it back"
    if found.config.wiring != wanted.config.wiring:
        raise WeightsError(what, path=folder, field="config.json", expected=wanted.config, got=str(found.config))
    for name, tensor in wanted.tensors.items():
        if name not in found.tensors or not found.tensors[name].equal(tensor):
            raise WeightsError(what, path=folder, field=name)
