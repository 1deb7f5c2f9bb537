"""LoRA adapters in the format of PEFT: the tensors, and whether they agree with the configuration and the base.

Knows nothing about manifests or fingerprints.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from moesaic.adapters import LoRA
from moesaic.adapters.lora import Weights, adaptable, layer_of, layers_in, linears, targets_in
from moesaic.adapters.slots import slots_of
from moesaic.adapters.sparse_experts import placed
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.interop import peft_experts
from moesaic.interop.foreign import COMPILED, EMPTY, HEADS, IN_ADAPTERS, hint_of, shown
from moesaic.interop.layouts import plain
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
MIXTRAL = "block_sparse_moe."  # in the names of its sparse ffns before version 5 of transformers

BEFORE = {"bert": "bert.encoder.", "roberta": "roberta.encoder.", "decoder": "model."}
"""Architecture of a base -> the prefix of our names in the sequence classifiers of transformers."""

AS_LORA = "train only LoRA, without modules_to_save; a larger vocabulary needs a base that has it, too"

Pairs = dict[str, tuple[Tensor, Tensor]]


class Half(NamedTuple):
    """A tensor of a pair: our module, `lora_A` or `lora_B`, and the module's name in the configuration."""

    module: str
    half: str
    known: str


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
    weights = None if base is None else adaptable(base)
    pairs, known, whole, before = read_pairs(path, declared, mapped, weights)
    if base is not None and weights is not None:
        fits(path, pairs, weights, before)
        agrees(declared, pairs, base, before)
    alpha = declared.alpha * declared.rank**0.5 if declared.stabilised else declared.alpha
    alphas = {module: float(declared.alpha_of(name)) for module, name in known.items()}
    own = {module: one for module, one in alphas.items() if one != alpha}
    return LoRA(declared.rank, float(alpha), pairs, own), whole


def stored(path: str) -> str:
    """The name of our module in transformers, without the prefix before the layers."""
    parts = path.split(".")
    return path.replace("layers.", "layer.", 1) if len(parts) > 2 and parts[2] in OF_ENCODERS else path


def split_name(name: str) -> tuple[str, Half, str]:
    """Split the name of a tensor of PEFT: without PEFT's root, module and half of the pair, prefix of the module."""
    bare, before = name.replace(COMPILED, "").removeprefix(ROOT), "model."
    known = bare.removesuffix(".weight").rpartition(".")[0]
    if layer := ENCODED.match(bare):
        before, bare = layer[1], f"model.layers.{bare[layer.end() :]}"
    ours = plain("mixtral", bare) if MIXTRAL in bare else bare
    module, _, half = ours.removeprefix("model.").removesuffix(".weight").rpartition(".")
    return bare, Half(module, half if ours.startswith("model.") else "", known), before


def whole_name(name: str, task: str | None) -> str | None:
    """Our name of a parameter that PEFT stores whole, or the name of a tensor of a head; None for other tensors."""
    plain = WHOLE.sub("", name.replace(COMPILED, "").removeprefix(ROOT))
    if task == "SEQ_CLS" and plain.partition(".")[0] in CLASSIFYING:
        return plain
    known = name.replace(COMPILED, "").startswith(ROOT) and re.fullmatch(r"(model|lm_head)\..*(weight|bias)", plain)
    return plain.removeprefix("model.") if known and "lora_" not in plain else None


