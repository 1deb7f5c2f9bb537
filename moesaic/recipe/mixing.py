"""Checks which kinds of experts can be mixed, where, how finely and by which routers.

Knows no kind by name, and nothing about files or tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from moesaic.config import Feature
from moesaic.errors import RecipeError, nearest
from moesaic.kinds import KINDS, Kind, sites
from moesaic.sections.routers import Router
from moesaic.sections.section import Section, either, refusal


@dataclass(frozen=True)
class InTable:
    """Annotates a site: one that some kind in the table has when the recipe is read."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(_known_site)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"enum": sites(), "type": "string"}


def _known_site(value: Any) -> str:
    if value not in sites():
        expected, hint = either(map(repr, sites())), nearest(str(value), sites())
        raise refusal(RecipeError("wrong value", expected=expected, got=repr(value), hint=hint))
    return str(value)


Site = Annotated[str, InTable()]
Level = Literal["sequence", "token"]


class Mixture(Section):
    """Where and how finely experts are mixed."""

    site: Site | None = None
    """Where experts meet (default: as their kind decides): linear, adapters beside matrices of the base; ffn, blocks
    beside its feed-forward blocks; model, whole models behind the router."""
    level: Level = "sequence"
    """How often the router decides: once for each sequence, from its prompt; or before each token, from the text so
    far, which only whole models allow."""
    combine: Literal["mixture", "product"] = "mixture"
    """Way to combine the next-token distributions of whole models: their weighted mean, or their weighted product."""

    def idle(self) -> dict[str, str]:
        """How distributions are combined, where the experts share a trunk and so give one distribution."""
        several = dict.fromkeys(kind.site for kind in KINDS.values() if not kind.shares_trunk)
        return {} if self.site is None or self.site in several else {"combine": f"it goes with site: {either(several)}"}


def site_of(kinds: Mapping[str, Kind]) -> str:
    """Where experts of these kinds meet, by name; experts of several sites cannot be mixed."""
    (first, kind), *_ = kinds.items()
    for name, other in kinds.items():
        if other.site != kind.site:
            alike = either(one.word for one in KINDS.values() if one.site == kind.site)
            what = f"{other.word} experts ('{name}') cannot be mixed with {kind.word} experts ('{first}')"
            hint = "keep each kind in a recipe of its own"
            raise refusal(RecipeError(what, expected=alike, hint=hint), "experts", name, "kind")
    return kind.site


def require_legal(kinds: Mapping[str, Kind], mixture: Mixture) -> None:
    """Refuse a site or a level at which experts of these kinds, by name, cannot be mixed."""
    for name, kind in kinds.items():
        what = f"{kind.word} experts ('{name}') cannot be mixed"
        if mixture.site not in (None, kind.site):
            error = RecipeError(f"{what} at site {mixture.site}", expected=f"site {kind.site}")
            raise refusal(error, "mixture", "site")
        if mixture.level not in kind.levels:
            error = RecipeError(f"{what} at level {mixture.level}", expected=f"level {either(kind.levels)}")
            raise refusal(error, "mixture", "level")


def require_routable(router: Router, kinds: Mapping[str, Kind], level: Level) -> None:
    """Refuse a router that cannot choose between whole models, or not token by token."""
    if all(kind.shares_trunk for kind in kinds.values()):
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
