"""The recipe, section by section: its keys, their defaults, and what may stand beside what.

Knows nothing about YAML, files' contents or tensors; no section is ever changed after it was checked.
"""

import os
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator, model_validator

from moesaic.config import SIZES
from moesaic.errors import RecipeError, nearest
from moesaic.recipe.mixing import LEGAL, OF_ADAPTERS, WITHOUT, Kind, Mixture, Site, require_legal, require_routable
from moesaic.recipe.mixing import site_of as site_of_kinds
from moesaic.recipe.routers import EncoderFeature, Router
from moesaic.recipe.section import (
    CASE,
    Amount,
    Count,
    Distinct,
    Positive,
    Section,
    Text,
    Whole,
    layer_bounds,
    refusal,
    validate_name,
)
from moesaic.recipe.sources import Data, LabelledData, SomeSources, Sources, case_by_key
from moesaic.recipe.training import Pretrain, Train, TrainOverride

OfDecoders = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
Target = Literal[OfDecoders, "query", "key", "value", "dense"]
Metric = Literal["perplexity", "accuracy"]
TextMetric = Literal["exact_match", "f1", "rouge", "bleu", "truth"]
Control = Literal["base", "joint", "joint_wide", "average", "uniform", "random", "keyword", "oracle", "oracle_best"]

RESERVED = (*get_args(Control), "router", "all", "unseen")
"""Words that stand beside the experts' names in every table, so no expert may be called one."""


def validate_expert(name: str, seen: dict[str, str]) -> None:
    """Refuse a name that no expert can have beside those `seen` (in lower case -> as written), which it joins."""
    validate_name(name, "an expert")
    if name.lower() in RESERVED:
        raise RecipeError("a reserved name", hint=f"no expert can be called {', '.join(RESERVED)}")
    if (other := seen.get(name.lower())) is not None:
        raise RecipeError("given twice" if other == name else f"differs from expert '{other}' only in case")
    seen[name.lower()] = name


def _run_name(name: str) -> str:
    try:
        return validate_name(name, "a run")
    except RecipeError as error:
        raise refusal(error) from None


class ExistingBase(Section):
    """A base that is there already."""

    path: Text
    """A folder with config.json, safetensors and a tokenizer; or `org/name@revision` of the hub; or `shipped:tiny`."""
    pool: Literal["first", "mean", "last"] | None = None
    """Which state of a row a label is read from: of the first token, as in encoders, through the pooler of a BERT that
    has one; of the last, as in decoders; or the mean over all tokens. Where none is given, as is usual for the base."""


class NewBase(Section):
    """A base that is pretrained here, from nothing."""

    size: str
    """Name of its shape."""
    vocab_size: Annotated[int, Field(ge=257, le=2**20)] = 512
    """Entries of its tokenizer: 256 bytes, an end, and what it merges."""
    pretrain: Pretrain
    """How it is pretrained."""

    @field_validator("size")
    @classmethod
    def _known(cls, size: str) -> str:
        if size not in SIZES:
            expected, hint = f"one of {', '.join(SIZES)}", nearest(size, list(SIZES))
            raise refusal(RecipeError("unknown size", expected=expected, got=repr(size), hint=hint))
        return size


Base = Annotated[
    Annotated[NewBase, Tag(CASE + "size")] | Annotated[ExistingBase, Tag(CASE + "path")], case_by_key("size", "path")
]


def _named_or_own(value: Any) -> str:
    return CASE + ("own" if isinstance(value, Mapping) else "inner" if isinstance(value, int) else "named")


Side = Annotated[list[Annotated[Count, Field(le=2**20)]], Field(min_length=1, max_length=32)]
Sides = Annotated[list[Side], Field(min_length=2, max_length=2)]


