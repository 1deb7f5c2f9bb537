"""LoRA adapters in files of llama.cpp <-> folders of PEFT.

Knows nothing about the base: its numbers of heads, by which rows of queries and keys are ordered, stand in our files.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from moesaic.errors import WeightsError
from moesaic.files import write_json
from moesaic.gguf import names
from moesaic.gguf.container import Container, Given
from moesaic.tensors.tensors import write_tensors

METHOD, ALPHA = "lora", "adapter.lora.alpha"
ROOT = "base_model.model."
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
HALVES = {"lora_A": "lora_a", "lora_B": "lora_b"}
HEADS = {"q": "attention.head_count", "k": "attention.head_count_kv"}


def unpack(file: Container, folder: Path) -> None:
    """Write an adapter into an empty folder, as PEFT does."""
    family = names.family_in(file)
    if (method := file.need("adapter.type", str)) != METHOD:
        raise WeightsError("another adapter than LoRA", path=file.path, field="adapter.type", got=method)
    alpha = file.need(ALPHA, (float, int))
    architecture = file.metadata["general.architecture"]
    halves = {theirs: ours for ours, theirs in HALVES.items()}
    shapes = {name.rpartition(".")[0]: held.shape for name, held in file.tensors.items()}
    found = names.sources(file.path, family, shapes)

    def heads(kind: str) -> int:
        count: int = file.need(f"{architecture}.{HEADS[kind]}", int)
        return count

    tensors: dict[str, Tensor] = {}
    ranks = set[int]()
    for name, source in found.items():
        module = name.removesuffix(".weight")
        for theirs, ours in halves.items():
            at = f"{source.name}.{theirs}"
            if at not in file.tensors:
                raise WeightsError("half of a pair is missing", path=file.path, field=at)
            values = file.tensor(at, source.expert)
            if ours == "lora_B":
                values = names.read_values(family, name, values, heads)
            else:
                ranks.add(values.shape[0])
            tensors[f"{ROOT}{module}.{ours}.weight"] = values
    if len(ranks) != 1:
        raise WeightsError("pairs of several ranks", path=file.path, got=sorted(ranks))
    (rank,) = ranks
    targets = sorted(name.removesuffix(".weight") for name in found)
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": alpha or rank}
    write_json(folder / CONFIG, {**settings, "target_modules": targets})
    write_tensors(folder / TENSORS, tensors)


def outgoing(
    family: str, tensors: Mapping[str, Tensor], base: Mapping[str, Any]
) -> tuple[dict[str, Given], dict[str, Any]]:
    """The pairs of an adapter of PEFT as a file has them, and the numbers of heads of its base as keys."""
    counts = {"q": int(base["num_attention_heads"]), "k": int(base["num_key_value_heads"])}
    given: dict[str, Given] = {}
    for name, tensor in sorted(tensors.items()):
        module, _, half = name.removeprefix(ROOT).removesuffix(".weight").rpartition(".")
        at = f"{names.stored(family, f'{module}.weight').name}.{HALVES[half]}"
        given[at] = Given(tuple(tensor.shape), tensor.dtype, maker(family, module, half, tensor, counts.__getitem__))
    architecture = names.ARCHITECTURES[family].name
    return given, {f"{architecture}.{HEADS[kind]}": count for kind, count in counts.items()}


def maker(family: str, module: str, half: str, tensor: Tensor, heads: Callable[[str], int]) -> Callable[[], Tensor]:
    """The function that makes a half of a pair as a file has it: only the rows of B are those of the matrix."""
    if half == "lora_A":
        return lambda: tensor
    return lambda: names.written_values(family, f"{module}.weight", tensor, heads)
