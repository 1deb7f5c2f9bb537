"""The models that a recipe names: their folders, and the base and the encoders once they are loaded.

Knows nothing about texts, nor what is trained over a base.
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from moesaic.artefacts.backbone import Backbone, load_backbone
from moesaic.artefacts.base import Base, load_base
from moesaic.artefacts.sentence_encoder import StoredEncoder, load_sentences
from moesaic.errors import RecipeError, WeightsError
from moesaic.hardware import HOST, Compute, chosen
from moesaic.hub.locate import Located, Origins, locate
from moesaic.model.decoder import Decoder
from moesaic.model.encoder import Encoder
from moesaic.runs.directory import RunDir
from moesaic.sections.routers import EncoderFeature


class Models:
    """The models of a run. `found`: folders of models that were located before: the hub is asked once a run."""

    def __init__(self, run: RunDir, found: Iterable[tuple[str, Located]] = ()):
        self.run, self.recipe, self.found = run, run.recipe, dict(found)
        self.encoders: dict[str, StoredEncoder] = {}

    @cached_property
    def compute(self) -> Compute:
        """The device and the type that the recipe asks for; raises for a device that this machine does not have."""
        return chosen(self.recipe.device, self.recipe.dtype, self.recipe.base.bits)

    def located(self, place: str) -> Located:
        """Find the folder of a model that the recipe names."""
        if place not in self.found:
            try:
                self.found[place] = locate(place)
            except WeightsError as error:
                # The recipe's line is where to mend it, so the place becomes a part of what is wrong.
                error.field = error.field or next((key for key, at in self.recipe.places.items() if at == place), None)
                error.what, error.path = f"{error.what}: {error.path}" if error.path else error.what, None
                raise
        return self.found[place]

    def locate_all(self) -> None:
        """Find every model that the recipe names, before any work."""
        for place in self.recipe.places.values():
            self.located(place)

    @property
    def base_at(self) -> Path:
        place = self.recipe.base.place
        return self.located(place).folder if place else self.run.base_at

    @property
    def base_origin(self) -> dict[str, str] | None:
        place = self.recipe.base.place
        return self.located(place).origin if place else None

    @property
    def origins(self) -> Origins:
        """The repository and commit of the base and of every expert from elsewhere, by name; folders have none."""
        base = [("base", self.recipe.base.place)] if self.recipe.base.place else []
        experts = [(name, expert.path) for name, expert in self.recipe.experts.items() if expert.path]
        found = {name: self.located(place).origin for name, place in (*base, *experts)}
        return {name: origin for name, origin in found.items() if origin}

    @cached_property
    def base(self) -> Base:
        """The base to compute with, for reading only; `fresh_base` loads one that may be changed."""
        if not self.base_at.is_dir() and not self.recipe.base.place:
            raise RecipeError("there is no base yet", path=self.base_at, hint="make it first: moesaic pretrain RECIPE")
        base = load_base(self.base_at, self.base_origin, self.compute, mapped=True)
        self.require_room(base.decoder)
        return base

    @cached_property
    def stored_base(self) -> Base:
        """The base as it is stored, on the host, to compare models with."""
        return self.base if self.compute == HOST else self.fresh_base(HOST)

    @cached_property
    def backbone(self) -> Backbone:
        """The base of a run whose rows have labels, for reading only."""
        backbone = self.fresh_backbone(self.compute)
        self.require_room(backbone.body)
        return backbone

    def fresh_base(self, compute: Compute) -> Base:
        return load_base(self.base_at, self.base_origin, compute, mapped=True, known=self.base)

    def fresh_backbone(self, compute: Compute) -> Backbone:
        return load_backbone(self.base_at, self.base_origin, compute)

    def encoder(self, feature: EncoderFeature) -> StoredEncoder:
        if feature.model not in self.encoders:
            found = load_sentences(self.located(feature.model).folder)
            found.sentences.to(self.compute.device)
            self.encoders[feature.model] = found
        return self.encoders[feature.model]

    def require_room(self, body: Decoder | Encoder) -> None:
        """Refuse a recipe that asks for more blocks or longer rows than the base has."""
        context, blocks = body.config.context, body.config.num_layers
        for index, spec in enumerate([self.recipe.router, *self.recipe.router.compare]):
            if (spec.depth or 0) > blocks:
                field = f"router.compare[{index - 1}].feature" if index else "router.feature"
                what = "the router reads a layer that the base lacks"
                raise RecipeError(what, field=field, expected=f"at most hidden@{blocks}", got=spec.feature)
        for name in ("train", *self.recipe.trained):
            settings = self.recipe.train if name == "train" else self.recipe.train_of(name)
            if settings.length > context:
                field = "train.length" if name == "train" else f"experts.{name}.train.length"
                what = "rows longer than the context of the base"
                raise RecipeError(what, field=field, expected=f"<= {context}", got=settings.length)
