"""A config.json <-> a DecoderConfig, in the keys of transformers before and since version 5.

`families` holds the names that each family uses. Knows nothing about tensors.
"""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from moesaic.config import TRAITS, DecoderConfig, HeadFilling, RopeScaling, RouterScores
from moesaic.errors import CompatibilityError, RecipeError, WeightsError
from moesaic.interop.families import ABSENT, FAMILIES, KEYS, REFUSED, Family
from moesaic.tensors.json_config import family_in, read_settings

SCALINGS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
        "original_context": "original_max_position_embeddings",
    },
}
"""Kind of RopeScaling -> its fields <-> their keys."""

ROPE: dict[str, tuple[Any, ...]] = {"partial_rotary_factor": (1.0, None)}
"""Keys of every table of rotary positions with the values that change nothing, beside those that are read."""
ROPE_READ = ("rope_type", "type", "rope_theta", "original_max_position_embeddings")
LAYERED = ("full_attention", "sliding_attention")

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
CONTRADICTION = "two keys contradict each other"
REQUIRED = ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "context")
ALIASES = {"num_experts": "num_local_experts"}
KINDS: dict[Any, tuple[Any, str]] = {
    **{int: (int, "an integer"), float: (int | float, "a number"), bool: (bool, "a bool")},
    **dict.fromkeys((HeadFilling, RouterScores), (str, "text")),
}
ELSEWHERE = {"family", "rope_theta", "rope_scaling", "local_rope_theta", "window", "local_layers", "dense_layers"}
"""Fields without a key of their own that `config_json` writes."""


def read_config(path: Path) -> tuple[DecoderConfig, dict[str, Any]]:
    """Read a config.json: the size and wiring, and the file's content."""
    found = read_settings(path)
    try:
        return decoder_config(found, path), found
    except RecipeError as error:
        field = {**KEYS, **FAMILIES[found["model_type"]].keys}.get(error.field or "", error.field)
        expected, got = error.expected, error.got
        raise WeightsError(error.what, path=path, field=field, expected=expected, got=got) from error


def decoder_config(found: dict[str, Any], path: Path) -> DecoderConfig:
    """The size and wiring that a config.json describes; WeightsError, by its key, for wiring that the decoder lacks."""
    name = family_in(found, path, FAMILIES, "decoders")
    family = FAMILIES[name]
    for key, allowed in {**REFUSED, **family.only}.items():
        if found.get(key, allowed[-1]) not in allowed:
            what = "wiring that this decoder does not have"
            raise WeightsError(what, path=path, field=key, expected=allowed[0], got=found[key])
    given = {key: value for key, value in found.items() if value is not None or key not in ABSENT}
    full = {**ABSENT, **family.absent, **{ALIASES.get(key, key): value for key, value in given.items()}}
    sizes = read_sizes(full, {**KEYS, **family.keys}, path)
    layers = range(sizes["num_layers"])
    theta, scaling, local_theta = read_rope(found, full, family, path)
    local = read_local(full, family, layers, path)
    return DecoderConfig(
        **sizes,
        **TRAITS[name],
        family=name,
        rope_theta=theta,
        rope_scaling=scaling,
        local_rope_theta=local_theta,
        window=full["sliding_window"] if local else 0,
        local_layers=local,
        dense_layers=read_dense(full, layers) if family.dense_layers else (),
    )


def read_sizes(full: Mapping[str, Any], keys: Mapping[str, str], path: Path) -> dict[str, Any]:
    """The fields with a key of their own, after a check of their types."""
    kinds, sizes = get_type_hints(DecoderConfig), {}
    for ours, theirs in keys.items():
        value = full.get(theirs)
        kind, expected = KINDS[kinds[ours]]
        if value is None and ours not in REQUIRED:
            continue
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            what = "a size is missing" if value is None else "a value of another type"
            raise WeightsError(what, path=path, field=theirs, expected=expected, got=value)
        sizes[ours] = value
    sizes.setdefault("num_kv_heads", sizes["num_heads"])
    return sizes


