"""The keys that experts of every kind have in a recipe, and the values that several kinds share.

Knows no kind by name: each adds its own keys in `moesaic/kinds/`.
"""

from itertools import product
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import Field, field_validator, model_validator

from moesaic.errors import RecipeError
from moesaic.sections.layers import layer_bounds
from moesaic.sections.section import Distinct, Positive, Section, Text, either, refusal
from moesaic.sections.sources import Data, SomeSources
from moesaic.sections.training import TrainOverride

OfDecoders = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Target = Literal[OfDecoders, "query", "key", "value", "dense"]
Targets = Annotated[list[Target], Distinct, Field(min_length=1)]
ALL_TARGETS: list[Target] = list(get_args(OfDecoders))

E = TypeVar("E", bound="Expert")

TRAINED = "an expert with path is trained already: its folder says this"


class Sweep(Section):
    """Values to try, in every combination, in place of an expert's own; one setting at least."""

    lr: Annotated[list[Positive], Field(min_length=1), Distinct] | None = None
    """Learning rates."""

    @model_validator(mode="after")
    def _something(self) -> "Sweep":
        if not any(value for _, value in self):
            raise refusal(RecipeError("nothing to try", hint=f"give values of {either(type(self).model_fields)}"))
        return self


class Expert(Section):
    """A trained contribution: trained here from data, or trained elsewhere and loaded from a folder."""

    kind: str
    """Kind of the expert."""
    layers: str | None = None
    """Blocks that the expert changes, as `2..`, `2..6` (2, 3, 4, 5) or `..4` (default: all)."""
    data: Data | None = None
    """Data to train on and to be judged by; with `path`, data to learn the routing from and to be judged by."""
    path: Text | None = None
    """Folder or `org/name@revision` of an expert that was trained elsewhere."""
    examples: SomeSources | None = None
    """Prompts to learn the routing from, where there is no data."""
    keywords: Annotated[list[Text], Field(min_length=1), Distinct] | None = None
    """Words that the keyword router looks for."""
    sweep: Sweep | None = None
    """Values to try; the best on validation is kept."""
    train: TrainOverride = TrainOverride()
    """Training settings of this expert only."""

    def idle(self) -> dict[str, str]:
        """Keys that a trained expert's folder decides already, and examples beside data."""
        idle = dict.fromkeys(("layers", "train", "sweep"), TRAINED) if self.path else {}
        return idle | ({"examples": "the router learns from data"} if self.data else {})

    @property
    def trials(self: E) -> list[E]:
        """The expert with every combination of its sweep's values but learning rates; itself without a sweep."""
        tried = {key: value for key, value in self.sweep or () if value and key != "lr"}
        combinations = product(*tried.values())
        return [self.model_copy(update=dict(zip(tried, values, strict=True))) for values in combinations]

    @property
    def largest(self: E) -> E:
        """The largest of the expert's trials."""
        return self

    @property
    def frozen(self) -> bool:
        """Whether the expert's head, if it has one, stays as it is drawn."""
        return False

    @property
    def labelled(self) -> bool:
        """Whether the expert's data has labels."""
        return self.data is not None and self.data.labelled

    @field_validator("layers")
    @classmethod
    def _layers(cls, layers: str | None) -> str | None:
        try:
            layer_bounds(layers)
        except RecipeError as error:
            raise refusal(error) from None
        return layers

    @model_validator(mode="after")
    def _origin(self) -> "Expert":
        if not self.data and not self.path:
            raise refusal(
                RecipeError("neither data nor path", hint="give data to train on, or a trained adapter's path")
            )
        if not self.data and not self.examples:
            raise refusal(RecipeError("nothing to route by", hint="an expert with path needs data or examples"))
        return self


def written_sweep(sweep: Sweep | None) -> dict[str, Any]:
    """The settings that a sweep tries, by key."""
    return {key: values for key, values in sweep or () if values}
