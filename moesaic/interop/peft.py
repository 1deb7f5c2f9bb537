"""LoRA as PEFT keeps it: what adapter_config.json says, which tensors lie beside it, and whether the two agree.

What the configuration asks for beyond LoRA is refused by its name. Knows nothing about manifests or fingerprints.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

from moesaic.adapters import LoRA
from moesaic.adapters.lora import SPARSE, layer_of, linears
from moesaic.adapters.slots import slots_of
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.nn import SparseFFN
from moesaic.tensors.json_config import read_settings
from moesaic.tensors.tensors import read_tensors

CONFIG, TENSORS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
ROOT = "base_model.model."
PREFIX = f"{ROOT}model."
HEADS = ("lm_head", "embed_tokens")
CLASSIFYING = ("classifier", "score")
ENCODED = re.compile(r"((?:bert\.|roberta\.)?encoder\.)layer\.")
"""How the names of an encoder's blocks begin, in front of their number."""
OF_ENCODERS = ("attention", "intermediate", "output")
IN_SPARSE = re.compile(r"\.experts\.\d|\.block_sparse_moe\.")
"""What names of a sparse ffn's matrices have in them, in all families."""
PATTERN_LIMIT = 1000
"""Characters of a regular expression: more is no name of a module."""
REPEATED_GROUP, REPEAT, REPEATS = re.compile(r"\)[*+{]"), re.compile(r"(?<!\\)[*+{]"), 5
"""What makes matching take exponential time, and what polynomial: names of modules need neither."""

MERGE = "merge it into its base with peft's merge_and_unload and adopt the merged model"
RESIDUAL = "save it again with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...), as plain LoRA"
AGAIN = "train it again without"

# Setting of PEFT -> the values that mean plain LoRA (the first of them where it is missing), its name, what to do.
PLAIN: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "use_dora": ((False, None), "DoRA", MERGE),
    "bias": (("none", None), "trained biases", MERGE),
    "fan_in_fan_out": ((False, None), "transposed layers (Conv1D)", "only linears are adapted here"),
    "lora_bias": ((False, None), "a bias in B", MERGE),
    "init_lora_weights": (
        (True, False, None, "gaussian", "orthogonal", "eva"),
        "LoRA that starts from a changed base (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA and the like)",
        RESIDUAL,
    ),
    "loftq_config": (({}, None), "LoftQ over a quantised base", RESIDUAL),
    "corda_config": ((None,), "CorDA", RESIDUAL),
    "lora_ga_config": ((None,), "LoRA-GA", RESIDUAL),
    "kasa_config": ((None,), "KaSA, which truncates the base", MERGE),
    "velora_config": ((None,), "VeLoRA", MERGE),
    "monteclora_config": ((None,), "MonteCLoRA", MERGE),
    "use_qalora": ((False, None), "QALoRA over a quantised base", AGAIN),
    "use_bdlora": ((None, False), "BD-LoRA", MERGE),
    "megatron_config": ((None,), "layers of Megatron", AGAIN),
    "alora_invocation_tokens": ((None,), "aLoRA, which sets in at a token", AGAIN),
    "arrow_config": ((None,), "PEFT's Arrow, which is a router", "adopt the adapters that it routes to"),
    "layer_replication": ((None,), "replicated layers", MERGE),
    "trainable_token_indices": ((None,), "trained tokens of the embedding", AGAIN),
    "target_parameters": ((None, []), "adapted parameters that are no linears", AGAIN),
    "task_type": (
        ("CAUSAL_LM", "FEATURE_EXTRACTION", None),
        "an adapter for another task, with a head of its own",
        "heads that classify are read where rows have labels",
    ),
}
# Settings that change nothing in what a trained adapter computes, and those read below.
HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying", "eva_config"),
}
READ = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
}
INSTEAD = {"XLORA": "adopt the adapters in its folder one by one"}

# What else a file may hold, by a part of the tensor's name.
FOREIGN = {
    "lora_magnitude_vector": f"this is DoRA: {MERGE}",
    "lora_embedding_": "embeddings are not adapted here",
    ".base_layer.": "this adapts packed experts or a quantised base",
    "modules_to_save": "heads and embeddings that were trained whole are not adopted",
    ".lora_A.default.": "save it again with peft's save_pretrained, which leaves 'default' out",
    "lora_B.bias": f"this has a bias in B: {MERGE}",
    "lm_head.lora_": "the head is not adapted here",
}