class Sweep(Section):
    """What is tried, in every combination, in place of an expert's own value; one setting at least."""

    rank: Annotated[list[Count], Field(min_length=1), Distinct] | None = None
    """Ranks."""
    alpha: Annotated[list[Positive], Field(min_length=1), Distinct] | None = None
    """Values of alpha."""
    lr: Annotated[list[Positive], Field(min_length=1), Distinct] | None = None
    """Learning rates."""
    targets: (
        Annotated[list[Annotated[list[Target], Field(min_length=1), Distinct]], Field(min_length=1), Distinct] | None
    ) = None
    """Sets of linear layers."""

    @model_validator(mode="after")
    def _something(self) -> "Sweep":
        if not any(value for _, value in self):
            raise refusal(RecipeError("nothing to try", hint="give values of rank, alpha, lr or targets"))
        return self


class Expert(Section):
    """A trained contribution: trained here from data, or trained elsewhere and lying in a folder."""

    kind: Kind
    """What it is made of: pairs of thin matrices, the cores of tensor trains, feed-forward blocks, or a whole model."""
    rank: Count = 8
    """Rank of its adapters."""
    alpha: Positive | None = None
    """What multiplies its adapters: of lora alpha / rank, of tt_lora alpha itself; where none is given, 2 and 8."""
    targets: Annotated[list[Target], Distinct] = Field(default=list(get_args(OfDecoders)), min_length=1)
    """Linear layers that it adapts."""
    factors: Annotated[
        Annotated[Literal["auto", "published"], Tag(CASE + "named")]
        | Annotated[Count, Tag(CASE + "inner")]
        | Annotated[dict[str, Sides], Tag(CASE + "own")],
        Discriminator(_named_or_own),
    ] = "auto"
    """Of tt_lora, how sizes are cut: auto, into the fewest numbers; as published for such matrices; a number, the inner
    of two factors a side; or `[[inputs], [outputs]]` by target."""
    init: Literal["zero", "published"] = "zero"
    """Of tt_lora, how it starts: without changing anything, or with cores of norm 1."""
    layers: str | None = None
    """Blocks that it adapts, or has the feed-forward part of, as `2..`, `2..6` (2, 3, 4, 5) or `..4`; all where none
    are given."""
    anchor: bool = False
    """Of ffn, whether it is trained beside the base's own block, each with half the say, so that it learns to be
    mixed."""
    data: Data | None = None
    """What it is trained for and judged by; with `path`, what it is routed to and judged by."""
    path: Text | None = None
    """One trained elsewhere, its folder or `org/name@revision` of the hub: of lora a PEFT adapter; of ffn its blocks,
    or a fine-tuned version of the base that holds them; of model a model."""
    ignore_rest: bool = False
    """Of ffn with path, whether what else of the fine-tuned model differs from the base is told and left out, rather
    than refused."""
    examples: SomeSources | None = None
    """Prompts to learn the routing from, where there is no data."""
    keywords: Annotated[list[Text], Field(min_length=1), Distinct] | None = None
    """Words that the keyword router looks for."""
    head: Literal["trained", "frozen"] = "trained"
    """Of rows with labels: whether the head learns, or stays as it is drawn."""
    sweep: Sweep | None = None
    """Values that are tried; the best on validation is kept."""
    train: TrainOverride = TrainOverride()
    """Training settings of this expert only."""

    def idle(self) -> dict[str, str]:
        """What its kind has no use for, what a trained expert's folder says already, and examples beside data."""
        of_trains = ("factors", "init") if self.kind != "tt_lora" else ()
        idle = dict.fromkeys(of_trains, "it goes with kind: tt_lora") | WITHOUT.get(self.kind, {})
        if self.kind != "ffn":
            idle["anchor"] = "it goes with kind: ffn"
        if self.kind != "ffn" or not self.path:
            idle["ignore_rest"] = "it goes with kind: ffn and path"
        of_folder = (*OF_ADAPTERS, "layers", "anchor", "train", "sweep") if self.path else ()
        idle |= dict.fromkeys(of_folder, "an expert with path is trained already: its folder says this")
        if not isinstance(self.data, LabelledData):
            idle["head"] = "only experts that classify have a head"
        elif self.path:
            idle["head"] = "an expert with path is trained already: its folder holds its head"
        for key in ("rank", "alpha", "targets"):
            if self.sweep and getattr(self.sweep, key):
                idle[key] = f"sweep.{key} stands in its place"
        return idle | ({"examples": "the router learns from data"} if self.data else {})

    @property
    def trials(self) -> list["Expert"]:
        """The expert with every combination of what its sweep tries, but for learning rates; itself without a sweep."""
        tried = {key: value for key, value in self.sweep or () if value and key != "lr"}
        combinations = product(*tried.values())
        return [self.model_copy(update=dict(zip(tried, values, strict=True))) for values in combinations]

    @property
    def scale(self) -> float:
        """What multiplies the product of its adapters."""
        if self.kind == "tt_lora":
            return 8.0 if self.alpha is None else self.alpha
        return 2.0 if self.alpha is None else self.alpha / self.rank

    @field_validator("layers")
    @classmethod
    def _range(cls, layers: str | None) -> str | None:
        try:
            layer_bounds(layers)
        except RecipeError as error:
            raise refusal(error) from None
        return layers

    @model_validator(mode="after")
    def _sweepable(self) -> "Expert":
        for key, values in self.sweep or ():
            if values and key in WITHOUT.get(self.kind, {}):
                raise refusal(RecipeError("has no effect here", hint=WITHOUT[self.kind][key]), "sweep", key)
        return self

    @model_validator(mode="after")
    def _factorised(self) -> "Expert":
        if not isinstance(self.factors, Mapping):
            return self
        if self.sweep and self.sweep.targets:
            error = RecipeError("factors by target do not go with targets that are tried", expected="auto or published")
            raise refusal(error, "factors")
        for target in self.factors:
            if target not in self.targets:
                error = RecipeError("no target of this expert", expected=f"one of {', '.join(self.targets)}")
                raise refusal(error, "factors", target)
        if missing := [target for target in self.targets if target not in self.factors]:
            raise refusal(RecipeError(f"no factors for {', '.join(missing)}", hint="name all targets"), "factors")
        return self

    @model_validator(mode="after")
    def _origin(self) -> "Expert":
        if not self.data and not self.path:
            raise refusal(
                RecipeError("neither data nor path", hint="give data to train on, or a trained adapter's path")
            )
        if not self.data and not self.examples:
            raise refusal(RecipeError("nothing to route by", hint="an expert with path needs data or examples"))
        return self


