"""A model or a LoRA adapter -> one file of llama.cpp, unpacked again and compared before it gets its name.

Takes tensors and configurations as transformers and PEFT have them. Knows nothing about the modules that compute.
"""

import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.errors import CompatibilityError, MoesaicWarning, RecipeError, StorageError, WeightsError
from moesaic.files import disk, read_json
from moesaic.gguf import adapters, container, names, vocabulary
from moesaic.gguf.container import QUANTISED, WRITTEN, Given
from moesaic.gguf.unpacking import unpack
from moesaic.tensors.shards import TensorFiles
from moesaic.tensors.tensors import read_tensors
from moesaic.tokenizer import Tokenizer, compare

TYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""Types of matrices by the names of llama.cpp's converter."""
NUMBERED = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
"""Type of most matrices -> its number in `general.file_type`."""
NEAR = {"F32": 0.0, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 2e-2}
"""Type -> the share of a tensor's norm by which it may differ after reading it back."""
ROUNDED = 1e-6
"""The share by which a norm may differ that is stored with an offset."""


@dataclass(frozen=True)
class Model:
    """A model to write: its config.json, its tensors under the names of its family, and its tokenizer."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    tokenizer: Tokenizer
    name: str

    @property
    def family(self) -> str:
        return str(self.config["model_type"])

    @property
    def heads(self) -> dict[str, int]:
        return {"q": self.config["num_attention_heads"], "k": self.config["num_key_value_heads"]}


def pack(model: Model, target: Path, type: str | None = None) -> Path:
    """Write a model, its matrices as `type` (default: as they are), read the file back, and return its path.

    CompatibilityError for wiring or a tokenizer that llama.cpp lacks. A window smaller than the context, which only
    Gemma 3 has there, becomes the context: up to that length the two models are one.
    """
    kind = named_type(type)
    family, config = model.family, dict(model.config)
    require_architecture(family)
    names.require_held(config, family)
    window = config.get("sliding_window")
    windowed = family != "gemma3_text" and window and config.get("use_sliding_window", True)
    if windowed and window < config["max_position_embeddings"]:
        text = f"llama.cpp has no window for this family; the context is written as {window:,} tokens, the window"
        warnings.warn(f"{model.name}: {text}", MoesaicWarning, stacklevel=2)
        config["max_position_embeddings"] = window
    given = names.outgoing(family, model.tensors, model.heads.__getitem__)
    if (scaling := config.get("rope_scaling") or {}).get("rope_type") == "llama3":
        divisors = names.divisors_of(scaling, config["rope_theta"], config["head_dim"]).float()
        given[names.FREQUENCIES] = Given(tuple(divisors.shape), divisors.dtype, lambda: divisors)
    most = kind or WRITTEN.get(model.tensors["model.embed_tokens.weight"].dtype, "F32")
    metadata = {
        "general.architecture": names.ARCHITECTURES[family].name,
        "general.type": "model",
        "general.name": model.name,
        "general.file_type": NUMBERED[most],
        **({"general.quantization_version": 2} if most in QUANTISED else {}),
        **dict(names.keys_of(config, family)),
        **vocabulary.pack(model.tokenizer, config["vocab_size"]),
    }
    return written(target, metadata, given, kind, lambda draft: require_model_back(draft, model, most))


def pack_adapter(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], base: Mapping[str, Any], target: Path, name: str
) -> Path:
    """Write a LoRA adapter as float32, read the file back, and return its path.

    `config` and `tensors`: as PEFT has them, of one rank and alpha; `base`: the config.json of its base.
    """
    family = str(base["model_type"])
    require_architecture(family)
    if uneven := config.get("rank_pattern") or config.get("alpha_pattern"):
        what, hint = "llama.cpp has one alpha for all pairs of an adapter", "export it with --format dense"
        raise CompatibilityError(what, field="rank_pattern", got=str(uneven), hint=hint)
    given, keys = adapters.outgoing(family, tensors, base)
    metadata = {
        "general.architecture": names.ARCHITECTURES[family].name,
        "general.type": "adapter",
        "general.name": name,
        "adapter.type": adapters.METHOD,
        adapters.ALPHA: float(config["lora_alpha"]),
        **keys,
    }

    def require_back(draft: Path) -> None:
        with disk.private() as folder:
            adapters.unpack(container.read(draft), folder)
            found = read_tensors(folder / adapters.TENSORS)
            require_equal(found, {name: tensor.float() for name, tensor in tensors.items()}, {}, draft)

    return written(target, metadata, given, "F32", require_back)


def named_type(type: str | None) -> str:
    if type is not None and type not in TYPES:
        raise RecipeError("unknown type of matrices", field="type", expected=f"one of {', '.join(TYPES)}", got=type)
    return "" if type is None else TYPES[type]


def require_architecture(family: str) -> None:
    if family not in names.ARCHITECTURES:
        expected = ", ".join(names.ARCHITECTURES)
        raise CompatibilityError(
            "no file of llama.cpp is written of this family", field="model_type", expected=expected, got=family
        )


def written(
    target: Path,
    metadata: Mapping[str, Any],
    given: Mapping[str, Given],
    kind: str,
    require_back: Callable[[Path], None],
) -> Path:
    """Write a new file whole or not at all, after `require_back` has read it."""
    if target.suffix != ".gguf":
        raise StorageError("not the name of a GGUF file", path=target, expected="a name that ends in .gguf")
    if os.path.lexists(target):
        raise StorageError("the path already exists", path=target, hint="name a file that does not exist")
    with disk.scratch(target.parent, target) as draft:
        container.write(draft, metadata, given, kind)
        disk.sync(draft)
        require_back(draft)
        disk.rename(draft, target)
        disk.sync(target.parent)
    return target


def require_model_back(draft: Path, model: Model, kind: str) -> None:
    """Raise WeightsError unless a file holds this model."""
    file = container.read(draft)
    with disk.private() as folder:
        unpack(file, folder)
        config = read_json(folder / "config.json")
        for key in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"):
            if config[key] != model.config[key]:
                raise back(draft, key, model.config[key], config[key])
        near = {name: NEAR[kind] if tensor.ndim > 1 else ROUNDED for name, tensor in model.tensors.items()}
        plain = WRITTEN.get(model.tensors["model.embed_tokens.weight"].dtype) == kind
        exact = {name: 0.0 for name, tensor in model.tensors.items() if plain and tensor.ndim > 1}
        with TensorFiles(folder, True) as found:
            require_equal(found, model.tensors, near | exact, draft)
        tokenizer = Tokenizer.load(folder)
        if differences := compare(vocabulary.canonical(model.tokenizer), vocabulary.canonical(tokenizer)):
            raise back(draft, "tokenizer", "the model's", str(differences[0]))


def require_equal(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], near: Mapping[str, float], draft: Path
) -> None:
    """Raise WeightsError unless two models have the same tensors, each but for its share of its norm."""
    if missing := sorted({*found} ^ {*wanted}):
        raise back(draft, missing[0], "a tensor of the same name", "none")
    for name, tensor in wanted.items():
        own, other = tensor.detach().double(), found[name].double()
        if own.shape != other.shape:
            raise back(draft, name, [*own.shape], [*other.shape])
        if not bool(torch.linalg.vector_norm(own - other) <= near.get(name, 0.0) * torch.linalg.vector_norm(own)):
            raise back(draft, name, "the same values", "others")


def back(draft: Path, field: str, expected: Any, got: Any) -> WeightsError:
    what = "the file differs from the model after reading it back"
    return WeightsError(what, path=draft, field=field, expected=expected, got=str(got))
