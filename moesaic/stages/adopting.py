"""Adoption: a mixture out of experts that are there already, without a recipe or corpora; and its later changes.

The Python twins of `moesaic adopt`. Knows nothing about terminals, nor about how the experts were trained.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from moesaic.adapters import LoRA
from moesaic.compose.difference import difference
from moesaic.config import Feature
from moesaic.data.prompts import read_prompts
from moesaic.errors import CompatibilityError, DataError, RecipeError, StorageError, WeightsError, memory_for, nearest
from moesaic.files import check_space, disk, lock, publish, read_manifest, write_json
from moesaic.model.features import Prompts, read
from moesaic.recipe import validate_expert, validate_name
from moesaic.routing import Selection
from moesaic.routing.routers import TrainedRouter
from moesaic.stages.progress import Progress, Silent
from moesaic.tokenizer import Conversation, compare
from moesaic.train.arrow import fit_arrow, overlaps
from moesaic.train.few import few_shot
from moesaic.weights import router as router_room
from moesaic.weights.adapter import load_expert, save_expert
from moesaic.weights.base import Base, load_base
from moesaic.weights.mixture import KIND, disabled_in, load_mixture, save_mixture
from moesaic.weights.names import expert_names
from moesaic.weights.peft import CONFIG
from moesaic.weights.router import StoredRouter, save_router
from moesaic.weights.tensors import read_tensors, write_tensors

RANK = 16
KEPT = 100
"""Prompts of one expert that are used at most; ten are enough."""
BATCH = 32
FEATURE = "hidden_mean"
OUTSIDE_LIMIT = 0.5
"""The share of what fine-tuning changed that may lie where no LoRA expert can hold it."""
SEED = 0

Where = str | PathLike[str]


@dataclass(frozen=True)
class Adoption:
    """A mixture that was adopted or changed. `folder`: the mixture's own.

    `router`: its kind, what it reads, and how sure it is: `accuracy`, with `right` of `of` prompts of each expert,
    routed by one that was made without them; or, made from weights and untested, the two experts most `alike` and
    their `overlap`. `experts`: of each, what it was made of; of a fine-tuned model also what was `kept` and what lies
    `outside` the linears.
    """

    folder: Path
    names: tuple[str, ...]
    disabled: tuple[str, ...]
    router: dict[str, Any]
    experts: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Member:
    """An expert of the mixture to be. `folder`: of its files, None: to be written; `features`: of its prompts."""

    lora: LoRA
    folder: Path | None
    facts: dict[str, Any]
    features: torch.Tensor | None


def adopt(
    experts: Mapping[str, Where] | Sequence[Where],
    base: Where,
    out: Where,
    *,
    prompts: Mapping[str, Where] | None = None,
    rank: int = RANK,
    name: str | None = None,
    progress: Progress | None = None,
) -> Adoption:
    """Make a mixture in `out` of adapters of one base: PEFT folders, or fine-tuned models as experts of `rank`.

    `experts`: folders by name; without names they are called as their folders. `prompts`: for every expert a file of
    what it is to answer, and the router tells them apart by `hidden_mean`; for none, and the router is made from
    the weights alone, and cannot be tested. `name`: of the mixture; otherwise it is called as `out`.
    Raises RecipeError for names that do not go together, and what reading the parts raises.
    """
    root, told = Path(out).absolute(), progress or Silent()
    if os.path.lexists(root / "mixture"):
        hint = "change it with --into, or name another folder"
        raise StorageError("there is a mixture already", path=root / "mixture", hint=hint)
    called = validate_name(root.name if name is None else name, "a mixture")
    found, given = named(experts, {}), prompts_of(prompts or {})
    require_prompts(given, [*found], told_by_prompts=bool(given))
    with memory_for("this mixture", "use a smaller base"):
        parts = load_base(Path(base))
        members = {one: member(parts, path, rank, given.get(one), told, one) for one, path in found.items()}
        with lock(root):
            return finish(root, Path(base), parts, members, (), called, None)


def amend(
    folder: Where,
    experts: Mapping[str, Where] | Sequence[Where] = (),
    *,
    prompts: Mapping[str, Where] | None = None,
    drop: Collection[str] = (),
    disable: Collection[str] = (),
    enable: Collection[str] = (),
    rank: int = RANK,
    progress: Progress | None = None,
) -> Adoption:
    """Change an adopted mixture in its place: add `experts`, with `prompts` if the others have any, or `drop` some.

    The router is what it would be, had the experts there now been adopted at once: what it has read of prompts is kept
    in its folder. To `disable` an expert keeps it there, and the router from choosing it, until it is enabled again;
    who asks for it by name is still answered by it. A name that is dropped is free for another expert.
    """
    root, told = Path(folder).absolute(), progress or Silent()
    if not os.path.lexists(root / "mixture"):
        raise WeightsError("no mixture here", path=root, hint="name the folder that `moesaic adopt --out` made")
    if not (experts or drop or disable or enable):
        raise RecipeError("nothing to change", path=root, hint="name an expert to add, drop, disable or enable")
    with lock(root), memory_for("this mixture", "use a smaller base"):
        at = Path(os.path.realpath(root / "mixture"))
        manifest = read_manifest(at, KIND)
        if "adopted" not in manifest:
            hint = "change its recipe, or adopt its experts into a new folder"
            raise RecipeError("this mixture was made by a recipe", path=root, hint=hint)
        old = list(expert_names(at, manifest))
        for one in drop:
            require_known(one, old, "drop")
        stay = [one for one in old if one not in drop]
        found, given = named(experts, {one.lower(): one for one in stay}), prompts_of(prompts or {})
        kind = manifest["adopted"]["router"]["kind"]
        require_prompts(given, [*found], told_by_prompts=kind == "linear")
        for field, some in (("disable", disable), ("enable", enable)):
            for one in some:
                require_known(one, [*stay, *found], field)
        parts = load_base(at / "base")
        members = standing(at, manifest, stay, parts)
        members |= {one: member(parts, path, rank, given.get(one), told, one) for one, path in found.items()}
        off = ({*disabled_in(at, manifest)} - {*drop} - {*enable}) | {*disable}
        silent = tuple(one for one in members if one in off)
        ready = (at / "router", manifest["adopted"]["router"]) if not (found or drop) else None
        return finish(root, at / "base", parts, members, silent, manifest["name"], ready)


# --- who is to be adopted ---------------------------------------------------------------------------------------------


def named(experts: Mapping[str, Where] | Sequence[Where], seen: dict[str, str]) -> dict[str, Path]:
    """The folders by valid names, none of which is among those `seen` (in lower case -> as written)."""
    pairs = experts.items() if isinstance(experts, Mapping) else ((None, path) for path in experts)
    found = {}
    for name, given in pairs:
        path = Path(given)
        path = path / "best" if (path / "best").is_dir() and not (path / CONFIG).is_file() else path
        whole = Path(os.path.abspath(path))
        own = name or (whole.parent if whole.name == "best" else whole).name
        try:
            validate_expert(own, seen)
        except RecipeError as error:
            error.path, error.hint = path, error.hint or "give it a name: NAME=PATH"
            raise
        found[own] = path
    return found


def prompts_of(prompts: Mapping[str, Where]) -> dict[str, list[str | Conversation]]:
    """The prompts of every expert that has any, those used."""
    found = {name: read_prompts(Path(path))[:KEPT] for name, path in prompts.items()}
    for name, some in found.items():
        if len(some) < 2:
            hint = "one is left out to test the router; ten are enough"
            raise DataError("too few prompts", path=prompts[name], expected="at least 2", got=len(some), hint=hint)
    return found


def require_prompts(given: Collection[str], names: list[str], told_by_prompts: bool) -> None:
    """Refuse prompts of nobody, and a router that would know some experts by prompts and others by weights."""
    for name in given:
        require_known(name, names, "prompts")
    missing = [name for name in names if name not in given]
    if told_by_prompts and missing:
        hint = "give prompts for all experts, or for none of them"
        raise RecipeError("no prompts for some of the experts", field="prompts", got=", ".join(missing), hint=hint)
    if given and not told_by_prompts:
        what = "the mixture's router was made from weights and takes no prompts"
        raise RecipeError(what, field="prompts", hint="adopt all experts anew, with prompts for each")


def require_known(name: str, known: list[str], field: str) -> None:
    if name not in known:
        expected, hint = " or ".join(known) or "an expert that is added", nearest(name, known)
        raise RecipeError("no such expert", field=field, expected=expected, got=name, hint=hint)


def member(
    base: Base, path: Path, rank: int, prompts: list[str | Conversation] | None, told: Progress, name: str
) -> Member:
    """One expert to be adopted, whatever its folder holds, held against the base."""
    features = None if prompts is None else features_of(base, prompts, name)
    if not (path / CONFIG).is_file() and (path / "config.json").is_file():
        lora, facts = from_model(base, path, rank, told, name)
        return Member(lora, None, facts, features)
    stored = load_expert(path, base.fingerprint, base.decoder)
    made = "expert" if stored.manifest else "PEFT adapter"
    facts = {"from": made, "verified": bool(stored.manifest), "rank": stored.lora.rank}
    return Member(stored.lora, path, {**facts, "parameters": stored.lora.num_parameters}, features)


def from_model(base: Base, path: Path, rank: int, told: Progress, name: str) -> tuple[LoRA, dict[str, Any]]:
    """A fine-tuned model's difference to the base as an expert; what it loses is told, and too much is refused."""
    if rank < 1:
        raise RecipeError("no rank", field="rank", expected=">= 1", got=rank)
    tuned = load_base(path)
    if tuned.decoder.config != base.decoder.config:
        mine, other = base.decoder.config.wiring, tuned.decoder.config.wiring
        field = next(key for key in [*mine, *other] if mine.get(key) != other.get(key))
        what = "the model is not a fine-tuned version of the base: its shape is another"
        raise CompatibilityError(what, path=path, field=field, expected=mine.get(field), got=str(other.get(field)))
    texts = [one for one in compare(base.tokenizer, tuned.tokenizer) if one.what not in ("templates", "special ids")]
    if texts:
        raise CompatibilityError("the model reads text otherwise than the base", path=path, got=str(texts[0]))
    try:
        found = difference(base.decoder, tuned.decoder, rank)
    except CompatibilityError as error:
        error.path = path
        raise
    far = ", ".join(f"{part} by {moved:.2%}" for part, moved in sorted(found.changed.items(), key=lambda x: -x[1])[:3])
    if found.outside > OUTSIDE_LIMIT:
        hint = "fine-tune only linears, or train an adapter"
        raise CompatibilityError(
            "most of what fine-tuning changed lies outside the linears",
            path=path,
            expected=f"at most {OUTSIDE_LIMIT:.0%} of the change's energy",
            got=f"{found.outside:.1%}: {far}",
            hint=hint,
        )
    if found.changed:
        more = f" and {len(found.changed) - 3} more" if len(found.changed) > 3 else ""
        told.warn(f"{name}: {found.outside:.1%} of the change is lost, as it lies outside the linears: {far}{more}")
    told.note(f"{name}: rank {rank} keeps {found.kept:.1%} of what changed in the linears")
    facts = {"from": "fine-tuned model", "verified": True, "rank": rank, "kept": found.kept, "outside": found.outside}
    return found.lora, {**facts, "parameters": found.lora.num_parameters}


