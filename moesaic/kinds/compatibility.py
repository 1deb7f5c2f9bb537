"""Differences between the configs, tensors and tokenizers of models to be composed, each refused or allowed.

One short list names the allowed ones with their reasons. Knows nothing about bytes.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moesaic.adapters.lora import adaptable, linears
from moesaic.adapters.slots import slots_of
from moesaic.artefacts.base import end_of
from moesaic.config import EncoderConfig
from moesaic.errors import WeightsError, clipped
from moesaic.hub.locate import model_folder, tokenizer_folder
from moesaic.interop.decoder_config import ALIASES
from moesaic.interop.decoders import CONFIG
from moesaic.interop.families import ABSENT, FAMILIES, KEYS
from moesaic.interop.outline import AdapterOutline, Outline, Shape
from moesaic.nn import SparseFFN
from moesaic.tensors.json_config import read_settings
from moesaic.tokenizer import Tokenizer, compare

TRAINING = "affects training only"
ALLOWED: dict[str, str] = {
    "_name_or_path": "the origin of the folder",
    "transformers_version": "the program that wrote the folder",
    "torch_dtype": "how weights are stored; all are computed in one type",
    "dtype": "how weights are stored; all are computed in one type",
    "use_cache": "a cache is an argument here",
    "attention_dropout": TRAINING,
    "attention_probs_dropout_prob": TRAINING,
    "hidden_dropout_prob": TRAINING,
    "initializer_range": "the weights before training",
    "pretraining_tp": "how products are split, not their values",
    "pad_token_id": "a decoder never reads padding",
    "sliding_window": "no layer has a window",
    "max_window_layers": "no layer has a window",
}
"""Fields of config.json in which models may differ at every site, and why; the last three only where that is true."""

TEXT = ("vocab_size", "bos_token_id", "eos_token_id")
"""Fields that whole models behind one router must share."""

OWN = "a whole model uses its own config"
TEMPLATE = "conversations are written with the base's template"
PADDING = "padding is never read"


@dataclass(frozen=True)
class Difference:
    """A difference between a model and the base. `allowed`: why it does not matter; None: it is refused."""

    model: str
    field: str
    base: str
    own: str
    allowed: str | None = None

    def __str__(self) -> str:
        return f"{self.model}: {self.field}: {self.own}, and the base {self.base}"


def differences(base: Outline, other: Outline, shares_trunk: bool) -> list[Difference]:
    """All differences in config.json and between the tokenizers."""
    published = not (base.found and other.found)  # a published size has only its wiring
    mine, yours = (asdict(model.config) if published else meaning(model) for model in (base, other))
    found = [
        _difference(base, other, shares_trunk, field, mine.get(field), yours.get(field))
        for field in sorted(mine.keys() | yours.keys())
        if mine.get(field) != yours.get(field)
    ]
    return [*found, *tokenizer_differences(base, other)]


def defects(model: Outline) -> list[Difference]:
    """Contradictions between a model's config and its own tensors."""
    split = (defect.partition(": ") for defect in model.defects)
    return [Difference(model.name, name, "its config says otherwise", what) for name, _, what in split]


def unreadable(base: Outline, place: str | os.PathLike[str], error: WeightsError) -> WeightsError:
    """Add to the error of a model that cannot be described the fields in which its config.json differs from the base's.

    A config.json that contradicts itself often does so in one of these fields.
    """
    path = model_folder(Path(place)) / CONFIG
    if base.found and path.is_file():
        found = read_settings(path)
        fields = sorted(key for key in base.found.keys() | found.keys() if base.found.get(key) != found.get(key))
        error.hint = f"{path.name} differs from the base's in {', '.join(fields)}" if fields else error.hint
    return error


