"""Checks which kinds of experts can be mixed, at which site and level, and by which routers.

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
from moesaic.sections.routers import GATES, Router
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
    """Site and level at which experts are mixed."""

    site: Site | None = None
    """Site of the experts: linear, adapters beside matrices of the base; ffn, blocks beside the base's feed-forward
    blocks; model, whole models behind the router (default: the site of their kind)."""
    level: Level = "sequence"
    """Frequency of decisions: once per sequence, from the prompt; or each token: for blocks in every layer, by a router
    of kind gates; for whole models before the token, from the text so far."""
    combine: Literal["mixture", "product"] = "mixture"
    """Combination of the next-token distributions of whole models: weighted mean, or weighted product."""

    def idle(self) -> dict[str, str]:
        """The key `combine` of experts that share a trunk, which give a single distribution."""
        several = dict.fromkeys(kind.site for kind in KINDS.values() if not kind.shares_trunk)
        return {} if self.site is None or self.site in several else {"combine": f"it goes with site: {either(several)}"}


def site_of(kinds: Mapping[str, Kind]) -> str:
    """Site of experts with these kinds, by name; raises for experts of several sites."""
    (first, kind), *_ = kinds.items()
    for name, other in kinds.items():
        if other.site != kind.site:
            alike = either(one.word for one in KINDS.values() if one.site == kind.site)
            what = f"{other.word} experts ('{name}') cannot be mixed with {kind.word} experts ('{first}')"
            hint = "write a recipe for each kind"
            raise refusal(RecipeError(what, expected=alike, hint=hint), "experts", name, "kind")
    return kind.site


def require_legal(kinds: Mapping[str, Kind], mixture: Mixture) -> None:
    """Refuse a site or a level that experts of these kinds, by name, do not support."""
    for name, kind in kinds.items():
        what = f"{kind.word} experts ('{name}') cannot be mixed"
        if mixture.site not in (None, kind.site):
            error = RecipeError(f"{what} at site {mixture.site}", expected=f"site {kind.site}")
            raise refusal(error, "mixture", "site")
        if mixture.level not in kind.levels:
            error = RecipeError(f"{what} at level {mixture.level}", expected=f"level {either(kind.levels)}")
            raise refusal(error, "mixture", "level")


def require_routable(router: Router, kinds: Mapping[str, Kind], level: Level) -> None:
    """Refuse a router that cannot choose between such experts, or cannot choose for each token."""
    inside = all(kind.routes_inside for kind in kinds.values())
    for index, spec in enumerate([router, *router.compare]):
        at = ("compare", index - 1) if index else ()
        if spec.kind == GATES and not inside:
            able = either(kind.word for kind in KINDS.values() if kind.routes_inside)
            what = "gates choose between experts that share the base's blocks"
            raise refusal(RecipeError(what, expected=f"experts of kind {able}"), "router", *at, "kind")
    if inside and (router.kind == GATES) != (level == "token"):
        what = f"a {router.kind} router does not decide at level {level}"
        expected = f"kind: {GATES}" if level == "token" else "mixture.level: token"
        raise refusal(RecipeError(what, expected=expected), "router", "kind")
    if all(kind.shares_trunk for kind in kinds.values()):
        return
    if router.depth is not None:
        hint = "read embedding_mean, hidden_mean or hidden_last"
        what = "states after some blocks are no use for whole models, which share no trunk with the base"
        raise refusal(RecipeError(what, got=f"'{router.feature}'", hint=hint), "router", "feature")
    for index, spec in enumerate([router, *router.compare]):
        if spec.loss.task:
            at = ("compare", index - 1) if index else ()
            hint = "leave out loss.task: loss.expert trains the router"
            error = RecipeError("not supported for whole models", hint=hint)
            raise refusal(error, "router", *at, "loss", "task")
    if level == "token":
        feature = Feature.parse(router.feature) if isinstance(router.feature, str) else None
        if feature is None or feature.source != "state" or feature.pool == "none":
            expected = "embedding_mean, hidden_mean or hidden_last"
            what = "a router that decides before every token must read states of the tokens so far"
            raise refusal(RecipeError(what, expected=expected, got=f"'{router.feature}'"), "router", "feature")
