"""Architectures of llama.cpp <-> families of transformers: keys, names of tensors and what differs in their values.

Knows nothing about files or tokenizers.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from moesaic.errors import CompatibilityError, WeightsError
from moesaic.gguf.container import Container, Given

FREQUENCIES = "rope_freqs.weight"
"""The divisors of rotary frequencies, by which llama.cpp knows the scaling of Llama 3."""

OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
}
HEAD_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
DENSE = {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"}
BEFORE_FFN = {"post_attention_layernorm": "ffn_norm"}
SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
"""Names within a layer in transformers -> in llama.cpp, without `.weight` and `.bias`."""

WINDOW_PATTERN = 6
"""Every so many layers of Gemma 3, one sees the whole context; the pattern that llama.cpp assumes."""


@dataclass(frozen=True)
class Architecture:
    """A family's name and wiring in llama.cpp. `pieces`: names within a layer. `experts`: those of an expert's three
    matrices, with `{}` for its number -> the tensor that packs them. `paired`: rows of queries and keys alternate
    between the halves of a head. `offset`: what norms hold beside our weights. `fixed`: keys of config.json that the
    architecture implies.
    """

    name: str
    pieces: Mapping[str, str]
    experts: Mapping[str, str] = field(default_factory=dict)
    paired: bool = False
    offset: float = 0.0
    theta: float = 10000.0
    fixed: Mapping[str, Any] = field(default_factory=dict)


_LLAMA = {**ATTENTION, **BEFORE_FFN, **DENSE}
_QWEN3 = {**ATTENTION, **BEFORE_FFN, **HEAD_NORMS}
ARCHITECTURES = {
    "llama": Architecture("llama", _LLAMA, paired=True),
    "mistral": Architecture("llama", _LLAMA, paired=True),
    "mixtral": Architecture(
        "llama",
        {**ATTENTION, **BEFORE_FFN, "block_sparse_moe.gate": "ffn_gate_inp"},
        {
            "block_sparse_moe.experts.{}.w1": "ffn_gate_exps",
            "block_sparse_moe.experts.{}.w3": "ffn_up_exps",
            "block_sparse_moe.experts.{}.w2": "ffn_down_exps",
        },
        paired=True,
    ),
    "qwen2": Architecture("qwen2", _LLAMA, fixed={"use_sliding_window": False}),
    "qwen3": Architecture("qwen3", {**_QWEN3, **DENSE}, fixed={"use_sliding_window": False}),
    "qwen3_moe": Architecture(
        "qwen3moe",
        {**_QWEN3, "mlp.gate": "ffn_gate_inp"},
        {
            "mlp.experts.{}.gate_proj": "ffn_gate_exps",
            "mlp.experts.{}.up_proj": "ffn_up_exps",
            "mlp.experts.{}.down_proj": "ffn_down_exps",
        },
        fixed={"norm_topk_prob": True, "use_sliding_window": False, "mlp_only_layers": [], "decoder_sparse_step": 1},
    ),
    "gemma3_text": Architecture(
        "gemma3", {**ATTENTION, **SANDWICH, **HEAD_NORMS, **DENSE}, offset=1.0, theta=1_000_000.0
    ),
}
"""Family (`model_type`) -> its architecture. Of families with one architecture, the first reads a dense file."""

READ = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe", "gemma3": "gemma3_text"}
"""Architecture in a file -> family; `llama` with experts is `mixtral`."""

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")
_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")


class Source(NamedTuple):
    """Where a tensor of transformers lies in a file: a name and, in a packed tensor, the index of its expert."""

    name: str
    expert: int | None = None


def family_in(file: Container) -> str:
    """The family of a file; WeightsError for an architecture that this package does not compute."""
    name = file.need("general.architecture", str)
    if name not in READ:
        what, expected = "an unknown architecture", f"one of {', '.join(READ)}"
        raise WeightsError(what, path=file.path, field="general.architecture", expected=expected, got=name)
    return "mixtral" if name == "llama" and file.metadata.get("llama.expert_count") else READ[name]


# --- tensors ----------------------------------------------------------------------------------------------------------


def stored(family: str, name: str) -> Source:
    """Where a tensor of transformers lies in a file; CompatibilityError for one that the architecture lacks."""
    architecture = ARCHITECTURES[family]
    if name in OUTSIDE:
        return Source(OUTSIDE[name])
    if match := _LAYER.fullmatch(name):
        layer, piece, end = match.groups()
        if piece in architecture.pieces:
            return Source(f"blk.{layer}.{architecture.pieces[piece]}.{end}")
        if expert := _EXPERT.search(name):
            pattern = _EXPERT.sub(".experts.{}.", piece + ".").removesuffix(".")
            if pattern in architecture.experts:
                return Source(f"blk.{layer}.{architecture.experts[pattern]}.{end}", int(expert[1]))
    what = f"llama.cpp has no place for this tensor in {architecture.name}"
    raise CompatibilityError(what, field=name, hint="export the model in another format")


def sources(path: Path, family: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Source]:
    """Name in transformers -> its source, for tensors of these names and shapes in a file; WeightsError for others."""
    architecture = ARCHITECTURES[family]
    outside = {theirs: ours for ours, theirs in OUTSIDE.items()}
    pieces = {theirs: ours for ours, theirs in architecture.pieces.items()}
    packed = {theirs: ours for ours, theirs in architecture.experts.items()}
    found: dict[str, Source] = {}
    for name, shape in shapes.items():
        layer, piece, end = match.groups() if (match := _BLOCK.fullmatch(name)) else ("", "", "")
        if name in outside:
            found[outside[name]] = Source(name)
        elif piece in pieces:
            found[f"model.layers.{layer}.{pieces[piece]}.{end}"] = Source(name)
        elif piece in packed and len(shape) == 3:
            for expert in range(shape[0]):
                found[f"model.layers.{layer}.{packed[piece].format(expert)}.{end}"] = Source(name, expert)
        elif name != FREQUENCIES:
            what = f"a tensor that {architecture.name} does not have"
            raise WeightsError(what, path=path, field=name)
    return found


def read_values(family: str, name: str, values: Tensor, heads: Callable[[str], int]) -> Tensor:
    """The values of a tensor as transformers has them, from those of a file. `heads`: those of a projection's name."""
    architecture = ARCHITECTURES[family]
    if architecture.paired and (kind := _rotated(name)):
        if len(values) % (2 * (count := heads(kind))):
            what, expected = "rows that do not divide evenly among the heads", f"a multiple of {2 * count}"
            raise WeightsError(what, field=name, expected=expected, got=len(values))
        return _rows(values, (count, -1, 2)).contiguous()
    return values - architecture.offset if architecture.offset and "norm" in name else values


