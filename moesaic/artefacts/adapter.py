"""Experts on disk: a PEFT adapter folder, or the cores of tensor trains; plus our manifest.

A folder without a manifest loads too, as declared but unverified. Knows nothing about training or routing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from moesaic.adapters import Adapter, LoRA, TensorTrain
from moesaic.artefacts import heads
from moesaic.artefacts import tt_lora as trains
from moesaic.artefacts.stored import Stored
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, digest, read_manifest, write_json, write_manifest, write_new
from moesaic.interop import peft
from moesaic.model.classifier import Head
from moesaic.tensors.tensors import fingerprint, write_tensors

KIND = "expert"
FILES = (peft.CONFIG, peft.TENSORS, trains.CONFIG, trains.TENSORS, heads.TENSORS)
"""What an expert's folder may hold beside its manifest; which of it, its kind says."""


@dataclass(frozen=True)
class Format:
    """One kind of adapter as files: its word, the names of its two files, and what they hold."""

    kind: str
    config: str
    at: str
    tensors: Callable[[Any], dict[str, Tensor]]
    written: Callable[[Any], tuple[dict[str, Any], dict[str, Tensor]]]


FORMATS: dict[type, Format] = {
    LoRA: Format("lora", peft.CONFIG, peft.TENSORS, peft.tensors_of, peft.written),
    TensorTrain: Format(trains.KIND, trains.CONFIG, trains.TENSORS, trains.tensors_of, trains.written),
}
"""Adapter -> its format."""


@dataclass(frozen=True)
class StoredExpert(Stored):
    """An expert as read: what it was trained as, and what its folder says of it ({} for a foreign adapter).

    `head`: of one that classifies.
    """

    adapter: Adapter
    manifest: dict[str, Any]
    head: Head | None = None

    @cached_property
    def lora(self) -> LoRA:
        """Its pairs, which everything but training works with."""
        return self.adapter.lora()

    @property
    def fingerprint(self) -> str:
        """The hash of its matrices or cores, under the names they have on disk, of their scales, and of its head."""
        own: list[Any] = [[fingerprint(self.head.state_dict()), heads.facts_of(self.head)]] if self.head else []
        written, scales = FORMATS[type(self.adapter)], getattr(self.adapter, "alphas", None)
        tensors, scaled = fingerprint(written.tensors(self.adapter)), [dict(scales)] if scales else []
        return digest([tensors, self.adapter.rank, self.adapter.alpha, *scaled, *own])


def save_expert(
    folder: Path, adapter: Adapter, base_fingerprint: str, facts: dict[str, Any], head: Head | None = None
) -> None:
    """Write an expert into an empty folder, with its manifest: LoRA as PEFT would, tensor trains as their cores.

    `head`: of one that classifies; `facts["head"]` is what else is to be said of it. `parameters` are the adapter's,
    those of the head are told with it.
    """
    form = FORMATS[type(adapter)]
    config, tensors = form.written(adapter)
    write_tensors(folder / form.at, tensors)
    write_json(folder / form.config, config)
    own = {
        "kind": KIND,
        "fingerprint": StoredExpert(adapter, {}, head).fingerprint,
        "base_fingerprint": base_fingerprint,
    }
    shape = {"adapter": form.kind, "rank": adapter.rank, "alpha": adapter.alpha}
    shape |= {"targets": adapter.targets, "layers": adapter.layers}
    if head:
        heads.save_head(folder, head)
        facts = {**facts, "head": {**heads.facts_of(head), **facts.get("head", {})}}
    write_manifest(folder, {**own, **shape, "parameters": adapter.num_parameters, **facts})


def export_peft(expert: Path, target: Path) -> Path:
    """Write an expert of any kind as an adapter of PEFT where nothing is yet, read it back, and return `target`.

    A tensor train of rank r becomes LoRA of that rank with alpha * r, which is the same function. One that classifies
    becomes an adapter of the model for sequence classification that transformers makes of the base, its head within.
    `expert`: its folder, or the one in a run directory that holds its `best`.
    """
    expert = best_in(expert)
    stored = load_expert(expert)
    lora, head = stored.lora, stored.head
    before, tensors = theirs(expert, stored) if head else (None, {})
    config, pairs = peft.written(lora, before, tensors)
    size = sum(tensor.numel() * tensor.element_size() for tensor in pairs.values())

    def write(folder: Path) -> None:
        write_tensors(folder / peft.TENSORS, pairs)
        write_json(folder / peft.CONFIG, config)
        again = load_expert(folder, labels=head.shape.labels if head else None)
        if again.fingerprint != StoredExpert(lora, {}, head).fingerprint:
            raise WeightsError("what was written is not what is read back", path=folder)

    return write_new(target, write, size, "the adapter")


