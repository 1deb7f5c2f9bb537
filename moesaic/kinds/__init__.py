"""The kinds of experts, one row each: a new kind is one file and one row."""

from pathlib import Path
from typing import Any

from moesaic.errors import RecipeError
from moesaic.interop.folders import what_is
from moesaic.kinds.ffn import FFNKind
from moesaic.kinds.kind import Kind
from moesaic.kinds.lora import LoRAKind
from moesaic.kinds.tt_lora import TTLoRAKind
from moesaic.kinds.whole_model import ModelKind

AnyKind = Kind[Any, Any, Any]
KINDS: dict[str, AnyKind] = {kind.word: kind for kind in (LoRAKind(), TTLoRAKind(), FFNKind(), ModelKind())}
"""Every kind by its word."""

__all__ = ["KINDS", "AnyKind", "Kind", "at_site", "held_in", "is_model", "named_kind", "sites"]


def sites() -> list[str]:
    """The sites where experts can meet."""
    return list(dict.fromkeys(kind.site for kind in KINDS.values()))


def at_site(site: str) -> AnyKind:
    """The kind that reads and joins the experts of a site; all kinds of one site read and join alike."""
    return next(kind for kind in KINDS.values() if kind.site == site)


def held_in(folder: Path) -> AnyKind | None:
    """The kind of the expert in a folder, by the names of its files; None for a model, which can become several."""
    return next((kind for kind in KINDS.values() if kind.holds(folder)), None)


def is_model(folder: Path) -> bool:
    """Tell whether a folder holds a model, and no expert of another kind."""
    return what_is(folder).is_model and held_in(folder) is None


def named_kind(word: str) -> AnyKind:
    """The kind that `adopt` knows by this word."""
    known = [kind.word for kind in KINDS.values() if kind.adopts]
    if word not in known:
        raise RecipeError("unknown kind", field="kind", expected=" or ".join(known), got=word)
    return KINDS[word]
