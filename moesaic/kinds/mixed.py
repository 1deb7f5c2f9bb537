"""The experts of a run together, of whatever kind: where each lies, joined beside the base, averaged, counted.

Knows nothing about scores, nor how an expert is trained.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from moesaic.adapters import attach
from moesaic.adapters import feedforward as beside
from moesaic.adapters.feedforward import FFN, ffns
from moesaic.artefacts import ffn as ffn_room
from moesaic.artefacts.adapter import StoredExpert, load_expert
from moesaic.artefacts.base import Base, read_config
from moesaic.artefacts.ffn import StoredFFN, save_ffn
from moesaic.artefacts.whole_model import StoredModel, identified
from moesaic.compose import (
    asleep,
    average,
    average_blocks,
    average_models,
    count_blocks,
    count_models,
    count_parameters,
)
from moesaic.compose.mixture import SITES, Stored, StoredMixture
from moesaic.compose.parameters import num_parameters
from moesaic.evaluate.verdict import Cost
from moesaic.files import MANIFEST, digest, read_manifest
from moesaic.generate.speed import tokens_per_second
from moesaic.hub.locate import model_folder
from moesaic.kinds.members import blocks_of
from moesaic.model.decoder import Decoder
from moesaic.model.mixture import AdapterMixture
from moesaic.model.whole import ModelMixture
from moesaic.routing import Gates
from moesaic.runs.progress import Progress
from moesaic.runs.workshop import Workshop

NO_WIDER = "no whole model is as large as several of them and of the same kind"
SHAPES = "the mean of models exists only where all have one shape"


# --- where they lie ---------------------------------------------------------------------------------------------------


def part_folders(workshop: Workshop) -> dict[str, Path]:
    """Every expert's folder: trained here, trained elsewhere, or taken here out of a model that was."""
    found = {name: workshop.part_at(name) for name in workshop.recipe.experts}
    for name, expert in workshop.recipe.experts.items():
        if expert.path and not taken_out(workshop, name):
            found[name] = workshop.located(expert.path).folder
    return found


def taken_out(workshop: Workshop, name: str) -> bool:
    """Whether an expert is the blocks of a fine-tuned model, which are kept in the run directory."""
    expert = workshop.recipe.experts[name]
    if not expert.path or expert.kind != "ffn":
        return False
    return not (workshop.located(expert.path).folder / ffn_room.CONFIG).is_file()


def take_out(workshop: Workshop, progress: Progress) -> None:
    """Keep the blocks of fine-tuned models that the recipe names, where they are not kept; what else differs is told.

    One that is the base itself is an expert, too: its blocks are the base's.
    """
    for name, expert in workshop.recipe.experts.items():
        if not taken_out(workshop, name):
            continue
        base, part = workshop.base, workshop.part_at(name)
        source = workshop.located(expert.path or "").folder
        manifest = read_manifest(source) if (source / MANIFEST).is_file() else {}
        made_of = identified(source, manifest)[2]
        key = workshop.key("blocks", source=made_of, base=base.fingerprint, ignore_rest=expert.ignore_rest)
        if workshop.finished(part, key, progress):
            continue
        if made_of == base.fingerprint:
            ffn = FFN.of(base.decoder, range(base.decoder.config.num_layers))
            facts: dict[str, Any] = {"from": "the base itself", "verified": True}
        else:
            ffn, facts = blocks_of(base, source, expert.ignore_rest, progress, name)
        facts |= {"name": name, "stage_key": key, "source_fingerprint": made_of, **base.told}
        size = ffn.num_parameters * next(base.decoder.parameters()).element_size()
        workshop.publish(part, partial(save_ffn, ffn=ffn, base_fingerprint=base.fingerprint, facts=facts), size)


def read_part(workshop: Workshop, folder: Path, base: Base) -> Stored:
    """An expert of the recipe's kind, held against a base."""
    return SITES[workshop.recipe.site].read(folder, base)


def fingerprint_of(stored: Stored, folder: Path) -> str:
    """What an expert that was read is; a whole model from elsewhere is hashed."""
    return stored.fingerprint or identified(folder, {})[2]


def version_of(workshop: Workshop, name: str, folder: Path) -> str:
    """What an expert is: of one that was made here what it was made from, of others their weights."""
    if (name in workshop.trained_experts()) or taken_out(workshop, name):
        return digest(workshop.identity(folder))
    if workshop.recipe.site == "linear":
        return load_expert(folder).fingerprint  # of encoders, too, which have no base that writes
    return fingerprint_of(read_part(workshop, folder, workshop.base), folder)


