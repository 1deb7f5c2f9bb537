"""adapter_config.json of a LoRA adapter as PEFT writes it: rank, scale and targets.

Refuses every setting beyond plain LoRA by its name. Knows nothing about tensors, manifests or fingerprints.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from moesaic.errors import WeightsError
from moesaic.interop.foreign import MERGE
from moesaic.tensors.json_config import read_settings

CONFIG = "adapter_config.json"
PATTERN_LIMIT = 1000  # characters of a regular expression
CARD_LIMIT = 4000  # characters of a card that are searched
BY_UNSLOTH = re.compile(r"(?m)^(\s*- |library_name: *)['\"]?unsloth['\"]?\s*$")
# Repeated groups make matching exponential, many repeats polynomial; names of modules need neither.
REPEATED_GROUP, REPEAT, REPEATS = re.compile(r"\)[*+{]"), re.compile(r"(?<!\\)[*+{]"), 5

ORDER = "expert_order"
ORDERS = ("fastest", "slowest")
"""Where the experts lie among the columns of a B beside packed experts: next to each other for each rank, as PEFT has
them, or each in a block of its own, as unsloth had them until September 2026. Shapes do not tell.
"""

RESIDUAL = "save it again with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...), as plain LoRA"
AGAIN = "train it again without"

PLAIN: dict[str, tuple[tuple[Any, ...], str, str]] = {
    "use_dora": ((False, None), "DoRA", MERGE),
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
    "alora_invocation_tokens": ((None,), "aLoRA, which starts at a token", AGAIN),
    "arrow_config": ((None,), "PEFT's Arrow, which is a router", "adopt the adapters that it routes to"),
    "layer_replication": ((None,), "replicated layers", MERGE),
    "trainable_token_indices": ((None,), "trained tokens of the embedding", AGAIN),
    "task_type": (
        ("CAUSAL_LM", "FEATURE_EXTRACTION", None),
        "an adapter for another task, with a head of its own",
        "heads that classify are read where rows have labels",
    ),
}
"""Setting of PEFT -> its values that mean plain LoRA (the first is the default), the name of the others, the remedy."""

# Settings that change nothing in what a trained adapter computes, and the settings of `Declared`. Trained biases would
# be tensors of the file, which are judged there; fan_in_fan_out means nothing over linears, which all targets are.
HARMLESS = {
    *("auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "peft_version"),
    *("bias", "fan_in_fan_out", "megatron_core", "qalora_group_size", "ensure_weight_tying", "eva_config"),
}
READ = {
    *("peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules"),
    *("exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "target_parameters", ORDER),
}
INSTEAD = {"XLORA": "adopt the adapters in its folder one by one"}


@dataclass(frozen=True)
class Declared:
    """The settings of an adapter's configuration that change what it computes.

    `parameters`: names or ends of names of adapted parameters that are no linears. `version`: of PEFT. `slowest`: see
    `ORDERS`.
    """

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
    parameters: tuple[str, ...] = ()
    version: str = ""
    slowest: bool = False

    def rank_of(self, module: str) -> int:
        return int(self.of(self.ranks, "rank_pattern", module, self.rank))

    def alpha_of(self, module: str) -> float:
        """Alpha such that alpha / rank is the scale; rank-stabilised LoRA (arXiv 2312.03732) has alpha / sqrt(rank)."""
        alpha = self.of(self.alphas, "alpha_pattern", module, self.alpha)
        return alpha * self.rank_of(module) ** 0.5 if self.stabilised else alpha

    def of(self, table: Mapping[str, float], field: str, module: str, default: float) -> float:
        """The value of the first pattern that a module's name ends with, at a dot, as PEFT's `get_pattern_key`."""
        found = (value for key, value in table.items() if self.match(rf"(.*\.)?({key})$", module, field))
        return next(found, default)

    def parameter(self, name: str) -> bool:
        """Whether the adapter adapts the parameter of this name by itself."""
        return any(name == one or name.endswith(f".{one}") for one in self.parameters)

    def key(self, module: str) -> str:
        """The name that patterns of ranks and alphas match: of a module, or of its weight if that is adapted."""
        return f"{module}.weight" if self.parameter(f"{module}.weight") else module

    def covers(self, module: str) -> bool:
        """Whether the adapter adapts a linear of this name, as PEFT's `check_target_module_exists` decides."""
        if self.parameter(f"{module}.weight"):
            return True
        if self.named(self.excluded, "exclude_modules", module):
            return False
        if self.everything:
            return True
        if not self.named(self.targets, "target_modules", module):
            return False
        if isinstance(self.targets, str) or not self.layers:
            return True
        patterns = [rf"(?:^|.*?\.){one}\.(\d+)\." for one in self.layers_pattern] or [r".*?\.[^.]*\.(\d+)\."]
        hits = (self.match(pattern, module, "layers_pattern") for pattern in patterns)
        return next((int(hit[hit.re.groups]) in self.layers for hit in hits if hit), False)

    @property
    def everything(self) -> bool:
        return isinstance(self.targets, str) and self.targets.lower() == "all-linear"

    def named(self, names: str | list[str], field: str, module: str) -> bool:
        """Match a regular expression of whole names, or a list of names of modules or of their ends."""
        if isinstance(names, str):
            return bool(names) and self.match(rf"(?:{names})\Z", module, field) is not None
        return any(module == name or module.endswith(f".{name}") for name in names)

    def match(self, pattern: str, module: str, field: str) -> re.Match[str] | None:
        """Match a pattern from a file; WeightsError if it is no regular expression or too slow."""
        try:
            if len(pattern) > PATTERN_LIMIT:
                raise ValueError(f"longer than {PATTERN_LIMIT} characters")
            if REPEATED_GROUP.search(pattern) or len(REPEAT.findall(pattern)) > REPEATS:
                raise ValueError(f"matching may take for ever: a repeated group, or more than {REPEATS} repeats")
            return re.match(pattern, module)
        except (re.error, ValueError, RecursionError) as error:
            what = f"not a usable regular expression: {error}"
            raise WeightsError(what, path=self.path, field=field, got=repr(pattern)) from None


