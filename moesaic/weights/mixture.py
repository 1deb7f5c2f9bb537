"""Mixtures on disk: one folder with the base, the experts and the router in it, that can be moved anywhere.

Knows nothing about text in or out: `generate/` asks the mixture that stands here.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from moesaic.adapters import LoRA, attach, feedforward, standing
from moesaic.adapters.feedforward import FFN
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, disk, gather, is_published, read_manifest, write_manifest
from moesaic.model.mixture import AdapterMixture
from moesaic.model.source import HELD, ExpertSource
from moesaic.model.whole import LEVELS, Level, ModelMixture
from moesaic.ops.ensemble import COMBINATIONS, Combine
from moesaic.tokenizer import Tokenizer
from moesaic.weights import adapter as adapter_room
from moesaic.weights import base as base_room
from moesaic.weights import feedforward as ffn_room
from moesaic.weights import router as router_room
from moesaic.weights.adapter import StoredExpert, load_expert
from moesaic.weights.base import Base, load_base
from moesaic.weights.feedforward import FFNFiles, FFNPlace, StoredFFN, load_ffn
from moesaic.weights.fetching import Budget, Fetchable, FetchedExperts, Whole
from moesaic.weights.names import expert_names
from moesaic.weights.router import StoredRouter, load_router
from moesaic.weights.whole import StoredModel, load_whole, model_of, open_whole, write_into_mixture

KIND = "mixture"
Stored = StoredExpert | StoredFFN | StoredModel
Mixture = AdapterMixture | ModelMixture


@dataclass(frozen=True)
class Site:
    """Where experts meet, as far as the disk is concerned: how one is read over its base, and how the folder of one is
    written into a mixture's beside a base's folder. `open` reads all but the values, of the expert in a place."""

    read: Callable[[Path, Base], Stored]
    write: Callable[[Path, Path, Path], None]
    open: Callable[[Path, Base, int], tuple[Fetchable, Stored]]


def copying(files: tuple[str, ...]) -> Callable[[Path, Path, Path], None]:
    """Writes an expert's folder by taking over these files of it and its manifest."""

    def write(source: Path, target: Path, base: Path) -> None:
        gather({file: source / file for file in (*files, MANIFEST)}, target)

    return write


def read_adapter(at: Path, base: Base) -> StoredExpert:
    return load_expert(at, base.fingerprint, base.decoder, mapped=True)


def open_adapter(at: Path, base: Base, place: int) -> tuple[Fetchable, StoredExpert]:
    """Adapters are small: they are held."""
    return Whole(), read_adapter(at, base)


def open_ffn(at: Path, base: Base, place: int) -> tuple[Fetchable, StoredFFN]:
    files = FFNFiles(at, base.fingerprint, base.decoder)
    return FFNPlace(files, base.decoder, place), StoredFFN(files.outline, files.manifest)


def open_model(at: Path, base: Base, place: int) -> tuple[Fetchable, StoredModel]:
    files, manifest = open_whole(at, base)
    if not files.own:
        files.fill({})
    return files, model_of(files, manifest, base)


SITES = {
    "linear": Site(read_adapter, copying(adapter_room.FILES), open_adapter),
    "ffn": Site(lambda at, base: load_ffn(at, base.fingerprint, base.decoder), copying(ffn_room.FILES), open_ffn),
    "model": Site(load_whole, write_into_mixture, open_model),
}


@dataclass(frozen=True)
class StoredMixture:
    """A mixture as read, ready to route and compute. `source`: who has its experts in memory."""

    model: Mixture
    tokenizer: Tokenizer
    experts: Mapping[str, Stored]
    manifest: dict[str, Any]
    folder: Path
    source: ExpertSource = HELD


def assemble(
    base: Base,
    experts: Mapping[str, Stored],
    router: StoredRouter,
    disabled: Collection[str] = (),
    level: Level = "sequence",
    combine: Combine = "mixture",
    source: ExpertSource = HELD,
) -> Mixture:
    """Join the parts, in the order of the router's names. The base's decoder becomes the mixture's.

    `level` and `combine` are those of whole models; other experts are chosen by the prompt. With a `source` that
    fetches them, blocks have places that are empty so far.
    """
    require_names(router, experts)
    found, decider = [experts[name] for name in router.names], router.over(base.decoder, disabled)
    models = [one.decoder for one in found if isinstance(one, StoredModel)]
    if models:
        return ModelMixture(base.decoder, models, decider, level, combine, source)
    loras = [one.lora for one in found if isinstance(one, StoredExpert)]
    ffns = [one.ffn for one in found if isinstance(one, StoredFFN)]
    beside: list[LoRA | FFN] = [*loras, *ffns]
    lowest = min(layer for expert in beside for layer in expert.layers)
    attach(base.decoder, loras)
    (feedforward.attach if source is HELD else feedforward.reserve)(base.decoder, ffns)
    return AdapterMixture(base.decoder, decider, lowest, source)