def standing(at: Path, manifest: dict[str, Any], names: list[str], base: Base) -> dict[str, Member]:
    """The experts of a mixture that stands, with what its router has read of their prompts."""
    path = at / "router" / router_room.FEATURES
    features = read_tensors(path) if path.is_file() else {}
    return {
        name: Member(
            load_expert(at / "experts" / name, base.fingerprint, base.decoder).lora,
            at / "experts" / name,
            manifest["adopted"]["experts"][name],
            features.get(name),
        )
        for name in names
    }


@torch.no_grad()
def features_of(base: Base, prompts: list[str | Conversation], name: str) -> torch.Tensor:
    """What the router reads of an expert's prompts (n, d), by themselves: no other expert's have a say in it."""
    rows = [base.tokenizer.begin(prompt)[: base.decoder.config.context] for prompt in prompts]
    if not all(rows):
        raise DataError("a prompt without any token", field=f"prompts.{name}[{[*map(len, rows)].index(0)}]")
    order = sorted(range(len(rows)), key=lambda place: len(rows[place]))
    found: list[torch.Tensor] = []
    for start in range(0, len(order), BATCH):
        batch = Prompts.pad([rows[place] for place in order[start : start + BATCH]], [""] * BATCH)
        states = read(Feature.parse(FEATURE), base.decoder, 1, batch)
        assert isinstance(states, torch.Tensor)
        found.append(states)
    return torch.cat(found)[torch.tensor(order).argsort()]


