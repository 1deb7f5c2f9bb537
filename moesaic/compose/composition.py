"""What is to be composed, however it is given: folders and published sizes, a recipe, or a mixture that stands.

Reads headers and manifests, never a value. Knows nothing about budgets.
"""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from moesaic.adapters.lora import layer_of, linears, targeted, targets_in
from moesaic.compose import compatibility, memory
from moesaic.compose.compatibility import Difference, Site
from moesaic.config import DecoderConfig, sized
from moesaic.errors import CompatibilityError, RecipeError, WeightsError
from moesaic.files import MANIFEST, read_manifest
from moesaic.recipe import ExistingBase, NewBase, Recipe, RouterSpec, read
from moesaic.recipe import Expert as Spec
from moesaic.recipe.section import layer_range
from moesaic.weights import feedforward, heads, trains
from moesaic.weights import router as router_room
from moesaic.weights.configs import read_config
from moesaic.weights.decoders import CONFIG
from moesaic.weights.headers import Config, Outline, Shape, adapter_outline, is_adapter, outline, shapes_in, weighed
from moesaic.weights.names import expert_names
from moesaic.weights.opening import opened

RANK, HIDDEN = 16, (256,)
"""The rank of the LoRA that `adopt` makes of a fine-tuned model, and the hidden layers of a recipe's mlp router."""


@dataclass(frozen=True)
class Expert:
    """What an expert adds. `pairs`: of an adapter; `counts`: all else, its values by the type they are stored in.

    `config`: of an expert with a cache of its own; None where the base's serves.
    """

    name: str
    pairs: Mapping[str, Shape] | None = None
    counts: Mapping[torch.dtype, int] = field(default_factory=dict)
    config: Config | None = None


@dataclass(frozen=True)
class Composition:
    """Base, experts and router at a site; of a model by itself no site.

    `router`: its values, those of an encoder of its own included. `active`: experts that answer a row; at `level` token
    in time all of them do.
    `findings`: where the models differ.
    """

    base: Outline
    site: Site | None = None
    experts: tuple[Expert, ...] = ()
    router: int = 0
    active: int = 1
    findings: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    level: str = "sequence"


def described(
    models: Sequence[str | os.PathLike[str]], base: str | os.PathLike[str] | None, site: Site | None
) -> Composition:
    """What the places mean together; one recipe or one mixture says all by itself.

    Raises RecipeError for what cannot be meant, WeightsError for what is no model.
    """
    if not models:
        raise RecipeError("nothing to plan", hint="name models, a recipe or a mixture")
    first = Path(models[0])
    whole = first.suffix in (".yaml", ".yml") or (first / MANIFEST).is_file() or (first / "mixture").exists()
    if whole and len(models) == 1 and base is None and not is_adapter(first):
        if first.suffix in (".yaml", ".yml"):
            return of_recipe(read(first))
        mixture = first if (first / MANIFEST).is_file() else first / "mixture"
        manifest = read_manifest(mixture, verify=False)
        if manifest.get("kind") == "mixture":
            return of_mixture(mixture, manifest)
    if len(models) == 1 and base is None and not is_adapter(first):
        model = outline(models[0])
        return Composition(model, findings=tuple(compatibility.defects(model)))
    return of_folders(models, base, site)


