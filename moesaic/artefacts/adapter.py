"""Adapters on disk: the files of PEFT or the cores of tensor trains, and our manifest.

A folder without a manifest loads too, unverified. Knows nothing about training or routing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moesaic.adapters import Adapter, LoRA, TensorTrain
from moesaic.adapters.fused import fused
from moesaic.artefacts import heads
from moesaic.artefacts import tt_lora as trains
from moesaic.artefacts.stored import Stored
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, digest, read_manifest, write_json, write_manifest, write_new
from moesaic.interop import peft_config, peft_experts, peft_tensors
from moesaic.model.classifier import Head
from moesaic.tensors.tensors import fingerprint, write_tensors

KIND = "expert"
FILES = (peft_config.CONFIG, peft_tensors.TENSORS, trains.CONFIG, trains.TENSORS, heads.TENSORS)
"""Files that an adapter's folder may hold beside its manifest."""


@dataclass(frozen=True)
class Format:
    """One kind of adapter as files: its word, the names of its two files, and the functions that make their content."""

    kind: str
    config: str
    at: str
    tensors: Callable[[Any], dict[str, Tensor]]
    written: Callable[[Any], tuple[dict[str, Any], dict[str, Tensor]]]


FORMATS: dict[type, Format] = {
    LoRA: Format("lora", peft_config.CONFIG, peft_tensors.TENSORS, peft_tensors.tensors_of, peft_tensors.written),
    TensorTrain: Format(trains.KIND, trains.CONFIG, trains.TENSORS, trains.tensors_of, trains.written),
}


@dataclass(frozen=True)
class StoredExpert(Stored):
    """An adapter as read, its manifest ({} for a foreign adapter), and its head if it classifies."""

    adapter: Adapter
    manifest: dict[str, Any]
    head: Head | None = None

    @cached_property
    def lora(self) -> LoRA:
        return self.adapter.lora()

    @property
    def fingerprint(self) -> str:
        """Hash of the matrices or cores under their names on disk, of their scales, and of the head."""
        own: list[Any] = [[fingerprint(self.head.state_dict()), heads.facts_of(self.head)]] if self.head else []
        written, scales = FORMATS[type(self.adapter)], getattr(self.adapter, "alphas", None)
        tensors, scaled = fingerprint(written.tensors(self.adapter)), [dict(scales)] if scales else []
        return digest([tensors, self.adapter.rank, self.adapter.alpha, *scaled, *own])


def save_expert(
    folder: Path, adapter: Adapter, base_fingerprint: str, facts: dict[str, Any], head: Head | None = None
) -> None:
    """Write an adapter into an empty folder, with its manifest: LoRA in PEFT's files, tensor trains as cores.

    `head`: that of an expert that classifies; `facts["head"]` are further facts about it.
    """
    form = FORMATS[type(adapter)]
    config, tensors = form.written(adapter)
    write_tensors(folder / form.at, tensors)
    write_json(folder / form.config, config)
    fingerprint = StoredExpert(adapter, {}, head).fingerprint
    own = {"kind": KIND, "fingerprint": fingerprint, "base_fingerprint": base_fingerprint, "adapter": form.kind}
    shape = {"rank": adapter.rank, "alpha": adapter.alpha, "targets": adapter.targets, "layers": adapter.layers}
    shape["parameters"] = adapter.num_parameters
    if head:
        write_tensors(folder / heads.TENSORS, head.state_dict())
        facts = {**facts, "head": {**heads.facts_of(head), **facts.get("head", {})}}
    write_manifest(folder, {**own, **shape, **facts})


def export_peft(expert: Path, target: Path) -> Path:
    """Write an expert as an adapter of PEFT into a new folder, read it back, and return `target`.

    A tensor train of rank r becomes LoRA of that rank with alpha * r, the same function; pairs of gate and of up of a
    sparse base's experts become pairs of both together. An expert that classifies becomes an adapter of transformers'
    sequence classifier of the base, with its head.
    `expert`: its folder, or the folder in a run directory that holds its `best`.
    """
    expert = best_in(expert)
    stored = load_expert(expert)
    lora, head = fused(stored.lora), stored.head
    peft_experts.require_packable(lora, expert)
    before, tensors = theirs(expert, stored) if head else (None, {})
    config, pairs = peft_tensors.written(lora, before, tensors)
    if origin := stored.manifest.get("base_origin"):
        config |= {"base_model_name_or_path": origin["place"].partition("@")[0], "revision": origin.get("commit")}
    size = sum(tensor.numel() * tensor.element_size() for tensor in pairs.values())

    def write(folder: Path) -> None:
        write_tensors(folder / peft_tensors.TENSORS, pairs)
        write_json(folder / peft_config.CONFIG, config)
        again = load_expert(folder, labels=head.shape.labels if head else None)
        if not same(again.lora, lora) or again.fingerprint != StoredExpert(lora, {}, head).fingerprint:
            raise WeightsError("the adapter differs from the expert after reading it back", path=folder)

    return write_new(target, write, size, "the adapter")


