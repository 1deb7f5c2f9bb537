"""Adoption: mixtures of existing experts, without a recipe or corpora, and later changes to them.

The functions behind `moesaic adopt`. Knows nothing about terminals, nor about the training of the experts.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from moesaic.adoption import gating
from moesaic.artefacts import router as router_room
from moesaic.artefacts.base import Base, load_base
from moesaic.artefacts.expert_names import expert_names
from moesaic.artefacts.reference import Reference
from moesaic.artefacts.reference import base_at as mixture_base
from moesaic.artefacts.router import StoredRouter, require_base, save_router
from moesaic.compose.mixture import KIND, disabled_in, load_mixture, room_for, save_mixture
from moesaic.config import Feature
from moesaic.data.batches import by_length
from moesaic.data.forms import prompt_of
from moesaic.data.neutral import neutral
from moesaic.data.prompts import read_prompts
from moesaic.errors import DataError, RecipeError, StorageError, WeightsError, memory_for, nearest
from moesaic.files import check_space, disk, lock, publish, read_manifest, write_json
from moesaic.generate.request import BASE
from moesaic.generate.trace import read_trace
from moesaic.hardware import AUTO, HOST, Compute, chosen
from moesaic.hub.locate import Located, Origins, locate, origins_in
from moesaic.interop.folders import what_is
from moesaic.interop.peft_config import CONFIG
from moesaic.kinds import AnyKind, at_site, is_model, named_kind
from moesaic.kinds.kind import Joined, Terms
from moesaic.model.features import Prompts, read
from moesaic.routing import Selection
from moesaic.routing.guard import Guard
from moesaic.routing.routers import TrainedRouter
from moesaic.runs.progress import Progress, Silent
from moesaic.sections.names import validate_expert, validate_name
from moesaic.sections.places import name_at
from moesaic.sections.routers import GATES
from moesaic.tensors.json_config import read_settings
from moesaic.tensors.tensors import read_tensors, write_tensors
from moesaic.tokenizer import Conversation
from moesaic.train.arrow import fit_arrow, overlaps
from moesaic.train.few import few_shot, few_shot_guard, few_shot_tree

RANK = 16
MOST = 100
"""The most prompts of one expert that are used; ten are enough."""
BATCH = 32
FEATURE = "hidden_mean"
CORRECTED = "_corrected."
"""Before an expert's name (no name begins so): the features of its corrected prompts, those of the latest trace."""
SEED = 0
SAME = 1e-4
"""The distance of two features of the same prompt, as a share of their length, is below it."""

Where = str | PathLike[str]
Prompted = list[str | Conversation]


@dataclass(frozen=True)
class Member:
    """An expert of the new mixture. `origin`: repository and commit of an expert from the hub.

    `features`: of its prompts, for the router; `corrected`: of prompts that a correction gives to it.
    """

    expert: Joined[Any]
    origin: dict[str, str]
    features: torch.Tensor | None = None
    corrected: torch.Tensor | None = None


@dataclass(frozen=True)
class At:
    """Where the base of a mixture was found, and whether the mixture gets a copy of it or a reference to it."""

    found: Located
    embedded: bool


@dataclass(frozen=True)
class Routed:
    """How a router that is trained abstains, and its groups of experts; None: it is flat.

    `reader`: the base that reads prompts for it. `nobodys`: features of prompts that a correction leaves to the base.
    `level`: sequence, or token: gates in the layers route every token.
    """

    abstain: str | float
    groups: dict[str, list[str]] | None
    reader: Base
    nobodys: torch.Tensor | None = None
    level: str = "sequence"


@dataclass(frozen=True)
class Adoption:
    """A mixture that was adopted or changed, in `folder`.

    `router`: its kind and feature, and its `accuracy`, with `right` of `of` prompts of each expert, measured on prompts
    left out of its training; or, made from weights and untested, the two experts most `alike` and their `overlap`.
    `experts`: the source of each; of a fine-tuned model also the share `kept` and the change `outside` the linears.
    `nats`: at level token, nats a token of the prompts of each expert, before (None: no mixture was there) and after.
    """

    folder: Path
    names: tuple[str, ...]
    disabled: tuple[str, ...]
    router: dict[str, Any]
    experts: dict[str, dict[str, Any]]
    nats: dict[str, tuple[float | None, float]] = field(default_factory=dict)


