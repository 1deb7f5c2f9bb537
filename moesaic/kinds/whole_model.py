"""Whole models as experts, with the router in front of them.

Knows nothing about rows or routers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator

from moesaic.artefacts import whole_model as folders
from moesaic.artefacts.base import Base, read_config
from moesaic.artefacts.router import StoredRouter
from moesaic.artefacts.whole_model import StoredModel, load_whole
from moesaic.files import MANIFEST
from moesaic.hub.locate import CONFIG, model_folder
from moesaic.interop import decoder_config
from moesaic.interop.decoders import named
from moesaic.interop.outline import Outline, weighed
from moesaic.kinds.compatibility import Difference
from moesaic.kinds.gates import Weights, plain
from moesaic.kinds.kind import Facts, Footprint, Joined, Kind, Listener, Mixing, Reloaded, Started, Terms
from moesaic.kinds.parameters import count_models, num_parameters
from moesaic.model.classifier import Head
from moesaic.model.decoder import Decoder
from moesaic.model.whole import LEVELS, ModelMixture
from moesaic.ops.ensemble import COMBINATIONS
from moesaic.residency.fetching import Fetchable
from moesaic.routing import Gates
from moesaic.sections.expert import Expert
from moesaic.sections.section import Text


class ModelSection(Expert):
    """A whole model as an expert."""

    kind: Literal["model"]
    """Kind of the expert: a whole model."""

    path: Text | None = None
    """Folder or `org/name@revision` of a model that was trained elsewhere."""

    def idle(self) -> dict[str, str]:
        return {**super().idle(), "layers": "all layers of a whole model are trained"}


@dataclass(frozen=True)
class Whole:
    """The design of a whole model: the base, all of which is trained."""


class ModelKind(Kind[Whole, Decoder, StoredModel]):
    """A whole model."""

    word = "model"
    site = "model"
    section = ModelSection
    changes = "has"
    levels = LEVELS
    combinations = COMBINATIONS
    trains_base = True
    shares_trunk = False
    no_wider = "no whole model is as large as several of them and of the same kind"
    plan_note = "every model counts whole: tensors shared with the base are found when they are composed"

    # --- trained here

    def design(self, spec: Expert) -> Whole:
        return Whole()

    def joint(self, designs: Sequence[Whole]) -> Whole:
        return Whole()

    def begin(self, body: Any, design: Whole, layers: str | None, generator: Generator) -> Started[Decoder]:
        body.requires_grad_(True)
        return Started(plain, lambda: body)

    def save(self, folder: Path, value: Decoder, base: Any, facts: Facts, head: Head | None = None) -> None:
        folders.save_whole(folder, value, base.tokenizer, base.fingerprint, facts)

    def reload(self, folder: Path, base: Base, design: Whole) -> Reloaded[StoredModel]:
        stored = load_whole(folder, base)
        return Reloaded(stored.decoder, plain, stored)

    def idle_part(self, expert: Reloaded[StoredModel], base: Decoder) -> str | None:
        same = all(map(torch.equal, expert.decoder.parameters(), base.parameters()))
        return "every tensor of it" if same else None

    # --- read

    def holds(self, folder: Path) -> bool:
        return False  # a model's folder can become an expert of several kinds

    def read(self, folder: Path, base: Base) -> StoredModel:
        return load_whole(folder, base)

    def open(self, folder: Path, base: Base, index: int) -> tuple[Fetchable, StoredModel]:
        files, manifest = folders.open_whole(folder, base)
        if not files.own:
            files.fill({})
        return files, folders.model_of(files, manifest, base)

    def write(self, source: Path, target: Path, base: Path) -> None:
        folders.write_into_mixture(source, target, base)

    def fingerprint(self, stored: StoredModel, folder: Path) -> str:
        return stored.fingerprint or folders.identified(folder, {})[2]

    # --- joined

    def join(self, base: Base, experts: Sequence[StoredModel], router: StoredRouter, mixing: Mixing) -> ModelMixture:
        models, decider = [one.decoder for one in experts], router.over(base.decoder, mixing.disabled)
        level = LEVELS[LEVELS.index(mixing.level)]
        return ModelMixture(base.decoder, models, decider, level, mixing.combine, mixing.source)

    def average(self, decoder: Decoder, experts: Sequence[StoredModel]) -> Decoder:
        with torch.no_grad():
            for name, weight in decoder.named_parameters():  # a tied head is listed once
                weight.zero_()
                for expert in experts:
                    weight.add_(expert.decoder.get_parameter(name), alpha=1 / len(experts))
        return decoder

    def not_averaged(self, base: Path, experts: Sequence[Path]) -> str | None:
        own = read_config(model_folder(base) / "config.json")[0]
        alike = all(read_config(model_folder(folder) / "config.json")[0] == own for folder in experts)
        return None if alike else "only models of one shape have a mean"

    # --- counted

    def counts(
        self, base: Decoder, mixture: ModelMixture, experts: Sequence[StoredModel], weights: Weights
    ) -> dict[str, int]:
        return count_models(mixture, weights)

    def cost(self, base: Decoder, stored: StoredModel) -> int:
        return num_parameters(stored.decoder)

    def first(self, mixture: ModelMixture, experts: Sequence[StoredModel]) -> tuple[Decoder, Gates | None]:
        return experts[0].decoder, None

    # --- planned

    def planned(self, base: Outline, spec: Expert) -> Footprint:
        return self.of_model(base, base)

    def of_model(self, model: Outline, base: Outline, held: bool = False) -> Footprint:
        return Footprint.of(model, () if held else set(model.shapes), model.config)

    def in_mixture(self, base: Outline, folder: Path) -> tuple[Footprint, list[Difference]]:
        # only tensors that the base lacks were written there
        return Footprint(counts=weighed(folder), config=decoder_config.read_config(folder / CONFIG)[0]), []

    # --- adopted

    def adopt(
        self, base: Base, path: Path, tuned: bool, terms: Terms, progress: Listener, name: str
    ) -> Joined[Decoder]:
        size = sum(tensor.numel() for tensor in named(load_whole(path, base).decoder).values())
        return Joined(None, path, {"from": "model", "verified": (path / MANIFEST).is_file(), "parameters": size})