@dataclass(frozen=True)
class Declared:
    """What an adapter's configuration says, as far as it changes what is computed."""

    path: Path
    rank: int
    alpha: float
    stabilised: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    targets: str | list[str]
    excluded: str | list[str]
    layers: list[int]
    layers_pattern: list[str]
    saved: list[str]
    task: str | None = None

    def rank_of(self, module: str) -> int:
        return int(self.of(self.ranks, "rank_pattern", module, self.rank))

    def alpha_of(self, module: str) -> float:
        """So that alpha / rank is the scale; rank-stabilised LoRA (arXiv 2312.03732) scales by alpha / sqrt(rank)."""
        alpha = self.of(self.alphas, "alpha_pattern", module, self.alpha)
        return alpha * self.rank_of(module) ** 0.5 if self.stabilised else alpha

    def of(self, table: Mapping[str, float], field: str, module: str, default: float) -> float:
        """The value of the first pattern that a module's name ends with, at a dot: as PEFT's `get_pattern_key`."""
        found = (value for key, value in table.items() if self.match(rf"(.*\.)?({key})$", module, field))
        return next(found, default)

    def covers(self, module: str) -> bool:
        """Whether the adapter stands at a linear of this name, as PEFT's `check_target_module_exists` decides."""
        if self.named(self.excluded, "exclude_modules", module):
            return False
        if isinstance(self.targets, str) and self.targets.lower() == "all-linear":
            return True
        if not self.named(self.targets, "target_modules", module):
            return False
        if isinstance(self.targets, str) or not self.layers:
            return True
        patterns = [rf"(?:^|.*?\.){one}\.(\d+)\." for one in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        hits = (self.match(pattern, module, "layers_pattern") for pattern in patterns)
        return next((int(hit[hit.re.groups]) in self.layers for hit in hits if hit), False)

    def named(self, names: str | list[str], field: str, module: str) -> bool:
        """A text is a regular expression of whole names; of a list, each names a module or the end of one."""
        if isinstance(names, str):
            return bool(names) and self.match(rf"(?:{names})\Z", module, field) is not None
        return any(module == name or module.endswith(f".{name}") for name in names)

    def match(self, pattern: str, module: str, field: str) -> re.Match[str] | None:
        try:
            if len(pattern) > PATTERN_LIMIT:
                raise ValueError(f"longer than {PATTERN_LIMIT} characters")
            if REPEATED_GROUP.search(pattern) or len(REPEAT.findall(pattern)) > REPEATS:
                raise ValueError(f"matching it may take for ever: a repeated group, or more than {REPEATS} repeats")
            return re.match(pattern, module)
        except (re.error, ValueError, RecursionError) as error:
            what = f"not a usable regular expression: {error}"
            raise WeightsError(what, path=self.path, field=field, got=repr(pattern)) from None


def read_adapter(folder: Path, decoder: nn.Module | None = None, mapped: bool = False) -> LoRA:
    """The expert that a PEFT folder holds, its values as float32 (the default dtype).

    `mapped`: as they are stored, views of the file, for those who copy them elsewhere.
    With the `decoder` of its base, or an encoder, a plain one, shapes are compared, nothing that is targeted may be
    missing, and a head or embedding in the file is accepted if it is the base's own. WeightsError where the folder is
    not LoRA or does not agree with itself; CompatibilityError where it is LoRA of another base.
    """
    declared = read_declared(folder)
    lora, whole = read_parts(folder, declared, decoder, mapped)
    own_heads(folder / TENSORS, declared, whole, decoder)
    return lora


def read_classifying(folder: Path, body: nn.Module | None = None) -> tuple[LoRA, dict[str, Tensor]]:
    """The expert that a PEFT folder of a sequence classifier holds, and its head under the names of transformers."""
    declared = read_declared(folder, "SEQ_CLS")
    lora, whole = read_parts(folder, declared, body)
    if not whole or any(name.partition(".")[0] not in CLASSIFYING for name in whole):
        got = ", ".join(whole) or "no head"
        raise WeightsError("no head that classifies", path=folder / TENSORS, expected=" or ".join(CLASSIFYING), got=got)
    for name in declared.saved:
        if name not in CLASSIFYING:
            what = f"'{name}' was trained whole, which is not adopted"
            raise WeightsError(what, path=declared.path, field="modules_to_save", got=str(declared.saved))
    return lora, whole


def read_parts(
    folder: Path, declared: Declared, base: nn.Module | None, mapped: bool = False
) -> tuple[LoRA, dict[str, Tensor]]:
    """The pairs of a folder, held against the base if there is one; and what it stores whole."""
    path = folder / TENSORS
    if not path.is_file() and (folder / PICKLED).is_file():
        hint = "open it with peft where you trust it and save_pretrained(folder), which writes safetensors"
        raise WeightsError("a pickle, which could run code, is not read", path=folder / PICKLED, hint=hint)
    pairs, whole, before = read_pairs(path, declared, mapped)
    if base is not None:
        fits(path, pairs, base, before)
        agrees(declared, pairs, base, before)
    alpha = declared.alpha * declared.rank**0.5 if declared.stabilised else declared.alpha
    alphas = {module: float(declared.alpha_of(before + stored(module))) for module in pairs}
    own = {module: one for module, one in alphas.items() if one != alpha}
    return LoRA(declared.rank, float(alpha), pairs, own), whole


def stored(path: str) -> str:
    """The path of one of our modules as transformers names it, without what stands before the blocks."""
    parts = path.split(".")
    return path.replace("layers.", "layer.", 1) if len(parts) > 2 and parts[2] in OF_ENCODERS else path


def read_declared(folder: Path, task: str | None = None) -> Declared:
    """The configuration of plain LoRA; anything else in it is refused by name. `task`: the type it must be for."""
    path = folder / CONFIG
    inside = sorted(found.parent.name for found in folder.glob(f"*/{CONFIG}"))
    if not path.is_file() and inside:
        raise WeightsError("no adapter here", path=folder, hint=f"one is in a folder in it: {', '.join(inside)}")
    config = read_settings(path)

    def refuse(field: str, what: str, expected: Any, hint: str | None = None) -> WeightsError:
        return WeightsError(what, path=path, field=field, expected=expected, got=repr(config.get(field)), hint=hint)

    if (kind := config.get("peft_type")) != "LORA":
        raise refuse("peft_type", "not plain LoRA", "LORA", INSTEAD.get(str(kind)))
    for field, (allowed, name, hint) in PLAIN.items():
        allowed = (task,) if task and field == "task_type" else allowed
        value = config.get(field, None if field == "task_type" else allowed[0])
        if not any(value == one and type(value) is type(one) for one in allowed):
            raise refuse(field, f"not plain LoRA but {name}", allowed[0], hint)
    for field in sorted(config.keys() - PLAIN.keys() - HARMLESS - READ):
        if config[field]:
            hint = "if it changes nothing in what the adapter computes, remove it from the file"
            raise refuse(field, "a setting that is not known here", "the settings of plain LoRA", hint)

    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not is_rank(rank) or not is_number(alpha):
        raise WeightsError("rank and alpha are missing", path=path, field="r, lora_alpha", got=(rank, alpha))
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    if not all(map(is_rank, ranks.values())):
        raise refuse("rank_pattern", "wrong value", "{module: rank}")
    if not all(map(is_number, alphas.values())):
        raise refuse("alpha_pattern", "wrong value", "{module: alpha}")
    targets, layers = config.get("target_modules"), config.get("layers_to_transform")
    if not targets or not is_names(targets):
        raise refuse("target_modules", "missing or wrong", "names, a regular expression or all-linear")
    for field in ("exclude_modules", "layers_pattern", "modules_to_save"):
        if not is_names(config.get(field) or []):
            raise refuse(field, "wrong value", "names")
    layers = [layers] if type(layers) is int else layers or []
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise refuse("layers_to_transform", "wrong value", "numbers of layers")
    excluded, saved = config.get("exclude_modules") or [], config.get("modules_to_save") or []
    pattern = config.get("layers_pattern") or []
    return Declared(
        path,
        rank,
        alpha,
        bool(config.get("use_rslora")),
        ranks,
        alphas,
        targets,
        excluded,
        layers,
        [pattern] if isinstance(pattern, str) else pattern,
        [saved] if isinstance(saved, str) else saved,
        config.get("task_type"),
    )


def is_rank(value: Any) -> TypeGuard[int]:
    return type(value) is int and value > 0


def is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float)