# --- the mixture ------------------------------------------------------------------------------------------------------


def finish(
    root: Path,
    base_at: Path,
    base: Base,
    members: dict[str, Member],
    disabled: tuple[str, ...],
    name: str,
    router: tuple[Path, dict[str, Any]] | None,
) -> Adoption:
    """Publish the mixture of these members; `router`: its folder and what is told of it, where it can stay."""
    if len(members) < 2:
        what, hint = "a mixture has at least two experts", "one alone needs no router; or disable the others"
        raise RecipeError(what, got=", ".join(members) or "none", hint=hint)
    if len(disabled) == len(members):
        raise RecipeError("no expert would be left to choose", field="disable", got=", ".join(disabled))
    with disk.scratch(root, root / "parts") as scratch:
        router_at, told = router or made_router(scratch / "router", base, members)
        folders = {one: made.folder or written(scratch / one, one, made, base) for one, made in members.items()}
        experts = {one: made.facts for one, made in members.items()}
        facts: dict[str, Any] = {"name": name, "site": "linear", "level": "sequence", "disabled": list(disabled)}
        facts["adopted"] = {"router": told, "experts": experts}

        def write(folder: Path) -> None:
            save_mixture(folder, base_at, folders, router_at, facts)
            load_mixture(folder)

        needed = sum(size_of(part) for part in (base_at, router_at, *folders.values()))
        check_space(root / "mixture", needed, "the mixture")
        publish(root / "mixture", write)
    return Adoption(root / "mixture", tuple(members), disabled, told, experts)


