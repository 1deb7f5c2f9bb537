"""Tensors that a model or an adapter has no use for: which of them compute nothing, and where the others come from.

Looks at the names and shapes of all of them at once. Knows nothing about values.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from moesaic.errors import clipped
from moesaic.tensors.json_config import UNQUANTISED

MERGE = "merge it into its base with peft's merge_and_unload and adopt the merged model"

COMPILED = "_orig_mod."
"""What torch.compile puts into the names of a compiled module; the names without it are meant."""


class Sign(NamedTuple):
    """A part of the names of foreign tensors, and the hint that it is worth."""

    pattern: str
    hint: str


HEADS = r"^(v_head|value_head|score|classifier|summary|mtp)\.|^model\.mtp\."
"""Heads of trainers and of other tasks, which a language model does not compute with."""
_LAYER = re.compile(r"^model\.layers\.(\d+)\.")

PARALLEL = "saved from DistributedDataParallel: save its .module"
SHARDED = "saved from FullyShardedDataParallel: save its full state"
WITHOUT_HEAD = "of a model saved without its head: save it again with AutoModelForCausalLM"
SAVE_AGAIN = "save it again with peft's save_pretrained"

EMPTY = "DeepSpeed ZeRO-3 did not gather their values: set stage3_gather_16bit_weights_on_model_save"

IN_MODELS = (
    Sign(r"\.(qweight|qzeros|g_idx|absmax|quant_map|nested_absmax|SCB|weight_scale|weight_packed)\b", UNQUANTISED),
    Sign(r"\.quant_state\.", UNQUANTISED),
    Sign(r"\.lora_[AB]\.|\.lora_embedding_|\.base_layer\.", "an adapter is still in it: use merge_and_unload"),
    Sign(r"^_orig_mod\.|\._orig_mod\.", "saved from a module of torch.compile: save its ._orig_mod"),
    Sign(r"(^|\.)module\.", PARALLEL),
    Sign(r"_fsdp_wrapped_module\.", SHARDED),
    Sign(r"(^|\.)(language_model|vision_tower|visual|multi_modal_projector)\.", "save its language model alone"),
    Sign(r"^(layers|embed_tokens|norm)\.", f"the names lack 'model.', as {WITHOUT_HEAD}"),
    Sign(r"^(?!model\.layers\.).*\bmodel\.layers\.\d", "saved from a model around it: save the language model inside"),
    Sign(r"\.(q|k|v|o)_proj\.bias$", "set attention_bias in config.json, if the family has it"),
    Sign(r"\.(gate|up|down)_proj\.bias$", "set mlp_bias in config.json, if the family has it"),
)
"""Signs of where the tensors of a model come from, the most telling first."""

IN_ADAPTERS = (
    Sign(r"lora_magnitude_vector", f"this is DoRA: {MERGE}"),
    Sign(r"lora_B\.bias", f"this has a bias in B: {MERGE}"),
    Sign(r"lora_embedding_", f"the embedding is adapted, which is not adopted: {MERGE}"),
    Sign(r"lm_head\.lora_", f"the head is adapted, which is not adopted: {MERGE}"),
    Sign(r"\.lora_[AB]\.(?!weight$)[^.]+\.", f"{SAVE_AGAIN}, which leaves 'default' out"),
    Sign(r"\.parametrizations\.|\.oft_|\.vera_|\.hada_|\.ia3_", f"this is another method than LoRA: {MERGE}"),
    Sign(r"(^|\.)(language_model|vision_tower|visual)\.", "it adapts a model of images and text, not a language model"),
    Sign(r"(^|\.)module\.", PARALLEL),
    Sign(r"_fsdp_wrapped_module\.", SHARDED),
    Sign(r"^base_model\.model\.layers\.", "it adapts the model without its head: train it on AutoModelForCausalLM"),
    Sign(r"\.base_layer\.", f"it holds layers of a quantised base: {SAVE_AGAIN}"),
    Sign(r"\.bias$", f"it has trained biases: {MERGE}"),
    Sign(r"norm", f"norms that were trained are not adopted: {MERGE}"),
    Sign(r"^(?!base_model\.model\.).*\blayers\.\d", f"the names do not begin with base_model.model: {SAVE_AGAIN}"),
)
"""Signs of where the tensors of an adapter come from, the most telling first."""


def hint_of(shapes: Mapping[str, Sequence[int]], signs: Collection[Sign]) -> str | None:
    """The hint of the first sign that any of the tensors shows; None where none does."""
    if any(0 in shape for shape in shapes.values()):
        return f"tensors of no elements: {EMPTY}"
    return next((sign.hint for sign in signs if any(re.search(sign.pattern, name) for name in shapes)), None)


def idle(names: Collection[str], layers: int) -> list[str]:
    """The tensors that a language model of so many layers computes nothing with: other heads, and further layers."""
    beyond = (name for name in names if (match := _LAYER.match(name)) and int(match[1]) >= layers)
    return sorted({*beyond, *(name for name in names if re.search(HEADS, name))})


def shown(names: Collection[str]) -> str:
    """A count of tensors and the first of them, for messages."""
    first = min(names)
    return first if len(names) == 1 else f"{len(names)} tensors, such as {clipped(first)}"