def is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))


Pairs = dict[str, tuple[Tensor, Tensor]]


def read_pairs(path: Path, declared: Declared, mapped: bool) -> tuple[Pairs, dict[str, Tensor], str]:
    """The pairs by module path, of the ranks that the configuration gives them; what was stored whole; and how names
    of modules begin there, before ours.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    before = "model."
    for name, tensor in read_tensors(path, mapped).items():
        plain = name.removeprefix(ROOT)
        if block := ENCODED.match(plain):
            before, plain = block[1], f"model.layers.{plain[block.end() :]}"
        module, _, half = plain.removeprefix("model.").removesuffix(".weight").rpartition(".")
        if name in (f"{ROOT}lm_head.weight", f"{PREFIX}embed_tokens.weight"):
            whole[name.split(".")[-2]] = tensor
            continue
        if declared.task == "SEQ_CLS" and plain.partition(".")[0] in CLASSIFYING:
            whole[plain] = tensor
            continue
        if (
            not name.startswith(ROOT)
            or not plain.startswith("model.")
            or half not in ("lora_A", "lora_B")
            or tensor.ndim != 2
        ):
            hint = next((hint for part, hint in FOREIGN.items() if part in name), None)
            raise WeightsError("not a LoRA tensor of a decoder", path=path, field=name, hint=hint)
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            expected, got = "float32, float16 or bfloat16", str(tensor.dtype).removeprefix("torch.")
            raise WeightsError("a tensor of another type", path=path, field=name, expected=expected, got=got)
        rank = declared.rank_of(before + stored(module))
        if tensor.shape[0 if half == "lora_A" else 1] != rank:
            what, got = "a tensor of another rank", str([*tensor.shape])
            raise WeightsError(what, path=path, field=name, expected=rank, got=got)
        halves.setdefault(module, {})[half] = tensor if mapped else tensor.to(torch.get_default_dtype())
    if not halves:
        raise WeightsError("the file holds no pair", path=path, expected=f"{PREFIX}....lora_A.weight")
    for module, both in sorted(halves.items()):
        if len(both) != 2:
            raise WeightsError("half of a pair is missing", path=path, field=module, got=list(both))
        if not declared.covers(before + stored(module)):
            what = "the configuration does not target a module that the file has a pair for"
            raise WeightsError(what, path=declared.path, field="target_modules", got=module)
    found = {m: (both["lora_A"], both["lora_B"].t()) for m, both in sorted(halves.items())}
    return found, whole, before


def fits(path: Path, pairs: Pairs, decoder: nn.Module, before: str) -> None:
    """Refuse a pair for which the base has no linear, or one of another shape."""
    adaptable = linears(decoder)
    for module, (a, b) in pairs.items():
        hint = SPARSE if IN_SPARSE.search(module) else "was it trained on this base?"
        if (linear := adaptable.get(module)) is None:
            raise CompatibilityError(
                "the base has no such linear", path=path, field=ROOT + before + stored(module), hint=hint
            )
        r = len(a)
        for half, found, expected in (
            ("lora_A", [r, a.shape[1]], [r, linear.in_features]),
            ("lora_B", [b.shape[1], r], [linear.out_features, r]),
        ):
            if found != expected:
                field, what = f"{ROOT}{before}{stored(module)}.{half}.weight", "the adapter was made for another base"
                raise CompatibilityError(what, path=path, field=field, expected=expected, got=str(found), hint=hint)


def agrees(declared: Declared, pairs: Pairs, decoder: nn.Module, before: str) -> None:
    """Refuse a configuration that targets a linear of the base for which the file holds nothing."""
    # What is in a sparse ffn is linears in some versions of transformers and packed parameters in others.
    sparse = tuple(f"{path}." for path in slots_of(decoder, SparseFFN))
    for module in linears(decoder):
        if module.startswith(sparse):
            continue
        if module == "lm_head":
            everything = isinstance(declared.targets, str) and declared.targets.lower() == "all-linear"
            if not everything and declared.covers(module):
                what = "the configuration targets the head, which is not adapted here"
                raise WeightsError(what, path=declared.path, field="target_modules", got=module)
        elif module not in pairs and declared.covers(before + stored(module)):
            what = "the configuration targets a module that the file holds no pair for"
            raise WeightsError(what, path=declared.path, field="target_modules", got=module)


def own_heads(path: Path, declared: Declared, whole: Mapping[str, Tensor], decoder: nn.Module | None) -> None:
    """Refuse a head or an embedding in the file, unless it is the base's own in the type it is stored in."""
    for name in declared.saved:
        if name not in HEADS or name not in whole:
            what = f"'{name}' was trained whole, which is not adopted" if name not in HEADS else f"'{name}' is missing"
            raise WeightsError(what, path=declared.path, field="modules_to_save", got=str(declared.saved))
    for name, tensor in whole.items():
        field = (PREFIX if name == "embed_tokens" else ROOT) + f"{name}.weight"
        if decoder is None:
            what = f"'{name}' is stored whole, and whether it is the base's can only be told beside the base"
            raise WeightsError(what, path=path, field=field)
        own = decoder.get_parameter(f"{name}.weight").detach()
        if own.shape != tensor.shape or not own.to(tensor.dtype).equal(tensor):
            what, got = f"'{name}' is stored whole and is not the base's", str([*tensor.shape])
            if own.shape == tensor.shape:
                got = f"{(tensor.to(own.dtype) - own).norm() / own.norm():.1%} away from it"
            hint = "train only LoRA, without modules_to_save; a vocabulary that has grown needs a base that has, too"
            raise CompatibilityError(what, path=path, field=field, expected="the base's values", got=got, hint=hint)