def sorted_out(
    shapes: Mapping[str, Sequence[int]], declared: Declared, path: Path
) -> tuple[dict[str, Half], dict[str, str], str]:
    """Sort the tensors of a file: name -> half of a pair, name -> our name of one that is whole.

    Returns also the prefix of the modules' names. WeightsError for any other tensor, and for tensors of no elements.
    """
    if empty := [name for name, shape in shapes.items() if 0 in shape]:
        raise WeightsError(f"no elements in {shown(empty)}", path=path, hint=EMPTY)
    halves: dict[str, Half] = {}
    whole: dict[str, str] = {}
    foreign: dict[str, Sequence[int]] = {}
    prefix = "model."
    for name, shape in shapes.items():
        bare, one, before = split_name(name)
        if one.half in ("lora_A", "lora_B") and len(shape) == 2 and name.replace(COMPILED, "").startswith(ROOT):
            halves[name] = one
            prefix = before if before != "model." else prefix
        elif (ours := whole_name(name, declared.task)) is not None:
            whole[name] = ours
        elif not re.search(HEADS, bare):
            foreign[name] = shape
    for name in sorted(foreign)[:1]:
        others = f", and {len(foreign) - 1} more like it" if len(foreign) > 1 else ""
        what = f"not a LoRA tensor of a decoder{others}"
        raise WeightsError(what, path=path, field=name, hint=hint_of(foreign, IN_ADAPTERS))
    for found in ({name: half[:2] for name, half in halves.items()}, whole):
        if len({*found.values()}) < len(found):
            what, hint = "two names of one tensor", f"drop the names with {COMPILED}"
            raise WeightsError(what, path=path, field=min(found), hint=hint)
    return halves, whole, prefix


def read_pairs(
    path: Path, declared: Declared, mapped: bool, base: Weights | None
) -> tuple[Pairs, dict[str, str], dict[str, Tensor], str]:
    """Read the pairs by module path, the names of these modules for patterns, the tensors that are stored whole, and
    the prefix of the modules' names.

    The pairs have the ranks of the configuration, and it targets all of their modules. `base`: the matrices that can be
    adapted.
    """
    tensors = read_tensors(path, mapped)
    shapes = {name: [*tensor.shape] for name, tensor in tensors.items()}
    halves, stored_whole, prefix = sorted_out(shapes, declared, path)
    found = paired(halves, path)
    packed = peft_experts.packed({m: (shapes[a], shapes[b]) for m, (a, b) in found.items()}, declared, path, base)
    pairs: Pairs = {}
    known: dict[str, str] = {}
    for module, (a, b) in found.items():
        one, theirs = packed.get(module), halves[a].known
        for name in (a, b):
            check_half(
                path, name, halves[name].half, tensors[name], None if one else declared.rank_of(declared.key(theirs))
            )
        both = [tensors[name] if mapped else tensors[name].to(torch.get_default_dtype()) for name in (a, b)]
        if one:
            pairs |= one.pairs(*both)
            known |= dict.fromkeys(one.paths, peft_experts.parameter(one.experts, one.name))
        elif declared.covers(theirs):
            pairs[module], known[module] = (both[0], both[1].t()), declared.key(theirs)
        else:
            what = "the configuration does not target a module that the file has a pair for"
            raise WeightsError(what, path=declared.path, field="target_modules", got=module)
    return pairs, known, {ours: tensors[name] for name, ours in stored_whole.items()}, prefix


def paired(halves: Mapping[str, Half], path: Path) -> dict[str, tuple[str, str]]:
    """The names of A and B of each module; WeightsError if there is none, or half of one."""
    found: dict[str, dict[str, str]] = {}
    for name, (module, half, _) in halves.items():
        found.setdefault(module, {})[half] = name
    if not found:
        raise WeightsError("the file holds no pair", path=path, expected=f"{PREFIX}....lora_A.weight")
    for module, both in sorted(found.items()):
        if len(both) != 2:
            raise WeightsError("half of a pair is missing", path=path, field=module, got=list(both))
    return {module: (both["lora_A"], both["lora_B"]) for module, both in sorted(found.items())}


def check_half(path: Path, name: str, half: str, tensor: Tensor, rank: int | None) -> None:
    """Raise WeightsError unless a half of a pair has this rank; None: it is checked elsewhere."""
    if tensor.dtype not in DTYPES:
        expected, got = "float32, float16 or bfloat16", str(tensor.dtype).removeprefix("torch.")
        raise WeightsError("a tensor of another type", path=path, field=name, expected=expected, got=got)
    if rank is not None and tensor.shape[0 if half == "lora_A" else 1] != rank:
        got = str([*tensor.shape])
        raise WeightsError("a tensor of another rank", path=path, field=name, expected=rank, got=got)