def written_values(family: str, name: str, values: Tensor, heads: Callable[[str], int]) -> Tensor:
    """The values of a tensor as a file has them: see `read_values`."""
    architecture = ARCHITECTURES[family]
    if architecture.paired and (kind := _rotated(name)):
        return _rows(values, (heads(kind), 2, -1)).contiguous()
    return values + architecture.offset if architecture.offset and "norm" in name else values


def _rotated(name: str) -> str:
    """`q` or `k` for a tensor whose rows are queries or keys."""
    return match[1] if (match := re.search(r"\.self_attn\.(q|k)_proj\.", name)) else ""


def _rows(values: Tensor, split: tuple[int, int, int]) -> Tensor:
    """Swap the last two of the three dimensions that the rows are split into."""
    return values.reshape(*split, *values.shape[1:]).transpose(1, 2).reshape(values.shape)


def outgoing(family: str, tensors: Mapping[str, Tensor], heads: Callable[[str], int]) -> dict[str, Given]:
    """Tensors of transformers, as they are to be written: experts of a layer packed into one."""
    groups: dict[str, dict[int | None, str]] = {}
    for name in tensors:
        source = stored(family, name)
        groups.setdefault(source.name, {})[source.expert] = name

    def make(names: Sequence[str]) -> Callable[[], Tensor]:
        return lambda: torch.stack([written_values(family, name, tensors[name], heads) for name in names])

    def single(name: str) -> Callable[[], Tensor]:
        return lambda: written_values(family, name, tensors[name], heads)

    given = {}
    for at, found in groups.items():
        names = [found[expert] for expert in sorted(found, key=lambda one: one or 0)]
        shape, dtype = tuple(tensors[names[0]].shape), tensors[names[0]].dtype
        alone = None in found
        given[at] = Given(shape if alone else (len(names), *shape), dtype, single(names[0]) if alone else make(names))
    return given