def same(one: LoRA, other: LoRA) -> bool:
    """Whether two experts have the same bits and scales."""
    keys = one.pairs.keys() == other.pairs.keys()
    return keys and all(
        one.scale_of(path) == other.scale_of(path) and a.equal(other.pairs[path][0]) and b.equal(other.pairs[path][1])
        for path, (a, b) in one.pairs.items()
    )


def best_in(folder: Path) -> Path:
    """The folder of an expert; WeightsError that lists the experts for the folder of a run or a mixture."""
    if (folder / "best" / MANIFEST).is_file():
        return folder / "best"
    inside = sorted(found.name for found in (folder / "experts").glob("*") if found.is_dir())
    if inside:
        hint = f"name one of them: {', '.join(f'{folder}/experts/{name}' for name in inside)}"
        raise WeightsError("several experts, not one", path=folder, hint=hint)
    return folder


def theirs(folder: Path, stored: StoredExpert) -> tuple[str, dict[str, Tensor]]:
    """The prefix of modules and the tensors of the head in transformers' sequence classifier of an expert's base."""
    facts = stored.manifest.get("head", {})
    family, pool = facts.get("family"), facts.get("pool")
    usual = "last" if family == "decoder" else "first"
    if stored.head is None or family not in peft_tensors.BEFORE or pool != usual:
        what = "transformers has no classifier of this base that reads this state"
        raise CompatibilityError(what, path=folder, field="head.pool", expected=usual, got=f"{pool} of {family}")
    return peft_tensors.BEFORE[family], heads.theirs(stored.head, family == "decoder")


def load_expert(
    folder: Path,
    base_fingerprint: str | None = None,
    decoder: nn.Module | None = None,
    labels: tuple[str, ...] | None = None,
    mapped: bool = False,
) -> StoredExpert:
    """Read an adapter, ours or PEFT's; a base named by its manifest must have this `base_fingerprint`.

    `decoder`: the plain decoder or encoder of the base, with which the adapter is compared as in
    `peft_tensors.read_adapter`. `labels`: the labels that the expert's head must have; of PEFT's heads only their
    number is known. `mapped`: pairs may be views of the file.
    """
    manifest = manifest_of(folder, base_fingerprint)
    both = [name for name in (peft_config.CONFIG, trains.CONFIG) if (folder / name).is_file()]
    if len(both) == 2:
        raise WeightsError("two adapters in one folder", path=folder, expected=" or ".join(both))
    if labels and not manifest and trains.CONFIG not in both:
        lora, tensors = peft_tensors.read_classifying(folder, decoder)
        return StoredExpert(lora, manifest, heads.foreign(folder / peft_tensors.TENSORS, tensors, labels))
    head = heads.load_head(folder, manifest["head"]) if manifest.get("head") else None
    if labels and (head is None or head.shape.labels != labels):
        got = "no head" if head is None else ", ".join(head.shape.labels)
        what, hint = "the expert does not classify by the labels of its data", "train it again"
        raise CompatibilityError(what, path=folder, field="head.labels", expected=", ".join(labels), got=got, hint=hint)
    if trains.CONFIG in both:
        return StoredExpert(trains.read_train(folder, decoder), manifest, head)
    return StoredExpert(peft_tensors.read_adapter(folder, decoder, mapped), manifest, head)


def manifest_of(folder: Path, base_fingerprint: str | None, kinds: str | tuple[str, ...] = KIND) -> dict[str, Any]:
    """Read an expert's manifest, {} if it has none; CompatibilityError if it was made for another base."""
    if not folder.is_dir():
        raise WeightsError("no such expert folder", path=folder)
    manifest = read_manifest(folder, kinds) if (folder / MANIFEST).is_file() else {}
    field, made_for = "base_fingerprint", manifest.get("base_fingerprint")
    if base_fingerprint and made_for and made_for != base_fingerprint:
        what, hint = "the expert was trained on another base", "use it with its own base, or train it again on this one"
        expected, got = base_fingerprint[:12], made_for[:12]
        raise CompatibilityError(what, path=folder, field=field, expected=expected, got=got, hint=hint)
    return manifest
