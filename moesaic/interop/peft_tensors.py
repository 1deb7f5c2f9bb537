"""LoRA adapters in the format of PEFT: the tensors, and whether they agree with the configuration and the base.

Knows nothing about manifests or fingerprints.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moesaic.adapters import LoRA
from moesaic.adapters.lora import SPARSE, layer_of, linears
from moesaic.adapters.slots import slots_of
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.interop.foreign import COMPILED, EMPTY, HEADS, IN_ADAPTERS, hint_of, shown
from moesaic.interop.peft_config import Declared, read_declared
from moesaic.nn import SparseFFN
from moesaic.tensors.tensors import read_tensors

TENSORS, PICKLED = "adapter_model.safetensors", "adapter_model.bin"
ROOT = "base_model.model."
PREFIX = f"{ROOT}model."
WHOLE = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
"""What PEFT puts into the names of tensors that it stores whole."""
CLASSIFYING = ("classifier", "score")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
ENCODED = re.compile(r"((?:bert\.|roberta\.)?encoder\.)layer\.")  # before the index of an encoder's layer
OF_ENCODERS = ("attention", "intermediate", "output")
IN_SPARSE = re.compile(r"\.experts\.\d|\.block_sparse_moe\.")  # in the names of sparse ffns, in all families

BEFORE = {"bert": "bert.encoder.", "roberta": "roberta.encoder.", "decoder": "model."}
"""Architecture of a base -> the prefix of our names in the sequence classifiers of transformers."""

AS_LORA = "train only LoRA, without modules_to_save; a larger vocabulary needs a base that has it, too"

Pairs = dict[str, tuple[Tensor, Tensor]]


def read_adapter(folder: Path, decoder: nn.Module | None = None, mapped: bool = False) -> LoRA:
    """Read the expert of a PEFT folder, in the default dtype.

    `mapped`: keep the stored type and views of the file, for callers that copy the values.
    `decoder`: the plain decoder or encoder of its base; then shapes must fit, no targeted module may be missing, and
    tensors that the file stores whole must be the base's own. WeightsError if the folder is not LoRA or contradicts
    itself; CompatibilityError if it belongs to another base.
    """
    declared = read_declared(folder)
    lora, whole = read_parts(folder, declared, decoder, mapped)
    require_unchanged(folder / TENSORS, declared, whole, decoder)
    return lora


def read_classifying(folder: Path, body: nn.Module | None = None) -> tuple[LoRA, dict[str, Tensor]]:
    """Read the expert of a PEFT folder of a sequence classifier, and its head under the names of transformers."""
    declared = read_declared(folder, "SEQ_CLS")
    lora, whole = read_parts(folder, declared, body)
    head = {name: tensor for name, tensor in whole.items() if name.partition(".")[0] in CLASSIFYING}
    if not head:
        got = ", ".join(whole) or "no head"
        raise WeightsError("no head that classifies", path=folder / TENSORS, expected=" or ".join(CLASSIFYING), got=got)
    require_unchanged(folder / TENSORS, declared, {name: whole[name] for name in whole if name not in head}, body)
    return lora, head


def read_parts(
    folder: Path, declared: Declared, base: nn.Module | None, mapped: bool = False
) -> tuple[LoRA, dict[str, Tensor]]:
    """Read the pairs of a folder, compared with the base if given, and the tensors that it stores whole."""
    path = folder / TENSORS
    if not path.is_file() and (folder / PICKLED).is_file():
        hint = "if you trust it, open it with peft and call save_pretrained(folder), which writes safetensors"
        raise WeightsError("a pickle can run code and is not read", path=folder / PICKLED, hint=hint)
    pairs, whole, before = read_pairs(path, declared, mapped)
    if base is not None:
        fits(path, pairs, base, before)
        agrees(declared, pairs, base, before)
    alpha = declared.alpha * declared.rank**0.5 if declared.stabilised else declared.alpha
    alphas = {module: float(declared.alpha_of(before + stored(module))) for module in pairs}
    own = {module: one for module, one in alphas.items() if one != alpha}
    return LoRA(declared.rank, float(alpha), pairs, own), whole


def stored(path: str) -> str:
    """The name of our module in transformers, without the prefix before the layers."""
    parts = path.split(".")
    return path.replace("layers.", "layer.", 1) if len(parts) > 2 and parts[2] in OF_ENCODERS else path


def split_name(name: str) -> tuple[str, str, str, str]:
    """Split the name of a tensor of PEFT: without PEFT's root, our module, half of the pair, prefix of the module."""
    plain, before = name.replace(COMPILED, "").removeprefix(ROOT), "model."
    if layer := ENCODED.match(plain):
        before, plain = layer[1], f"model.layers.{plain[layer.end() :]}"
    module, _, half = plain.removeprefix("model.").removesuffix(".weight").rpartition(".")
    return plain, module, half if plain.startswith("model.") else "", before


