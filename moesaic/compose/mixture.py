"""Mixtures on disk: one folder with base, experts and router, which works wherever it is moved.

Knows nothing about texts: `generate` turns prompts into answers.
"""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.artefacts import base as base_room
from moesaic.artefacts import router as router_room
from moesaic.artefacts.base import Base, load_base
from moesaic.artefacts.expert_names import expert_names
from moesaic.artefacts.manifest_words import ENCODER, said
from moesaic.artefacts.reference import Reference, base_at, require_base
from moesaic.artefacts.router import StoredRouter, load_router
from moesaic.errors import CompatibilityError, WeightsError
from moesaic.files import MANIFEST, disk, gather, is_published, read_manifest, write_manifest
from moesaic.kinds import AnyKind, at_site, sites
from moesaic.kinds.kind import Mixing, Stored
from moesaic.model.mixture import Routed
from moesaic.model.source import HELD, ExpertSource
from moesaic.residency.fetching import Budget, Fetchable, FetchedExperts
from moesaic.tokenizer import Tokenizer

KIND = "mixture"


@dataclass(frozen=True)
class StoredMixture:
    """A mixture as read, ready to route and compute. `source`: keeps or fetches its experts."""

    kind: AnyKind
    model: Routed
    tokenizer: Tokenizer
    experts: Mapping[str, Stored]
    manifest: dict[str, Any]
    folder: Path
    source: ExpertSource = HELD


def assemble(
    kind: AnyKind, base: Base, experts: Mapping[str, Stored], router: StoredRouter, mixing: Mixing | None = None
) -> Routed:
    """Join the parts in the order of the router's names; the decoder of the base becomes that of the mixture."""
    require_names(router, experts)
    return kind.join(base, [experts[name] for name in router.names], router, mixing or Mixing())


def require_names(router: StoredRouter, names: Collection[str]) -> None:
    if set(router.names) != set(names):
        what = "the router decides between other experts"
        raise CompatibilityError(what, expected=sorted(router.names), got=sorted(names))


def save_mixture(folder: Path, base: Path, experts: dict[str, Path], router: Path, facts: dict[str, Any]) -> None:
    """Gather the files of the parts, and no other files beside them, in an empty folder.

    `facts`: `site` (default: linear), `level` and, for whole models, `combine`, and more for the manifest; with a
    `base`, a reference to it, the mixture refers to its base instead of having it.
    """
    if "base" not in facts:
        gather(base_room.files_of(base), folder / "base")
    gather({file: router / file for file in (*router_room.FILES, MANIFEST)}, folder / "router")
    kind = at_site(facts.get("site", "linear"))
    for name, path in experts.items():
        disk.make_all(folder / "experts" / name)
        kind.write(path, folder / "experts" / name, base if "base" in facts else folder / "base")
    write_manifest(folder, {"kind": KIND, "experts": list(experts), **facts})


def copy_mixture(source: Path, target: Path, embed: bool) -> None:
    """Copy the files of a mixture into an empty folder; `embed`: with the base that the mixture refers to.

    A copy with another base has a manifest of its own, and the files that the manifest lists.
    """
    manifest = read_manifest(source, verify=embed)
    listed = [source / name for name in manifest["files"]]
    for path in listed if embed else [path for path in source.rglob("*") if path.is_file()]:
        disk.make_all((target / path.relative_to(source)).parent)
        disk.copy(path, target / path.relative_to(source))
    if embed:
        gather(base_room.files_of(base_at(source, manifest).folder), target / "base")
        write_manifest(target, {key: value for key, value in manifest.items() if key not in OWN_FIELDS})


def embeds(folder: Path, embed: bool | None) -> bool:
    """Whether a copy of this mixture needs its base embedded; None: only a base that no other machine has."""
    reference = Reference.in_manifest(read_manifest(folder, verify=False))
    return reference is not None and (not reference.travels if embed is None else embed)


OWN_FIELDS = ("format_version", "package_version", "files", "base")
"""Fields of a manifest that are written anew with an embedded base."""


def room_for(base: Path | None, experts: Collection[Path], router: Path) -> int:
    """Bytes that the mixture of these folders adds to the disk: published files are linked and take none.

    `base`: None for a mixture that refers to its base.

    On a disk without links they are copied, and a full disk raises then.
    """
    beside = (path for folder in (router, router / ENCODER, *experts) for path in folder.glob("*"))
    own = base_room.files_of(base).values() if base else ()
    files = [path for path in (*own, *beside) if path.is_file()]
    return sum(path.stat().st_size for path in files if not is_published(path))


def load_mixture(folder: Path, budget: Budget | None = None, bits: int | None = None) -> StoredMixture:
    """Read a mixture; checks all files against their hashes, and the parts against each other.

    `bits`: of the base, see `load_base`.
    With a `budget`, experts other than adapters are fetched on demand, and their values are checked then.
    """
    folder = Path(os.path.realpath(folder))
    manifest = read_manifest(folder, KIND)
    names = expert_names(folder, manifest)
    at = base_at(folder, manifest)
    base = load_base(at.folder, at.origin, bits)
    require_base(folder, manifest, base.fingerprint)
    kind = at_site(said(folder, manifest, "site", sites()))
    experts = {} if budget else {name: kind.read(folder / "experts" / name, base) for name in names}
    router = load_router(folder / "router", base.fingerprint)
    level, combine = said(folder, manifest, "level", kind.levels), said(folder, manifest, "combine", kind.combinations)
    source: ExpertSource = HELD
    if budget:
        require_names(router, names)
        experts, source = fetched(folder, kind, base, router, budget, level)
    mixing = Mixing(level, combine, disabled_in(folder, manifest), source)
    mixture = assemble(kind, base, experts, router, mixing)
    if source is HELD or kind.always_held:
        experts = {name: kind.held(base.decoder, one, mixture.names.index(name)) for name, one in experts.items()}
    return StoredMixture(kind, mixture, base.tokenizer, experts, manifest, folder, source)


def fetched(
    folder: Path, kind: AnyKind, base: Base, router: StoredRouter, budget: Budget, level: str
) -> tuple[dict[str, Stored], FetchedExperts]:
    """Open the experts of a mixture without their values, with a source that fetches these; moves base and router."""
    for part in (base.decoder, router.router, *([router.encoder.sentences] if router.encoder else [])):
        part.to(budget.device)
    experts, opened = dict[str, Stored](), list[Fetchable]()
    for index, name in enumerate(router.names):
        comes, experts[name] = kind.open(folder / "experts" / name, base, index)
        opened.append(comes)
    return experts, FetchedExperts(opened, budget, level == "sequence")


def disabled_in(folder: Path, manifest: dict[str, Any]) -> list[str]:
    disabled, names = manifest.get("disabled", []), manifest["experts"]
    if not isinstance(disabled, list) or not all(name in names for name in disabled):
        expected = f"some of {', '.join(names)}"
        raise WeightsError("unknown experts", path=folder / MANIFEST, field="disabled", expected=expected, got=disabled)
    if set(names) <= {*disabled}:
        what, hint = "no expert is left to choose", "enable one: moesaic adopt --enable"
        raise WeightsError(what, path=folder / MANIFEST, field="disabled", got=", ".join(disabled), hint=hint)
    return disabled
