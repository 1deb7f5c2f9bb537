"""Mixtures of experts that classify, on disk: the folder of any mixture, with labels in its manifest.

Knows nothing about the encoding of texts or the form of answers.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from moesaic.adapters import attach
from moesaic.artefacts.adapter import StoredExpert, load_expert
from moesaic.artefacts.backbone import Backbone, load_backbone
from moesaic.artefacts.expert_names import expert_names
from moesaic.artefacts.router import StoredRouter, load_router
from moesaic.compose.mixture import KIND, disabled_in
from moesaic.config import Pool
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, read_json, read_manifest
from moesaic.model.classifier import Classifier, ClassifierMixture


@dataclass(frozen=True)
class StoredClassifier:
    """A mixture as read, ready to route and answer; `length`: the most tokens that it reads of a row."""

    model: ClassifierMixture
    base: Backbone
    experts: dict[str, StoredExpert]
    length: int
    manifest: dict[str, Any]
    folder: Path


def classifies(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and "labels" in read_json(folder / MANIFEST)


def assemble_classifier(
    base: Backbone, experts: dict[str, StoredExpert], router: StoredRouter, pool: Pool, disabled: Collection[str] = ()
) -> ClassifierMixture:
    """Join the parts in the order of the router's names; the body of the base becomes that of the mixture."""
    heads = {name: expert.head for name in router.names if (expert := experts.get(name)) and expert.head}
    if set(router.names) != set(experts) or len(heads) != len(experts):
        expected, got = sorted(router.names), sorted(heads)
        raise CompatibilityError("the router decides between other experts", expected=expected, got=got)
    attach(base.body, [experts[name].lora for name in router.names])
    classifier = Classifier(base.body, heads, pool).requires_grad_(False)
    return ClassifierMixture(classifier, router.over(base.body, disabled))


def load_classifier(folder: Path, bits: int | None = None) -> StoredClassifier:
    """Read a mixture; checks all files against their hashes, and the parts against each other.

    `bits`: of the base, see `load_base`.
    """
    folder = Path(os.path.realpath(folder))
    manifest = read_manifest(folder, KIND)
    names, path = expert_names(folder, manifest), folder / MANIFEST
    labels, length = manifest.get("labels"), manifest.get("length")
    pool: Any = manifest.get("pool")
    if not isinstance(labels, dict) or not all(isinstance(labels.get(name), list) for name in names):
        raise WeightsError("labels are missing for some experts", path=path, field="labels", got=str(labels))
    if pool not in get_args(Pool):
        expected = " or ".join(get_args(Pool))
        raise WeightsError("unknown pool", path=path, field="pool", expected=expected, got=str(pool))
    base = load_backbone(folder / "base", bits=bits)
    if not isinstance(length, int) or not 0 < length <= base.body.config.context:
        expected = f"1 to {base.body.config.context}"
        raise WeightsError("wrong length of rows", path=path, field="length", expected=expected, got=str(length))
    experts = {
        name: load_expert(folder / "experts" / name, base.fingerprint, base.body, tuple(labels[name])) for name in names
    }
    router = load_router(folder / "router", base.fingerprint)
    model = assemble_classifier(base, experts, router, pool, disabled_in(folder, manifest))
    return StoredClassifier(model.eval(), base, experts, length, manifest, folder)
