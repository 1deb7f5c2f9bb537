"""Which experts can be mixed, where and how finely; and what a recipe may not say beside each kind.

Knows nothing about files or tensors: kinds, sites and levels are words here.
"""

from collections.abc import Mapping
from typing import Literal

from moesaic.config import Feature
from moesaic.errors import RecipeError
from moesaic.sections.routers import Router
from moesaic.sections.section import Section, refusal

Kind = Literal["lora", "tt_lora", "ffn", "model"]
Site = Literal["linear", "ffn", "model"]
Level = Literal["sequence", "token"]

LEGAL: dict[str, tuple[Site, tuple[Level, ...]]] = {
    "lora": ("linear", ("sequence",)),
    "tt_lora": ("linear", ("sequence",)),
    "ffn": ("ffn", ("sequence",)),
    "model": ("model", ("sequence", "token")),
}
"""Expert kind -> the site where such experts meet, and the levels at which they can be routed there."""

OF_ADAPTERS = ("rank", "alpha", "targets", "factors", "init")
"""What only experts of site `linear` have."""

WITHOUT = {
    "ffn": dict.fromkeys(OF_ADAPTERS, "a feed-forward expert is whole blocks, and no adapter"),
    "model": {
        **dict.fromkeys(OF_ADAPTERS, "a whole model is no adapter"),
        "layers": "of a whole model all layers are trained",
    },
}
"""Expert kind -> the keys that say nothing about it, and why."""


class Mixture(Section):
    """Where and how finely experts are mixed."""

    site: Site | None = None
    """Where experts meet: adapters beside the matrices of the base, blocks beside its feed-forward blocks, or whole
    models behind the router; as their kind has it, where none is given."""
    level: Level = "sequence"
    """Who decides: each sequence, from its prompt; or, of whole models, before each token all that was read."""
    combine: Literal["mixture", "product"] = "mixture"
    """How several whole models' next-token distributions become one: their weighted mean, or their weighted product."""

    def idle(self) -> dict[str, str]:
        """How distributions are combined, where there is only one."""
        return {"combine": "it goes with site: model"} if self.site in ("linear", "ffn") else {}


def site_of(kinds: Mapping[str, str]) -> Site:
    """Where experts of these kinds meet, by name; those of several sites cannot be mixed."""
    (first, kind), *_ = kinds.items()
    site, _ = LEGAL[kind]
    for name, other in kinds.items():
        if LEGAL[other][0] != site:
            alike = " or ".join(one for one, (where, _) in LEGAL.items() if where == site)
            what = f"{other} experts ('{name}') cannot be mixed with {kind} experts ('{first}')"
            hint = "keep each kind in a recipe of its own"
            raise refusal(RecipeError(what, expected=alike, hint=hint), "experts", name, "kind")
    return site


def require_legal(kinds: Mapping[str, str], mixture: Mixture) -> None:
    """Refuse a site or a level at which experts of these kinds, by name, cannot be mixed."""
    for name, kind in kinds.items():
        site, levels = LEGAL[kind]
        what = f"{kind} experts ('{name}') cannot be mixed"
        if mixture.site not in (None, site):
            error = RecipeError(f"{what} at site {mixture.site}", expected=f"site {site}")
            raise refusal(error, "mixture", "site")
        if mixture.level not in levels:
            error = RecipeError(f"{what} at level {mixture.level}", expected=f"level {' or '.join(levels)}")
            raise refusal(error, "mixture", "level")


def require_routable(router: Router, site: Site, level: Level) -> None:
    """Refuse a router that whole models cannot be chosen by, or not token by token."""
    if site != "model":
        return
    if router.depth is not None:
        hint = "read embedding_mean, hidden_mean or hidden_last"
        what = "whole models share no trunk with the base, so that its states after some blocks spare nothing"
        raise refusal(RecipeError(what, got=f"'{router.feature}'", hint=hint), "router", "feature")
    for place, spec in enumerate([router, *router.compare]):
        if spec.loss.task:
            at = ("compare", place - 1) if place else ()
            hint = "leave it out: loss.expert teaches whose prompt it is"
            error = RecipeError("what whole models lose together is no loss for routers", hint=hint)
            raise refusal(error, "router", *at, "loss", "task")
    if level == "token":
        feature = Feature.parse(router.feature) if isinstance(router.feature, str) else None
        if feature is None or feature.source != "state" or feature.pool == "none":
            expected = "embedding_mean, hidden_mean or hidden_last"
            what = "a router that decides before every token reads states that run with it"
            raise refusal(RecipeError(what, expected=expected, got=f"'{router.feature}'"), "router", "feature")
