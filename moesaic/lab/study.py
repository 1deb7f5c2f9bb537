"""The study: its keys, their defaults, checks of keys beside each other, and how it is read from a file.

A study compares arms: each is trained at every depth with every seed, at a rate that was swept for it. Knows nothing
about tensors or run directories.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from moesaic.config import SIZES
from moesaic.errors import RecipeError, nearest
from moesaic.lab.arms import ARMS
from moesaic.recipe.reading import checked, load_document
from moesaic.sections.document import Document
from moesaic.sections.names import validate_name
from moesaic.sections.section import Amount, Count, Distinct, OneOrMore, Positive, Section, Text, Whole, refusal
from moesaic.sections.sources import SomeSources
from moesaic.sections.training import Train

FACTOR = 2.0
"""Neighbouring rates of a sweep differ by this factor."""


def known(kind: str, name: str, names: Mapping[str, Any]) -> str:
    """The name, or a refusal that lists the known ones."""
    if name in names:
        return name
    expected = f"one of {', '.join(names)}"
    raise refusal(RecipeError(f"unknown {kind}", expected=expected, got=repr(name), hint=nearest(name, [*names])))


def _study_name(name: str) -> str:
    try:
        return validate_name(name, "a study")
    except RecipeError as error:
        raise refusal(error) from None


class StudyArm(Section):
    """An arm of a study."""

    arm: Annotated[str, AfterValidator(lambda name: known("arm", name, ARMS))] | None = None
    """Architecture (default: the one with the name of this entry)."""
    redraw: Whole = 0
    """Number added to the seed of the weights: with another number, an arm differs from itself by chance alone."""
    depths: Annotated[list[Count], Distinct, Field(min_length=1)] | None = None
    """Numbers of layers (default: those of the study)."""


class StudyTrain(Section):
    """Training settings of every cell."""

    steps: Count = 1000
    """Number of optimiser steps up to the end of the last decay."""
    batch: Count = 16
    """Rows in a batch."""
    length: Annotated[Count, Field(ge=2)] = 128
    """Number of tokens in a row."""
    apart: bool = False
    """Whether tokens see only their own text, where a row holds several."""
    warmup: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the steps with a rising learning rate."""
    decays: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Distinct] = Field(
        default=[0.4, 0.7, 1.0], min_length=1
    )
    """Ends of the decays, as rising shares of the steps: at each a branch of the training reaches rate 0."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the steps up to the end of a decay in which the learning rate falls in a line to 0."""
    weight_decay: Amount = 0.1
    """Decoupled weight decay."""
    clip: Positive = 1.0
    """Maximum norm of the gradient."""
    accumulate: Count = 1
    """Batches per step."""

    @property
    def ends(self) -> list[int]:
        """The last step of each decay."""
        return [round(share * self.steps) for share in self.decays]

    def to(self, steps: int, lr: float, decays: bool) -> Train:
        """Settings of a training up to a step: with a decay, or at a constant rate after the warm-up of all."""
        shared = {name: getattr(self, name) for name in ("batch", "length", "weight_decay", "clip", "accumulate")}
        warmup = min(1.0, self.warmup * self.steps / steps)
        decay = self.decay if decays else 0.0
        return Train(steps=steps, lr=lr, schedule="wsd", warmup=warmup, decay=decay, evaluate_every=0, **shared)

    @field_validator("decays")
    @classmethod
    def _rising(cls, decays: list[float]) -> list[float]:
        if decays != sorted(decays) or decays[-1] != 1:
            expected = "rising shares that end with 1.0"
            raise refusal(RecipeError("the last decay ends with the training", expected=expected, got=decays))
        return decays


class Sweep(Section):
    """The choice of each arm's learning rate."""

    rates: Annotated[list[Positive], Distinct] = Field(default=[1e-3, 2e-3, 4e-3], min_length=3)
    """Peak learning rates to begin with; an arm whose best one is at an end gets another beyond it."""
    depths: Annotated[list[Count], OneOrMore(), Distinct, Field(min_length=1)] | None = None
    """Numbers of layers to sweep at; others take the rate of the nearest in ratio (default: the fewest)."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Steps of a trial, as a share of a cell's."""
    most: Annotated[Count, Field(ge=3)] = 8
    """Maximum number of rates of an arm; where the best of them is still at an end, the report says so."""

    @field_validator("rates")
    @classmethod
    def _apart(cls, rates: list[float]) -> list[float]:
        for index, (low, high) in enumerate(pairwise(rates), 1):
            if abs(high / low - FACTOR) > 0.01 * FACTOR:
                error = RecipeError("not evenly apart", expected=f"{FACTOR:g} times the rate before", got=high)
                raise refusal(error, index)
        return rates


