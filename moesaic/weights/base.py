"""Bases on disk: a Hugging Face folder (config.json, model.safetensors, tokenizer.json) plus our manifest.

A folder without a manifest loads too. Knows nothing about experts.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.config import DecoderConfig
from moesaic.errors import WeightsError
from moesaic.files import MANIFEST, digest, read_json, read_manifest, write_json, write_manifest
from moesaic.model.decoder import Decoder
from moesaic.tokenizer import Tokenizer
from moesaic.weights.tensors import TENSORS, fingerprint, fit, read_tensors, write_tensors

KIND = "base"
FILES = ("config.json", TENSORS, "tokenizer.json")

# Our size fields <-> the keys of a Llama config.json.
LLAMA_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "intermediate_size": "intermediate_size",
    "context": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "tie_embeddings": "tie_word_embeddings",
}
# Wiring that this decoder does not have: only these values are accepted.
LLAMA_ONLY: dict[str, tuple[Any, ...]] = {
    "model_type": ("llama",),
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_scaling": (None,),
}


@dataclass(frozen=True)
class Base:
    """A decoder with the tokenizer it was trained with, and the fingerprint by which experts know it.

    The fingerprint covers the values of all tensors, how they are wired, and the tokenizer: with any of these changed,
    an expert or a router would mean something else.
    """

    decoder: Decoder
    tokenizer: Tokenizer
    fingerprint: str


def named(decoder: Decoder) -> dict[str, Tensor]:
    """The decoder's tensors under their Hugging Face names; a tied head is not stored twice."""
    tied = decoder.config.tie_embeddings
    return {
        name if name.startswith("lm_head.") else f"model.{name}": tensor
        for name, tensor in decoder.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }


def identify(decoder: Decoder, tokenizer: Tokenizer) -> str:
    """The fingerprint of a base."""
    return digest([fingerprint(named(decoder)), asdict(decoder.config), tokenizer.eos, tokenizer.inner.to_str()])


def save_base(folder: Path, decoder: Decoder, tokenizer: Tokenizer, facts: dict[str, Any]) -> None:
    """Write a base into an empty folder; `facts` (data hash, metrics, seed, ...) go to its manifest."""
    tensors = named(decoder)
    write_tensors(folder / TENSORS, tensors)
    tokenizer.save(folder)
    sizes = {key: getattr(decoder.config, field) for field, key in LLAMA_KEYS.items()}
    only = {key: values[0] for key, values in LLAMA_ONLY.items()}
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos, "pad_token_id": None}
    dtype = str(decoder.norm.weight.dtype).removeprefix("torch.")
    write_json(
        folder / "config.json", {"architectures": ["LlamaForCausalLM"], **only, **sizes, **tokens, "torch_dtype": dtype}
    )
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    write_manifest(folder, {"kind": KIND, "fingerprint": identify(decoder, tokenizer), "shapes": shapes, **facts})


def load_base(folder: Path) -> Base:
    """Read a base; everything its manifest promises is checked, and of a foreign folder all that it says itself."""
    if not folder.is_dir():
        raise WeightsError("no such base folder", path=folder, hint="give a folder with config.json and its weights")
    if (folder / MANIFEST).is_file():
        read_manifest(folder, KIND)
    config, eos = read_config(folder / "config.json")
    decoder = Decoder(config)
    tensors = read_tensors(folder / TENSORS)
    ours = {name.removeprefix("model."): tensor.to(torch.get_default_dtype()) for name, tensor in tensors.items()}
    if config.tie_embeddings:
        ours.setdefault("lm_head.weight", ours.get("embed_tokens.weight", decoder.lm_head.weight))
    fit(decoder, ours, folder / TENSORS)
    tokenizer = Tokenizer.load(folder, eos)
    if tokenizer.vocab_size > config.vocab_size:
        raise WeightsError(
            "the tokenizer has more tokens than the model",
            path=folder / "tokenizer.json",
            expected=f"<= {config.vocab_size}",
            got=tokenizer.vocab_size,
        )
    return Base(decoder.eval(), tokenizer, identify(decoder, tokenizer))


def read_config(path: Path) -> tuple[DecoderConfig, int]:
    """The size of a Llama-shaped model and its end-of-text id, from a config.json of either generation of keys."""
    found = read_json(path)
    rope = found.get("rope_parameters") or {}
    found = {"rope_theta": rope.get("rope_theta", 10000.0), **found}
    if rope.get("rope_type", "default") != "default":
        raise WeightsError("scaled rotary positions are not supported", path=path, field="rope_parameters")
    for key, allowed in LLAMA_ONLY.items():
        if found.get(key, allowed[-1]) not in allowed:
            raise WeightsError("not a plain Llama decoder", path=path, field=key, expected=allowed[0], got=found[key])
    sizes = {field: found[key] for field, key in LLAMA_KEYS.items() if found.get(key) is not None}
    for field in ("vocab_size", "hidden_size", "num_layers", "num_heads", "intermediate_size", "context"):
        if not isinstance(sizes.get(field), int):
            raise WeightsError("a size is missing", path=path, field=LLAMA_KEYS[field], expected="an integer")
    sizes.setdefault("num_kv_heads", sizes["num_heads"])
    sizes.setdefault("tie_embeddings", False)
    eos = found.get("eos_token_id")
    eos = eos[0] if isinstance(eos, list) and eos else eos
    if not isinstance(eos, int):
        raise WeightsError("no end-of-text token", path=path, field="eos_token_id", expected="an integer", got=eos)
    return DecoderConfig(**sizes), eos
