"""The keys of every kind of expert in a recipe, and types that several kinds share.

Knows no kind by name: the kinds in `moesaic/kinds/` add their own keys.
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

TRAINED = "an expert with path is trained already: its folder decides this"


class Sweep(Section):
    """Lists of values to try in every combination instead of an expert's own values."""

    lr: Annotated[list[Positive], Field(min_length=1), Distinct] | None = None
    """Learning rates to try."""

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
    """Layers that the expert changes, as `2..`, `2..6` (2, 3, 4, 5) or `..4` (default: all)."""
    data: Data | None = None
    """Data for training and evaluation; with `path`, data for the router and for evaluation."""
    path: Text | None = None
    """Folder or `org/name@revision` of a trained expert."""
    examples: SomeSources | None = None
    """Prompts that the router learns from, for an expert without data."""
    keywords: Annotated[list[Text], Field(min_length=1), Distinct] | None = None
    """Words that the keyword router searches for."""
    sweep: Sweep | None = None
    """Values to try; the best on validation wins."""
    train: TrainOverride = TrainOverride()
    """Training settings of this expert only."""

    def idle(self) -> dict[str, str]:
        """Keys that the folder of a trained expert decides, and examples beside data."""
        idle = dict.fromkeys(("layers", "train", "sweep"), TRAINED) if self.path else {}
        return idle | ({"examples": "the router learns from data"} if self.data else {})

    @property
    def trials(self: E) -> list[E]:
        """The expert with every combination of its sweep, except learning rates; the expert itself without a sweep."""
        tried = {key: value for key, value in self.sweep or () if value and key != "lr"}
        combinations = product(*tried.values())
        return [self.model_copy(update=dict(zip(tried, values, strict=True))) for values in combinations]

    @property
    def largest(self: E) -> E:
        return self

    @property
    def frozen(self) -> bool:
        """Whether training leaves the expert's head unchanged."""
        return False

    @property
    def labelled(self) -> bool:
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
            hint = "give data to train on, or the path of a trained expert"
            raise refusal(RecipeError("neither data nor path", hint=hint))
        if not self.data and not self.examples:
            hint = "an expert with path needs data or examples"
            raise refusal(RecipeError("nothing for the router to learn from", hint=hint))
        return self


def written_sweep(sweep: Sweep | None) -> dict[str, Any]:
    return {key: values for key, values in sweep or () if values}
