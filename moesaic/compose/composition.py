"""Descriptions of compositions: from folders and published sizes, from a recipe, or from a mixture.

Reads headers and manifests, but no values of tensors. Knows nothing about budgets.
"""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from moesaic.artefacts import router as router_room
from moesaic.artefacts.expert_names import expert_names
from moesaic.artefacts.manifest_words import ENCODER, said
from moesaic.artefacts.reference import base_at
from moesaic.compose.memory import pairs
from moesaic.config import sized
from moesaic.errors import CompatibilityError, RecipeError, WeightsError
from moesaic.files import MANIFEST, read_manifest
from moesaic.interop.outline import Config, Outline, is_adapter, outline, weighed
from moesaic.kinds import KINDS, AnyKind, at_site, compatibility, held_in, sites
from moesaic.kinds.compatibility import Difference
from moesaic.kinds.kind import Footprint
from moesaic.recipe import NewBase, Recipe, read
from moesaic.sections.named_recipes import known_recipes
from moesaic.sections.routers import RouterSpec
from moesaic.tensors.safetensors_file import opened

HIDDEN = (256,)
"""The hidden layers of a recipe's mlp router."""


@dataclass(frozen=True)
class Planned:
    """An expert of a composition and the memory that it adds."""

    name: str
    footprint: Footprint

    @property
    def parameters(self) -> int:
        return pairs(self.footprint.pairs or {}) + sum(self.footprint.counts.values())


@dataclass(frozen=True)
class Composition:
    """Base, experts and router; a single model has no kind of experts.

    `router`: number of its values, those of its encoder included. `active`: experts that answer a row; at `level` token
    all of them do sooner or later. `findings`: differences between the models. `bits`: of the base, see `load_base`.
    """

    base: Outline
    kind: AnyKind | None = None
    experts: tuple[Planned, ...] = ()
    router: int = 0
    active: int = 1
    findings: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    level: str = "sequence"
    bits: int | None = None


def described(
    models: Sequence[str | os.PathLike[str]], base: str | os.PathLike[str] | None, site: str | None
) -> Composition:
    """Describe the composition of models and adapters, or of one recipe, mixture or run.

    Raises RecipeError for places that do not go together, WeightsError for a place without a model.
    """
    if not models:
        raise RecipeError("nothing to plan", hint="name models, a recipe or a mixture")
    first = Path(models[0])
    if len(models) > 1 or base is not None or is_adapter(first):
        return of_folders(models, base, site)
    if first.suffix in (".yaml", ".yml") or (os.fspath(first) in known_recipes() and not os.path.lexists(first)):
        return of_recipe(read(first))
    mixture = first if (first / MANIFEST).is_file() else first / "mixture"
    if mixture.exists() and (manifest := read_manifest(mixture, verify=False)).get("kind") == "mixture":
        return of_mixture(mixture, manifest)
    model = outline(models[0])
    return Composition(model, findings=tuple(compatibility.defects(model)))


def of_folders(
    models: Sequence[str | os.PathLike[str]], base: str | os.PathLike[str] | None, site: str | None
) -> Composition:
    """Describe adapters on a base, or whole models; without `base` the first model is the base.

    A first model before adapters alone is their base, and no expert.
    """
    kinds = [held_in(Path(place)) for place in models]
    if any(kinds) and base is None:
        if kinds[0] is not None or not all(kinds[1:]):
            hint = "name the base first, as in `moesaic plan BASE ADAPTER ADAPTER`, or with --base"
            raise RecipeError("adapters and blocks need their base", field="base", hint=hint)
        base, models, kinds = models[0], models[1:], kinds[1:]
    kind = at_site(site or next((own.site for own in kinds if own), "model"))
    for place, own in zip(models, kinds, strict=True):
        if own and own.site != kind.site:
            what = f"cannot be mixed at site {kind.site}"
            raise RecipeError(what, path=place, field="site", expected=own.site, got=kind.site)
    named = [os.path.realpath(place) for place in models if os.path.isdir(place)]
    if twice := {place for place in named if named.count(place) > 1}:
        raise RecipeError("given twice", path=min(twice))
    shared = outline(models[0] if base is None else base)
    config = shared.config
    if not config.decodes:
        raise CompatibilityError("encoders are not composed", path=shared.name, expected="decoders", got=config.family)
    kind.require_composable(shared)
    experts, findings = [], compatibility.defects(shared)
    for index, place in enumerate(models):
        itself = base is None and index == 0
        expert, differences = beside(shared, place, kind, itself)
        experts.append(expert)
        findings += differences
    notes = [f"the base is the first model, {shared.name}"] if base is None else []
    notes.append(f"assumed router: an mlp with {HIDDEN[0]} hidden units on states of the base")
    notes += [kind.plan_note] if kind.plan_note and not all(kinds) else []
    router = perceptron(config.hidden_size, HIDDEN, len(experts))
    return Composition(shared, kind, tuple(distinct(experts)), router, 1, tuple(findings), tuple(notes))