def read_rope(
    found: Mapping[str, Any], full: Mapping[str, Any], family: Family, path: Path
) -> tuple[float, RopeScaling | None, float]:
    """Theta, scaling and the theta of local layers, from old keys (`rope_theta`) and new ones (`rope_parameters`)."""
    new = found.get("rope_parameters") or {}
    nested = any(isinstance(value, dict) for value in new.values())
    whole, local = (new.get(key) or {} for key in LAYERED) if nested else (new, {})
    if nested and (others := sorted(new.keys() - {*LAYERED})):
        what, expected = "unknown kinds of layers", " and ".join(LAYERED)
        raise WeightsError(what, path=path, field="rope_parameters", expected=expected, got=", ".join(others))
    if nested and not family.local_rope:
        raise WeightsError("rotary positions of more than one kind", path=path, field="rope_parameters")
    scaling, old_table = read_scaling(whole, "rope_parameters", full, path), found.get("rope_scaling") or {}
    if old_table:
        old = read_scaling(old_table, "rope_scaling", full, path)
        if whole and old != scaling:
            raise WeightsError(CONTRADICTION, path=path, field="rope_scaling", expected=scaling, got=old)
        scaling = old
    if "rope_theta" in old_table and old_table["rope_theta"] != whole.get("rope_theta", old_table["rope_theta"]):
        field, expected, got = "rope_scaling.rope_theta", whole["rope_theta"], old_table["rope_theta"]
        raise WeightsError(CONTRADICTION, path=path, field=field, expected=expected, got=got)
    theta = read_theta(full, "rope_theta", "rope_theta" in found, {**old_table, **whole}, path)
    if read_scaling(local, "rope_parameters", full, path) is not None:
        raise WeightsError("scaled rotary positions in local layers", path=path, field="rope_parameters")
    if not family.local_rope:
        return theta, scaling, 0.0
    return theta, scaling, read_theta(full, "rope_local_base_freq", "rope_local_base_freq" in found, local, path)


def read_theta(full: Mapping[str, Any], key: str, present: bool, new: Mapping[str, Any], path: Path) -> float:
    """A theta under its old key or its new one; WeightsError if both are present and differ."""
    value = new.get("rope_theta", full[key])
    if present and value != full[key]:
        expected = f"{value}, as in the table of rotary positions"
        raise WeightsError(CONTRADICTION, path=path, field=key, expected=expected, got=full[key])
    if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
        raise WeightsError("not a base of rotary positions", path=path, field=key, expected="a number > 0", got=value)
    return float(value)


def read_scaling(found: Mapping[str, Any], field: str, full: Mapping[str, Any], path: Path) -> RopeScaling | None:
    """The scaling in a table of rotary positions, each key of which is known; None if positions are not scaled.

    A context before scaling outside the table, in `full`, takes precedence, as in transformers.
    """
    kind = found.get("rope_type", found.get("type", "default"))
    if kind not in ("default", *SCALINGS):
        expected = " or ".join(SCALINGS)
        raise WeightsError("unknown scaling of rotary positions", path=path, field=field, expected=expected, got=kind)
    keys = SCALINGS.get(kind, {})
    for key, allowed in ROPE.items():
        if found.get(key) not in allowed:
            what, expected = "wiring that this decoder does not have", str(allowed[0])
            raise WeightsError(what, path=path, field=f"{field}.{key}", expected=expected, got=found[key])
    for key in sorted(found.keys() - {*keys.values(), *ROPE, *ROPE_READ}):
        if found[key] is not None:
            what, hint = f"unknown key of {kind} rotary positions", "if it changes nothing, remove it from the file"
            expected = ", ".join((*keys.values(), *ROPE_READ))
            raise WeightsError(what, path=path, field=f"{field}.{key}", expected=expected, got=found[key], hint=hint)
    outside = full.get("original_max_position_embeddings")
    values = {**found, "original_max_position_embeddings": outside} if outside else found
    for key in keys.values():
        if not isinstance(values.get(key), int | float):
            raise WeightsError(f"no {key}", path=path, field=field, expected="a number", got=values.get(key))
    return RopeScaling(kind=kind, **{ours: values[theirs] for ours, theirs in keys.items()}) if keys else None