# --- as one ---------------------------------------------------------------------------------------------------


def joined(workshop: Workshop, folders: Mapping[str, Path]) -> Decoder:
    """A base of its own with experts in its slots, in this order."""
    base = workshop.fresh_base()
    found = [read_part(workshop, folder, base) for folder in folders.values()]
    attach(base.decoder, [one.lora for one in found if isinstance(one, StoredExpert)])
    beside.attach(base.decoder, [one.ffn for one in found if isinstance(one, StoredFFN)])
    return base.decoder


def averaged(workshop: Workshop, mixture: StoredMixture) -> Decoder:
    """One dense model: the base with the mean of all experts."""
    decoder, found = workshop.fresh_base().decoder, [mixture.experts[name] for name in mixture.model.names]
    models = [one.decoder for one in found if isinstance(one, StoredModel)]
    blocks = [one.ffn for one in found if isinstance(one, StoredFFN)]
    if models:
        return average_models(decoder, models)
    if blocks:
        return average_blocks(decoder, blocks)
    return average(decoder, [one.lora for one in found if isinstance(one, StoredExpert)])


def left_out(workshop: Workshop) -> dict[str, str]:
    """The controls that cannot be computed of this recipe's experts, and why."""
    recipe = workshop.recipe
    found = {} if "joint_wide" in recipe.trained_controls else {"joint_wide": NO_WIDER}
    if recipe.site == "model":
        own = read_config(model_folder(workshop.base_at) / "config.json")[0]
        others = [workshop.located(expert.path).folder for expert in recipe.experts.values() if expert.path]
        if any(read_config(model_folder(folder) / "config.json")[0] != own for folder in others):
            found["average"] = SHAPES
    return found


# --- what they take -----------------------------------------------------------------------------------------------


def counts_of(workshop: Workshop, mixture: StoredMixture, weights: Float[Tensor, "n e"]) -> dict[str, int]:
    """Parameters in all, of each part, and those that answer one row under decisions; see `compose.parameters`."""
    model, found = mixture.model, [mixture.experts[name] for name in mixture.model.names]
    if isinstance(model, ModelMixture):
        return count_models(model, weights)
    blocks = [one.ffn for one in found if isinstance(one, StoredFFN)]
    if blocks:
        return count_blocks(workshop.base.decoder, model.router, blocks, weights)
    return count_parameters(model, [one.adapter for one in found if isinstance(one, StoredExpert)], weights)


def cost_of(workshop: Workshop, stored: Stored) -> int:
    """Parameters that answer a row of one expert alone: beside the base's, in the place of some, or instead of all."""
    base = workshop.base.decoder
    if isinstance(stored, StoredModel):
        return num_parameters(stored.decoder)
    if isinstance(stored, StoredFFN):
        slots = ffns(base)
        replaced = sum(num_parameters(slots[path]) for path in stored.ffn.blocks)
        return num_parameters(base) - replaced + stored.ffn.num_parameters
    return num_parameters(base) - asleep(base) + stored.adapter.num_parameters


def costs_of(
    workshop: Workshop, mixture: StoredMixture, counts: Mapping[str, int], trained: Mapping[str, Stored]
) -> dict[str, Cost]:
    """Parameters and bytes read for one token, of whatever could be used instead of the mixture; `trained`: the
    controls that are trained like an expert.
    """
    base = workshop.base.decoder
    own = num_parameters(base) - asleep(base)
    parameters = {"base": own, "average": own, "router": counts["active"]}
    parameters |= {f"expert:{name}": cost_of(workshop, stored) for name, stored in mixture.experts.items()}
    parameters |= {name: cost_of(workshop, stored) for name, stored in trained.items()}
    width = base.norm.weight.element_size()
    return {name: Cost(parameters=count, bytes=count * width) for name, count in parameters.items()}


def speed_of(mixture: StoredMixture) -> float:
    """Tokens a second where the first expert answers, one row at a time."""
    model = mixture.model
    if isinstance(model, AdapterMixture):
        like = model.decoder.norm.weight
        return tokens_per_second(model.decoder, Gates.one(0, 1, len(model.names), like))
    first = mixture.experts[model.names[0]]
    assert isinstance(first, StoredModel)
    return tokens_per_second(first.decoder, None)