def whole_name(name: str, task: str | None) -> str | None:
    """Our name of a parameter that PEFT stores whole, or the name of a tensor of a head; None for other tensors."""
    plain = WHOLE.sub("", name.replace(COMPILED, "").removeprefix(ROOT))
    if task == "SEQ_CLS" and plain.partition(".")[0] in CLASSIFYING:
        return plain
    known = name.replace(COMPILED, "").startswith(ROOT) and re.fullmatch(r"(model|lm_head)\..*(weight|bias)", plain)
    return plain.removeprefix("model.") if known and "lora_" not in plain else None


def sorted_out(
    shapes: Mapping[str, Sequence[int]], declared: Declared, path: Path
) -> tuple[dict[str, tuple[str, str]], dict[str, str], str]:
    """Sort the tensors of a file: name -> our module and half of its pair, name -> our name of one that is whole.

    Returns also the prefix of the modules' names. WeightsError for any other tensor, and for tensors of no elements.
    """
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
        raise WeightsError(f"no elements in {shown(empty)}", path=path, hint=EMPTY)
    halves: dict[str, tuple[str, str]] = {}
    whole: dict[str, str] = {}
    foreign: dict[str, Sequence[int]] = {}
    prefix = "model."
    for name, shape in shapes.items():
        plain, module, half, before = split_name(name)
        if half in ("lora_A", "lora_B") and len(shape) == 2 and name.replace(COMPILED, "").startswith(ROOT):
            halves[name] = module, half
            prefix = before if before != "model." else prefix
        elif (found := whole_name(name, declared.task)) is not None:
            whole[name] = found
        elif not re.search(HEADS, plain):
            foreign[name] = shape
    for name in sorted(foreign)[:1]:
        others = f", and {len(foreign) - 1} more like it" if len(foreign) > 1 else ""
        what = f"not a LoRA tensor of a decoder{others}"
        raise WeightsError(what, path=path, field=name, hint=hint_of(foreign, IN_ADAPTERS))
    for one in (halves, whole):
        if len({*one.values()}) < len(one):
            what, hint = "two names of one tensor", f"drop the names with {COMPILED}"
            raise WeightsError(what, path=path, field=min(one), hint=hint)
    return halves, whole, prefix


def read_pairs(path: Path, declared: Declared, mapped: bool) -> tuple[Pairs, dict[str, Tensor], str]:
    """Read the pairs by module path, the tensors that are stored whole, and the prefix of the modules' names.

    The pairs have the ranks of the configuration, and it targets all of their modules.
    """
    tensors = read_tensors(path, mapped)
    shapes = {name: [*tensor.shape] for name, tensor in tensors.items()}
    named, stored_whole, prefix = sorted_out(shapes, declared, path)
    halves: dict[str, dict[str, Tensor]] = {}
    for name, (module, half) in named.items():
        tensor = tensors[name]
        check_half(path, name, half, tensor, declared.rank_of(prefix + stored(module)))
        halves.setdefault(module, {})[half] = tensor if mapped else tensor.to(torch.get_default_dtype())
    if not halves:
        raise WeightsError("the file holds no pair", path=path, expected=f"{PREFIX}....lora_A.weight")
    for module, both in sorted(halves.items()):
        if len(both) != 2:
            raise WeightsError("half of a pair is missing", path=path, field=module, got=list(both))
        if not declared.covers(prefix + stored(module)):
            what = "the configuration does not target a module that the file has a pair for"
            raise WeightsError(what, path=declared.path, field="target_modules", got=module)
    pairs = {m: (both["lora_A"], both["lora_B"].t()) for m, both in sorted(halves.items())}
    return pairs, {ours: tensors[name] for name, ours in stored_whole.items()}, prefix


def check_half(path: Path, name: str, half: str, tensor: Tensor, rank: int) -> None:
    """Raise WeightsError unless a half of a pair has this rank."""
    if tensor.dtype not in DTYPES:
        expected, got = "float32, float16 or bfloat16", str(tensor.dtype).removeprefix("torch.")
        raise WeightsError("a tensor of another type", path=path, field=name, expected=expected, got=got)
    if tensor.shape[0 if half == "lora_A" else 1] != rank:
        got = str([*tensor.shape])
        raise WeightsError("a tensor of another rank", path=path, field=name, expected=rank, got=got)