def read_local(full: Mapping[str, Any], family: Family, layers: range, path: Path) -> tuple[int, ...]:
    """The layers that see a window."""
    local, types = family.local(full, layers), full.get("layer_types")
    if types is not None:
        kinds = {"full_attention": False, "sliding_attention": True}
        if not isinstance(types, list) or len(types) != len(layers) or not set(types) <= set(kinds):
            what, expected = "not a kind of attention for each layer", f"{len(layers)} of {', '.join(kinds)}"
            raise WeightsError(what, path=path, field="layer_types", expected=expected, got=str(types))
        typed = [layer for layer, kind in enumerate(types) if kinds[kind]]
        if typed != local and "layer_types" not in family.windows:
            raise WeightsError("layers of more than one kind", path=path, field="layer_types")
        local = typed
    window = full.get("sliding_window")
    if local and (not isinstance(window, int) or window < 1):
        raise WeightsError("no window", path=path, field="sliding_window", expected="an integer >= 1", got=window)
    return tuple(local)


def read_dense(full: Mapping[str, Any], layers: range) -> tuple[int, ...]:
    named, step = full.get("mlp_only_layers") or [], full.get("decoder_sparse_step") or 1
    return tuple(layer for layer in layers if layer in named or (layer + 1) % step)


def config_json(config: DecoderConfig, tokens: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """The config.json for every version of transformers that knows the family; renamed keys have both names.

    Raises CompatibilityError for wiring that the family cannot say.
    """
    family = FAMILIES[config.family]
    require_said(config, family)
    filled = {"query_pre_attn_scalar": config.query_scalar or config.head_dim}
    filled["moe_intermediate_size"] = config.expert_size or config.intermediate_size
    sizes = {key: filled.get(key, getattr(config, ours)) for ours, key in {**KEYS, **family.keys}.items()}
    sizes |= {alias: sizes[key] for alias, key in ALIASES.items() if key in sizes}
    if family.dense_layers:
        sizes |= {"decoder_sparse_step": 1, "mlp_only_layers": list(config.dense_layers)}
    return {
        "architectures": [family.architecture] if family.architecture else [],
        "model_type": config.family,
        **{key: values[0] for key, values in family.only.items()},
        **sizes,
        **window_keys(config, family),
        **rope_keys(config, family),
        **{key: tokens.get(key) for key in TOKENS},
        "torch_dtype": dtype,
        "dtype": dtype,
    }


def require_said(config: DecoderConfig, family: Family) -> None:
    """Raise CompatibilityError for wiring that no key of the family says."""
    for field in fields(config):
        usual = TRAITS[config.family].get(field.name, field.default)
        if field.name in {**KEYS, **family.keys} or field.name in ELSEWHERE:
            continue
        if (value := getattr(config, field.name)) != usual:
            what, hint = f"a model of family {config.family} cannot have this wiring", "set its family to moesaic"
            raise CompatibilityError(what, field=field.name, expected=repr(usual), got=repr(value), hint=hint)


def window_keys(config: DecoderConfig, family: Family) -> dict[str, Any]:
    local, kinds = config.local_layers, ("full_attention", "sliding_attention")
    keys = {
        "sliding_window": config.window or None,
        "use_sliding_window": bool(local),
        "max_window_layers": min(local, default=config.num_layers),
        "layer_types": [kinds[layer in local] for layer in range(config.num_layers)],
    }
    return {key: keys[key] for key in family.windows}


def rope_keys(config: DecoderConfig, family: Family) -> dict[str, Any]:
    """Rotary positions, in old and new keys."""
    scaling: dict[str, Any] = {}
    if config.rope_scaling is not None:
        names = SCALINGS[config.rope_scaling.kind]
        scaling = {"rope_type": config.rope_scaling.kind}
        scaling |= {theirs: getattr(config.rope_scaling, ours) for ours, theirs in names.items()}
    new: dict[str, Any] = {"rope_type": "default", **scaling, "rope_theta": config.rope_theta}
    old: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": scaling or None}
    if family.local_rope:
        local = config.local_rope_theta or config.rope_theta
        old["rope_local_base_freq"] = local
        new = {"full_attention": new, "sliding_attention": {"rope_type": "default", "rope_theta": local}}
    return {**old, "rope_parameters": new}
