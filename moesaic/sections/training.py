"""The sections about training settings.

Knows nothing about optimisers or models.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Discriminator, Field, Tag, create_model

from moesaic.sections.section import CASE, Amount, Count, Distinct, Positive, Section, Text, Whole
from moesaic.sections.sources import SomeSources, Source

S = TypeVar("S", bound=Section)


def _one_or_grid(value: Any) -> str:
    return CASE + ("grid" if isinstance(value, list) else "one")


class Train(Section):
    """Training settings of an expert."""

    steps: Count = 100
    """Number of optimiser steps."""
    batch: Count = 8
    """Rows in a batch."""
    length: Annotated[Count, Field(ge=2)] = 256
    """Maximum number of tokens in a row."""
    lr: Annotated[
        Annotated[Positive, Tag(CASE + "one")]
        | Annotated[list[Positive], Field(min_length=1), Distinct, Tag(CASE + "grid")],
        Discriminator(_one_or_grid),
    ] = 3e-3
    """Peak learning rate, or a list to try; the best on validation wins."""
    warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the steps with a rising learning rate."""
    schedule: Literal["cosine", "wsd"] = Field(
        default="cosine", exclude_if=lambda given: given == "cosine"
    )  # keys stay
    """Learning rate after the warm-up: half a cosine down to 0, or constant with a line to 0 at the end."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.2
    """With `schedule: wsd`, the share of the steps in which the learning rate falls in a line to 0."""
    weight_decay: Amount = 0.0
    """Decoupled weight decay."""
    clip: Positive = 1.0
    """Maximum norm of the gradient."""
    accumulate: Count = 1
    """Batches per step."""
    recompute: bool = Field(default=False, exclude_if=lambda given: not given)  # keys stay
    """Recompute each layer in the backward pass instead of keeping its activations: less memory, more time."""
    tether: Amount = Field(default=0.0, exclude_if=lambda given: not given)
    """Weight of the divergence from the base on neutral text, which keeps an expert from changing text that is not its
    own; 0: none."""
    evaluate_every: Whole = 50
    """Steps between validations; 0: validate only at the end."""
    patience: Whole = 0
    """Validations without improvement before training stops; 0: never stop early."""

    def idle(self) -> dict[str, str]:
        """The decay, if the schedule is no `wsd`."""
        return {} if self.schedule == "wsd" else {"decay": "it goes with schedule: wsd"}


def _fields_optional(of: type[Section]) -> Callable[[type[S]], type[S]]:
    fields: dict[str, Any] = {
        name: (Annotated[field.annotation, Field(), *field.metadata] | None, Field(None, description=field.description))
        for name, field in of.model_fields.items()
    }
    return lambda cls: create_model(
        cls.__name__, __base__=cls, __module__=cls.__module__, __doc__=cls.__doc__, **fields
    )


@_fields_optional(Train)
class TrainOverride(Section):
    """Settings of one training that replace those of the recipe's `train`; others are None."""

    def over(self, train: Train) -> Train:
        return train.model_copy(update={key: value for key, value in self if value is not None})


class Continuous(Section):
    """Settings of a training that goes on."""

    steps: Count = 50
    """Optimiser steps of a round."""
    patience: Count = 3
    """Rounds without a clear gain before an expert rests until rows are added to its files; each halves the rate."""
    seconds: Positive = 10.0
    """Seconds between two looks at the files while every expert rests."""


class TokenShards(Section):
    """Text that is tokens already."""

    shards: Text
    """Folder that `moesaic tokenize` wrote, relative to `data_root`."""


def _kind_of_corpus(value: Any) -> str:
    keys = type(value).model_fields if isinstance(value, BaseModel) else value
    if isinstance(keys, Mapping) and "shards" in keys:
        return CASE + "shards"
    return CASE + ("experts" if value == "experts" else "sources")


Parallel = Literal["ddp", "fsdp", "ep"]


class Pretrain(Train):
    """Settings of the pretraining of a new base."""

    data: Annotated[
        Annotated[Literal["experts"], Tag(CASE + "experts")]
        | Annotated[TokenShards, Tag(CASE + "shards")]
        | Annotated[SomeSources, Tag(CASE + "sources")],
        Discriminator(_kind_of_corpus),
    ] = "experts"
    """Files to train on, `{shards: FOLDER}`, or `experts` for the training texts of all experts."""
    parallel: Parallel = Field(default="ddp", exclude_if=lambda given: given == "ddp")  # keys stay
    """Each process of `torchrun` holds a copy (DDP), a piece of every parameter (FSDP2), or also whole experts (EP)."""
    compile: bool = Field(default=False, exclude_if=lambda given: not given)
    """Compile each layer by `torch.compile`, which needs a C++ compiler."""
    apart: bool = Field(default=False, exclude_if=lambda given: not given)
    """Let tokens see only their own text, and not the texts before it in the same row."""

    def idle(self) -> dict[str, str]:
        """Also the tether."""
        return super().idle() | {"tether": "a new base has no base to stay near"}

    @property
    def sources(self) -> list[Source]:
        """The files to train on, where `data` names files."""
        return self.data if isinstance(self.data, list) else []

    @property
    def shards(self) -> str | None:
        """The folder of shards, where `data` names one."""
        return getattr(self.data, "shards", None)