def of_folders(
    models: Sequence[str | os.PathLike[str]], base: str | os.PathLike[str] | None, site: Site | None
) -> Composition:
    """Adapters on a base, or models one of which, the first, is the base where none is named."""
    kept = [kept_at(place) for place in models]
    if any(kept) and base is None:
        raise RecipeError("adapters and blocks are nothing without their base", field="base", hint="name it: --base")
    usual: Site = next((only for only in kept if only), "model")
    site = site or usual
    for place, only in zip(models, kept, strict=True):
        if only not in (None, site):
            raise RecipeError(f"cannot be mixed at site {site}", path=place, field="site", expected=only, got=site)
    named = [os.path.realpath(place) for place in models if os.path.isdir(place)]
    if twice := {place for place in named if named.count(place) > 1}:
        raise RecipeError("given twice", path=min(twice))
    shared = outline(models[0] if base is None else base)
    config = shared.config
    if not isinstance(config, DecoderConfig):
        raise CompatibilityError("encoders are not composed", path=shared.name, expected="decoders", got=config.family)
    if site == "ffn" and config.num_experts:
        raise CompatibilityError("a sparse base has no feed-forward block to replace", path=shared.name, field="site")
    experts, findings = [], compatibility.defects(shared)
    for index, place in enumerate(models):
        itself = base is None and index == 0
        expert, differences = beside(shared, place, site, itself)
        experts.append(expert)
        findings += differences
    notes = [f"the base is the first model, {shared.name}"] if base is None else []
    notes.append(f"the router is supposed to be an mlp with {HIDDEN[0]} hidden units on states of the base")
    if site == "model":
        notes.append("every model counts whole: what it shares with the base is found when they are composed")
    if site == "linear" and not all(kept):
        notes.append(f"a whole model becomes a LoRA of rank {RANK} beside every linear, as `adopt` makes it")
    router = perceptron(config.hidden_size, HIDDEN, len(experts))
    return Composition(shared, site, tuple(distinct(experts)), router, 1, tuple(findings), tuple(notes))


def kept_at(place: str | os.PathLike[str]) -> Site | None:
    """The only site at which what lies in a folder can be mixed; None of a whole model, for which there are three."""
    if is_adapter(place) or (Path(place) / trains.CONFIG).is_file():
        return "linear"
    return "ffn" if (Path(place) / feedforward.CONFIG).is_file() else None


def beside(
    base: Outline, place: str | os.PathLike[str], site: Site, itself: bool = False
) -> tuple[Expert, list[Difference]]:
    """An expert beside its base, and where the two differ. `itself`: the place is the base's own."""
    folder, name = Path(place), os.path.basename(os.path.abspath(place))
    if is_adapter(folder):
        adapter = adapter_outline(folder)
        return Expert(name, adapter.pairs, weighed(folder, heads.TENSORS)), compatibility.adapter_differences(
            base, adapter
        )
    if (folder / trains.CONFIG).is_file():
        return Expert(name, of_train(folder), weighed(folder, heads.TENSORS)), []
    if (folder / feedforward.CONFIG).is_file():
        return Expert(name, counts=weighed(folder)), compatibility.block_differences(base, name, shapes_in(folder))
    try:
        model = outline(place)
    except WeightsError as error:
        raise compatibility.unreadable(base, place, error) from None
    if itself or (base.folder is not None and model.folder == base.folder):
        return of_model(model, base, site, held=True), []
    found = [*compatibility.defects(model), *compatibility.differences(base, model, site)]
    return of_model(model, base, site), found


def of_model(model: Outline, base: Outline, site: Site, held: bool = False) -> Expert:
    """What a fine-tuned model adds at a site; `held`: it is the base itself, whose weights are there already."""
    if site == "linear":
        everywhere = targets_in(path for path in linears(base.module) if path != "lm_head")
        return Expert(model.name, pairs=adapted(base, RANK, everywhere, None))
    kept = {name for name in model.shapes if site == "model" or memory.part_of(name) == "ffn"}
    if held and site == "model":
        kept = set()
    return Expert(model.name, counts=counts_of(model, kept), config=model.config if site == "model" else None)


def counts_of(model: Outline, kept: Collection[str]) -> dict[torch.dtype, int]:
    """The values of some of a model's parameters, by the type they are stored in."""
    counts: dict[torch.dtype, int] = {}
    for name in kept:
        dtype = model.stored.get(name, torch.bfloat16)
        counts[dtype] = counts.get(dtype, 0) + math.prod(model.shapes[name])
    return counts


def adapted(base: Outline, rank: int, targets: list[str], layers: str | None) -> dict[str, Shape]:
    """The pairs of an adapter that is trained here."""
    config = base.config
    found = targeted(base.module, targets, layer_range(layers, config.num_layers))
    return {path: (rank, linear.in_features, linear.out_features) for path, linear in found.items()}


