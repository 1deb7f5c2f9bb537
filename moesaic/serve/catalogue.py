"""The names of a served model: the mixture, which routes, and `mixture:expert` for each expert and the base.

Knows nothing about models; a name that is not served is an error with the nearest one that is.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from moesaic.errors import clipped
from moesaic.generate.request import BASE
from moesaic.serve.problems import Problem


@dataclass(frozen=True)
class Catalogue:
    """The names under which one model and its experts are asked."""

    name: str
    experts: tuple[str, ...]

    @cached_property
    def outcomes(self) -> tuple[str, ...]:
        """Everything that can answer."""
        return (*self.experts, BASE)

    @cached_property
    def everybody(self) -> frozenset[str]:
        return frozenset(self.outcomes)

    @cached_property
    def ids(self) -> dict[str, str | None]:
        """Each name of a model and the expert that it forces; None where the router chooses."""
        forced = self.outcomes if self.experts else ()
        return {self.name: None, **{f"{self.name}:{one}": one for one in forced}}

    def expert(self, model: str) -> str | None:
        """The expert that a request's model forces. Raises a Problem with the nearest name for an unknown one."""
        ids = self.ids
        if model not in ids:
            message = f"model: no model is named {clipped(model)!r}; {suggestion(model, [*ids])}"
            raise Problem(404, message, code="model_not_found", param="model")
        return ids[model]

    def allowed(self, allow: Sequence[str] | None, exclude: Sequence[str]) -> frozenset[str]:
        """The outcomes of a request's lists. Raises a Problem for an unknown one, and where none is left."""
        for field, names in (("routing.allow", allow or ()), ("routing.exclude", exclude)):
            for name in names:
                self.require(name, field)
        if allow is None and not exclude:
            return self.everybody
        left = {*(self.outcomes if allow is None else allow)} - {*exclude}
        if not left:
            message = "routing: the lists leave nobody to answer; exclude fewer of the allowed"
            raise Problem(400, message, code="invalid_value", param="routing")
        return frozenset(left)

    def require(self, name: str, field: str) -> None:
        if name not in self.outcomes:
            message = f"{field}: no expert is named {clipped(name)!r}; {suggestion(name, self.outcomes)}"
            raise Problem(400, message, code="expert_not_found", param=field)

    def cards(self, created: int, context: int) -> list[dict[str, Any]]:
        """The models as `/v1/models` lists them: what routes first, then the experts with their parent."""
        common = {"object": "model", "created": created, "owned_by": "moesaic", "max_model_len": context}
        return [
            {"id": id, **common, "root": id, "parent": None if expert is None else self.name}
            for id, expert in self.ids.items()
        ]


def suggestion(name: str, known: Collection[str]) -> str:
    """A remedy that names the known word closest to an unknown one."""
    word = name.rpartition(":")[2]
    close = get_close_matches(name, known, n=1) or get_close_matches(word, known, n=1, cutoff=0.4)
    listed = ", ".join(known) if len(known) <= 8 else f"one of the {len(known)} of /v1/models"
    return f"did you mean '{close[0]}'?" if close else f"expected {listed}"