def _all_or_some(value: Any) -> str:
    return CASE + ("some" if isinstance(value, list) else "all")


class Texts(Section):
    """What the base, every expert and the mixture write after test prompts, greedily, and what it is held against."""

    metrics: Annotated[list[TextMetric], Distinct] = Field(default=["exact_match", "f1", "rouge", "bleu"], min_length=1)
    """How it is scored against the rows' responses; truth reads `correct_answers` and `incorrect_answers` too. All but
    exact_match and f1 need `pip install 'moesaic[metrics]'`."""
    limit: Count = 50
    """Rows of a domain at most."""
    max_new_tokens: Count = 64
    """Tokens to write at most."""


class Evaluate(Section):
    """What is measured, and beside what."""

    metrics: Annotated[list[Metric], Distinct] = Field(default=list(get_args(Metric)), min_length=1)
    """What is told beside nats per token: perplexity of every contender, accuracy of every router."""
    controls: Annotated[
        Annotated[Literal["all"], Tag(CASE + "all")] | Annotated[list[Control], Distinct, Tag(CASE + "some")],
        Discriminator(_all_or_some),
    ] = "all"
    """What the mixture is measured against."""
    unseen: Sources = Field(default=[])
    """Text of domains that no expert was trained on."""
    limit: Count = 200
    """Rows of a domain at most."""
    batch: Count = 16
    """Rows in a batch."""
    joint: TrainOverride = TrainOverride()
    """Training settings of the control `joint` only."""
    joint_wide: TrainOverride = TrainOverride()
    """Training settings of the control `joint_wide` only."""
    samples: Whole = 2
    """Generations that the report shows of a domain."""
    generate: Texts | None = None
    """What is written after test prompts, and scored."""
    matched: Count | None = None
    """Tokens from the middle of every test prompt by which routers are judged once more: then neither its length nor
    how it begins and ends says whose it is. Shorter prompts are left out."""