def meaning(model: Outline) -> dict[str, Any]:
    """A config.json in one canonical form: absent keys have their defaults, synonyms one spelling.

    Rotary positions use the older keys; sizes that follow from others, and layers' kinds, are written out.
    """
    config, found = model.config, model.found
    if isinstance(config, EncoderConfig):
        return _values(found)
    family = FAMILIES[config.family]
    defaults = {**ABSENT, **family.absent, **{key: values[-1] for key, values in family.only.items()}}
    canonical = _values(defaults) | {ALIASES.get(key, key): value for key, value in _values(found).items()}
    canonical.pop("rope_parameters", None)
    canonical |= {theirs: getattr(config, ours) for ours, theirs in {**KEYS, **family.keys}.items()}
    canonical |= {"rope_theta": config.rope_theta, "rope_scaling": config.rope_scaling and asdict(config.rope_scaling)}
    canonical |= {"rope_local_base_freq": config.local_rope_theta} if family.local_rope else {}
    canonical["layer_types"] = ["sliding" if n in config.local_layers else "full" for n in range(config.num_layers)]
    return canonical | {"model_type": config.family}


def _values(found: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config.json: null equals absence, and a type may have its new key or its old one."""
    values = {key: value for key, value in found.items() if value is not None}
    if "dtype" in values and "torch_dtype" not in values:
        values["torch_dtype"] = values.pop("dtype")
    return values


def _difference(base: Outline, other: Outline, shares_trunk: bool, field: str, mine: Any, yours: Any) -> Difference:
    configs, allowed = (base.config, other.config), ALLOWED.get(field)
    decoders = all(config.decodes for config in configs)
    if field in ("sliding_window", "max_window_layers") and any(getattr(config, "window", 0) for config in configs):
        allowed = None
    if field == "pad_token_id" and not decoders:
        allowed = None  # RoBERTa counts positions from it
    if not shares_trunk and decoders and field not in TEXT:
        allowed = allowed or OWN
    one, two = ("nothing" if value is None else clipped(value) for value in (mine, yours))
    return Difference(other.name, field, one, two, allowed)


def tokenizer_differences(base: Outline, other: Outline) -> list[Difference]:
    """Differences between the ids of a text; published sizes have no tokenizer here and are not compared."""
    if base.folder is None or other.folder is None:
        return []
    one, two = (_tokenizer(model.folder, model.found) for model in (base, other) if model.folder)
    if isinstance(one, str) or isinstance(two, str):
        return [Difference(other.name, "tokenizer", *(t if isinstance(t, str) else "one" for t in (one, two)))]
    found = []
    for difference in compare(one, two):
        allowed = TEMPLATE if difference.what == "templates" else None
        if difference.what == "special ids" and {role for role, _, _ in difference.first} == {"pad"}:
            allowed = PADDING
        shown = "; ".join(f"{where}: {theirs} for {ours}" for where, ours, theirs in difference.first)
        count = f"{difference.count} of its own: {shown}"
        found.append(Difference(other.name, f"tokenizer: {difference.what}", "others", count, allowed))
    return found


def _tokenizer(folder: Path, found: Mapping[str, Any]) -> Tokenizer | str:
    """A folder's tokenizer, or the words for a folder without one."""
    at = tokenizer_folder(folder)
    if not any((at / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")):
        return "no tokenizer"
    return Tokenizer.load(at, end_of(found, folder / "config.json"))


def adapter_differences(base: Outline, adapter: AdapterOutline) -> list[Difference]:
    """Matrices that the base lacks or has in other shapes, and linears that are targeted without a pair."""
    shapes = {path: tuple(weight.shape[::-1]) for path, weight in adaptable(base.module).items()}
    found = []
    for path, (_, *shape) in adapter.pairs.items():
        if shapes.get(path) != tuple(shape):
            mine = str(list(shapes[path])) if path in shapes else "no such linear"
            found.append(Difference(adapter.name, path, mine, str(shape)))
    sparse = ("lm_head", *(f"{path}." for path in slots_of(base.module, SparseFFN)))  # names in these differ
    plain = [path for path in linears(base.module) if not path.startswith(sparse)]
    bare = [path for path in plain if path not in adapter.pairs and adapter.covers(path)]
    return found + [Difference(adapter.name, path, "targeted by adapter_config.json", "no pair") for path in bare]


def block_differences(base: Outline, model: str, shapes: Mapping[str, Shape]) -> list[Difference]:
    """Feed-forward blocks, by their names in files, that the base lacks or has in other shapes."""
    found = []
    for name, shape in shapes.items():
        mine = base.shapes.get(name.removeprefix("model."))
        if mine != shape:
            found.append(Difference(model, name, str(list(mine)) if mine else "no such tensor", str(list(shape))))
    return found