def read_declared(folder: Path, task: str | None = None) -> Declared:
    """Read the configuration of plain LoRA; WeightsError for any other setting. `task`: the task type it must have."""
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
            raise refuse(field, "unknown setting", "the settings of plain LoRA", hint)

    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not is_rank(rank) or not is_number(alpha):
        raise WeightsError("rank and alpha are missing", path=path, field="r, lora_alpha", got=(rank, alpha))
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    for field, table, fits in (("rank_pattern", ranks, is_rank), ("alpha_pattern", alphas, is_number)):
        if not all(map(fits, table.values())):
            raise refuse(field, "wrong value", f"{{module: {field.removesuffix('_pattern')}}}")
    targets, layers = config.get("target_modules") or [], config.get("layers_to_transform")
    parameters = config.get("target_parameters") or []
    if not isinstance(parameters, list) or not is_names(parameters):
        raise refuse("target_parameters", "wrong value", "names")
    if not (targets or parameters) or not is_names(targets):
        raise refuse("target_modules", "missing or wrong", "names, a regular expression or all-linear")
    names = {field: config.get(field) or [] for field in ("exclude_modules", "layers_pattern", "modules_to_save")}
    for field, value in names.items():
        if not is_names(value):
            raise refuse(field, "wrong value", "names")
    layers = [layers] if type(layers) is int else layers or []
    if not isinstance(layers, list) or not all(type(layer) is int for layer in layers):
        raise refuse("layers_to_transform", "wrong value", "indices of layers")
    excluded, *others = names.values()
    pattern, saved = ([one] if isinstance(one, str) else one for one in others)
    order = config.get(ORDER)
    if order not in (None, *ORDERS):
        raise refuse(ORDER, "unknown", " or ".join(ORDERS))
    if parameters and order is None and by_unsloth(folder, config):
        what, hint = "made by unsloth, which changed the order of experts in B", f"write {ORDER} into this file"
        raise refuse(ORDER, what, f"{ORDERS[0]} (PEFT's order) or {ORDERS[1]} (before September 2026)", hint)
    stabilised, task = bool(config.get("use_rslora")), config.get("task_type")
    declared = Declared(path, rank, alpha, stabilised, ranks, alphas, targets, excluded, layers, pattern, saved, task)
    version, slowest = str(config.get("peft_version") or ""), order == "slowest"
    return replace(declared, parameters=tuple(parameters), version=version, slowest=slowest)


def by_unsloth(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether an adapter's configuration or its card says that unsloth made it."""
    mapping, card = config.get("auto_mapping"), folder / "README.md"
    told = isinstance(mapping, dict) and any("unsloth" in str(key) for key in mapping)
    return told or (card.is_file() and BY_UNSLOTH.search(card.read_text("utf-8", "replace")[:CARD_LIMIT]) is not None)


def is_rank(value: Any) -> TypeGuard[int]:
    return type(value) is int and value > 0


def is_number(value: Any) -> TypeGuard[float]:
    return type(value) in (int, float)


def is_names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(name, str) for name in value))
