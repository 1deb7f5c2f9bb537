"""Reads other people's config.json and adapter_config.json: small, strict, every known field within bounds.

Call `read_settings` for them instead of `read_json`. Knows nothing about which fields a model needs.
"""

import re
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from moesaic.config import ENCODER_TRAITS, TRAITS, HeadFilling, RouterScores
from moesaic.errors import MoesaicWarning, WeightsError, nearest
from moesaic.files.plain import decoded
from moesaic.files.regular import read_regular

LIMIT = 1 << 20
DEPTH = 8
"""Most nested tables; models need three."""

CODE = re.compile(r"auto_map|trust_remote_code|custom_\w+|use_kernels|kernel_config|_?(attn|experts)_implementation\w*")
"""Keys that ask for code of the folder, or from elsewhere, to be run."""

HARMLESS = "_attn_implementation_autoset"
"""A key of many folders: transformers chose the implementation by itself."""

QUANTISED = ("quantization_config", "compression_config")
"""Keys of a config.json that describe quantised weights."""
UNQUANTISED = "give the unquantised model that it was made from; an adapter trained over the quantised one fits it"


@dataclass(frozen=True)
class Kind:
    """The values that a field may hold, in words and as a predicate."""

    expected: str
    holds: Callable[[Any], bool]


def whole(low: int, high: int) -> Kind:
    return Kind(f"a whole number from {low:,} to {high:,}", lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float) -> Kind:
    expected = f"a number from {low:g} to {high:g}"
    return Kind(expected, lambda value: type(value) in (int, float) and low <= value <= high)


def worded(*words: str) -> Kind:
    return Kind(f"one of {', '.join(map(repr, words))}", lambda value: value in words)


def listed(kind: Kind) -> Kind:
    return Kind(f"a list, each {kind.expected}", lambda value: isinstance(value, list) and all(map(kind.holds, value)))


def either(one: Kind, other: Kind) -> Kind:
    return Kind(f"{one.expected}, or {other.expected}", lambda value: one.holds(value) or other.holds(value))


TRUTH = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str))
TABLE = Kind("a table", lambda value: isinstance(value, dict))

LAYERS, HEADS, EXPERTS = whole(0, 1000), whole(1, 4096), whole(0, 4096)
POSITIONS, TOKEN = whole(1, 1 << 28), whole(-1, 1 << 24)  # -1: none, in the first folders of Llama
ROTATION, SHARE = number(1e-3, 1e15), number(0, 1)

FIELDS: dict[str, Kind] = {
    "model_type": TEXT,
    "architectures": listed(TEXT),
    **dict.fromkeys(("torch_dtype", "dtype", "hidden_act", "hidden_activation"), TEXT),
    "head_filling": worded(*get_args(HeadFilling)),
    "router_scores": worded(*get_args(RouterScores)),
    "vocab_size": whole(1, 1 << 24),
    "hidden_size": whole(1, 1 << 17),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size"), whole(1, 1 << 20)),
    "expert_size": whole(0, 1 << 20),
    "num_hidden_layers": whole(1, 1000),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), HEADS),
    **dict.fromkeys(("head_dim", "query_pre_attn_scalar"), whole(1, 1 << 17)),
    **dict.fromkeys(("max_position_embeddings", "original_max_position_embeddings"), POSITIONS),
    "sliding_window": whole(0, 1 << 28),
    **dict.fromkeys(("sliding_window_pattern", "_sliding_window_pattern"), whole(1, 1000)),
    "max_window_layers": LAYERS,
    "layer_types": listed(TEXT),
    **dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok"), EXPERTS),
    "decoder_sparse_step": LAYERS,
    "mlp_only_layers": listed(LAYERS),
    "type_vocab_size": whole(0, 1 << 16),
    "num_labels": whole(0, 1 << 20),
    **dict.fromkeys(("bos_token_id", "pad_token_id"), TOKEN),
    "eos_token_id": either(TOKEN, listed(TOKEN)),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "id2label", "label2id"), TABLE),
    **dict.fromkeys(("full_attention", "sliding_attention"), TABLE),  # in rope_parameters
    **dict.fromkeys(("rope_theta", "rope_local_base_freq"), ROTATION),
    **dict.fromkeys(("factor", "low_freq_factor", "high_freq_factor"), number(0, 1e6)),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps"), number(1e-15, 0.01)),
    **dict.fromkeys(("attention_dropout", "lora_dropout"), SHARE),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "use_sliding_window"), TRUTH),
    **dict.fromkeys(("norm_topk_prob", "is_decoder", "use_rslora", "qk_norm", "balance_bias"), TRUTH),
    "r": whole(1, 1 << 16),
    "lora_alpha": number(-1e6, 1e6),
    **dict.fromkeys(("rank_pattern", "alpha_pattern"), TABLE),
}
"""Field that the package reads, at any depth -> its allowed values. `null` means that the field is absent."""