BEFORE = {"bert": "bert.encoder.", "roberta": "roberta.encoder.", "decoder": "model."}
"""How modules are named in transformers' sequence classifiers, before ours, by what the base is."""


def written(
    lora: LoRA, before: str | None = None, head: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An expert as PEFT reads it: the configuration and the tensors.

    `head`: of a sequence classifier, under the names of transformers, whose modules are named with `before` first.
    """
    named = {path: before + stored(path) if before else written_name(path) for path in lora.pairs}
    ranks = {named[path]: lora.rank_of(path) for path in lora.pairs if lora.rank_of(path) != lora.rank}
    alphas = {named[path]: alpha for path, alpha in lora.alphas.items()}
    tails = {path.partition(f"layers.{layer_of(path)}.")[2] for path in lora.pairs}
    regular = len(lora.pairs) == len(tails) * len(lora.layers)  # every layer touched has every target
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if head else "FEATURE_EXTRACTION" if of_encoder(lora) else "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": lora.targets if regular else [named[path] for path in sorted(lora.pairs)],
        "layers_to_transform": lora.layers if regular else None,
        "bias": "none",
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
    }
    if head:
        config["modules_to_save"] = sorted({name.partition(".")[0] for name in head})
    return config, tensors_of(lora, named) | {ROOT + name: tensor for name, tensor in (head or {}).items()}


def tensors_of(lora: LoRA, named: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """An expert's matrices as PEFT names and lays them out; `named`: its modules in a model with a head."""
    tensors = {}
    for path, (a, b) in lora.pairs.items():
        name = named[path] if named else written_name(path)
        tensors[f"{ROOT}{name}.lora_A.weight"] = a
        tensors[f"{ROOT}{name}.lora_B.weight"] = b.t()
    return tensors


def written_name(path: str) -> str:
    """The name of a module in the model that PEFT would put the adapter into: a bare encoder, or a decoder's."""
    there = stored(path)
    return f"model.{path}" if there == path else f"encoder.{there}"


def of_encoder(lora: LoRA) -> bool:
    return any(stored(path) != path for path in lora.pairs)