def fits(path: Path, pairs: Pairs, decoder: nn.Module, before: str) -> None:
    """Raise CompatibilityError for a pair without a linear of the base, or of another shape."""
    adaptable = linears(decoder)
    for module, (a, b) in pairs.items():
        field, hint = ROOT + before + stored(module), hint_of({module: a.shape}, IN_ADAPTERS)
        hint = hint or "was it trained on this base?"
        hint = SPARSE if IN_SPARSE.search(module) else hint
        if (linear := adaptable.get(module)) is None:
            raise CompatibilityError("the base has no such linear", path=path, field=field, hint=hint)
        r = len(a)
        for half, found, expected in (
            ("lora_A", [r, a.shape[1]], [r, linear.in_features]),
            ("lora_B", [b.shape[1], r], [linear.out_features, r]),
        ):
            if found != expected:
                what, at = "the adapter was made for another base", f"{field}.{half}.weight"
                raise CompatibilityError(what, path=path, field=at, expected=expected, got=str(found), hint=hint)


def agrees(declared: Declared, pairs: Pairs, decoder: nn.Module, before: str) -> None:
    """Raise WeightsError if the configuration targets a linear of the base that the file has no pair for."""
    # Some versions of transformers have linears in a sparse ffn, others packed parameters: it is not compared.
    sparse = tuple(f"{path}." for path in slots_of(decoder, SparseFFN))
    for module in linears(decoder):
        if module.startswith(sparse):
            continue
        if module == "lm_head":
            if not declared.everything and declared.covers(module):
                what = "the configuration targets the head, which is not adapted here"
                raise WeightsError(what, path=declared.path, field="target_modules", got=module)
        elif module not in pairs and declared.covers(before + stored(module)):
            what = "the configuration targets a module that the file holds no pair for"
            raise WeightsError(what, path=declared.path, field="target_modules", got=module)


def require_unchanged(path: Path, declared: Declared, whole: Mapping[str, Tensor], decoder: nn.Module | None) -> None:
    """Refuse a tensor that is stored whole, unless it equals the base's in the type of the file and so adds nothing."""
    for name in declared.saved:
        in_head = declared.task == "SEQ_CLS" and name in CLASSIFYING
        if not in_head and not any(f".{name}." in f".{own}" for own in whole):
            got = str(declared.saved)
            raise WeightsError(f"'{name}' is missing", path=declared.path, field="modules_to_save", got=got)
    parameters = {} if decoder is None else dict(decoder.named_parameters(remove_duplicate=False))
    for ours, tensor in whole.items():
        name = f"'{ours.removesuffix('.weight')}'"
        field = f"{ROOT if ours.startswith('lm_head.') else PREFIX}{ours}"
        hint = hint_of({field: tensor.shape}, IN_ADAPTERS) or AS_LORA
        if decoder is None:
            hint = "read it together with its base, with which it is compared"
            raise WeightsError(f"{name} is stored whole", path=path, field=field, hint=hint)
        if (parameter := parameters.get(ours)) is None:
            what = f"{name} was trained whole, and the base has no such tensor"
            raise CompatibilityError(what, path=path, field=field, hint=hint)
        own = parameter.detach().cpu()
        coarse = min(own.dtype, tensor.dtype, key=lambda dtype: dtype.itemsize)
        if own.shape != tensor.shape or not own.to(coarse).equal(tensor.to(coarse)):
            what, got = f"{name} is stored whole and is not the base's", str([*tensor.shape])
            if own.shape == tensor.shape:
                got = f"{(tensor.to(own.dtype) - own).norm() / own.norm():.1%} away from it"
            raise CompatibilityError(what, path=path, field=field, expected="the base's values", got=got, hint=hint)


def written(
    lora: LoRA, before: str | None = None, head: Mapping[str, Tensor] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of an expert, as PEFT reads them.

    `head`: that of a sequence classifier, under the names of transformers; `before`: the prefix of its modules.
    """
    named = {path: before + stored(path) if before else written_name(path) for path in lora.pairs}
    tails = {path.partition(f"layers.{layer_of(path)}.")[2] for path in lora.pairs}
    regular = len(lora.pairs) == len(tails) * len(lora.layers)  # all adapted layers have the same targets
    of_encoder = any(stored(path) != path for path in lora.pairs)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if head else "FEATURE_EXTRACTION" if of_encoder else "CAUSAL_LM",
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
        "rank_pattern": {named[path]: lora.rank_of(path) for path in lora.pairs if lora.rank_of(path) != lora.rank},
        "alpha_pattern": {named[path]: alpha for path, alpha in lora.alphas.items()},
    }
    if head:
        config["modules_to_save"] = sorted({name.partition(".")[0] for name in head})
    return config, tensors_of(lora, named) | {ROOT + name: tensor for name, tensor in (head or {}).items()}


def tensors_of(lora: LoRA, named: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The matrices of an expert as PEFT names and stores them; `named`: names of its modules in a model with a head."""
    tensors = {}
    for path, (a, b) in lora.pairs.items():
        name = named[path] if named else written_name(path)
        tensors[f"{ROOT}{name}.lora_A.weight"], tensors[f"{ROOT}{name}.lora_B.weight"] = a, b.t()
    return tensors


def written_name(path: str) -> str:
    name = stored(path)
    return f"model.{path}" if name == path else f"encoder.{name}"