def require_names(router: StoredRouter, names: Collection[str]) -> None:
    if set(router.names) != set(names):
        what = "the router decides between other experts"
        raise CompatibilityError(what, expected=sorted(router.names), got=sorted(names))


def save_mixture(folder: Path, base: Path, experts: dict[str, Path], router: Path, facts: dict[str, Any]) -> None:
    """Gather the files of the parts, and nothing else that may lie beside them, in an empty folder.

    `facts` say the mixture's `site` (of adapters, where they say none), `level` and, of whole models, `combine`.
    """
    gather(base_room.files_of(base), folder / "base")
    gather({file: router / file for file in (*router_room.FILES, MANIFEST)}, folder / "router")
    site = SITES[facts.get("site", "linear")]
    for name, path in experts.items():
        disk.make_all(folder / "experts" / name)
        site.write(path, folder / "experts" / name, folder / "base")
    write_manifest(folder, {"kind": KIND, "experts": list(experts), **facts})


def room_for(base: Path, experts: Collection[Path], router: Path) -> int:
    """Bytes that the mixture of these folders takes: what is published already takes none but where links are missing.

    In that case the disk itself says when it is full.
    """
    beside = (path for folder in (router, router / router_room.ENCODER, *experts) for path in folder.glob("*"))
    files = [path for path in (*base_room.files_of(base).values(), *beside) if path.is_file()]
    return sum(path.stat().st_size for path in files if not is_published(path))


def load_mixture(folder: Path, budget: Budget | None = None) -> StoredMixture:
    """Read a mixture; all of its files are checked against their hashes, and the parts against each other.

    With a `budget` experts that are not adapters are fetched when they are needed, and their values are checked then.
    """
    folder = Path(os.path.realpath(folder))
    manifest = read_manifest(folder, KIND)
    names = expert_names(folder, manifest)
    base = load_base(folder / "base")
    site = SITES[said(folder, manifest, "site", [*SITES])]
    experts = {} if budget else {name: site.read(folder / "experts" / name, base) for name in names}
    router = load_router(folder / "router", base.fingerprint)
    source: ExpertSource = HELD
    whole = site is SITES["model"]
    level, combine = said(folder, manifest, "level", LEVELS if whole else LEVELS[:1]), COMBINATIONS[0]
    if whole:
        combine = said(folder, manifest, "combine", COMBINATIONS)
    if budget:
        require_names(router, names)
        experts, source = fetched(folder, site, base, router, budget, level)
    mixture = assemble(base, experts, router, disabled_in(folder, manifest), level, combine, source)
    for name, expert in experts.items():  # nobody holds the files' tensors any longer, nor their pages
        place = mixture.names.index(name)
        if isinstance(expert, StoredFFN) and source is HELD:
            experts[name] = StoredFFN(feedforward.standing(base.decoder, place), expert.manifest)
        elif isinstance(expert, StoredExpert):
            adapter = expert.adapter  # of a train the pairs are made again where somebody asks for them
            own = standing(base.decoder, adapter, place) if isinstance(adapter, LoRA) else adapter
            experts[name] = replace(expert, adapter=own)
    return StoredMixture(mixture, base.tokenizer, experts, manifest, folder, source)


def fetched(
    folder: Path, site: Site, base: Base, router: StoredRouter, budget: Budget, level: Level
) -> tuple[dict[str, Stored], FetchedExperts]:
    """The experts of a mixture without their values, and who fetches these; base and router are moved to the device."""
    for part in (base.decoder, router.router, *([router.encoder.sentences] if router.encoder else [])):
        part.to(budget.device)
    experts, opened = dict[str, Stored](), list[Fetchable]()
    for place, name in enumerate(router.names):
        comes, experts[name] = site.open(folder / "experts" / name, base, place)
        opened.append(comes)
    return experts, FetchedExperts(opened, budget, level == "sequence")


Word = TypeVar("Word", bound=str)


def said(folder: Path, manifest: Mapping[str, Any], field: str, known: Sequence[Word]) -> Word:
    """What a mixture's manifest says, one of the words known; the first mixtures had no choice and said nothing."""
    word = manifest.get(field, known[0])
    if word not in known:
        expected = " or ".join(known)
        raise WeightsError("unknown", path=folder / MANIFEST, field=field, expected=expected, got=str(word))
    return known[known.index(word)]


def disabled_in(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """The experts that a mixture's manifest keeps from being chosen."""
    disabled, names = manifest.get("disabled", []), manifest["experts"]
    if not isinstance(disabled, list) or not all(name in names for name in disabled):
        expected = f"some of {', '.join(names)}"
        raise WeightsError("not experts", path=folder / MANIFEST, field="disabled", expected=expected, got=disabled)
    return disabled