def fits(path: Path, pairs: Pairs, weights: Weights, before: str) -> None:
    """Raise CompatibilityError for a pair without a matrix of the base, or of another shape."""
    for module, (a, b) in pairs.items():
        field = ROOT + before + stored(module)
        hint = hint_of({field: a.shape}, IN_ADAPTERS) or "was it trained on this base?"
        if (weight := weights.get(module)) is None:
            raise CompatibilityError("the base has no such linear", path=path, field=field, hint=hint)
        r, (outputs, inputs) = len(a), weight.shape
        for half, found, expected in (
            ("lora_A", [r, a.shape[1]], [r, inputs]),
            ("lora_B", [b.shape[1], r], [outputs, r]),
        ):
            if found != expected:
                what, at = "the adapter was made for another base", f"{field}.{half}.weight"
                raise CompatibilityError(what, path=path, field=at, expected=expected, got=str(found), hint=hint)


def agrees(declared: Declared, pairs: Pairs, decoder: nn.Module, before: str) -> None:
    """Raise WeightsError if the configuration targets a matrix of the base that the file has no pair for."""
    # Some versions of transformers have linears in a sparse ffn, others packed parameters: names are not compared.
    sparse = tuple(f"{path}." for path in slots_of(decoder, SparseFFN))
    parameters = {f"{before}{stored(module)}.weight": [module] for module in linears(decoder)}
    for experts, names in placed(adaptable(decoder)).items():
        parameters |= {peft_experts.parameter(experts, name): [*paths.values()] for name, paths in names.items()}
    for one in declared.parameters:
        asked = [name for name in parameters if name == one or name.endswith(f".{one}")]
        for name in [name for name in asked if not pairs.keys() >= {*parameters[name]}] if asked else [one]:
            what = "the configuration targets a parameter that the file holds no pair for"
            raise WeightsError(what, path=declared.path, field="target_parameters", got=name)
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
    packed = peft_experts.packable(lora)
    own = {path: before + stored(path) if before else written_name(path) for path in lora.pairs}
    parameters = {path: peft_experts.parameter(*at) for at, paths in packed.items() for path in paths}
    parameters |= {path: f"{name}.weight" for path, name in own.items() if peft_experts.renamed(path, packed)}
    outside = [path for path in sorted(own) if path not in parameters]
    named, layers = own | parameters, layers_in(outside)
    tails = {path.partition(f"layers.{layer_of(path)}.")[2] for path in outside}
    regular = len(outside) == len(tails) * len(layers)  # all adapted layers have the same targets
    of_encoder = any(stored(path) != path for path in lora.pairs)
    config: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if head else "FEATURE_EXTRACTION" if of_encoder else "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": targets_in(outside) if regular else [own[path] for path in outside],
        "layers_to_transform": layers if regular and outside else None,
        "bias": "none",
        "inference_mode": True,
        "use_rslora": False,
        "use_dora": False,
        "rank_pattern": {named[path]: lora.rank_of(path) for path in lora.pairs if lora.rank_of(path) != lora.rank},
        "alpha_pattern": {named[path]: alpha for path, alpha in lora.alphas.items()},
    }
    if parameters:
        config["target_parameters"] = sorted({*parameters.values()})
    if head:
        config["modules_to_save"] = sorted({name.partition(".")[0] for name in head})
    return config, tensors_of(lora, own) | {ROOT + name: tensor for name, tensor in (head or {}).items()}


def tensors_of(lora: LoRA, named: Mapping[str, str] | None = None) -> dict[str, Tensor]:
    """The matrices of an expert as PEFT names and stores them; `named`: names of its modules in a model with a head."""
    packed = peft_experts.packable(lora)
    inside = {path for paths in packed.values() for path in paths}
    pairs = {
        named[path] if named else written_name(path): (a, b.t())
        for path, (a, b) in lora.pairs.items()
        if path not in inside
    }
    for (experts, name), paths in packed.items():
        module = f"model.{peft_experts.module_of(experts, name, packed)}"
        pairs[module] = peft_experts.together([lora.pairs[path] for path in paths])
    return {
        f"{ROOT}{module}.lora_{half}.weight": tensor
        for module, pair in pairs.items()
        for half, tensor in zip("AB", pair, strict=True)
    }


def written_name(path: str) -> str:
    name = stored(path)
    return f"model.{path}" if name == path else f"encoder.{name}"