class Study(Section):
    """All settings of a study."""

    name: Annotated[str, AfterValidator(_study_name)]
    """Name of the study, and of its folder."""
    seed: Whole = 0
    """First seed; the others follow it, and the sweeps take the one after the last."""
    seeds: Annotated[Count, Field(ge=2)] = 3
    """Number of seeds. Seeds of one number share their batches over all arms."""
    workers: Annotated[Count, Field(le=64)] = 2
    """Number of parallel trainings, each with one thread."""
    checkpoint_seconds: Amount = 60.0
    """Seconds between checkpoints, more if saving is slow; 0: every step."""
    data_root: Text | None = None
    """Folder that sources are relative to (default: the study's folder)."""
    data: SomeSources
    """Files of texts."""
    unseen: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the texts, chosen by their hash, that nothing trains on: half chooses rates, half is reported."""
    rows: Count = 10_000
    """Maximum number of unseen texts to report on, and to choose rates by."""
    vocab_size: Annotated[int, Field(ge=257, le=2**20)] = 512
    """Entries of the tokenizer: 256 bytes, an end token, and merges."""
    size: Annotated[str, AfterValidator(lambda name: known("size", name, SIZES))]
    """Name of the dense model's shape; `depths` replace its number of layers."""
    depths: Annotated[list[Count], Distinct, Field(min_length=1)]
    """Numbers of layers."""
    arms: Annotated[dict[str, StudyArm], Field(min_length=2)]
    """Arms by name."""
    against: str | None = None
    """Arm that the others are compared with (default: the first)."""
    train: StudyTrain = StudyTrain()
    """How every cell is trained."""
    sweep: Sweep = Sweep()
    """How the learning rate of each arm is chosen."""

    @property
    def reference(self) -> str:
        """Name of the arm that the others are compared with."""
        return self.against or next(iter(self.arms))

    @property
    def drawn(self) -> list[int]:
        """The seeds of the cells."""
        return [self.seed + number for number in range(self.seeds)]

    @property
    def sweep_seed(self) -> int:
        """The seed of the sweeps, which no cell has."""
        return self.seed + self.seeds

    def arm_of(self, name: str) -> str:
        """Name of the architecture of an entry of `arms`."""
        return self.arms[name].arm or name

    def depths_of(self, name: str) -> list[int]:
        """The numbers of layers of an arm, rising."""
        return sorted(self.arms[name].depths or self.depths)

    @property
    def every_depth(self) -> list[int]:
        """The numbers of layers of all arms, rising."""
        return sorted({depth for name in self.arms for depth in self.depths_of(name)})

    def swept_for(self, name: str, depth: int) -> int:
        """The depth whose sweep gives the rate of an arm at a depth: the nearest that was swept, in ratio."""
        swept = [one for one in self.swept if one in self.depths_of(name)] or self.depths_of(name)[:1]
        return min(swept, key=lambda one: (max(one, depth) / min(one, depth), one))

    @property
    def swept(self) -> list[int]:
        return self.sweep.depths or [min(self.depths)]

    def resolve(self, path: str) -> Path:
        return Path(self.data_root or "", os.path.expanduser(path))

    @field_validator("arms")
    @classmethod
    def _known(cls, arms: dict[str, StudyArm]) -> dict[str, StudyArm]:
        for name, arm in arms.items():
            try:
                validate_name(name, "an arm")
            except RecipeError as error:
                raise refusal(error, name) from None
            if arm.arm is None and name not in ARMS:
                hint = nearest(name, [*ARMS]) or "give it the key arm"
                raise refusal(RecipeError("unknown arm", expected=f"one of {', '.join(ARMS)}", hint=hint), name)
        return arms

    @model_validator(mode="after")
    def _together(self) -> "Study":
        if self.reference not in self.arms:
            expected, hint = f"one of {', '.join(self.arms)}", nearest(self.reference, [*self.arms])
            raise refusal(RecipeError("no such arm", expected=expected, got=repr(self.against), hint=hint), "against")
        for index, depth in enumerate(self.sweep.depths or []):
            if depth not in self.every_depth:
                error = RecipeError("not a depth of this study", expected=f"one of {self.every_depth}", got=depth)
                raise refusal(error, "sweep", "depths", index)
        context = SIZES[self.size]["context"]
        if self.train.length > context:
            error = RecipeError("rows longer than the context", expected=f"<= {context}", got=self.train.length)
            raise refusal(error, "train", "length")
        starts = [round(end * (1 - self.train.decay)) for end in self.train.ends]
        if starts[0] < self.train.warmup * self.train.steps:
            what, expected = "the first decay begins before the warm-up ends", "a smaller warmup, or a later end"
            raise refusal(RecipeError(what, expected=expected, got=self.train.decays[0]), "train", "decays", 0)
        return self


def read_study(path: str | PathLike[str], overrides: Sequence[str] = ()) -> tuple[Study, Document]:
    """Read a study with the document that locates later errors in it; each override is `key=value`, as of recipes."""
    document = load_document(path)
    study = checked(document, overrides, Study)
    root = os.path.abspath(Path(path).parent / os.path.expanduser(study.data_root or ""))
    return study.model_copy(update={"data_root": root}), document
