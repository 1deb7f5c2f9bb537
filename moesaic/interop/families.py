"""Families of decoders: their names of sizes, wiring and tensors, one row each, for reading and writing.

`decoder_config` uses this table for config.json, `decoders` for tensors. Knows nothing about files or text.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from moesaic.errors import RecipeError

KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
"""Our fields <-> the keys of all families."""

ABSENT: dict[str, Any] = {"rms_norm_eps": 1e-6, "tie_word_embeddings": False, "rope_theta": 10000.0}
"""Values of keys that a config.json leaves out."""

REFUSED: dict[str, tuple[Any, ...]] = {"partial_rotary_factor": (1.0, None)}
"""Keys that no family may use, with the values that change nothing."""

Found = Mapping[str, Any]


def nowhere(found: Found, layers: range) -> list[int]:
    return []


def everywhere(found: Found, layers: range) -> list[int]:
    return list(layers) if found.get("sliding_window") else []


def everywhere_if_used(found: Found, layers: range) -> list[int]:
    return everywhere(found, layers) if found.get("use_sliding_window") else []


def above_if_used(found: Found, layers: range) -> list[int]:
    return [layer for layer in everywhere_if_used(found, layers) if layer >= found["max_window_layers"]]


def every_second_below_if_used(found: Found, layers: range) -> list[int]:
    below = everywhere_if_used(found, layers)
    return [layer for layer in below if layer < found["max_window_layers"] and not layer % 2]


def all_but_each(found: Found, layers: range) -> list[int]:
    pattern = found.get("sliding_window_pattern") or found.get("_sliding_window_pattern")
    if not pattern:
        raise RecipeError("a size is missing", field="_sliding_window_pattern", expected="an integer >= 1")
    return [layer for layer in layers if (layer + 1) % pattern]


@dataclass(frozen=True)
class Family:
    """A family's own names in config.json and tensors; `architecture`: its class in transformers, "" if it has none.

    `keys`: our fields <-> keys, beside KEYS. `absent`: values of keys that are left out, beside ABSENT. `only`: wiring
    that this decoder has in one form, with the values that mean it, of which the first is written. `local`: the layers
    that see a window, if the config.json has no `layer_types`. `windows`: the keys of windows. `local_rope`: local
    layers have rotary positions of their own. `dense_layers`: a sparse model may have dense layers. `pieces`: pieces of
    our tensors' names -> theirs.
    """

    architecture: str
    keys: Mapping[str, str] = field(default_factory=dict)
    absent: Mapping[str, Any] = field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    local: Callable[[Found, range], list[int]] = nowhere
    windows: tuple[str, ...] = ()
    local_rope: bool = False
    dense_layers: bool = False
    pieces: tuple[tuple[str, str], ...] = ()


RULES = (nowhere, everywhere, everywhere_if_used, above_if_used, every_second_below_if_used, all_but_each)
WINDOWED = {rule.__name__: rule for rule in RULES}
"""Name of a rule in families.json -> the layers that see a window."""


def read_families() -> dict[str, Family]:
    """The families in families.json, with lists as tuples."""
    families = {}
    for name, row in json.loads(files(__package__).joinpath("families.json").read_bytes()).items():
        row["only"] = {key: tuple(values) for key, values in row.get("only", {}).items()}
        row["windows"], row["pieces"] = tuple(row.get("windows", ())), tuple(map(tuple, row.get("pieces", ())))
        families[name] = Family(**{**row, "local": WINDOWED[row.get("local", "nowhere")]})
    return families


FAMILIES = read_families()
"""`model_type` -> its row. `config.TRAITS` holds the wiring that all models of a family share."""

SKIPPED = re.compile(r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|masked_bias)$")
"""Tensors that follow from the config, which some files hold."""


def stored_name(family: str, name: str) -> str:
    if name.startswith("lm_head."):
        return name
    for ours, theirs in FAMILIES[family].pieces:
        name = name.replace(ours, theirs)
    return f"model.{name}"


def packed(stored: Iterable[str]) -> bool:
    """Whether the experts of a layer lie in two tensors, as in the memory of transformers, or each by itself."""
    return any(name.endswith(".mlp.experts.gate_up_proj") for name in stored)


def locations(family: str, names: Iterable[str], stored: Iterable[str]) -> dict[str, str]:
    """Our names -> those in files, in the order of the latter. All families share one layout of packed experts."""
    layout = "llama" if packed(stored) else family
    found = {name: stored_name(layout, name) for name in names}
    return dict(sorted(found.items(), key=lambda item: item[1]))
