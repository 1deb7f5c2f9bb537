"""A new domain joins a mixture: its expert is trained over the mixture's base and adopted, the others stay as they are.

Knows nothing about terminals, nor how an expert is trained or a router made.
"""

from collections.abc import Collection, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from moesaic.adoption.adopting import Adoption, amend, standing
from moesaic.artefacts.base_search import base_at
from moesaic.artefacts.expert_names import expert_names
from moesaic.errors import RecipeError
from moesaic.recipe import ExistingBase, Recipe
from moesaic.runs.progress import Progress
from moesaic.stages import train_expert

TRAINING = "training"
"""The folder beside a mixture with the runs of experts that were trained for it."""


def add_expert(
    folder: str | PathLike[str],
    recipe: Recipe,
    names: Sequence[str] = (),
    *,
    progress: Progress | None = None,
    strict: bool = False,
    restart: Collection[str] = (),
) -> Adoption:
    """Train experts of a recipe over the base of an adopted mixture, and add them to it.

    `names`: those of the recipe's experts to add, by default all that it trains. The recipe's own base is not used, nor
    its router. No other expert is trained or rewritten; the router becomes the one of adopting all experts at once, so
    `amend(folder, drop=names)` brings the old one back bit by bit. The router learns from the first training file of
    each new expert. The runs stay in `training` beside the mixture: called again after a crash, the training goes on.
    """
    root = Path(folder).absolute()
    at, manifest = standing(root)
    chosen = [*names] or recipe.trained
    for name in chosen:
        require_new(name, recipe, expert_names(at, manifest))
    if recipe.site != manifest["site"]:
        hint = "train experts of a kind that the mixture's experts can be mixed with"
        expected, got = f"site {manifest['site']}", f"site {recipe.site}"
        raise RecipeError("another kind of experts", field="experts", expected=expected, got=got, hint=hint)
    prompts = prompts_of(recipe, chosen) if manifest["adopted"]["router"]["kind"] != "arrow" else {}
    found = base_at(at, manifest)
    # Every version of an embedded base has the same path through the link; a version's own goes with the next one.
    place = str(root / "mixture" / "base") if found.folder.is_relative_to(at) else found.place or str(found.folder)
    over = recipe.model_copy(update={"base": ExistingBase(path=place)})
    how: dict[str, Any] = {"strict": strict, "restart": restart}
    folders = train_expert(over, root / TRAINING / recipe.name, chosen, progress, **how)
    return amend(root, folders, prompts=prompts, device=recipe.device, dtype=recipe.dtype, progress=progress)


def require_new(name: str, recipe: Recipe, known: Sequence[str]) -> None:
    """Refuse an expert that the recipe does not train, or that the mixture has."""
    if name not in recipe.trained:
        expected = f"one of {', '.join(recipe.trained)}"
        raise RecipeError("the recipe trains no such expert", field="expert", expected=expected, got=name)
    if name.lower() in {one.lower() for one in known}:
        hint = f"give it another name in the recipe, or remove the old one: moesaic adopt --into MIXTURE --drop {name}"
        raise RecipeError("the mixture has an expert of this name", field="expert", got=name, hint=hint)


def prompts_of(recipe: Recipe, names: Sequence[str]) -> dict[str, Path]:
    """The file of prompts that the router learns from, for each expert: the first of its training rows."""
    sources = {name: getattr(recipe.experts[name].data, "train", None) for name in names}
    for name, some in sources.items():
        if not some:
            what, hint = "no file of rows for the router to learn from", "write the rows into a file and name it"
            raise RecipeError(what, field=f"experts.{name}.data", expected="train: FILE", hint=hint)
    return {name: recipe.resolve(some[0].path) for name, some in sources.items() if some}