def with_lora(found: Composition, rank: int) -> Composition:
    """The same composition with one more expert, a LoRA of this rank on all targets."""
    kind = KINDS["lora"]
    if found.kind is not None and found.kind.site != kind.site:
        raise RecipeError(f"no LoRA is mixed at site {found.kind.site}", field="rank", hint="plan the base alone")
    kind.require_composable(found.base)
    everywhere = kind.of_model(found.base, found.base).pairs or {}
    sizes = {path: (rank, inner, outer) for path, (_, inner, outer) in everywhere.items()}
    lora = Planned(f"lora of rank {rank}", Footprint(pairs=sizes))
    return replace(found, kind=found.kind or kind, experts=(*found.experts, lora))


def beside(
    base: Outline, place: str | os.PathLike[str], kind: AnyKind, itself: bool = False
) -> tuple[Planned, list[Difference]]:
    """Describe an expert and its differences from the base. `kind`: what a model becomes; `itself`: it is the base."""
    folder, name = Path(place), os.path.basename(os.path.abspath(place))
    if own := held_in(folder):
        footprint, found = own.beside(base, folder)
        return Planned(name, footprint), found
    try:
        model = outline(place)
    except WeightsError as error:
        raise compatibility.unreadable(base, place, error) from None
    if itself or (base.folder is not None and model.folder == base.folder):
        return Planned(model.name, kind.of_model(model, base, held=True)), []
    found = [*compatibility.defects(model), *compatibility.differences(base, model, kind.shares_trunk)]
    return Planned(model.name, kind.of_model(model, base)), found


def of_mixture(folder: Path, manifest: Mapping[str, Any]) -> Composition:
    """Describe the mixture in a folder, without comparing hashes, which would read all of it."""
    names = expert_names(folder, dict(manifest))
    base, kind = outline(base_at(folder, manifest).folder), at_site(said(folder, manifest, "site", sites()))
    experts, findings = [], compatibility.defects(base)
    for name in names:
        at = folder / "experts" / name
        footprint, differences = (held_in(at) or kind).in_mixture(base, at)
        experts.append(Planned(name, footprint))
        findings += [replace(difference, model=name) for difference in differences]
    with opened(folder / "router" / router_room.TENSORS) as file:
        router = sum(math.prod(shape) for shape in file.shapes.values())
    if (encoder := folder / "router" / ENCODER).is_dir():
        router += sum(weighed(encoder).values())
    how = read_manifest(folder / "router", verify=False)["selection"]
    active = {"soft": len(names), "top_1": 1}.get(how["kind"], how["k"] or 1)
    level = said(folder, manifest, "level", kind.levels)
    return Composition(base, kind, tuple(experts), router, active, tuple(findings), level=level)


def of_recipe(recipe: Recipe) -> Composition:
    """Describe the composition that a recipe makes."""
    shared = of_size(new) if (new := recipe.base.new) else outline(recipe.base.place or "")
    experts, findings = [], compatibility.defects(shared)
    for name, spec in recipe.experts.items():
        kind = KINDS[spec.kind]
        if spec.path:
            expert, differences = beside(shared, spec.path, kind)
            experts.append(replace(expert, name=name))
            findings += [replace(difference, model=name) for difference in differences]
        else:
            experts.append(Planned(name, kind.planned(shared, spec)))
    router, active = of_router(recipe.router, shared.config, len(experts))
    parts, level, bits = tuple(experts), recipe.mixture.level, recipe.base.bits
    kind, found = at_site(recipe.site), tuple(findings)
    return Composition(shared, kind, parts, router, active, found, level=level, bits=bits)


def of_size(base: NewBase) -> Outline:
    """Outline of a base that the run pretrains, in float32."""
    model = Outline(base.size, sized(base.size, base.vocab_size))
    return replace(model, stored=dict.fromkeys(model.shapes, torch.float32))


def of_router(spec: RouterSpec, config: Config, experts: int) -> tuple[int, int]:
    """Values of a recipe's router over states of a base, its encoder included, and the experts that it chooses."""
    own, width = 0, config.hidden_size
    if not isinstance(spec.feature, str):
        encoder = outline(spec.feature.model)
        own, width = sum(math.prod(shape) for shape in encoder.shapes.values()), encoder.config.hidden_size
    nodes = (
        [experts] if spec.groups is None else [len(spec.groups), *(n for n in map(len, spec.groups.values()) if n > 1)]
    )
    values = {"keyword": 0, "centroid": width * (experts + 1) + 1, "linear": perceptron(width, (), experts)}
    values["gates"] = config.num_layers * width * experts
    values["tree"] = sum(perceptron(width, spec.hidden, outcomes) for outcomes in nodes)
    own += values.get(spec.kind, perceptron(width, spec.hidden, experts))
    return own, spec.chosen(experts)


def perceptron(width: int, hidden: Sequence[int], experts: int) -> int:
    """Values of a router with hidden layers: matrices, biases, and the means and deviations of its features."""
    sizes = [width, *hidden, experts]
    return 2 * width + 1 + sum(i * o + o for i, o in pairwise(sizes))


def distinct(experts: list[Planned]) -> list[Planned]:
    seen = Counter[str]()
    for index, expert in enumerate(experts):
        seen[expert.name] += 1
        if seen[expert.name] > 1:
            experts[index] = replace(expert, name=f"{expert.name}-{seen[expert.name]}")
    return experts