def made_router(folder: Path, base: Base, members: dict[str, Member]) -> tuple[Path, dict[str, Any]]:
    """Make the router that the members allow, and say how sure it is."""
    names = tuple(members)
    features = {name: one.features for name, one in members.items() if one.features is not None}
    disk.make_all(folder)
    if features:
        write_tensors(folder / router_room.FEATURES, features)
        router, judged = few_shot([*features.values()])
        told: dict[str, Any] = {"kind": "linear", "feature": FEATURE, "accuracy": judged.accuracy}
        told |= {"right": dict(zip(names, judged.right, strict=True)), "of": dict(zip(names, judged.of, strict=True))}
        metrics = {"accuracy_held_out": judged.accuracy, "temperature": router.temperature.item()}
        made: TrainedRouter = router
    else:
        arrow = fit_arrow(base.decoder, [one.lora for one in members.values()], *begins(base), SEED)
        alike = overlaps(arrow).fill_diagonal_(-1.0)
        one, other = divmod(int(alike.argmax()), len(names))
        told = {"kind": "arrow", "feature": "projections", "alike": [names[one], names[other]]}
        told["overlap"] = metrics_overlap = alike[one, other].item()
        metrics, made = {"overlap": metrics_overlap}, arrow
    write_json(folder / router_room.INFO, {"adopted": told})
    stored = StoredRouter(made, told["kind"], names, told["feature"], Selection(), {})
    save_router(folder, stored, base.fingerprint, {"metrics": metrics, "seed": SEED})
    return folder, told


def begins(base: Base) -> tuple[tuple[int, ...], int]:
    """What stands before every text of a base, and what ends one."""
    return tuple(base.tokenizer.start), base.tokenizer.eos


def written(folder: Path, name: str, made: Member, base: Base) -> Path:
    """The folder of an expert that was made here."""
    disk.make_all(folder)
    save_expert(folder, made.lora, base.fingerprint, {"name": name, **made.facts})
    return folder


def size_of(folder: Path) -> int:
    """Bytes of a folder's files, those in folders of it left out."""
    return sum(path.stat().st_size for path in folder.resolve().iterdir() if path.is_file())