def adopt(
    experts: Mapping[str, Where] | Sequence[Where],
    base: Where,
    out: Where,
    *,
    prompts: Mapping[str, Where] | None = None,
    kind: str = "lora",
    rank: int = RANK,
    ignore_rest: bool = False,
    name: str | None = None,
    embed: bool = False,
    abstain: str | float = "auto",
    groups: Mapping[str, Sequence[str]] | None = None,
    level: str = "sequence",
    device: str = AUTO,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Adoption:
    """Make a mixture in `out` of experts of one base: adapters, or fine-tuned models as experts of `kind`.

    `lora`: the change of a model, as far as `rank` holds it. `ffn`: its feed-forward blocks; raises where it differs
    elsewhere, unless `ignore_rest`. `model`: the whole model; such models need only share the tokenizer. The last two
    need prompts.
    `experts`: folders or `org/name@revision` of the hub, by name, or named as their places. `base`: its place.
    `prompts`: for every expert a file of prompts, from which a router on `hidden_mean` is trained; without any, the
    router is made from the weights alone, never abstains and cannot be tested. `abstain`: as in a recipe, for a router
    that is trained. `groups`: of experts, by name, each expert in one: the router is a tree, and needs prompts.
    `level`: `token`, for experts of kind `ffn` with prompts: gates in every layer, made of the prompts in closed form,
    route every token.
    `name`: of the mixture (default: that of `out`). `embed`: copy the base into the mixture, which can
    then be moved to another machine; by default the mixture refers to it, by its commit of the hub or its folder, and
    finds it again when it is loaded. `device`, `dtype`: where, and in which type, the base reads prompts for the
    router; see `moesaic.load`.
    Raises RecipeError for names that do not go together, and the errors of reading the parts.
    """
    root, report, compute = Path(out).absolute(), progress or Silent(), chosen(device, dtype)
    if abstain not in ("auto", "off") and not (type(abstain) is float and 0 < abstain < 1):
        expected = "auto, off, or a probability between 0 and 1"
        raise RecipeError("unknown value", field="abstain", expected=expected, got=abstain)
    if os.path.lexists(root / "mixture"):
        hint = "change that mixture with --into, or name another folder"
        raise StorageError("the folder has a mixture already", path=root / "mixture", hint=hint)
    own_name = validate_name(root.name if name is None else name, "a mixture, named by `--name` or as its folder")
    found, given = named(experts, {}), prompts_of(prompts or {})
    terms, own = Terms(rank, ignore_rest), named_kind(kind)
    require_prompts(given, [*found], needed=bool(given) or bool(groups) or not own.routes_by_weights)
    require_level(level, own, groups, abstain)
    if groups:
        require_groups(groups, [*found])
    with memory_for("this mixture", "use a smaller base"):
        base_at = locate(base)
        parts = load_base(base_at.folder, base_at.origin)
        reader = reading(parts, base_at.folder, compute)
        for warning in of_other_bases(found, base_at):
            report.warn(warning)
        how = Routed("off" if level == "token" else abstain, listed(groups), reader, level=level)
        members = {
            one: joined(own, parts, reader, at, terms, given.get(one), report, one, level) for one, at in found.items()
        }
        with lock(root):
            return finish(root, At(base_at, embed), parts, members, own, (), own_name, None, how)


def amend(
    folder: Where,
    experts: Mapping[str, Where] | Sequence[Where] = (),
    *,
    prompts: Mapping[str, Where] | None = None,
    drop: Collection[str] = (),
    disable: Collection[str] = (),
    enable: Collection[str] = (),
    rank: int = RANK,
    ignore_rest: bool = False,
    base: Where | None = None,
    embed: bool = False,
    groups: Mapping[str, Sequence[str]] | None = None,
    corrections: Where | None = None,
    device: str = AUTO,
    dtype: str = "float32",
    progress: Progress | None = None,
) -> Adoption:
    """Change an adopted mixture in place: add `experts`, with `prompts` if the others have any, or `drop` some.

    The router becomes the one of adopting all these experts at once, as its folder holds the features of all prompts.
    The router does not choose an expert in `disable` until it is enabled again; a caller that names the expert still
    gets its answers. The name of a dropped expert is free for another one. `groups`: groups of the added experts, where
    the router is a tree; the others keep theirs, and an empty group is dropped. `base`: the new place of the same base,
    if it was moved; `embed`: copy it into the mixture. `corrections`: a routing trace with texts, whose corrected
    prompts the router learns too, in place of those of an earlier trace. `device`, `dtype`: see `adopt`.
    """
    root, report, compute = Path(folder).absolute(), progress or Silent(), chosen(device, dtype)
    require_mixture(root)
    if not (experts or drop or disable or enable or base or embed or corrections):
        raise RecipeError("nothing to change", path=root, hint="name an expert to add, drop, disable or enable")
    with lock(root), memory_for("this mixture", "use a smaller base"):
        at, manifest = standing(root)
        old = list(expert_names(at, manifest))
        for one in drop:
            require_known(one, old, "drop")
        stay = [one for one in old if one not in drop]
        found, given = named(experts, {one.lower(): one for one in stay}), prompts_of(prompts or {})
        facts = manifest["adopted"]["router"]
        require_prompts(given, [*found], needed=facts["kind"] != "arrow")
        divided = regrouped(facts.get("groups"), groups or {}, stay, [*found])
        for field, some in (("disable", disable), ("enable", enable)):
            for one in some:
                require_known(one, [*stay, *found], field)
        origins = origins_in(manifest, at)
        base_at = At(locate(base) if base else mixture_base(at, manifest), embed or not (base or "base" in manifest))
        parts = load_base(base_at.found.folder, origins.get("base"))
        reader = reading(parts, base_at.found.folder, compute)
        require_base(at / "router", read_manifest(at / "router", router_room.KIND), parts.fingerprint)
        own, terms = at_site(manifest["site"]), Terms(rank, ignore_rest)
        members = present(own, at, manifest, origins, stay, parts)
        level = str(manifest.get("level", "sequence"))
        members |= {
            one: joined(own, parts, reader, place, terms, given.get(one), report, one, level)
            for one, place in found.items()
        }
        off = ({*disabled_in(at, manifest)} - {*drop} - {*enable}) | {*disable}
        silent = tuple(one for one in members if one in off)
        ready = (at / "router", facts) if not (found or drop or corrections) else None
        nobodys = features_in(at).get(f"{CORRECTED}{BASE}")
        if corrections:
            if facts["kind"] in ("arrow", GATES):
                what = "the mixture's router learns no single prompts"
                raise RecipeError(what, field="corrections", hint="adopt all experts anew, with prompts for each")
            rows = corrected_rows(Path(corrections), [*members], reader, report)
            members = {one: replace(made, corrected=rows.get(one)) for one, made in members.items()}
            nobodys = rows.get(BASE)
        how = Routed(facts.get("abstain", "off"), divided, reader, nobodys, level)
        return finish(root, base_at, parts, members, own, silent, manifest["name"], ready, how)


def require_level(level: str, kind: AnyKind, groups: Any, abstain: str | float) -> None:
    """Refuse a level that experts of a kind do not have, and options of routers that decide about prompts."""
    levels = ("sequence", "token") if kind.routes_inside else ("sequence",)
    if level not in levels:
        what, hint = f"{kind.word} experts are not adopted at this level", "give kind ffn, or write a recipe"
        raise RecipeError(what, field="level", expected=" or ".join(levels), got=level, hint=hint)
    if level == "token" and (groups or isinstance(abstain, float)):
        what = "gates in the layers route tokens, and have no groups and no doubts about prompts"
        raise RecipeError(what, field="groups" if groups else "abstain")


def require_mixture(root: Path) -> None:
    if not os.path.lexists(root / "mixture"):
        raise WeightsError("no mixture here", path=root, hint="name the folder that `moesaic adopt --out` made")


def standing(root: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the manifest of the adopted mixture in a folder; raises for one that a recipe has made."""
    require_mixture(root)
    at = Path(os.path.realpath(root / "mixture"))
    manifest = read_manifest(at, KIND)
    if "adopted" not in manifest:
        hint = "change its recipe and run it, which trains only what is new; or adopt its experts into a new folder"
        raise RecipeError("this mixture was made by a recipe", path=root, hint=hint)
    return at, manifest


# --- the experts ------------------------------------------------------------------------------------------------------


def named(experts: Mapping[str, Where] | Sequence[Where], seen: dict[str, str]) -> dict[str, Located]:
    """Locate the experts by valid names, none of them among those `seen` (lower case -> as written)."""
    pairs = experts.items() if isinstance(experts, Mapping) else ((None, place) for place in experts)
    found = {}
    for name, place in pairs:
        own = name or name_at(place)
        try:
            validate_expert(own, seen)
        except RecipeError as error:
            error.at(path=place, hint="give it a name: NAME=PATH")
            raise
        at = locate(place)
        found[own] = replace(at, folder=what_is(at.folder).at)
    return found


def of_other_bases(found: Mapping[str, Located], base: Located) -> list[str]:
    """Warnings about adapters that declare another base than this one or than the other adapters: shapes may agree.

    An id of the hub and a folder are not compared with each other, as the folder may be a copy of the model.
    """
    declared = {}
    for one, at in found.items():
        if what_is(at.folder).what == "adapter":
            place = read_settings(at.folder / CONFIG).get("base_model_name_or_path")
            declared[one] = str(place) if place else None
    known = {one: place for one, place in declared.items() if place is not None}
    given = base.place.partition("@")[0] if base.place else os.path.realpath(base.folder)
    return [
        f"{one}: its {CONFIG} names another base, {place}; the base given is {given}"
        for one, place in known.items()
        if not same_base(place, base) and (comparable(place, base) or len({*known.values()}) > 1)
    ]


def same_base(place: str, base: Located) -> bool:
    """Whether a place is that of the base."""
    if base.place:
        return place.partition("@")[0] == base.place.partition("@")[0]
    return os.path.realpath(place) == os.path.realpath(base.folder)


def comparable(place: str, base: Located) -> bool:
    """Whether both places are ids of the hub, or both are folders that exist here."""
    return not os.path.isdir(place) if base.place else os.path.isdir(place)


def prompts_of(prompts: Mapping[str, Where]) -> dict[str, Prompted]:
    found = {name: read_prompts(Path(path))[:MOST] for name, path in prompts.items()}
    for name, some in found.items():
        if len(some) < 2:
            hint = "the test of the router leaves one out; ten are enough"
            raise DataError("too few prompts", path=prompts[name], expected="at least 2", got=len(some), hint=hint)
    return found


def require_prompts(given: Collection[str], names: list[str], needed: bool) -> None:
    """Refuse prompts of unknown experts, and prompts for some experts only; `needed`: the router is trained on them."""
    for name in given:
        require_known(name, names, "prompts")
    missing = [name for name in names if name not in given]
    if needed and missing:
        hint = "give prompts for all experts" + (", or for none of them" if given else "")
        raise RecipeError("no prompts for some of the experts", field="prompts", got=", ".join(missing), hint=hint)
    if given and not needed:
        what = "the mixture's router was made from weights and takes no prompts"
        raise RecipeError(what, field="prompts", hint="adopt all experts anew, with prompts for each")


def listed(groups: Mapping[str, Sequence[str]] | None) -> dict[str, list[str]] | None:
    return {group: [*names] for group, names in groups.items()} if groups else None


def regrouped(
    old: Mapping[str, Sequence[str]] | None, added: Mapping[str, Sequence[str]], stay: list[str], new: list[str]
) -> dict[str, list[str]] | None:
    """The groups of a changed mixture: those of the experts that stay, with the added experts; None: it is flat."""
    if old is None:
        if added:
            hint = "adopt all experts anew, with their groups"
            raise RecipeError("the mixture's router has no groups", field="groups", hint=hint)
        return None
    for group, names in added.items():
        for name in names:
            require_known(name, new, f"groups.{group}")
    every = dict.fromkeys([*old, *added])
    found = {one: [*(name for name in old.get(one, ()) if name in stay), *added.get(one, ())] for one in every}
    found = {group: names for group, names in found.items() if names}
    require_groups(found, [*stay, *new])
    return found


def require_groups(groups: Mapping[str, Sequence[str]], names: list[str]) -> None:
    """Refuse groups that do not hold every expert exactly once, and fewer than two of them."""
    if len(groups) < 2:
        raise RecipeError("too few groups", field="groups", expected="two or more", got=", ".join(groups) or "none")
    seen: dict[str, str] = {}
    for group, some in groups.items():
        for name in some:
            require_known(name, names, f"groups.{group}")
            if name in seen:
                hint = f"it is in group '{seen[name]}'"
                raise RecipeError("the expert is in a group already", field=f"groups.{group}", got=name, hint=hint)
            seen[name] = group
        if not some:
            raise RecipeError("a group without experts", field=f"groups.{group}", expected="one expert or more")
    if missing := [name for name in names if name not in seen]:
        hint = "add to a group: " + ", ".join(missing)
        raise RecipeError("not every expert is in a group", field="groups", got=", ".join(seen), hint=hint)


def require_known(name: str, known: list[str], field: str) -> None:
    if name not in known:
        expected, hint = " or ".join(known) or "an expert that is added", nearest(name, known)
        raise RecipeError("no such expert", field=field, expected=expected, got=name, hint=hint)


def reading(base: Base, folder: Path, compute: Compute) -> Base:
    """The base of a folder where it reads prompts for a router; `base`: the same on the host in float32."""
    return base if compute == HOST else load_base(folder, base.origin, compute)


def joined(
    kind: AnyKind,
    base: Base,
    reader: Base,
    at: Located,
    terms: Terms,
    prompts: Prompted | None,
    progress: Progress,
    name: str,
    level: str = "sequence",
) -> Member:
    read = texts_of if level == "token" else features_of
    features = None if prompts is None else read(reader, prompts, name)
    return Member(kind.adopt(base, at.folder, is_model(at.folder), terms, progress, name), at.origin, features)


def present(
    kind: AnyKind, at: Path, manifest: dict[str, Any], origins: Origins, names: list[str], base: Base
) -> dict[str, Member]:
    """Read the experts of an existing mixture, with the features of their prompts."""
    features, members = features_in(at), {}
    for name in names:
        folder, facts = at / "experts" / name, manifest["adopted"]["experts"][name]
        expert = Joined(kind.value(kind.read(folder, base)), folder, facts)
        members[name] = Member(expert, origins.get(name, {}), features.get(name), features.get(f"{CORRECTED}{name}"))
    return members


def features_in(at: Path) -> dict[str, torch.Tensor]:
    """The features that the router of a mixture was made from."""
    path = at / "router" / router_room.FEATURES
    return read_tensors(path) if path.is_file() else {}


def corrected_rows(trace: Path, names: list[str], base: Base, progress: Progress) -> dict[str, torch.Tensor]:
    """Features of the prompts of a trace by the expert, or base, that a correction gives them; the latest of each."""
    rows = [one for one in read_trace(trace) if one.correction is not None]
    if unknown := sorted({one.correction for one in rows if one.correction} - {*names, BASE}):
        progress.warn(f"corrections name {', '.join(unknown)}, which the mixture has not: left out")
    texts = {(one.asked, one.raw): one.correction for one in rows if one.asked}
    found: dict[str, list[list[int]]] = {}
    for (asked, raw), expert in texts.items():
        if expert and expert not in unknown and asked:
            found.setdefault(expert, []).append(ids_of(base, asked, f"corrections.{expert}", raw))
    if not found:
        got = f"{len(rows)} corrections, {len(texts)} prompts with their text"
        hint = "record texts too (--trace-texts), and correct decisions, as by /wrong in `moesaic chat`"
        raise DataError("no corrections to learn", path=trace, got=got, hint=hint)
    return {expert: features_of_rows(base, some[-MOST:]) for expert, some in found.items()}


def texts_of(base: Base, prompts: Prompted, name: str) -> torch.Tensor:
    """The ids of the prompts of one expert, for gates."""
    most = base.decoder.config.context
    rows = [ids_of(base, prompt, f"prompts.{name}[{index}]")[:most] for index, prompt in enumerate(prompts)]
    return gating.joined(rows)


def features_of(base: Base, prompts: Prompted, name: str) -> torch.Tensor:
    """Features (n, d) of the prompts of one expert, independent of those of other experts."""
    rows = [ids_of(base, prompt, f"prompts.{name}[{index}]") for index, prompt in enumerate(prompts)]
    return features_of_rows(base, rows)


@torch.no_grad()
def features_of_rows(base: Base, rows: Sequence[list[int]]) -> torch.Tensor:
    rows = [row[: base.decoder.config.context] for row in rows]
    order: list[int] = []
    found: list[torch.Tensor] = []
    for some in by_length([len(row) for row in rows], BATCH):
        order += some
        batch = Prompts.pad([rows[index] for index in some], [""] * BATCH, base.decoder.norm.weight.device)
        states = read(Feature.parse(FEATURE), base.decoder, 1, batch)
        assert isinstance(states, torch.Tensor)
        found.append(states.cpu())
    return torch.cat(found)[torch.tensor(order).argsort()]


def ids_of(base: Base, prompt: str | Conversation, field: str, raw: bool = False) -> list[int]:
    """The ids of a prompt, one at least; the chat template of the base may refuse a conversation."""
    try:
        ids = base.tokenizer.begin(prompt, raw)
    except DataError as error:
        error.field = field
        raise
    if not ids:
        raise DataError("a prompt without any token", field=field)
    return ids


# --- the mixture ------------------------------------------------------------------------------------------------------


def finish(
    root: Path,
    base_at: At,
    base: Base,
    members: dict[str, Member],
    kind: AnyKind,
    disabled: tuple[str, ...],
    name: str,
    router: tuple[Path, dict[str, Any]] | None,
    how: Routed,
) -> Adoption:
    """Publish the mixture of these members; `router`: folder and facts of one that is still right."""
    if len(members) < 2:
        what, hint = "a mixture has at least two experts", "add one, or disable an expert instead of dropping it"
        raise RecipeError(what, got=", ".join(members) or "none", hint=hint)
    if len(disabled) == len(members):
        raise RecipeError("no expert would be left to choose", field="disable", got=", ".join(disabled))
    with disk.scratch(root, root / "parts") as scratch:
        texts = judged_on(root, members) if how.level == "token" else {}
        before = nats_of(root, texts)
        router_at, facts_of_router = router or made_router(scratch / "router", base, members, how)
        folders = {
            one: made.expert.folder or saved(kind, scratch / one, one, made.expert, base)
            for one, made in members.items()
        }
        experts = {one: made.expert.facts for one, made in members.items()}
        facts: dict[str, Any] = {"name": name, "site": kind.site, "level": how.level, "disabled": list(disabled)}
        facts["adopted"] = {"router": facts_of_router, "experts": experts}
        origins = {"base": dict(base.origin), **{one: made.origin for one, made in members.items()}}
        facts["origins"] = {one: origin for one, origin in origins.items() if origin}

        if not base_at.embedded:
            facts["base"] = asdict(Reference.to(base_at.found, base))
        of_base = base_at.found.folder

        def write(folder: Path) -> None:
            save_mixture(folder, of_base, folders, router_at, facts)
            load_mixture(folder)

        room = room_for(of_base if base_at.embedded else None, folders.values(), router_at)
        check_space(root / "mixture", room, "the mixture")
        publish(root / "mixture", write)
    nats = {one: (before.get(one), value) for one, value in nats_of(root, texts).items()}
    return Adoption(root / "mixture", tuple(members), disabled, facts_of_router, experts, nats)


def judged_on(root: Path, members: Mapping[str, Member]) -> dict[str, torch.Tensor]:
    """The prompts of all experts, also of those that leave a mixture."""
    old = features_in(root / "mixture") if (root / "mixture").exists() else {}
    return old | {one: made.features for one, made in members.items() if made.features is not None}


def nats_of(root: Path, texts: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Nats a token of prompts under the mixture that is there; nothing without one."""
    if not texts or not (root / "mixture").exists():
        return {}
    return gating.nats_on(load_mixture(root / "mixture").model, texts)


def made_router(folder: Path, base: Base, members: dict[str, Member], how: Routed) -> tuple[Path, dict[str, Any]]:
    """Make a router from the features of prompts, or else from weights; returns its folder and its facts."""
    names = tuple(members)
    features = {name: one.features for name, one in members.items() if one.features is not None}
    corrected = {name: one.corrected for name, one in members.items() if one.corrected is not None}
    corrected |= {BASE: how.nobodys} if how.nobodys is not None else {}
    disk.make_all(folder)
    guard: Guard | None = None
    selection = Selection()
    facts: dict[str, Any]
    made: TrainedRouter
    if how.level == "token":
        write_tensors(folder / router_room.FEATURES, features)
        gates, judged_by = gating.gates_from(base, features)
        facts = {"kind": GATES, "feature": "shares", "start": gating.START, "k": gates.k, **judged_by}
        metrics, made = {"accuracy_held_out": judged_by["accuracy"]}, gates
        selection = Selection(kind="soft")
    elif features:
        apart = {f"{CORRECTED}{name}": some for name, some in corrected.items()}
        write_tensors(folder / router_room.FEATURES, {**features, **apart})
        features = {name: torch.cat([some, corrected.get(name, some[:0])]) for name, some in features.items()}
        facts = {"kind": "linear", "feature": FEATURE}
        if how.groups:
            indices = [[names.index(name) for name in some] for some in how.groups.values()]
            made, judged = few_shot_tree([*features.values()], indices)
            facts |= {"kind": "tree", "groups": how.groups}
        else:
            made, judged = few_shot([*features.values()])
        facts |= {"corrected": {name: len(some) for name, some in corrected.items()}} if corrected else {}
        facts["accuracy"] = judged.accuracy
        facts |= {"right": dict(zip(names, judged.right, strict=True)), "of": dict(zip(names, judged.of, strict=True))}
        metrics = {"accuracy_held_out": judged.accuracy, "temperature": made.hottest}
        facts["abstain"] = abstain = how.abstain
        if abstain != "off":
            nobodys = [prompt_of(row) for rows in neutral("train").values() for row in rows]
            theirs = unlike(features_of(how.reader, nobodys, "neutral"), torch.cat([*features.values()]))
            theirs = theirs if how.nobodys is None else torch.cat([theirs, how.nobodys])
            guard, certainty = few_shot_guard([*features.values()], theirs, abstain)
            facts |= {key: certainty[key] for key in ("abstained_own", "abstained_neutral")}
            metrics |= certainty
    else:
        loras = [one.expert.value for one in members.values() if one.expert.value is not None]
        arrow = fit_arrow(base.decoder, loras, tuple(base.tokenizer.start), base.tokenizer.eos, SEED)
        alike = overlaps(arrow).fill_diagonal_(-1.0)
        one, other = divmod(int(alike.argmax()), len(names))
        facts = {"kind": "arrow", "feature": "projections", "alike": [names[one], names[other]]}
        facts["overlap"] = alike[one, other].item()
        metrics, made = {"overlap": facts["overlap"]}, arrow
    write_json(folder / router_room.INFO, {"adopted": facts})
    stored = StoredRouter(made, facts["kind"], names, facts["feature"], selection, {}, guard=guard)
    save_router(folder, stored, base.fingerprint, {"metrics": metrics, "seed": SEED, **base.told})
    return folder, facts


def unlike(neutral: Float[Tensor, "n d"], own: Float[Tensor, "m d"]) -> Float[Tensor, "_ d"]:
    """The neutral features without those of prompts that are an expert's own; a batch moves features by roundings."""
    nearest = torch.cdist(neutral, own, compute_mode="donot_use_mm_for_euclid_dist").amin(1)
    return neutral[nearest > SAME * neutral.norm(dim=1)]


def saved(kind: AnyKind, folder: Path, name: str, made: Joined[Any], base: Base) -> Path:
    disk.make_all(folder)
    kind.save(folder, made.value, base, {"name": name, **made.facts, **base.told})
    return folder
