"""What is to be composed, however it is given: folders and published sizes, a recipe, or a mixture that stands.

Reads headers and manifests, never a value. Knows nothing about budgets.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from moesaic.artefacts import router as router_room
from moesaic.artefacts.expert_names import expert_names
from moesaic.config import sized
from moesaic.errors import CompatibilityError, RecipeError, WeightsError
from moesaic.files import MANIFEST, read_manifest
from moesaic.interop.outline import Outline, is_adapter, outline, weighed
from moesaic.kinds import KINDS, AnyKind, at_site, compatibility, held_in
from moesaic.kinds.compatibility import Difference
from moesaic.kinds.kind import Footprint
from moesaic.recipe import NewBase, Recipe, read
from moesaic.sections.routers import RouterSpec
from moesaic.tensors.safetensors_file import opened

HIDDEN = (256,)
"""The hidden layers of a recipe's mlp router."""


@dataclass(frozen=True)
class Planned:
    """An expert of a composition, by name: the memory that it adds."""

    name: str
    footprint: Footprint


@dataclass(frozen=True)
class Composition:
    """Base, experts and router; a model by itself has no kind of experts.

    `router`: its values, those of an encoder of its own included. `active`: experts that answer a row; at `level` token
    in time all of them do.
    `findings`: where the models differ.
    """

    base: Outline
    kind: AnyKind | None = None
    experts: tuple[Planned, ...] = ()
    router: int = 0
    active: int = 1
    findings: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()
    level: str = "sequence"


def described(
    models: Sequence[str | os.PathLike[str]], base: str | os.PathLike[str] | None, site: str | None
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
    models: Sequence[str | os.PathLike[str]], base: str | os.PathLike[str] | None, site: str | None
) -> Composition:
    """Adapters on a base, or models one of which, the first, is the base where none is named."""
    kept = [held_in(Path(place)) for place in models]
    if any(kept) and base is None:
        raise RecipeError("adapters and blocks are nothing without their base", field="base", hint="name it: --base")
    kind = at_site(site or next((only.site for only in kept if only), "model"))
    for place, only in zip(models, kept, strict=True):
        if only and only.site != kind.site:
            what = f"cannot be mixed at site {kind.site}"
            raise RecipeError(what, path=place, field="site", expected=only.site, got=kind.site)
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
    notes.append(f"the router is supposed to be an mlp with {HIDDEN[0]} hidden units on states of the base")
    notes += [kind.plan_note] if kind.plan_note and not all(kept) else []
    router = perceptron(config.hidden_size, HIDDEN, len(experts))
    return Composition(shared, kind, tuple(distinct(experts)), router, 1, tuple(findings), tuple(notes))


def beside(
    base: Outline, place: str | os.PathLike[str], kind: AnyKind, itself: bool = False
) -> tuple[Planned, list[Difference]]:
    """An expert beside its base, and where the two differ. `kind`: what a model becomes; `itself`: the base's own."""
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
    """A mixture's folder, its hashes not compared: that would read all of it."""
    names = expert_names(folder, dict(manifest))
    base, kind = outline(folder / "base"), at_site(manifest["site"])
    experts, findings = [], compatibility.defects(base)
    for name in names:
        footprint, differences = kind_in(folder / "experts" / name, kind).in_mixture(base, folder / "experts" / name)
        experts.append(Planned(name, footprint))
        findings += [replace(difference, model=name) for difference in differences]
    with opened(folder / "router" / router_room.TENSORS) as file:
        router = sum(math.prod(shape) for shape in file.shapes.values())
    if (encoder := folder / "router" / router_room.ENCODER).is_dir():
        router += sum(weighed(encoder).values())
    how = read_manifest(folder / "router", verify=False)["selection"]
    active = {"soft": len(names), "top_1": 1}.get(how["kind"], how["k"] or 1)
    level = manifest.get("level", "sequence")
    return Composition(base, kind, tuple(experts), router, active, tuple(findings), level=level)


def kind_in(folder: Path, kind: AnyKind) -> AnyKind:
    """The kind of one expert of a mixture whose experts are read as `kind` reads them."""
    return held_in(folder) or kind


def of_recipe(recipe: Recipe) -> Composition:
    """A composition that a recipe would make."""
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
    router, active = of_router(recipe.router, shared.config.hidden_size, len(experts))
    return Composition(shared, at_site(recipe.site), tuple(experts), router, active, tuple(findings))


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
    values = {
        "keyword": 0,
        "centroid": width * (experts + 1) + 1,
        "linear": perceptron(width, (), experts),
    }.get(spec.kind, perceptron(width, spec.hidden, experts))
    return own + values, {"soft": experts, "top_1": 1}.get(spec.selection, spec.k or 1)


def perceptron(width: int, hidden: Sequence[int], experts: int) -> int:
    """Values of a router with hidden layers: its matrices and biases, and the means and deviations of what it reads."""
    sizes = [width, *hidden, experts]
    return 2 * width + 1 + sum(i * o + o for i, o in pairwise(sizes))


def distinct(experts: list[Planned]) -> list[Planned]:
    """The same with a number behind each name that stands already."""
    seen: dict[str, int] = {}
    named = []
    for expert in experts:
        seen[expert.name] = seen.get(expert.name, 0) + 1
        number = seen[expert.name]
        named.append(expert if number == 1 else replace(expert, name=f"{expert.name}-{number}"))
    return named