# --- sizes and wiring -------------------------------------------------------------------------------------------------


def settings(file: Container, family: str, names: Collection[str]) -> dict[str, Any]:
    """The config.json of a file whose tensors have these names in transformers; WeightsError for unknown wiring."""
    architecture = ARCHITECTURES[family]

    def at(key: str, kind: type | tuple[type, ...] = int, default: Any = None) -> Any:
        return file.need(f"{architecture.name}.{key}", kind, default)

    hidden, heads, layers = at("embedding_length"), at("attention.head_count"), at("block_count")
    kv_heads = at("attention.head_count_kv", int, heads)
    if min(heads, kv_heads) < 1:
        field = f"{architecture.name}.attention.head_count"
        raise WeightsError("no heads", path=file.path, field=field, got=f"{heads}, and {kv_heads} of keys")
    width = at("attention.key_length", int, hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (own := at(key, int, width)) != width:
            field = f"{architecture.name}.{key}"
            what = "wiring that this decoder does not have"
            raise WeightsError(what, path=file.path, field=field, expected=width, got=own)
    shape = file.tensors["token_embd.weight"].shape if "token_embd.weight" in file.tensors else (0,)
    found = {
        "model_type": family,
        "vocab_size": shape[0],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": width,
        "intermediate_size": at("feed_forward_length"),
        "max_position_embeddings": at("context_length"),
        "rms_norm_eps": at("attention.layer_norm_rms_epsilon", float),
        "tie_word_embeddings": "lm_head.weight" not in names,
        "rope_theta": at("rope.freq_base", (float, int), architecture.theta),
        "rope_scaling": scaling_in(file, architecture, width),
        **architecture.fixed,
    }
    if family == "llama":
        found |= {"attention_bias": any(name.endswith("o_proj.bias") for name in names)}
        found |= {"mlp_bias": any(name.endswith("down_proj.bias") for name in names)}
    if architecture.experts:
        count = at("expert_count")
        found |= {"num_local_experts": count, "num_experts": count, "num_experts_per_tok": at("expert_used_count")}
        found |= {"sliding_window": None}
    if family == "mistral":
        found |= {"sliding_window": None}
    if family == "qwen3_moe":
        found |= {"moe_intermediate_size": at("expert_feed_forward_length")}
    if family == "gemma3_text":
        found |= gemma(file, layers, width, hidden // heads)
    return found


def gemma(file: Container, layers: int, width: int, narrow: int) -> dict[str, Any]:
    """What a Gemma 3 has beside the others. llama.cpp scales its queries by the width of a head, but for 62 layers."""
    pattern = file.need("gemma3.attention.sliding_window_pattern", (int, list), WINDOW_PATTERN)
    local = [bool(one) for one in pattern] if isinstance(pattern, list) else _local(layers, pattern)
    kinds = ("full_attention", "sliding_attention")
    return {
        "sliding_window": file.need("gemma3.attention.sliding_window", int),
        "layer_types": [kinds[one] for one in local],
        "rope_local_base_freq": file.need("gemma3.rope.freq_base_swa", (float, int), 10000.0),
        "query_pre_attn_scalar": narrow if layers == 62 else width,
    }


def _local(layers: int, pattern: int) -> list[bool]:
    return [(layer + 1) % pattern > 0 for layer in range(layers)] if pattern > 0 else [False] * layers


def scaling_in(file: Container, architecture: Architecture, width: int) -> dict[str, Any] | None:
    """The scaling of rotary positions in the words of transformers."""
    kind = file.need(f"{architecture.name}.rope.scaling.type", str, "none")
    if kind not in ("none", "linear"):
        field, expected = f"{architecture.name}.rope.scaling.type", "none or linear"
        raise WeightsError(
            "unknown scaling of rotary positions", path=file.path, field=field, expected=expected, got=kind
        )
    if kind == "linear":
        return {"rope_type": "linear", "factor": file.need(f"{architecture.name}.rope.scaling.factor", (float, int))}
    if FREQUENCIES not in file.tensors:
        return None
    theta = file.need(f"{architecture.name}.rope.freq_base", (float, int), architecture.theta)
    divisors = file.tensor(FREQUENCIES).double()
    found = of_divisors(divisors, theta, width)
    if found is None or not torch.allclose(divisors_of(found, theta, width), divisors, rtol=1e-3):
        what, hint = "unknown scaling of rotary positions", "only that of Llama 3 is read from divisors"
        raise WeightsError(what, path=file.path, field=FREQUENCIES, hint=hint)
    return found


def _turns(theta: float, width: int) -> Tensor:
    """The positions in which each pair of a head turns once."""
    return 2 * torch.pi * theta ** (torch.arange(0, width, 2, dtype=torch.float64) / width)


def divisors_of(scaling: Mapping[str, Any], theta: float, width: int) -> Tensor:
    """The divisors of Llama 3's scaling: 1 where a pair turns often in the original context, else up to its factor."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / _turns(theta, width)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - kept) / scaling["factor"] + kept)


def of_divisors(divisors: Tensor, theta: float, width: int) -> dict[str, Any] | None:
    """A scaling of Llama 3, with its usual factors of frequencies, that has these divisors; None without any."""
    if divisors.shape != (width // 2,) or not bool((divisors >= 1).all()) or divisors[-1] <= 1:
        return None
    factor, turns = float(divisors[-1]), _turns(theta, width)
    blended = (divisors > 1.0001) & (divisors < factor * 0.9999)
    kept = (1 / divisors - 1 / factor) / (1 - 1 / factor)
    contexts = ((3 * kept + 1) * turns)[blended]
    often = turns[divisors <= 1.0001]
    context = contexts.median() if len(contexts) else often.max().ceil() * 4 if len(often) else turns[0]
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": round(float(context)),
    }


def keys_of(config: Mapping[str, Any], family: str) -> Iterator[tuple[str, Any]]:
    """The keys of a model, from its config.json in the form that this package writes."""
    architecture = ARCHITECTURES[family]
    name = architecture.name
    for key, value in {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": config["head_dim"],
        "rope.freq_base": float(config["rope_theta"]),
    }.items():
        yield f"{name}.{key}", value
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") == "linear":
        yield f"{name}.rope.scaling.type", "linear"
        yield f"{name}.rope.scaling.factor", float(scaling["factor"])
    if architecture.experts:
        yield f"{name}.expert_count", config["num_local_experts"]
        yield f"{name}.expert_used_count", config["num_experts_per_tok"]
    if family == "qwen3_moe":
        yield f"{name}.expert_feed_forward_length", config["moe_intermediate_size"]
    if family == "gemma3_text":
        yield f"{name}.attention.sliding_window", config["sliding_window"]
        yield f"{name}.rope.freq_base_swa", float(config["rope_local_base_freq"])


def require_held(config: Mapping[str, Any], family: str) -> None:
    """Raise CompatibilityError for wiring that the architecture cannot hold."""
    layers, width, held = config["num_hidden_layers"], config["head_dim"], dict[str, Any]()
    if family == "qwen3_moe":
        held = {"mlp_only_layers": [], "norm_topk_prob": True}
    if family == "gemma3_text":
        kinds = ("full_attention", "sliding_attention")
        narrow = config["hidden_size"] // config["num_attention_heads"]
        held = {"layer_types": [kinds[one] for one in _local(layers, WINDOW_PATTERN)]}
        held |= {"query_pre_attn_scalar": narrow if layers == 62 else width}
    for key, expected in held.items():
        if config[key] != expected:
            what = f"{ARCHITECTURES[family].name} of llama.cpp cannot hold this"
            hint = "export another format"
            raise CompatibilityError(what, field=key, expected=str(expected), got=str(config[key]), hint=hint)
