"""The sections that say how something is trained.

Knows nothing about optimisers, nor about what is trained.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional, TypeVar

from pydantic import Discriminator, Field, Tag, create_model

from moesaic.sections.section import CASE, Amount, Count, Distinct, Positive, Section, Whole
from moesaic.sections.sources import SomeSources

S = TypeVar("S", bound=Section)


def _one_or_grid(value: Any) -> str:
    return CASE + ("grid" if isinstance(value, list) else "one")


class Train(Section):
    """How an expert is trained."""

    steps: Count = 100
    """Optimiser steps."""
    batch: Count = 8
    """Rows in a batch."""
    length: Annotated[Count, Field(ge=2)] = 256
    """Tokens in a row."""
    lr: Annotated[
        Annotated[Positive, Tag(CASE + "one")]
        | Annotated[list[Positive], Field(min_length=1), Distinct, Tag(CASE + "grid")],
        Discriminator(_one_or_grid),
    ] = 3e-3
    """Learning rate at its highest; of several, the best on validation is kept."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the steps in which the learning rate rises."""
    weight_decay: Amount = 0.0
    """Decoupled weight decay."""
    clip: Positive = 1.0
    """Largest norm of the gradient."""
    accumulate: Count = 1
    """Batches to a step."""
    evaluate_every: Whole = 50
    """Steps between validations; 0: only at the end."""
    patience: Whole = 0
    """Validations without improvement before training stops; 0: never."""


def _fields_optional(of: type[Section]) -> Callable[[type[S]], type[S]]:
    fields: dict[str, Any] = {
        name: (Optional[Annotated[field.annotation, *field.metadata]], Field(None, description=field.description))  # noqa: UP045
        for name, field in of.model_fields.items()
    }
    return lambda cls: create_model(
        cls.__name__, __base__=cls, __module__=cls.__module__, __doc__=cls.__doc__, **fields
    )


@_fields_optional(Train)
class TrainOverride(Section):
    """What differs from the recipe's `train` in one training; the rest is None."""

    def over(self, train: Train) -> Train:
        """`train`, with what is written here put in its place."""
        return train.model_copy(update={key: value for key, value in self if value is not None})


class Pretrain(Train):
    """How a fresh base is pretrained."""

    data: Annotated[
        Annotated[Literal["experts"], Tag(CASE + "experts")] | Annotated[SomeSources, Tag(CASE + "sources")],
        Discriminator(lambda value: CASE + ("experts" if value == "experts" else "sources")),
    ] = "experts"
    """What it is trained on: files, or `experts` for the training text of all experts."""