def of_mixture(folder: Path, manifest: Mapping[str, Any]) -> Composition:
    """A mixture's folder, its hashes not compared: that would read all of it."""
    names = expert_names(folder, dict(manifest))
    base = outline(folder / "base")
    experts, findings = [], compatibility.defects(base)
    for name in names:
        place = folder / "experts" / name
        if manifest["site"] == "model":
            experts.append(Expert(name, counts=weighed(place), config=read_config(place / CONFIG)[0]))
            continue
        expert, differences = beside(base, place, manifest["site"])
        experts.append(replace(expert, name=name))
        findings += [replace(difference, model=name) for difference in differences]
    with opened(folder / "router" / router_room.TENSORS) as file:
        router = sum(math.prod(shape) for shape in file.shapes.values())
    if (encoder := folder / "router" / router_room.ENCODER).is_dir():
        router += sum(weighed(encoder).values())
    how = read_manifest(folder / "router", verify=False)["selection"]
    active = {"soft": len(names), "top_1": 1}.get(how["kind"], how["k"] or 1)
    level = manifest.get("level", "sequence")
    return Composition(base, manifest["site"], tuple(experts), router, active, tuple(findings), level=level)


def of_train(folder: Path) -> dict[str, Shape]:
    """The pairs that a TT-LoRA expert's cores merge to, which is what a mixture holds of it."""
    rank, _, factors = trains.read_declared(folder / trains.CONFIG)
    return {path: (rank, *own.sizes) for path, own in factors.items()}


def of_recipe(recipe: Recipe) -> Composition:
    """What a recipe would make."""
    shared = outline(recipe.base.path) if isinstance(recipe.base, ExistingBase) else of_size(recipe.base)
    site = recipe.site
    experts, findings = [], compatibility.defects(shared)
    for name, spec in recipe.experts.items():
        if spec.path:
            expert, differences = beside(shared, spec.path, site)
            experts.append(replace(expert, name=name))
            findings += [replace(difference, model=name) for difference in differences]
        else:
            experts.append(replace(trained(shared, spec, site), name=name))
    router, active = of_router(recipe.router, shared.config.hidden_size, len(experts))
    return Composition(shared, site, tuple(experts), router, active, tuple(findings))


def trained(base: Outline, spec: Spec, site: Site) -> Expert:
    """What an expert that is trained here adds: its pairs, or copies of what it trains of the base."""
    if site == "linear":
        return Expert("", pairs=adapted(base, spec.rank, list(spec.targets), spec.layers))
    if site == "model":
        return of_model(base, base, site)
    inside = layer_range(spec.layers, base.config.num_layers)
    own = {name for name in base.shapes if memory.part_of(name) == "ffn" and layer_of(name) in inside}
    return Expert("", counts=counts_of(base, own))


def of_size(base: NewBase) -> Outline:
    """A base that is pretrained here, in float32."""
    model = Outline(base.size, sized(base.size, base.vocab_size))
    return replace(model, stored=dict.fromkeys(model.shapes, torch.float32))


def of_router(spec: RouterSpec, width: int, experts: int) -> tuple[int, int]:
    """A recipe's router over a base of hidden size `width`: its values, an encoder's included, and whom it asks."""
    own = 0
    if not isinstance(spec.feature, str):
        encoder = outline(spec.feature.model)
        own, width = sum(math.prod(shape) for shape in encoder.shapes.values()), encoder.config.hidden_size
    hidden = () if spec.kind == "linear" else tuple(spec.hidden)
    untrained = {"keyword": 0, "centroid": width * (experts + 1) + 1}
    values = untrained.get(spec.kind, perceptron(width, hidden, experts))
    return own + values, {"soft": experts, "top_1": 1}.get(spec.selection, spec.k or 1)


def perceptron(width: int, hidden: Sequence[int], experts: int) -> int:
    """Values of a router with hidden layers: its matrices and biases, and the means and deviations of what it reads."""
    sizes = [width, *hidden, experts]
    return 2 * width + 1 + sum(i * o + o for i, o in pairwise(sizes))


def distinct(experts: list[Expert]) -> list[Expert]:
    """The same with a number behind each name that stands already."""
    seen: dict[str, int] = {}
    named = []
    for expert in experts:
        seen[expert.name] = seen.get(expert.name, 0) + 1
        number = seen[expert.name]
        named.append(expert if number == 1 else replace(expert, name=f"{expert.name}-{number}"))
    return named
