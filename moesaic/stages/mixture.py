"""The mixture as a part of a run: base, experts and router joined into one folder.

Knows nothing about how any of them was made.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

from moesaic.artefacts.router import StoredRouter, load_router
from moesaic.compose.mixture import room_for, save_mixture
from moesaic.errors import MoesaicError, RecipeError
from moesaic.kinds import KINDS
from moesaic.kinds.kind import Stored
from moesaic.runs.directory import RunDir
from moesaic.runs.jobs import Report
from moesaic.runs.part import Part
from moesaic.runs.progress import Progress
from moesaic.stages.experts import folders_of
from moesaic.tasks import Run


class MixturePart(Part):
    """The mixture of a run."""

    run: RunDir
    name = stage = "mixture"

    def __init__(self, run: Run, progress: Progress):
        super().__init__(run.dir, run.dir.mixture_at)
        self.source, self.progress = run, progress

    def needs(self) -> tuple[Path, ...]:
        return (*self.folders.values(), self.run.router_at("router"), self.source.models.base_at)

    @cached_property
    def folders(self) -> dict[str, Path]:
        return folders_of(self.source)

    @cached_property
    def experts(self) -> dict[str, Stored]:
        """Every expert as it is now, checked against the base; warnings about it are reported."""
        for name, folder in self.folders.items():
            for warning in self.source.task.warnings(folder):
                self.progress.warn(f"{name}: {warning}")
        return dict(self.source.task.read_experts(self.folders))

    @cached_property
    def router(self) -> StoredRouter:
        """The router as it is now, which must decide between these experts."""
        router = load_router(self.run.router_at("router"), self.source.task.foundation.fingerprint)
        if set(router.names) != set(self.experts):
            expected, got = (", ".join(sorted(names)) for names in (self.experts, router.names))
            what, hint = "the router was trained for other experts", "run train-router again"
            raise RecipeError(what, expected=expected, got=got, hint=hint)
        return router

    @property
    def how(self) -> dict[str, Any]:
        """The level and the combination of distributions, where the kind leaves a choice."""
        mixture, choice = self.run.recipe.mixture, len(self.run.recipe.kind.combinations) > 1
        inside = {"level": mixture.level} if mixture.level == "token" else {}
        return {"level": mixture.level, "combine": mixture.combine} if choice else inside

    def inputs(self) -> dict[str, Any]:
        recipe, _ = self.run.recipe, self.router
        kinds = {name: KINDS[spec.kind] for name, spec in recipe.experts.items()}
        return {
            **self.how,
            "base": self.source.task.foundation.fingerprint,
            **self.source.task.compute.key,
            "experts": {n: kinds[n].fingerprint(one, self.folders[n]) for n, one in self.experts.items()},
            "router": self.run.identity(self.run.router_at("router")),
        }

    def missing(self) -> MoesaicError:
        return RecipeError("there is no mixture yet", path=self.at, hint="moesaic compose RECIPE")

    def make(self, report: Report) -> None:
        """Gather the files of base, experts and router, and read the mixture back."""
        run, recipe = self.source, self.run.recipe
        facts = {
            "stage_key": self.key,
            "name": recipe.name,
            "site": recipe.site,
            "level": recipe.mixture.level,
            "prompt_tokens": recipe.router.prompt_tokens,
            "origins": run.models.origins,
            **self.how,
            **run.task.mixture_facts(),
        }
        base, router = run.models.base_at, self.run.router_at("router")
        self.run.publish(
            self.at,
            lambda folder: save_mixture(folder, base, self.folders, router, facts),
            room_for(base, self.folders.values(), router),
        )
        _ = run.task.mixture  # raises for one that cannot be loaded