class Recipe(Section):
    """Everything that a run is made from."""

    name: Annotated[str, AfterValidator(_run_name)]
    """Name of the run, and of its folder."""
    seed: Whole = 0
    """Where all randomness starts."""
    workers: Annotated[Count, Field(le=64)] = 2
    """Trainings side by side, each with one thread, one in this very process; threads of the base's own training."""
    checkpoint_seconds: Amount = 30.0
    """Seconds between two saves of a training's state, more where saving takes long; 0: every step."""
    bad_rows: Literal["stop", "skip"] = "stop"
    """What a row that cannot be used does: it stops the run, or it is left out and listed in rejects.jsonl."""
    max_bad: Whole = 100
    """Rows of all files that may be left out with `bad_rows: skip`; one more stops the run."""
    data_root: Text | None = None
    """Folder that sources are relative to, itself relative to the recipe's; the recipe's where none is given."""
    base: Base
    """The model that the experts share."""
    train: Train = Train()
    """How experts are trained."""
    experts: Annotated[dict[str, Expert], Field(min_length=1)]
    """The experts, by name."""
    router: Router
    """Who decides between them."""
    mixture: Mixture = Field(default=Mixture(), validate_default=True)
    """How they are mixed."""
    evaluate: Evaluate = Evaluate()
    """How all of it is measured."""

    def idle(self) -> dict[str, str]:
        """How many bad rows there may be, where the first one stops the run."""
        return {"max_bad": "it goes with bad_rows: skip"} if self.bad_rows == "stop" else {}

    def train_of(self, name: str) -> Train:
        """The settings of one training: an expert's, or those of the control `joint` or `joint_wide`.

        Where a control's steps are not written, it has as many as all experts with data together.
        """
        if name in self.experts:
            return self.experts[name].train.over(self.train)
        if name not in ("joint", "joint_wide"):
            trained = [*self.experts, "joint", "joint_wide"]
            raise RecipeError(f"nothing called '{name}' is trained", hint=nearest(name, trained))
        steps = sum(self.train_of(expert).steps for expert in self.experts if self.experts[expert].data)
        if not steps:
            raise RecipeError(f"{name} has nothing to train on: no expert has data")
        override = self.evaluate.joint if name == "joint" else self.evaluate.joint_wide
        return override.over(self.train.model_copy(update={"steps": steps}))

    @property
    def places(self) -> dict[str, str]:
        """Where the models that it names lie, by the key that says so."""
        found = {"base.path": self.base.path} if isinstance(self.base, ExistingBase) else {}
        found |= {f"experts.{name}.path": expert.path for name, expert in self.experts.items() if expert.path}
        for index, spec in enumerate([self.router, *self.router.compare]):
            if isinstance(spec.feature, EncoderFeature):
                key = f"router.compare[{index - 1}]" if index else "router"
                found[f"{key}.feature.model"] = spec.feature.model
        return found

    def resolve(self, path: str) -> Path:
        """Where a source's file is."""
        return Path(self.data_root or "", os.path.expanduser(path))

    @field_validator("experts")
    @classmethod
    def _names(cls, experts: dict[str, Expert]) -> dict[str, Expert]:
        seen: dict[str, str] = {}
        for name in experts:
            try:
                validate_expert(name, seen)
            except RecipeError as error:
                raise refusal(error, name) from None
        return experts

    @field_validator("mixture")
    @classmethod
    def _where(cls, mixture: Mixture, info: Any) -> Mixture:
        """The site of the experts' kind, where none is given; what does not go with it is found by `_legal`."""
        experts = info.data.get("experts")
        if mixture.site or not experts:
            return mixture
        return mixture.model_copy(update={"site": LEGAL[next(iter(experts.values())).kind][0]})

    @property
    def site(self) -> Site:
        """Where the experts meet."""
        return site_of_kinds(self.kinds)

    @property
    def kinds(self) -> dict[str, Kind]:
        """What each expert is made of."""
        return {name: expert.kind for name, expert in self.experts.items()}

    @property
    def trained_controls(self) -> tuple[Literal["joint", "joint_wide"], ...]:
        """The controls that are trained like an expert; no whole model is as large as several and of their kind."""
        return ("joint",) if self.site == "model" else ("joint", "joint_wide")

    @model_validator(mode="after")
    def _legal(self) -> "Recipe":
        site = self.site
        require_legal(self.kinds, self.mixture)
        if "combine" in self.mixture.model_fields_set and (why := self.mixture.idle().get("combine")):
            raise refusal(RecipeError("has no effect here", hint=why), "mixture", "combine")
        require_routable(self.router, site, self.mixture.level)
        what = "no whole model is as large as several of them and of the same kind"
        if "joint_wide" not in self.trained_controls:
            if any(value is not None for _, value in self.evaluate.joint_wide):
                raise refusal(RecipeError("has no effect here", hint=what), "evaluate", "joint_wide")
            if "joint_wide" in self.evaluate.controls and self.evaluate.controls != "all":
                place = self.evaluate.controls.index("joint_wide")
                raise refusal(RecipeError("cannot be computed", hint=what), "evaluate", "controls", place)
        return self

    @property
    def labelled(self) -> bool:
        """Whether its experts classify; otherwise all of them write."""
        return any(isinstance(expert.data, LabelledData) for expert in self.experts.values())

    @model_validator(mode="after")
    def _alike(self) -> "Recipe":
        """Experts that classify and experts that write cannot be mixed, nor is text judged beside labels."""
        if not self.labelled:
            if isinstance(self.base, ExistingBase) and self.base.pool:
                error = RecipeError("has no effect here", hint="it goes with rows that have labels")
                raise refusal(error, "base", "pool")
            return self
        for name, expert in self.experts.items():
            if self.site != "linear":
                what, hint = f"{expert.kind} experts do not classify", "give data without task, columns or label"
                raise refusal(RecipeError(what, expected="lora or tt_lora", hint=hint), "experts", name, "kind")
            if not isinstance(expert.data, LabelledData):
                other = next(n for n, e in self.experts.items() if isinstance(e.data, LabelledData))
                what = f"'{other}' classifies rows with labels, and '{name}' has none"
                hint = "give all experts data with task, or with columns and label, or none of them"
                raise refusal(RecipeError(what, hint=hint), "experts", name, "data" if expert.data else "examples")
        if isinstance(self.base, NewBase):
            hint = "name a trained encoder or decoder: base: {path: ...}"
            raise refusal(RecipeError("a base for rows with labels is not pretrained here", hint=hint), "base", "size")
        if self.evaluate.matched:
            error = RecipeError(
                "has no effect here", hint="it goes with prompts of texts, not with rows that have labels"
            )
            raise refusal(error, "evaluate", "matched")
        if self.evaluate.unseen:
            error = RecipeError("text without labels cannot be judged beside rows that have some")
            raise refusal(error, "evaluate", "unseen")
        return self

    @model_validator(mode="after")
    def _routable(self) -> "Recipe":
        depth, feature = self.router.depth or 0, self.router.feature
        for name, expert in self.experts.items():
            start, _ = layer_bounds(expert.layers)
            if start < depth and not expert.path:
                touches = "adapts" if self.site == "linear" else "has blocks of"
                what = f"expert '{name}' {touches} layers from {start}, but the router reads {feature}"
                raise refusal(RecipeError(what, hint=f"set layers: {depth}.."), "experts", name, "layers")
        for index, spec in enumerate([self.router, *self.router.compare]):
            if spec.k is not None and spec.k > len(self.experts):
                at = ("compare", index - 1) if index else ()
                error = RecipeError("more experts than there are", expected=f"at most {len(self.experts)}", got=spec.k)
                raise refusal(error, "router", *at, "k")
            if spec.init and spec.kind == "mlp" and min(spec.hidden) < 2 * len(self.experts):
                at = ("compare", index - 1) if index else ()
                expected = f"at least {2 * len(self.experts)} in every layer, two for each expert"
                error = RecipeError("too narrow to begin at centroids", expected=expected, got=spec.hidden)
                raise refusal(error, "router", *at, "hidden")
        return self