NAMES = {"id2label", "label2id", "rank_pattern", "alpha_pattern", "task_specific_params"}
"""Tables with free keys."""


def read_settings(path: Path) -> dict[str, Any]:
    """Read a config.json or adapter_config.json of at most 1 MiB, without the keys that ask for code to be run.

    Such a key raises a Python warning where the family is known here, so that the model needs no such code, and a
    WeightsError where it is unknown. WeightsError also for a value that its field cannot hold.
    """
    try:
        found = decoded(read_regular(path, LIMIT))
    except ValueError as error:
        raise WeightsError(f"not usable as JSON: {error}", path=path) from error
    check(path, found)
    heads, groups = found.get("num_attention_heads"), found.get("num_key_value_heads")
    if heads and groups and heads % groups:
        what, expected = "heads do not divide evenly", f"a divisor of num_attention_heads = {heads}"
        raise WeightsError(what, path=path, field="num_key_value_heads", expected=expected, got=groups)
    return without_code(path, found)


def family_in(found: dict[str, Any], path: Path, known: Collection[str], kind: str) -> str:
    """The family that a config.json names; WeightsError unless it is among `known` families of this `kind` of model."""
    name = found.get("model_type")
    if name not in known:
        expected, hint = f"one of {', '.join(known)}", nearest(str(name), [*known])
        what = f"unknown family of {kind}"
        raise WeightsError(what, path=path, field="model_type", expected=expected, got=str(name), hint=hint)
    for key in QUANTISED:
        if found.get(key) is not None:
            raise WeightsError("the model is quantised", path=path, field=key, got=str(found[key]), hint=UNQUANTISED)
    return str(name)


def check(path: Path, found: dict[str, Any], above: tuple[str, ...] = ()) -> None:
    """Raise WeightsError for a value that its field cannot hold, in this table and in nested ones."""
    for name, value in found.items():
        if value is not None and name in FIELDS and not FIELDS[name].holds(value):
            field, expected = ".".join((*above, name)), FIELDS[name].expected
            raise WeightsError("a value out of bounds", path=path, field=field, expected=expected, got=repr(value))
        if isinstance(value, dict) and name not in NAMES:
            if len(above) == DEPTH:
                raise WeightsError("nested tables", path=path, field=above[0], expected=f"at most {DEPTH} deep")
            check(path, value, (*above, name))


def without_code(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Leave out the keys that ask for code, with a warning; WeightsError where the family is unknown."""
    asking = [key for key, value in found.items() if CODE.fullmatch(key) and key != HARMLESS and value]
    if not asking:
        return found
    known = (*TRAITS, *ENCODER_TRAITS)
    if (family := found.get("model_type")) not in known:
        what, expected = f"the model needs code that is never run: {', '.join(asking)}", f"one of {', '.join(known)}"
        raise WeightsError(what, path=path, field="model_type", expected=expected, got=repr(family))
    warnings.warn(f"{path}: ignored, as code is never run: {', '.join(asking)}", MoesaicWarning, stacklevel=1)
    return {key: value for key, value in found.items() if key not in asking}