def best_in(folder: Path) -> Path:
    """The folder of an expert where one is meant; of a run or a mixture it is said which there are."""
    if (folder / "best" / MANIFEST).is_file():
        return folder / "best"
    inside = sorted(found.name for found in (folder / "experts").glob("*") if found.is_dir())
    if inside:
        hint = f"name one of them: {', '.join(f'{folder}/experts/{name}' for name in inside)}"
        raise WeightsError("several experts, not one", path=folder, hint=hint)
    return folder


def theirs(folder: Path, stored: StoredExpert) -> tuple[str, dict[str, Tensor]]:
    """How transformers' sequence classifiers name the modules of an expert's base, and the tensors of its head."""
    facts = stored.manifest.get("head", {})
    family, pool = facts.get("family"), facts.get("pool")
    usual = "last" if family == "decoder" else "first"
    if stored.head is None or family not in peft.BEFORE or pool != usual:
        what = "transformers has no classifier that reads this state of this base"
        raise CompatibilityError(what, path=folder, field="head.pool", expected=usual, got=f"{pool} of {family}")
    return peft.BEFORE[family], heads.theirs(stored.head, family == "decoder")


def load_expert(
    folder: Path,
    base_fingerprint: str | None = None,
    decoder: nn.Module | None = None,
    labels: tuple[str, ...] | None = None,
    mapped: bool = False,
) -> StoredExpert:
    """Read an expert, ours or PEFT's; where it says which base it was trained on, that must be `base_fingerprint`.

    With the plain `decoder` of the base, or encoder, the expert is held against it: see `peft.read_adapter`. `labels`:
    of one that is to classify, which must have a head for these; PEFT's say nothing but their number. `mapped`: pairs
    may be views of the file.
    """
    manifest = manifest_of(folder, base_fingerprint)
    both = [name for name in (peft.CONFIG, trains.CONFIG) if (folder / name).is_file()]
    if len(both) == 2:
        raise WeightsError("two adapters in one folder", path=folder, expected=" or ".join(both))
    if labels and not manifest and trains.CONFIG not in both:
        lora, tensors = peft.read_classifying(folder, decoder)
        return StoredExpert(lora, manifest, heads.foreign(folder / peft.TENSORS, tensors, labels))
    head = heads.load_head(folder, manifest["head"]) if manifest.get("head") else None
    if labels and (head is None or head.shape.labels != labels):
        got = "no head" if head is None else ", ".join(head.shape.labels)
        what, hint = "the expert does not classify by the labels of its data", "train it again"
        raise CompatibilityError(what, path=folder, field="head.labels", expected=", ".join(labels), got=got, hint=hint)
    if trains.CONFIG in both:
        return StoredExpert(trains.read_train(folder, decoder), manifest, head)
    return StoredExpert(peft.read_adapter(folder, decoder, mapped), manifest, head)


def manifest_of(folder: Path, base_fingerprint: str | None, kinds: str | tuple[str, ...] = KIND) -> dict[str, Any]:
    """What an expert's folder says of itself, {} where it has no manifest; refused if it was made for another base."""
    if not folder.is_dir():
        raise WeightsError("no such expert folder", path=folder)
    manifest = read_manifest(folder, kinds) if (folder / MANIFEST).is_file() else {}
    made_for = manifest.get("base_fingerprint")
    if base_fingerprint and made_for and made_for != base_fingerprint:
        raise CompatibilityError(
            "the expert was trained on another base",
            path=folder,
            field="base_fingerprint",
            expected=base_fingerprint[:12],
            got=made_for[:12],
            hint="compose it with its own base, or train it again on this one",
        )
    return manifest
