"""A mixture as a repository of the hub: the files to upload, and the facts on its card.

Knows nothing about the layout of cards or the protocol of the hub.
"""

import math
from pathlib import Path
from typing import Any

from moesaic.artefacts.inspect import Artefact, inspect
from moesaic.errors import CompatibilityError
from moesaic.files import MANIFEST, read_sealed
from moesaic.hub import hub
from moesaic.hub.card import mixture_card
from moesaic.hub.locate import origins_in
from moesaic.tensors.safetensors_file import opened


def push_mixture(
    folder: Path,
    evaluation_at: Path,
    repository: str,
    private: bool | None,
    revision: str | None,
    token: str | None,
    license: str | None,
) -> str:
    """Verify the files that the manifest lists, push them with a card, and return the commit's address."""
    target = hub.repository(repository, revision)
    found = inspect(folder)
    if "router" not in found.parts:
        hint = "push a base with moesaic.load_model(PLACE).push_to_hub(...); adopt experts into a mixture to push them"
        raise CompatibilityError("only mixtures are pushed", path=folder, got=found.kind, hint=hint)
    card = mixture_card(target, license=license, **facts_of(found), evaluation=evaluation_of(found, evaluation_at))
    files: dict[str, Path | bytes] = {name: folder / name for name in (*found.facts["files"], MANIFEST)}
    return hub.push(target, {**files, hub.CARD: card.encode()}, private, token)


def facts_of(mixture: Artefact) -> dict[str, Any]:
    """The facts on the card of a mixture and its parts."""
    facts, parts, experts = mixture.facts, mixture.parts, []
    origins, router = origins_in(facts, mixture.folder), parts["router"].facts
    for name in facts["experts"]:
        own, folder = parts[f"expert {name}"].facts, parts[f"expert {name}"].folder
        kind, rank = own.get("adapter", "lora"), own.get("rank", own.get("r"))  # PEFT's folders have no manifest
        expert = {"name": name, "kind": kind, "rank": rank, "parameters": parameters(folder)}
        experts.append(expert | {"origin": origins.get(name, {}), "disabled": name in facts.get("disabled", [])})
    base = {"fingerprint": router["base_fingerprint"], "origin": origins.get("base", {})}
    base["parameters"] = parameters(parts["base"].folder)
    name, labels = facts.get("name", "mixture"), "labels" in facts
    return {"name": name, "labels": labels, "base": base, "experts": experts, "router": router}


def parameters(folder: Path) -> int:
    """The number of elements in all safetensors of a folder."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with opened(path) as file:
            count += sum(map(math.prod, file.shapes.values()))
    return count


def evaluation_of(mixture: Artefact, at: Path) -> dict[str, Any]:
    """The evaluation in the run directory if it is of this mixture, else {}."""
    evaluation = read_sealed(at) if at.is_file() else {}
    return evaluation if evaluation.get("mixture", 0) == mixture.facts.get("stage_key") else {}
